import pytest

from docml_assets.errors import SettingsError
from docml_assets.experiment.settings.rules import query_problems
from docml_assets.experiment.settings.settings import parse_settings
from docml_contract.log_lines import TRAINER_METRICS
from tests.docml_assets.experiment.experiments import settings_text


def complaint(settings: str, tunable: str = "") -> str:
    """The one problem of these settings."""
    with pytest.raises(SettingsError) as caught:
        parse_settings(settings_text(settings, tunable=tunable), "f")
    (problem,) = caught.value.problems
    assert problem.line > 1
    return str(problem)


@pytest.mark.parametrize(
    ("settings", "tunable", "expected"),
    [
        ("RUN_TUNING = true", "x = 1, 2", "RUN_TRAINING and RUN_TUNING both on"),
        (
            "FILES_ON_RESEARCH = other.json\nMODEL_INPUT_FILES = other.json",
            "",
            "FILES_ON_RESEARCH without raw_text.json",
        ),
        ("MODEL_INPUT_FILES = other.json", "", "other.json, which no artifact needs to have"),
        ("SEEDS = 14", "", "one says nothing about the spread; write seed = 14 under [hyperparameters]"),
        ("SEEDS = 13, 13", "", "13 more than once"),
        ("SEEDS = 13, 013", "", "13 more than once"),
        ("SEEDS = 13, -1", "", "whole numbers from 0"),
        (
            "RUN_TRAINING = false\nRUN_TUNING = true\nSEEDS = 1, 2",
            "x = 1, 2",
            "SEEDS with RUN_TUNING = true",
        ),
        (
            "RUN_TRAINING = false\nRUN_TUNING = true\nLEARNING_CURVE = true",
            "x = 1, 2",
            "LEARNING_CURVE with RUN_TUNING = true",
        ),
        (
            "USE_DISTRIBUTED = true\nTRAINING_INSTANCE_COUNT = 2\nLEARNING_CURVE = true",
            "",
            "LEARNING_CURVE with TRAINING_INSTANCE_COUNT = 2",
        ),
        ("SPLIT = 0.8, 0.1, 0.2", "", "sum 1.1"),
        ("SPLIT = 0.9, 0.1, 0", "", "above 0"),
        ("SPLIT = 1.2, -0.1, -0.1", "", "above 0"),
        ("SPLIT = nan, 0.5, 0.5", "", "SPLIT = nan"),
        ("SPLIT_BY = label", "", "SPLIT_BY = label"),
        ("LABELS_QUERY = DELETE FROM t", "", "DELETE statement"),
        ("PREDICT_QUERY = DELETE FROM t", "", "DELETE statement"),
        ("PREDICT_QUERY = SELECT label FROM t", "", "a query without the column artifact_guid"),
        ("RUN_TRAINING = false\nRUN_TUNING = true", "", "without anything in [tunable]"),
        ("MAX_PARALLEL_JOBS = 11", "", "MAX_PARALLEL_JOBS = 11 with MAX_JOBS = 10"),
        ("TUNING_STRATEGY = Grid", "x = 1 -> 2", "a grid cannot go through an interval"),
        ("TUNING_STRATEGY = grid\nMAX_JOBS = 5", "x = 1, 2\ny = 1, 2, 3", "a grid of 6 trials"),
        ('METRIC_DEFINITIONS = {"m": "m=.*"}', "", "0 capture groups"),
        ('METRIC_DEFINITIONS = {"m": "(a)(b)"}', "", "2 capture groups"),
        ('METRIC_DEFINITIONS = {"m": "("}', "", "no regular expression"),
        ('METRIC_DEFINITIONS = {"": "(a)"}', "", "an empty name"),
        ('METRIC_DEFINITIONS = {"m": "(' + "a" * 500 + ')"}', "", "502 characters"),
        ("OBJECTIVE_METRIC_NAME = other", "", "which nothing reads from the log"),
        ("TRAINING_USE_SPOT = true\nTRAINING_MAX_WAIT_SECONDS = 100", "", "TRAINING_MAX_WAIT_SECONDS = 100"),
        ("TRAINING_MAX_WAIT_SECONDS = 100000", "", "without spot"),
        ("TRAINING_USE_SPOT = true\nTRAINING_KEEP_ALIVE_SECONDS = 60", "", "no warm pool with spot"),
        ("TRAINING_INSTANCE_COUNT = 2", "", "USE_DISTRIBUTED = false"),
    ],
)
def test_broken_rules(settings: str, tunable: str, expected: str) -> None:
    assert expected in complaint(settings, tunable)


