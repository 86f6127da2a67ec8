"""A settings.ini, or functions, of any shape are read in bounded time and end in problems, never in a traceback."""

import time
from pathlib import PurePath

import pytest

from docml_assets.errors import SettingsError
from docml_assets.experiment.functions import check_functions, defined_functions
from docml_assets.experiment.settings.settings import parse_settings
from docml_assets.experiment.source import functions_digest

LONG = 200_000
# Each took minutes, or ended in a RecursionError.
HOSTILE = {
    "a secret is looked for in one long word": "[settings]\nDOCKER_IMAGE = " + "a" * LONG,
    "many words": "[settings]\nDOCKER_IMAGE = " + "a:" * (LONG // 2),
    "comments that do not end": "[settings]\nLABELS_QUERY = SELECT " + "/*" * (LONG // 2),
    "blanks between items": "[settings]\nIGNORED_LABELS = a" + " " * LONG + "b",
    "many items": "[settings]\nIGNORED_LABELS = " + ",".join(map(str, range(LONG // 7))),
    "names and no end": "[settings]\nFILES_FROM_PROD = " + "a.b  " * 2_000 + "c",
    "a value of many lines": "[settings]\nLABELS_QUERY = SELECT" + "\n a" * (LONG // 3),
    "many keys": "[settings]\n" + "\n".join(f"K{number} = 1" for number in range(20_000)),
    "many hyperparameters": "[settings]\n[hyperparameters]\n" + "\n".join(f"k{number} = 1" for number in range(20_000)),
    "deep JSON": "[settings]\n[hyperparameters]\nmine = " + "[" * LONG,
    "deep JSON within the limits": "[settings]\n[hyperparameters]\nmine = " + "[" * 1_200 + "]" * 1_200,
    "digits": "[settings]\nRUN_NUM = " + "9" * LONG + "\n[hyperparameters]\nmine = " + "9" * 5_000,
    "a deep regular expression": '[settings]\nMETRIC_DEFINITIONS = {"a": ' + "[" * LONG,
    "dots of an interval": "[settings]\n[tunable]\nlearning_rate = 1" + "." * LONG + "x",
    "arrows": "[settings]\n[tunable]\nlearning_rate = " + "->" * (LONG // 2) + " a b",
    "a deep query": "[settings]\nLABELS_QUERY = SELECT " + "(" * 4_000 + "1" + ")" * 4_000,
    "longer than a file": "[settings]\nA = " + "x" * 2_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_settings_are_read_in_bounded_time(name: str) -> None:
    started = time.process_time()
    with pytest.raises(SettingsError) as caught:
        parse_settings(HOSTILE[name], PurePath("settings.ini"))
    assert time.process_time() - started < 10, "seconds, where minutes were needed; machines differ"
    assert len(str(caught.value)) < 1_000_000


def test_a_value_of_several_lines_is_joined() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings("[settings]\nRUN_NUM =\n  one\n\n[tunable]\nRUN_NUM = 1\n", PurePath("settings.ini"))
    assert "RUN_NUM = one" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "x = " + "+".join(["1"] * 100_000),
        "x = " + "(" * 500 + "1" + ")" * 500,
        "x = " + "-" * 5_000 + "1",
        "x = a" + ".b" * 500,
        "x = a" + "[0]" * 500,
        "\n".join("    " * depth + "if x:" for depth in range(95)),
    ],
    ids=["sum", "brackets", "signs", "attributes", "items", "blocks"],
)
def test_deep_code_is_a_problem_and_no_traceback(source: str) -> None:
    (problem, *_) = check_functions(source, "user_defined_funcs.py")
    assert "what is not Python" in problem.found
    assert defined_functions(source) == frozenset()
    if problem.found.endswith("deep"):
        assert functions_digest(source, ["encode_data"])


def test_ordinary_code_is_not_deep() -> None:
    chain = "def encode_data(instance, context):\n    return " + "(a" + "".join(f".b{i}(c)" for i in range(40)) + ")\n"
    assert "encode_data" in defined_functions(chain)
