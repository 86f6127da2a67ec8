"""The server where units are the model's documents: one answer a document, its units as detail, by the use case's functions."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench._deployments import seal
from docml_contract import names
from docml_contract.use_cases import UseCaseCode
from tests.docml_trainer.inferences import Positional, bert, write_model
from tests.docml_trainer.test_serve import Served, await_ready, expected, serving, toy_context

FUNCTIONS = """
def get_dataset_features(context):
    from datasets import Features, List, Value
    return Features({"input_ids": List(Value("int64"))})

def encode_data(instance, context):
    (page,) = instance["page_*.txt"]
    words = page.read_text().split()
    if words == ["riddle"]:
        raise ValueError("a riddle")
    return {"input_ids": [1 + len(word) for word in words]} if words else None
"""
USE_CASE = """
def files(artifact, names):
    if artifact["artifact_guid"] == "refused":
        raise ValueError("not this one")
    return [name for name in names if name < "page_04.txt"]

def combine(predictions):
    if "confused" in set(predictions.artifact_guid):
        return predictions.tail(0)
    return predictions.sort_values("unit").groupby("artifact_guid").tail(1)  # the last page answers
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("deployed") / "toy"
    write_model(folder, Positional(bert()))
    code = UseCaseCode(name="./use_case.py", text=USE_CASE, functions=("combine", "files"), units=True)
    (folder / names.USE_CASE_CODE).write_bytes(code.to_bytes())
    pages = ("page_*.txt",)
    context = toy_context(production_files=pages, model_input_files=pages, has_process_func=False)
    with serving(seal(folder, context, FUNCTIONS), tmp_path_factory.mktemp("base")) as server:
        await_ready(server)
        yield server


def pages(*texts: str, guid: str = "a-document") -> dict[str, Any]:
    return {"artifact_guid": guid, "files": {f"page_{number:02d}.txt": text for number, text in enumerate(texts, 1)}}


def test_combine_answers_and_units_are_told(served: Served) -> None:
    sent = [pages("the first page", "riddle", "", "the fourth page of it"), pages("one page alone", guid="b")]
    status, (several, one) = served.ask(sent)
    assert status == 200
    assert [unit["unit"] for unit in several["units"]] == ["page_01", "page_02", "page_03"], (
        "files leaves the fourth out"
    )
    first, second, third = several["units"]
    assert list(first["probabilities"].values()) == pytest.approx(expected("the first page"), abs=1e-5)
    assert second["error"].startswith("encode_data does not take this document: page_*.txt: ValueError: a riddle")
    assert "returned None" in third["error"]
    assert several["probabilities"] == pytest.approx(first["probabilities"], abs=1e-6)
    assert (several["label"], several["probability"]) == (first["label"], pytest.approx(first["probability"]))
    assert several["accepted"] is None
    assert [unit["unit"] for unit in one["units"]] == ["page_01"]
    status, last = served.ask(pages("the first page", "the last page of two"))
    assert list(last["probabilities"].values()) == pytest.approx(expected("the last page of two"), abs=1e-5)
    _, described = served.ask(b"", method="GET", path="/openapi.json")
    assert '"units"' in str(described).replace("'", '"')


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (pages("riddle", ""), "page_01: encode_data does not take this document: page_*.txt: ValueError: a riddle"),
        (pages(), "the document has no unit: none of its files fits a pattern of page_*.txt"),
        (pages("text", guid="refused"), "files of the use case ./use_case.py: ValueError: not this one"),
        (pages("text", guid="confused"), "combine of the use case ./use_case.py gave no answer about 'confused'"),
    ],
)
def test_what_has_no_answer_is_one_sentence(served: Served, document: dict[str, Any], sentence: str) -> None:
    status, answer = served.ask(document)
    assert status == 422
    assert answer["error"].startswith(sentence)
    assert served.ask(pages("one page"))[0] == 200