@pytest.mark.parametrize(
    ("settings", "tunable"),
    [
        ("RUN_TRAINING = false\nRUN_TUNING = true", "learning_rate = 1e-6 -> 1e-4"),
        ("FILES_ON_RESEARCH = raw_text.json, words.json\nMODEL_INPUT_FILES = words.json", ""),
        ("SPLIT = 0.6, 0.15, 0.25", ""),
        ("SPLIT_BY = customer\nLABELS_QUERY = SELECT artifact_guid, label, file_hash, customer FROM t", ""),
        ("TUNING_STRATEGY = Grid\nMAX_JOBS = 6", "x = 1, 2\ny = 1, 2, 3"),
        ('METRIC_DEFINITIONS = {"mine": "mine=([0-9.]+)"}\nOBJECTIVE_METRIC_NAME = mine', ""),
        ("OBJECTIVE_METRIC_NAME = valid_loss\nOBJECTIVE_TYPE = minimize", ""),
        *((f"OBJECTIVE_METRIC_NAME = {name}", "") for name in TRAINER_METRICS),
        ("TRAINING_USE_SPOT = true\nTRAINING_MAX_WAIT_SECONDS = 86400", ""),
        ("USE_DISTRIBUTED = true\nTRAINING_INSTANCE_COUNT = 2", ""),
    ],
)
def test_rules_that_hold(settings: str, tunable: str) -> None:
    assert parse_settings(settings_text(settings, tunable=tunable), "f")


def test_a_rule_keeps_silent_where_it_reads_a_wrong_key() -> None:
    assert "FILES_FROM_PROD" in complaint("FILES_FROM_PROD = a/b")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM t",
        "SELECT t.*, x FROM t",
        "select artifact_guid, label, sha AS file_hash from t where label like '%a;b%';",
        "WITH x AS (SELECT 1) SELECT artifact_guid, label, file_hash FROM x",
        "SELECT artifact_guid, label, file_hash FROM a UNION ALL SELECT a, b, c FROM d -- more",
        "(SELECT artifact_guid, label, file_hash FROM t)",
        "SELECT \"artifact_guid\", d->>'label' AS label, file_hash FROM t",
        "SELECT TOP 3 artifact_guid, label, file_hash FROM [t]",
    ],
)
def test_right_queries(query: str) -> None:
    assert [*query_problems(query, None)] == []


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("DELETE FROM t", "DELETE statement"),
        ("SELECT 1; DROP TABLE t", "2 statements"),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "DELETE"),
        ("", "0 statements"),
        ("SELECT artifact_guid FROM", "not readable"),
        ("SELECT artifact_guid, label FROM t", "without the column file_hash"),
        ("SELECT label FROM t", "without the columns artifact_guid, file_hash"),
    ],
)
def test_wrong_queries(query: str, complaint: str) -> None:
    ((found, expected, remedy),) = query_problems(query, None)
    assert complaint in found
    assert expected
    assert remedy


def test_split_by_is_one_of_the_columns() -> None:
    query = "SELECT artifact_guid, label, file_hash, customer FROM t"
    assert [*query_problems(query, "Customer")] == []
    ((found, _, _),) = query_problems(query, "owner")
    assert "owner that SPLIT_BY names" in found


PAGES = "FILES_FROM_PROD = raw_text.json, page_*.png\n"


@pytest.mark.parametrize(
    "settings",
    [
        PAGES + "MODEL_INPUT_FILES = page_*.png, raw_text.json\nFILES_OPTIONAL = page_*.png",
        PAGES + "MODEL_INPUT_FILES = page_1.png",
        PAGES + "FILES_ON_RESEARCH = raw_text.json, *.png\nFILES_OPTIONAL = *.png",
        "FILES_FROM_PROD = raw_text.json, page_1.png, page_2.png\nMODEL_INPUT_FILES = page_[12].png\nFILES_OPTIONAL = page_2.png",
        PAGES + "FILES_OPTIONAL = none",
    ],
)
def test_patterns_stand_for_files(settings: str) -> None:
    parse_settings(settings_text(settings), "f")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PAGES + "FILES_ON_RESEARCH = raw_text.json", "FILES_ON_RESEARCH without page_*.png"),
        ("MODEL_INPUT_FILES = page_*.png", "page_*.png, which no artifact needs to have"),
        ("FILES_OPTIONAL = page_*.png", "page_*.png, which is neither in FILES_FROM_PROD nor in FILES_ON_RESEARCH"),
        (PAGES + "FILES_OPTIONAL = page_1.png", "page_1.png, which is neither"),
        ("FILES_FROM_PROD = raw_text.json, page_[1.png", "a '[' without its ']'"),
    ],
)
def test_wrong_patterns(settings: str, expected: str) -> None:
    assert expected in complaint(settings)
