import json

import pytest

from docml_assets.errors import SettingsError
from docml_assets.experiment.settings.settings import LATER, OPERATIONAL, Settings, parse_settings
from docml_contract.hyperparameters import Choice, Interval
from tests.docml_assets.experiment.experiments import MACHINES, SETTINGS, settings_text


def problems(text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, "settings.ini")
    return [str(problem) for problem in caught.value.problems]


def test_a_small_file_is_enough() -> None:
    settings = parse_settings(SETTINGS, "settings.ini")
    assert settings.model_names == ("small",)
    assert not settings.is_comparison
    assert settings.hyperparameters["epochs"] == 3
    assert settings.tunable == {}


def test_hyperparameters_and_search_space() -> None:
    text = settings_text(
        "MODEL_NAMES = a, b",
        "epochs = 2\nmax_length = 128\nearly_stopping_patience = none\nname = some text\nflag = True",
        "learning_rate = 1e-6 -> 1e-4 log\ntrain_batch_size = 8, 16",
    )
    settings = parse_settings(text, "settings.ini")
    assert settings.is_comparison
    assert settings.own_hyperparameters == {"max_length": 128, "name": "some text", "flag": True}
    assert settings.hyperparameters["epochs"] == 2
    assert settings.hyperparameters["early_stopping_patience"] is None
    assert settings.tunable == {
        "learning_rate": Interval(low=1e-6, high=1e-4, log=True),
        "train_batch_size": Choice(values=(8, 16)),
    }
    assert settings.tuning_constants_of("a").keys() == settings.hyperparameters.keys() - settings.tunable.keys()


def test_every_mistake_is_reported_at_its_line() -> None:
    text = """stray = 1
[settings]
MODEL_NAMES = a_b, c
RUN_TRAINING = treu
RUN_NUM = 0
run_inference = true
LABEL_QUERY = SELECT 1
FILES_FROM_PROD = raw_text.json, ../x
SPLIT = 0.8, 0.1, 0.2
SPLIT = 1
nonsense
TRAINING_USE_SPOT = yes
TRAINING_MAX_WAIT_SECONDS = 100
MAX_COST_USD = lots
[hyperparameters]
epoch = 3
learning_rate = fast
[tunable]
epochs = 0, 1
[tuneable]
"""
    found = problems(text)
    lines = [int(problem.split(":")[1]) for problem in found]
    assert lines == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 16, 17, 19, 20]
    assert "no MODEL_INPUT_FILES" in found[1]
    assert "did you mean LABELS_QUERY?" in found[6]  # and no second problem for the missing key
    assert "a path separator" in found[7]
    for problem in found:
        assert "; expected " in problem


def test_an_empty_file_names_what_is_missing() -> None:
    found = problems("")
    assert "no section [settings]" in found[0]
    assert {problem.split("no ")[1].split(";")[0] for problem in found[1:]} >= {"MODEL_NAMES", "LABELS_QUERY"}


def test_a_secret_is_refused_and_never_repeated() -> None:
    text = settings_text(
        "WANDB_ENTITY = https://me:geheim42@example.com", "db = postgresql://u:geheim42@h/x\nmy_api_key = geheim42"
    )
    found = problems(text)
    assert len(found) == 3
    assert "geheim42" not in "\n".join(found)


def test_a_reference_to_a_secret_is_none() -> None:
    assert parse_settings(settings_text("", "db_password = secretsmanager:name#key"), "f").own_hyperparameters


def test_frozen_and_operational_halves_make_the_whole() -> None:
    settings = parse_settings(settings_text("RUN_NUM = 4\nSPLIT_SEED = 5"), "settings.ini")
    frozen, operational = settings.frozen_content(), settings.operational()
    assert frozen.keys() | operational.keys() == Settings.model_fields.keys() - LATER
    assert not frozen.keys() & operational.keys()
    assert operational.keys() == OPERATIONAL
    json.dumps([frozen, operational], allow_nan=False)
    assert Settings.model_validate({**frozen, **operational}) == settings


def test_operational_settings_come_from_elsewhere() -> None:
    claimed = parse_settings(settings_text("SPLIT_SEED = 5"), "settings.ini")
    folder = parse_settings(
        settings_text("SPLIT_SEED = 6\nRUN_NUM = 2\nTRAINING_INSTANCE_TYPE = ml.m5.xlarge"), "settings.ini"
    )
    merged = claimed.with_operational(json.loads(json.dumps(folder.operational())))
    assert (merged.split_seed, merged.run_num, merged.training_instance_type) == (5, 2, "ml.m5.xlarge")


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"split_seed": 3}, "split_seed"),
        ({"run_num": 0}, "run_num = 0"),
        ({"run_tuning": True}, "RUN_TRAINING and RUN_TUNING"),
        ({"training_instance_count": 3}, "USE_DISTRIBUTED"),
    ],
)
def test_operational_settings_are_checked(other: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        parse_settings(SETTINGS, "settings.ini").with_operational(other)


def test_compute_follows_the_steps_keys() -> None:
    settings = parse_settings(settings_text(MACHINES), "f")
    training = settings.compute("training", image="image:1")
    assert (training.instance_type, training.keep_alive_seconds, training.image) == ("ml.g5.xlarge", 1800, "image:1")
    assert settings.compute("preparation").instance_count == 3
    assert settings.compute("preparation", hosts=1).instance_count == 1
    assert settings.compute("preparation").keep_alive_seconds is None


def test_later_keys_freeze_where_they_are_used() -> None:
    plain = parse_settings(SETTINGS, "f").frozen_content()
    used = parse_settings(settings_text("FILES_OPTIONAL = raw_text.json"), "f").frozen_content()
    assert used == {**plain, "files_optional": ["raw_text.json"]}


def test_settings_are_shown_as_a_person_writes_them() -> None:
    text = settings_text(
        "MODEL_NAMES = one, two", "epochs = 2", "learning_rate = 1e-6 -> 1e-4 log\ntrain_batch_size = 8, 16"
    )
    written = parse_settings(f"{text}\n[hyperparameters.two]\nepochs = 3\n", "settings.ini").as_written()
    assert written["settings"]["MODEL_NAMES"] == "one, two"
    assert written["settings"]["RUN_TUNING"] == "false"
    assert written["tunable"] == {"learning_rate": "1e-06 -> 0.0001 log", "train_batch_size": "8, 16"}
    assert (written["hyperparameters"]["epochs"], written["hyperparameters.two"]) == ("2", {"epochs": "3"})
