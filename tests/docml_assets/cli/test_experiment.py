"""How it behaves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from docml_assets.cli import cli, main
from docml_assets.cli.experiment import find_oddities, label_counts
from docml_assets.experiment.folder import ExperimentFolder
from docml_assets.experiment.scaffold import new_experiment
from resources.label_values import look_alikes
from tests.docml_assets.experiment.experiments import settings_text, write_experiment


def test_new_writes_a_folder_and_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCML_EXPERIMENTS", str(tmp_path / "here"))
    result = CliRunner().invoke(cli, ["new", "EXP-5"])
    assert result.exit_code == 0
    assert "docml validate EXP-5" in result.output
    assert sorted(path.name for path in (tmp_path / "here" / "EXP-5").iterdir()) == [
        "settings.ini",
        "user_defined_funcs.py",
    ]


def test_the_default_place_is_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCML_EXPERIMENTS", raising=False)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["new", "EXP-5", "--model", "roberta-base"])
    assert result.exit_code == 0
    assert result.output.startswith(f"{tmp_path.resolve() / 'experiments' / 'EXP-5'}: wrote settings.ini and")
    assert "roberta-base" in (tmp_path / "experiments" / "EXP-5" / "settings.ini").read_text()


@pytest.mark.parametrize("name", ["a b", "../EXP", "EXP-5"])
def test_what_cannot_be_made_is_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCML_EXPERIMENTS", str(tmp_path))
    (tmp_path / "EXP-5").mkdir()
    with pytest.raises(SystemExit) as exit_:
        main(["new", name])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("docml: ")
    assert [path.name for path in tmp_path.iterdir()] == ["EXP-5"]


ROOT = Path(__file__).parents[3]

SETTINGS = """\
[settings]
MODEL_NAMES = a_b
RUN_TRAINING = treu
RUN_NUM = 0
LABEL_QUERY = SELECT artifact_guid, label, file_hash FROM t
FILES_FROM_PROD = raw_text.json, ../x
MODEL_INPUT_FILES = words.json
SPLIT = 0.8, 0.1, 0.2
TRAINING_INSTANCE_TYPE = g5.xlarge
[hyperparameters]
epoch = 3
learning_rate = fast
db = postgresql://u:geheim42@h/x
[tunable]
weight_decay = 1 -> 0
"""
FUNCTIONS = """\
PADDING = {"a": PAD}
def encode_data(context): ...
def load_model(model_name, context):
    pass
