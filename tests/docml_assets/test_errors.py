import pickle

from docml_assets.errors import Problem, SettingsError, nearest, shown


def test_problem_reads_as_place_found_expected_remedy() -> None:
    problem = Problem("settings.ini", 3, "RUN_NUM = 0", "a whole number from 1", "write RUN_NUM = 1")
    assert str(problem) == "settings.ini:3: found RUN_NUM = 0; expected a whole number from 1; write RUN_NUM = 1"
    assert str(Problem("the environment", 0, "a", "b", "c")).startswith("the environment: found a")


def test_error_lists_all_problems_by_line_and_survives_pickling() -> None:
    error = SettingsError([Problem("f", 9, "b", "x", "y"), Problem("f", 2, "a", "x", "y")])
    assert str(error).splitlines() == ["f:2: found a; expected x; y", "f:9: found b; expected x; y"]
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is SettingsError
    assert copy.problems == error.problems


def test_nearest_ignores_case() -> None:
    assert nearest("label_query", ["LABELS_QUERY", "RUN_NUM"]) == "LABELS_QUERY"
    assert nearest("zzz", ["LABELS_QUERY", "RUN_NUM"]) is None


def test_shown_is_one_short_line() -> None:
    assert shown("a\n  b") == "a b"
    assert len(shown("x" * 1000)) == 120
