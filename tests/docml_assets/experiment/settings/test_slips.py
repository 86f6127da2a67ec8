"""Settings as people write them: with one slip of the pen each, a file is understood as meant, or refused at its line."""

from typing import Any

import pytest

from docml_assets.errors import SettingsError
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_contract.hyperparameters import Choice
from tests.docml_assets.experiment.experiments import SETTINGS, settings_text


def parse(text: str) -> Settings:
    return parse_settings(text, "settings.ini")


UNDERSTOOD: list[tuple[str, str, str, Any]] = [  # lines of [settings], of [hyperparameters], attribute, value
    ('WANDB_PROJECT = "docs"', "", "wandb_project", "docs"),
    ("WANDB_PROJECT = 'docs'", "", "wandb_project", "docs"),
    ("FILES_FROM_PROD = \"raw_text.json\", 'page 1.png'", "", "files_from_prod", ("raw_text.json", "page 1.png")),
    ('RUN_NUM = "3"', "", "run_num", 3),
    ('RUN_INFERENCE = "false"', "", "run_inference", False),
    ('IGNORED_LABELS = "invoice, paid", other', "", "ignored_labels", ("invoice, paid", "other")),
    ('IGNORED_LABELS = "other?", "19"" rack"', "", "ignored_labels", ("other?", '19" rack')),
    ('IGNORED_LABELS = "No. # 3", driver\'s licence', "", "ignored_labels", ("No. # 3", "driver's licence")),
    (
        "IGNORED_LABELS =\n  other,\n  # a comment on its own line\n  unknown,",
        "",
        "ignored_labels",
        ("other", "unknown"),
    ),
    ('IGNORED_LABELS = "none"', "", "ignored_labels", ("none",)),
    ("IGNORED_LABELS = None", "", "ignored_labels", ()),
    ("IGNORED_LABELS\t=\tother,\tunknown", "", "ignored_labels", ("other", "unknown")),
    ("USE_CASE = none", "", "use_case", "classification"),
    ("SPLIT = none", "", "split", (0.8, 0.1, 0.1)),
    ('WANDB_ENTITY = "null"', "", "wandb_entity", "null"),
    ("IGNORED_LABELS = null, n/a", "", "ignored_labels", ("null", "n/a")),
    ("", 'separator = "~"', "separator", "~"),
    ("", "started = 2024-01-01", "started", "2024-01-01"),
    ("", "folder = 2024/invoices", "folder", "2024/invoices"),
    ("", "gradient_checkpointing = yes", "gradient_checkpointing", True),
    ("FILES_ON_RESEARCH = none", "", "files_on_research", ("raw_text.json",)),
    ("FILES_OPTIONAL = none", "", "files_optional", ()),
    ("NUM_LABELS_THRESHOLD = none", "", "num_labels_threshold", 0),
    ("ENCODED_DATA_DIR = none", "", "encoded_data_dir", "full_dataset"),
    ("WANDB_PROJECT = none", "", "wandb_project", "docml"),
    ("PREPARATION_PROCESSES = none", "", "preparation_processes", None),
    ("DOCKER_IMAGE = NONE", "", "docker_image", None),
    ('METRIC_DEFINITIONS = \'{"a": "a=([0-9.]+) # "}\'', "", "metric_definitions", (("a", "a=([0-9.]+) # "),)),
    (
        "LABELS_QUERY = SELECT artifact_guid, label, -- the # of it\n  file_hash\n  FROM labels WHERE label <> 'a ; b # c'",
        "",
        "labels_query",
        "SELECT artifact_guid, label, -- the # of it\nfile_hash\nFROM labels WHERE label <> 'a ; b # c'",
    ),
    (
        "LABELS_QUERY = 'SELECT artifact_guid, label, file_hash FROM labels'",
        "",
        "labels_query",
        "SELECT artifact_guid, label, file_hash FROM labels",
    ),
    ("", "early_stopping_patience = None", "early_stopping_patience", None),
    ("", "lr_scheduler = 'cosine'", "lr_scheduler", "cosine"),
    ("", 'tokenizer = "bert"', "tokenizer", "bert"),
    ("", "tokenizer = 'C:\\temp\\new'", "tokenizer", "C:\\temp\\new"),
    ("", "tokenizer = C:\\temp\\new", "tokenizer", "C:\\temp\\new"),
    ("", 'revision = "1234e5"', "revision", "1234e5"),
    ("", "prompt = 'What is it? # 1'", "prompt", "What is it? # 1"),
    ("", 'separator = "\\n"', "separator", "\n"),
    ("", 'layers = [1, 2, "a # b"]', "layers", [1, 2, "a # b"]),
]