"""


def validate(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("DOCML_", "FORCE_COLOR", "NO_COLOR"))
    }
    command = [sys.executable, "-c", "from docml_assets.cli import main; main()", "validate", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={
            **environment,
            **variables,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'trainer_image'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
    )


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_dozen_mistakes_at_once_without_colours_or_traces(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "EXP-9"
    folder.mkdir(parents=True)
    (folder / "settings.ini").write_text(SETTINGS)
    (folder / "user_defined_funcs.py").write_text(FUNCTIONS)
    before = tree(tmp_path)
    result = validate(tmp_path, "EXP-9")
    assert result.returncode == 1
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert "geheim42" not in result.stdout
    for line in (2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15):
        assert f"experiments/EXP-9/settings.ini:{line}\n" in result.stdout
    for line in (1, 2, 3):
        assert f"experiments/EXP-9/user_defined_funcs.py:{line}\n" in result.stdout
    assert (
        result.stdout.count("  found     ")
        == result.stdout.count("  expected  ")
        == result.stdout.count("  remedy    ")
    )
    assert result.stdout.endswith(f"EXP-9: {result.stdout.count('  found     ')} problems\n")
    assert tree(tmp_path) == before


def test_a_right_experiment_by_name_and_by_path(tmp_path: Path) -> None:
    new_experiment(tmp_path / "experiments" / "EXP-1", None)
    before = tree(tmp_path)
    for argument in ("EXP-1", "experiments/EXP-1", "experiments/EXP-1/"):
        result = validate(tmp_path, argument)
        assert (result.returncode, result.stderr) == (0, "")
        *lines, labels = result.stdout.splitlines()
        assert lines == [
            "EXP-1: nothing wrong",
            "run 1: reconciliation, preparation, training, inference",
            "models: averaged-words",
            "jobs: 2 (preparation 1, training 1)",
            "expected: not known: no earlier run had a job like those of preparation",
        ]
        assert re.fullmatch(r"labels: \d+ in \d+ rows: \S+ \d+, .*", labels)
    assert tree(tmp_path) == before


def oddities(tmp_path: Path, settings: str, rows: dict[str, list[str | None]]) -> list[tuple[int, str]]:
    query = f"LABELS_QUERY = SELECT artifact_guid, file_hash, {', '.join(rows)} FROM t\n"
    folder = ExperimentFolder.load(write_experiment(tmp_path, settings=settings_text(query + settings)))
    table = pa.table({name: pa.array(values, pa.string()) for name, values in rows.items()})
    return [(problem.line, problem.found) for problem in find_oddities(folder, table, label_counts(table))]


def test_names_that_no_row_has_are_said_at_their_line(tmp_path: Path) -> None:
    rows: dict[str, list[str | None]] = {
        "label": ["memo", "letter", "invoice, paid", None],
        "Customer": ["a", "a", "b", "b"],
    }
    assert oddities(tmp_path, "IGNORED_LABELS = memo\nSPLIT_BY = customer", rows) == []
    found = oddities(tmp_path, 'IGNORED_LABELS = Memo, invoice, "invoice, paid"\nSPLIT_BY = customer', rows)
    assert found == [(6, "IGNORED_LABELS with 'Memo' (did you mean 'memo'?), 'invoice', which no row has")]


def test_numbers_are_the_labels_that_a_run_makes_of_them() -> None:
    counts = label_counts(pa.table({"label": [1.0, 1.0, 2.5, float("nan"), None]}))
    assert counts == {"1.0": 2, "2.5": 1}
    assert look_alikes([*counts, "1", "01", "1.10", "1.1"]) == [("1", "1.0")]


def test_labels_that_look_alike_or_are_too_few_are_said(tmp_path: Path) -> None:
    found = oddities(tmp_path, "NUM_LABELS_THRESHOLD = 2", {"label": ["memo", "memo", "Memo"]})
    assert found == [
        (5, "labels that look the same: 'Memo' = 'memo'"),
        (5, "1 label that neither IGNORED_LABELS nor NUM_LABELS_THRESHOLD leaves out"),
    ]


def test_labels_that_may_say_that_there_is_none_are_said(tmp_path: Path) -> None:
    rows: dict[str, list[str | None]] = {"label": ["memo", "N/A", "nan", "nano", "0", None]}
    assert oddities(tmp_path, "", rows) == [(5, "labels that may say that there is none: 'N/A', 'nan'")]
    assert oddities(tmp_path, "IGNORED_LABELS = N/A, nan", rows) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [(["a", "b", "c"], "another value in every row"), ([None, None, None], "no value in every row")],
)
def test_a_column_that_groups_nothing_is_said(tmp_path: Path, values: list[str | None], said: str) -> None:
    ((line, found),) = oddities(tmp_path, "SPLIT_BY = customer", {"label": ["x", "y", "x"], "customer": values})
    assert line == 6
    assert said in found


def test_a_database_that_does_not_answer_is_no_mistake(tmp_path: Path) -> None:
    new_experiment(tmp_path / "experiments" / "EXP-1", None)
    result = validate(tmp_path, "EXP-1", DOCML_LABELS_URL=f"sqlite:///{tmp_path}/none.sqlite")
    assert result.returncode == 0
    assert "labels: not looked at: " in result.stdout


def test_what_does_not_exist(tmp_path: Path) -> None:
    result = validate(tmp_path, "EXP-9")
    assert result.returncode == 1
    assert "docml new EXP-9" in result.stdout
    assert validate(tmp_path, "a|b").returncode == 1
    assert validate(tmp_path).returncode == 2


def test_neither_dagster_nor_the_trainer_is_loaded(tmp_path: Path) -> None:
    new_experiment(tmp_path / "experiments" / "EXP-1", None)
    code = (
        "import sys; from docml_assets.cli import cli; cli.main(['validate', 'EXP-1'], standalone_mode=False); "
        "print([name for name in ('dagster', 'torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'trainer_image'}",
            "DOCML_LABELS_URL": f"sqlite:///{tmp_path}/none.sqlite",  # a look at labels loads pandas, through Arrow
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"
