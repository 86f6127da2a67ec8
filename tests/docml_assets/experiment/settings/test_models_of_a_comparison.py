"""[hyperparameters.<model>] and [tunable.<model>]."""

import pytest

from docml_assets.errors import SettingsError
from docml_assets.experiment.settings.settings import parse_settings
from docml_contract.hyperparameters import Choice, Interval
from tests.docml_assets.experiment.experiments import settings_text

COMPARISON = settings_text(
    "MODEL_NAMES = minilm, longformer",
    "epochs = 3\nmax_length = 512",
    "learning_rate = 1e-5 -> 1e-4 log\ntrain_batch_size = 8, 16",
)


def problem(sections: str, settings: str = COMPARISON) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_settings(settings + sections, "settings.ini")
    (found,) = caught.value.problems
    return str(found)


def test_a_model_has_its_own_values_beside_the_common_ones() -> None:
    text = COMPARISON + (
        "[hyperparameters.longformer]\nmax_length = 4096\ntrain_batch_size = 2\n"
        "[tunable.longformer]\nlearning_rate = 1e-6 -> 1e-5\n"
    )
    settings = parse_settings(text, "settings.ini")
    assert settings.hyperparameters_of("minilm")["max_length"] == 512
    assert settings.hyperparameters_of("longformer") | {"seed": 13} == {
        **settings.hyperparameters,
        "max_length": 4096,
        "train_batch_size": 2,
    }
    assert settings.ranges_of("minilm") == settings.tunable
    # A value of the model's own is not searched; a range of its own goes before the common one.
    assert settings.ranges_of("longformer") == {"learning_rate": Interval(low=1e-6, high=1e-5)}
    assert settings.tuning_constants_of("longformer")["train_batch_size"] == 2
    assert "learning_rate" not in settings.tuning_constants_of("longformer")
    assert settings.own_hyperparameters == {"max_length": 512}
    assert settings.own_model_hyperparameters == {"longformer": {"max_length": 4096}}
    assert settings.frozen_content()["model_hyperparameters"]["longformer"]["max_length"] == 4096


def test_a_range_of_ones_own_may_do_without_a_common_one() -> None:
    text = settings_text("MODEL_NAMES = a, b\nRUN_TRAINING = false\nRUN_TUNING = true")
    ranges = "[tunable.a]\nx = 1, 2\n[tunable.b]\nx = 3, 4\n"
    settings = parse_settings(text + ranges, "settings.ini")
    assert settings.ranges_of("b") == {"x": Choice(values=(3, 4))}
    assert "without anything in [tunable]" in problem("[tunable.a]\nx = 1, 2\n", text)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("[hyperparameters.minilmm]", "did you mean [hyperparameters.minilm]?"),
        ("[tunable.zzz]", "expected one of minilm, longformer; remove the section, or add zzz to MODEL_NAMES"),
        ("[hyperparameter.minilm]", "did you mean [hyperparameters.minilm]?"),
        ("[settings.minilm]", "the section [settings.minilm]"),
        ("[hyperparameters.minilm]\nepoch = 3", "did you mean epochs?"),
        ("[hyperparameters.minilm]\nepochs = many", "epochs is passes over the training split"),
        ("[tunable.minilm]\nepochs = 0, 1", "which holds 0"),
        ("[hyperparameters.minilm]\nx = 1\n[hyperparameters.minilm]", "[hyperparameters.minilm] again"),
        ("[hyperparameters.minilm]\nmax_length = 1,024", "nearly a number"),
    ],
)
def test_mistakes(section: str, said: str) -> None:
    assert said in problem(section + "\n")


def test_a_grid_with_an_interval_of_one_model_is_refused_at_its_line() -> None:
    text = settings_text("MODEL_NAMES = a, b\nTUNING_STRATEGY = Grid", "", "x = 1, 2")
    found = problem("[tunable.b]\nx = 1 -> 2\n", text)
    assert "a grid cannot go through an interval" in found
    assert found.startswith(f"settings.ini:{len(text.splitlines()) + 2}:")