@pytest.mark.parametrize(("settings", "hyperparameters", "attribute", "value"), UNDERSTOOD)
def test_understood(settings: str, hyperparameters: str, attribute: str, value: Any) -> None:
    found = parse(settings_text(settings, hyperparameters))
    assert {**dict(found), **found.hyperparameters}[attribute] == value


REFUSED = [  # lines of [settings], which begin on line 6, and what is said
    ("WANDB_PROJECT = docs ; team", "a comment after the value"),
    ("IGNORED_LABELS = other # for now", "a comment after the value"),
    ("IGNORED_LABELS = # none yet", "a comment after the value"),
    ('IGNORED_LABELS = "other" ; for now', "a comment after the value"),
    ("RUN_INFERENCE = true ; x", "a comment after the value"),
    ("SPLIT_BY = customer // not yet", "a comment after the value"),
    ("IGNORED_LABELS = a; b", "a semicolon or a tab"),
    ("IGNORED_LABELS = a\tb", "a semicolon or a tab"),
    ('IGNORED_LABELS = ["a", "b"]', "a list in brackets"),
    ('FILES_OPTIONAL = ["raw_text.json"]', "a list in brackets"),
    ('IGNORED_LABELS = "a, b', "a quote without its end"),
    ('IGNORED_LABELS = "a" and "b"', "quotes that are not around an item"),
    ('IGNORED_LABELS = """a"""', "a quote without its end"),
    ("IGNORED_LABELS = \u201cother\u201d", "typographic quotes"),
    ("IGNORED_LABELS = a, `other`, b", "typographic quotes"),
    ("IGNORED_LABELS = other*", "a pattern"),
    ("SPLIT_BY = customer*", "a pattern"),
    ("WANDB_PROJECT = docs[12]", "a pattern"),
    ("FILES_OPTIONAL = raw_text.json page.png", "several names in one"),
    ('FILES_OPTIONAL = "raw_text.json, page.png"', "several names in one"),
    ("IGNORED_LABELS = other\n  RUN_NUM = 2", "RUN_NUM inside of it"),
    ("IGNORED_LABELS = other RUN_NUM = 2", "RUN_NUM inside of it"),
    ("IGNORED_LABELS == other", "a second '='"),
    ("IGNORED_LABELS = bank\u00a0statement", "the character U+00A0"),
    ("IGNORED_LABELS = other\u200b", "the character U+200B"),
    ("IGNORED_LABELS = a,\u2028 b", "the character U+2028"),
    ("IGNORED_LABELS = a, \\\n  b", "a backslash at a line's end"),
    ("RUN_NUM: 2", "found RUN_NUM: 2"),
    ("run_num = 2", "keys of [settings] are upper-case"),
    ("SPLIT = 0,8, 0,1, 0,1", "found SPLIT"),
    ("NEAR_DUPLICATE_THRESHOLD = none", "1 turns it off"),
    ("RUN_TRAINING = none", "neither true nor false"),
    ("MAX_ARTIFACTS = 1.000", "a point as a thousands separator"),
    ("SPLIT_SEED = 10.000", "a point as a thousands separator"),
    ("DOCKER_IMAGE = null", "what other formats write for nothing"),
    ("WANDB_ENTITY = ~", "what other formats write for nothing"),
    ("SPLIT = 80/10/10", "found SPLIT = 80/10/10; expected three shares"),
    ("SPLIT = 0.8, 0.1", "found SPLIT = 0.8, 0.1; expected three shares"),
    ("SPLIT = 80%, 10%, 10%", "found SPLIT = 80%, 10%, 10%; expected three shares"),
    ("IGNORED_LABELS = a, b, a", "found IGNORED_LABELS = a, b, a (a more than once)"),
    ('METRIC_DEFINITIONS = {"a": "a=(.*)", "a": "b=(.*)"}', "a more than once"),
    ("FILES_OPTIONAL = page_[^0].png", "'[!' stands for all but these"),
    ("DOCKER_IMAGE = https://registry.example/docml:1", "an image URI"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_refused_at_its_line(settings: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(settings_text(settings))
    (problem,) = caught.value.problems
    assert problem.line == 6
    assert said in str(problem)


REFUSED_QUERIES = [
    ("SELECT artifact_guid, label, file_hash FROM labels # all of them", "a comment after the value"),
    ("SELECT artifact_guid, label, file_hash FROM labels ; all of them", "a comment after the value"),
    ("SELECT artifact_guid, label, file_hash FROM labels WHERE label <> \u2018x\u2019", "typographic quotes"),
    ("SELECT artifact_guid, label,\u00a0file_hash FROM labels", "the character U+00A0"),
    ("SELECT artifact_guid, label, file_hash FROM labels\n  RUN_NUM = 2", "RUN_NUM inside of it"),
]


@pytest.mark.parametrize(("query", "said"), REFUSED_QUERIES)
def test_a_query_is_refused_at_its_line(query: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(settings_text(f"LABELS_QUERY = {query}"))
    (problem,) = caught.value.problems
    assert problem.line == 5
    assert said in str(problem)


REFUSED_HYPERPARAMETERS = [
    ("max_length = 128 ; tokens", "a comment after the value"),
    ("epochs = 3 # few", "a comment after the value"),
    ("max_length = 1,024", "nearly a number"),
    ("dropout = .5", "nearly a number"),
    ("dropout = 0,5", "nearly a number"),
    ("dropout = 10%", "nearly a number"),
    ("max_length = 1_000", "nearly a number"),
    ("revision = 1234e5", "nearly a number"),
    ("code = 0012", "nearly a number"),
    ("layers = 1, 2, 3", "nearly a number"),
    ("bound = NaN", "nearly a number"),
    ("lower = Yes", "read as a text"),
    ("lower = off", "read as a text"),
    ("value = None", "read as a text"),
    ("value =", "nothing behind the '='"),
    ("layers = [1, 2", "not JSON"),
    ('tokenizer = "C:\\temp\\new"', "backslashes in double quotes"),
    ("tokenizer = \u201cbert\u201d", "typographic quotes"),
    ("tokenizer = bert\n  mine = 3", "mine inside of it"),
    ("tokenizer == bert", "a second '='"),
    ("IGNORED_LABELS = other", "move it up into [settings]"),
    ("run_num = 2", "move it up into [settings]"),
    ("lr = 1e-3", "did you mean learning_rate?"),
    ("batch_size = 8", "did you mean train_batch_size?"),
    ("num_epochs = 3", "did you mean epochs?"),
    ("warmup_steps = 100", "did you mean warmup_ratio?"),
    ("epochs = true", "not a switch"),
    ("learning_rate = true", "not a switch"),
    ('"epochs" = 3', "a key without quotes"),
    ("small.epochs = 3", "epochs, in [hyperparameters.small]"),
    ("hyperparameters.epochs = 3", "epochs, in [hyperparameters];"),
    ("Max-Length = 256", "max_length, which the platform reads too"),
    ("dropout = \u22125", "nearly a number"),
    ("dropout = 1/3", "nearly a number"),
    ("layers = (1, 2)", "nearly a number"),
    ("layers = 1 2 3", "nearly a number"),
    ("limit = 10 000", "nearly a number"),
    ("limit = 128#tokens", "nearly a number"),
    ("limit = 3;", "nearly a number"),
    ("limit = ~", "other formats write for nothing"),
    ("limit = nil", "other formats write for nothing"),
    ('title = "a"b', "quotes that are not around all of it"),
    ("max_length = 512 tokens", "a whole number from 1"),
    ("max_length = 512.0", "a whole number from 1"),
    ("max_length = -1", "a whole number from 1"),
    ("x = 1e400", "a number larger than any"),
    ("x = -1e999", "a number larger than any"),
    ("x = 1" + "0" * 400, "a number larger than any"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED_HYPERPARAMETERS)
def test_a_hyperparameter_is_refused_at_its_line(line: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(settings_text("", line))
    (problem,) = caught.value.problems
    assert problem.line == 8
    assert said in str(problem)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x = 1 \u2192 3", "an interval is written with ->"),
        ("x = 1e-6 to 1e-4", "an interval is written with ->"),
        ("x = 1 - 3", "an interval is written with ->"),
        ("x = [8, 16]", "a list in brackets"),
        ("x = 8; 16", "a semicolon"),
        ("x = 8 16 32", "nearly a number"),
        ("x = 8|16", "nearly a number"),
        ("x = (8, 16)", "nearly a number"),
        ("x = a, ~", "other formats write for nothing"),
        ("x = 8, 16 # few", "a comment after the value"),
        ("x = yes, no", "read as a text"),
        ("x = 1e400, 1", "a number larger than any"),
        ("max_length = 128, 512.0", "whole numbers from 1"),
        ("max_length = 0 -> 512", "whole numbers from 1"),
        ("max_length = 64.5 -> 512", "whole numbers from 1"),
        ("max_length = short, long", "whole numbers from 1"),
    ],
)
def test_a_range_is_refused_at_its_line(line: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(settings_text("", "", line))
    (problem,) = caught.value.problems
    assert problem.line == 10
    assert said in str(problem)


def test_quoted_choices_are_texts() -> None:
    assert parse(settings_text("", "", "x = \"a, b\", 'c', 3")).tunable == {"x": Choice(values=("a, b", "c", 3))}


@pytest.mark.parametrize("line", ["[settings] ; main", "[Settings]", "[setings]"])
def test_a_wrong_section_is_one_problem(line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(SETTINGS.replace("[settings]", line))
    assert [problem.line for problem in caught.value.problems] == [1]


def test_names_of_other_libraries_stay_in_runs_that_have_them() -> None:
    text = settings_text("", "lr = 1e-3\nmax_length = 512.0")
    assert parse_settings(text, "f", dialect=2).own_hyperparameters == {"lr": 1e-3, "max_length": 512.0}


def test_slips_that_were_not_refused_once_stay_what_they_were() -> None:
    text = settings_text(
        "WANDB_ENTITY = ~", "epochs = true\nsmall.epochs = 3\nlimit = 10 000\nMax-Length = 5", "x = 8 16"
    )
    found = parse_settings(text, "f", dialect=3)
    assert (found.wandb_entity, found.hyperparameters["epochs"]) == ("~", 1)
    assert found.own_hyperparameters == {"small.epochs": 3, "limit": "10 000", "Max-Length": 5}
    assert found.tunable == {"x": Choice(values=("8 16",))}


def test_runs_that_were_claimed_before_keep_their_values() -> None:
    text = settings_text(
        'IGNORED_LABELS = "a", b ; c\nWANDB_PROJECT = "docs"', "mine = 128 ; tokens\nother = Yes", "x = 'a', 8"
    )
    before = parse_settings(text, "f", dialect=1)
    assert (before.ignored_labels, before.wandb_project) == (('"a"', "b ; c"), '"docs"')
    assert before.own_hyperparameters == {"mine": "128 ; tokens", "other": "Yes"}
    assert before.tunable == {"x": Choice(values=("'a'", 8))}
