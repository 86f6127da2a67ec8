import pytest

from docml_assets.experiment.settings.hyperparameters import (
    combinations,
    parse_constant,
    read_hyperparameters,
    read_ranges,
)
from docml_assets.experiment.settings.ini import parse_ini
from docml_contract.hyperparameters import KNOWN, LATER, Choice, Interval, SearchRange, TrainingHyperparameters

SECTIONS = ("hyperparameters", "tunable")


def tunable(line: str) -> tuple[dict[str, SearchRange], list[str]]:
    ini = parse_ini(f"[tunable]\n{line}\n", "f", SECTIONS)
    return read_ranges(ini), [str(problem) for problem in ini.problems]


def constants(text: str) -> tuple[dict[str, object], list[str]]:
    ini = parse_ini(f"[hyperparameters]\n{text}\n", "f", SECTIONS)
    return read_hyperparameters(ini), [str(problem) for problem in ini.problems]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = 1e-6 -> 1e-4", Interval(low=1e-6, high=1e-4)),
        ("x = 1e-6 -> 1e-4 log", Interval(low=1e-6, high=1e-4, log=True)),
        ("x = 1->8", Interval(low=1, high=8, integer=True)),
        ("x = 1 -> 8.0", Interval(low=1, high=8)),
        ("x = 8, 16, 32", Choice(values=(8, 16, 32))),
        ("x = linear, cosine", Choice(values=("linear", "cosine"))),
        ("x = true, false", Choice(values=(True, False))),
        ("x = 1, true", Choice(values=(1, True))),
        ("lr_scheduler = linear, cosine", Choice(values=("linear", "cosine"))),
        ("epochs = 1 -> 4", Interval(low=1, high=4, integer=True)),
    ],
)
def test_ranges(line: str, expected: SearchRange) -> None:
    ranges, problems = tunable(line)
    assert problems == []
    assert [*ranges.values()] == [expected]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("x = 4 -> 1", "LOW below HIGH"),
        ("x = a -> b", "LOW -> HIGH"),
        ("x = 1 -> 2 -> 3", "LOW -> HIGH"),
        ("x = 1 -> inf", "LOW -> HIGH"),
        ("x = 1 -> 4 linear", "LOW -> HIGH"),
        ("x = 0 -> 1 log", "a low end above 0"),
        ("x =", "found x = nothing"),
        ("x = 1, 2, 1", "each value once"),
        ("x = " + ", ".join(map(str, range(31))), "at most 30"),
        ("x = " + "y" * 257, "at most 256 characters"),
        ("x = [1], [2]", "numbers, words"),
        ("epochs = 0, 1", "which holds 0"),
        ("epochs = 1.5 -> 3.5", "which holds 1.5"),
        ("epochs = 1 -> 3.0", "epochs is passes"),
        ("warmup_ratio = 0.1 -> 2", "which holds 2"),
        ("lr_scheduler = linear, quadratic", "which holds quadratic"),
        ("learning_rat = 1 -> 2", "did you mean learning_rate?"),
        ("_tuning_objective_metric = 1, 2", "not beginning with '_'"),
    ],
)
def test_wrong_ranges(line: str, complaint: str) -> None:
    ranges, problems = tunable(line)
    assert ranges == {}
    assert len(problems) == 1
    assert complaint in problems[0]


def test_at_most_thirty_ranges() -> None:
    _, problems = tunable("\n".join(f"own{n} = 1, 2" for n in range(31)))
    assert "31 tunable hyperparameters" in problems[0]


def test_constants_have_the_platforms_defaults_and_types() -> None:
    values, problems = constants(
        "epochs = 2\ngradient_checkpointing = True\nclass_weights = none\nhead_learning_rate = none\nmine = [1, 2]"
    )
    assert problems == []
    assert values == {
        **TrainingHyperparameters().model_dump(exclude=set(LATER)),
        "epochs": 2,
        "gradient_checkpointing": True,
        "mine": [1, 2],
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epochs = 0", "greater than or equal to 1"),
        ("max_grad_norm = Infinity", "finite"),
        ("learning_rate = 1e999", "finite"),
        ("epochs = many", "epochs is passes over the training split; its default is 3"),
        ("mixed_precision = fp8", "fp32"),
        ("Epochs = 3", "did you mean epochs?"),
        ("a b = 1", "without spaces"),
        ("_x = 1", "not beginning with '_'"),
        ("mine = " + "x" * 2501, "at most 2500"),
        ("\n".join(f"own{n} = 1" for n in range(100)), "at most 100"),
    ],
)
def test_wrong_constants(text: str, complaint: str) -> None:
    _, problems = constants(text)
    assert len(problems) == 1
    assert complaint in problems[0]


def test_defaults_are_right_themselves() -> None:
    text = "\n".join(
        f"{key} = {'none' if value is None else value}" for key, value in TrainingHyperparameters().model_dump().items()
    )
    values, problems = constants(text)
    assert problems == []
    assert values == TrainingHyperparameters().model_dump()
    assert set(values) == set(KNOWN)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("TRUE", True),
        ("false", False),
        ("null", None),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("a b", "a b"),
        ('"3"', "3"),
    ],
)
def test_constants_are_json_or_text(text: str, value: object) -> None:
    assert parse_constant(text) == value


def test_combinations() -> None:
    assert combinations({"a": Choice(values=(1, 2)), "b": Choice(values=(1, 2, 3))}) == 6
