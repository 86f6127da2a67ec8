import sys
from pathlib import Path

import pytest

from docml_assets.experiment.functions import check_functions, defined_functions
from docml_assets.experiment.scaffold import new_experiment
from tests.docml_assets.experiment.experiments import FUNCTIONS


def complaints(source: str, python: str | None = None) -> list[str]:
    return [str(problem) for problem in check_functions(source, "f.py", python)]


def test_right_functions() -> None:
    assert complaints(FUNCTIONS) == []
    assert defined_functions(FUNCTIONS) == {"get_dataset_features", "encode_data", "load_model", "ordered_input_keys"}


@pytest.mark.parametrize("name", ["get_dataset_features", "encode_data", "load_model", "ordered_input_keys"])
def test_missing_functions(name: str) -> None:
    (found,) = complaints(FUNCTIONS.replace(f"def {name}(", "def other("))
    assert found.startswith(f"f.py: found no {name}; expected def {name}(")


def test_encode_batch_stands_in_for_encode_data() -> None:
    source = FUNCTIONS.replace("def encode_data(instance,", "def encode_batch(instances,")
    assert complaints(source) == []
    assert "encode_batch" in defined_functions(source)


BODIES = [
    "pass",
    "...",
    '"""Doc."""',
    '"""Doc."""\n    pass',
    "raise NotImplementedError",
    'raise NotImplementedError("later")',
    "return",
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("signature", ["process_func(artifact, directory)", "load_model(model_name, context)"])
def test_empty_bodies(signature: str, body: str) -> None:
    source = FUNCTIONS.replace("def load_model(model_name, context):\n    return model_name\n", "")
    if signature.startswith("process"):
        source = FUNCTIONS
    source += f"\n\ndef {signature}:\n    {body}\n"
    (found,) = complaints(source)
    assert "with an empty body" in found
    assert signature.partition("(")[0] not in defined_functions(source)


@pytest.mark.parametrize(
    "parameters",
    [
        "instance",
        "context, instance",
        "instance, context, more",
        "instance, ctx",
        "*args",
        "instance, context, *, key",
        "",
    ],
)
def test_wrong_parameters(parameters: str) -> None:
    (found,) = complaints(FUNCTIONS.replace("encode_data(instance, context)", f"encode_data({parameters})"))
    assert found.startswith(f"f.py:10: found def encode_data({parameters})")


@pytest.mark.parametrize(
    "parameters", ["instance, _context", "instance, context, size=3", "instance, /, context, *, key=1, **rest"]
)
def test_parameters_that_the_platform_can_call(parameters: str) -> None:
    assert complaints(FUNCTIONS.replace("encode_data(instance, context)", f"encode_data({parameters})")) == []


def test_functions_that_cannot_be_called_so() -> None:
    assert "async def load_model" in complaints(FUNCTIONS.replace("def load_model", "async def load_model"))[0]
    assert "as a generator" in complaints(FUNCTIONS.replace("return model_name", "yield model_name"))[0]
    assert "that returns nothing" in complaints(FUNCTIONS.replace("return model_name", "print(model_name)"))[0]
    nested = FUNCTIONS.replace("return model_name", "def inner():\n        return 1\n    print(inner)")
    assert "that returns nothing" in complaints(nested)[0]


@pytest.mark.parametrize(
    ("line", "features"),
    [
        ("import datasets", "datasets.Features({'call': datasets.Audio()})"),
        ("import datasets as hf", "hf.Features({'calls': hf.List(hf.Audio(16_000))})"),
        ("from datasets import Audio, Features", "Features(call=Audio())"),
    ],
)
def test_a_feature_that_holds_files_is_refused_with_its_line(line: str, features: str) -> None:
    source = f"def get_dataset_features(context):\n    {line}\n    return {features}\n"
    (problem,) = [each for each in check_functions(source, "f.py") if each.line == 3]
    assert "Audio(" in problem.found
    assert "datasets.Image()" in problem.expected
    assert "encode_data" in problem.remedy
    pictures = check_functions(source.replace("16_000", "").replace("Audio", "Image"), "f.py")
    assert not [each for each in pictures if each.line == 3]


def test_functions_from_elsewhere_are_taken_as_they_are() -> None:
    source = FUNCTIONS.replace(
        "def load_model(model_name, context):\n    return model_name", "from functools import partial as load_model"
    )
    assert complaints(source) == []


def test_syntax_errors_have_their_line() -> None:
    (found,) = complaints(FUNCTIONS + "\ndef broken(:\n")
    assert found.startswith("f.py:21: found what is not Python")
    assert complaints("x = '\0'")[0].startswith("f.py:1: found what is not Python")
    assert defined_functions("def (") == frozenset()


@pytest.mark.parametrize("padding", ["{'a': 1, 'b': -100.0}", "{}"])
def test_padding(padding: str) -> None:
    assert complaints(f"{FUNCTIONS}\nPADDING = {padding}\n") == []


@pytest.mark.parametrize("padding", ["{'a': PAD}", "['a']", "{1: 2}", "{'a': 'b'}", "dict(a=1)"])
def test_padding_is_a_literal_mapping(padding: str) -> None:
    (found,) = complaints(f"{FUNCTIONS}\nPADDING = {padding}\n")
    assert "a literal mapping" in found


def test_modules_that_the_workers_python_lacks(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    source = (
        f"import json, no_such_module.part\nfrom no_other import x\nopen({str(marker)!r}, 'w')\n"
        f"{FUNCTIONS}\n\ndef process_func(artifact, directory):\n    print(artifact)\n"
    )
    found = complaints(source, sys.executable)
    assert [line.partition(";")[0] for line in found] == [
        f"f.py:1: found import no_such_module, which {sys.executable} lacks",
        f"f.py:2: found import no_other, which {sys.executable} lacks",
    ]
    assert not marker.exists()  # nothing of it ran


def test_without_process_func_the_worker_is_not_asked() -> None:
    assert complaints(f"import no_such_module\n{FUNCTIONS}", "/no/such/python") == []


def test_a_worker_that_does_not_run() -> None:
    source = f"{FUNCTIONS}\n\ndef process_func(artifact, directory):\n    print(artifact)\n"
    (found,) = complaints(source, "/no/such/python")
    assert "/no/such/python does not run" in found


def test_relative_imports() -> None:
    (found,) = complaints(f"from . import helper\n{FUNCTIONS}")
    assert "relative import" in found


def test_scaffolds_are_right(tmp_path: Path) -> None:
    for number, model in enumerate([None, "roberta-base"]):
        path = new_experiment(tmp_path / f"EXP-{number}", model)[1]
        assert complaints(path.read_text()) == []


@pytest.mark.parametrize(("line", "wrong"), [("# -*- coding: latin-1 -*-", True), ("# -*- coding: utf-8 -*-", False)])
def test_an_encoding_that_the_file_does_not_have(line: str, wrong: bool) -> None:
    found = check_functions(f"{line}\n{FUNCTIONS}", "f.py")
    assert [(problem.line, problem.found) for problem in found] == ([(1, "the encoding latin-1")] if wrong else [])
