"""The functions of use cases in real workers."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from docml_contract import use_cases
from docml_contract.base import UseCaseError
from docml_contract.use_cases import UseCaseCode, UseCaseWorker

LABELS = ["invoice", "letter"]
UNITS = {"a": {"page_01": [0.9, 0.1], "page_02": [0.2, 0.8]}, "b": {"page_01": [0.25, 0.75]}}
MOST_CERTAIN = """
def combine(predictions):
    assert list(predictions.columns) == ["artifact_guid", "unit", "prediction", "probability", "probabilities"]
    assert predictions.attrs["labels"] == ["invoice", "letter"]
    assert predictions.prediction.tolist()[-1] == "letter"
    return predictions.sort_values("probability").groupby("artifact_guid").tail(1)
"""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[UseCaseWorker]]:
    workers: list[UseCaseWorker] = []
    yield workers
    for worker in workers:
        worker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Folders that do not exist yet."""
    return (tmp_path / str(number) for number in itertools.count())


def worker(opened: list[UseCaseWorker], scratch: Iterator[Path], text: str, *functions: str) -> UseCaseWorker:
    code = UseCaseCode(name="mine", text=text, functions=functions, units=True)
    opened.append(UseCaseWorker(code, {"PATH": os.environ["PATH"]}, next(scratch), timeout=60))
    return opened[-1]


def test_without_functions_all_files_are_taken_and_the_mean_answers(
    opened: list[UseCaseWorker], scratch: Iterator[Path]
) -> None:
    plain = worker(opened, scratch, "")
    assert plain.files([({"artifact_guid": "a"}, ["y", "x"])]) == [("y", "x")]
    found = plain.combine(LABELS, UNITS)
    assert found["a"] == pytest.approx([0.55, 0.45])
    assert found["b"] == [0.25, 0.75]


def test_combine_answers_about_every_artifact(
    opened: list[UseCaseWorker], scratch: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for at_once in (1, 2):
        monkeypatch.setattr(use_cases, "ARTIFACTS_AT_ONCE", at_once)
        assert worker(opened, scratch, MOST_CERTAIN, "combine").combine(LABELS, UNITS) == {
            "a": [0.9, 0.1],
            "b": [0.25, 0.75],
        }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise ValueError('no')", "combine of the use case mine: ValueError: no"),
        ("return 5", "it returned int; expected a pandas DataFrame, one row per artifact"),
        ("return predictions[['artifact_guid', 'prediction']]", "expected probabilities too"),
        ("return predictions", "answered twice about 'a'"),
        ("return predictions.tail(1)", "gave no answer about 'a'"),
        ("return predictions.tail(1).assign(artifact_guid='c')", "answered about 'c', of which it got no unit"),
        (
            "return one.assign(probabilities=[[1.0]] * 2)",
            "gave 1 probabilities for 'a'; expected one for each of 2 labels",
        ),
        ("return one.assign(probabilities=[[2.0, -1]] * 2)", "expected numbers from 0 on that sum to 1"),
        ("print('x' * 3_000_000); return one", "it printed or wrote more than 2 MB"),
        ("import os; os._exit(3)", "the worker process died (exit code 3) in combine"),
    ],
)
def test_what_is_wrong_is_one_message_and_the_next_call_is_answered(
    opened: list[UseCaseWorker], scratch: Iterator[Path], monkeypatch: pytest.MonkeyPatch, body: str, expected: str
) -> None:
    monkeypatch.setattr(use_cases, "ROOM_BYTES", 2_000_000)
    one = "one = predictions.groupby('artifact_guid', as_index=False).first()"
    text = f"def combine(predictions):\n    {one}\n    if len(one) == 1:\n        return one\n    {body}\n"
    broken = worker(opened, scratch, text, "combine")
    with pytest.raises(UseCaseError) as caught:
        broken.combine(LABELS, UNITS)
    assert expected in str(caught.value)
    assert broken.combine(LABELS, {"b": UNITS["b"]}) == {"b": [0.25, 0.75]}
