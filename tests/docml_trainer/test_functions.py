"""The experimenter's module: what it gives, and how its errors are told."""

import subprocess
import sys
from pathlib import Path

import pytest

from docml_trainer.container import EXIT_STOPPED
from docml_trainer.errors import Stopped, UserCodeError
from docml_trainer.functions import Context, UserFunctions

CONTEXT = Context.of("a", ("a", "b"), ("cat", "dog"), {"max_length": 8})


def load(tmp_path: Path, source: str) -> UserFunctions:
    path = tmp_path / "user_defined_funcs.py"
    path.write_text(source)
    return UserFunctions.load(path)


def test_the_context_tells_models_labels_and_hyperparameters() -> None:
    assert (CONTEXT.num_labels, CONTEXT.label2id["dog"], CONTEXT.id2label[0]) == (2, 1, "cat")
    assert (CONTEXT.model_name, CONTEXT.model_names, CONTEXT.hyperparameters) == ("a", ("a", "b"), {"max_length": 8})


def test_functions_are_called_and_checked(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
import datasets
import torch
PADDING = {"input_ids": 1}
def get_dataset_features(context):
    return datasets.Features({"n": datasets.Value("int32")})
def load_model(model_name, context):
    return torch.nn.Linear(1, context.num_labels)
def ordered_input_keys(model_name, context):
    return [model_name, "attention_mask"]
""",
    )
    assert list(found.get_dataset_features(CONTEXT)) == ["n"]
    assert found.load_model("a", CONTEXT).out_features == 2
    assert found.ordered_input_keys("a", CONTEXT) == ("a", "attention_mask")
    assert found.padding == {"input_ids": 1}
    assert found.encode_data is None
    assert found.encode_batch is None


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import nothing_like_this", "the module failed: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("def broken(:\n", "the module failed: SyntaxError"),
        ("PADDING = [1]", "PADDING is list [1]; expected a mapping"),
        ("PADDING = {'a': 'b'}", "PADDING is dict"),
    ],
)
def test_a_module_that_does_not_load_says_why(tmp_path: Path, source: str, complaint: str) -> None:
    with pytest.raises(UserCodeError) as error:
        load(tmp_path, source)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return 7", "get_dataset_features returned int 7; expected a datasets.Features"),
        (
            "return helper()",
            "get_dataset_features failed: ValueError: no such thing (user_defined_funcs.py, line 2, in helper: ",
        ),
        ("import json; return json.loads('{')", "(user_defined_funcs.py, line 4, in get_dataset_features: import json"),
    ],
)
def test_an_error_names_the_users_own_line(tmp_path: Path, body: str, complaint: str) -> None:
    source = f"def helper():\n    raise ValueError('no such thing')\ndef get_dataset_features(context):\n    {body}\n"
    with pytest.raises(UserCodeError) as error:
        load(tmp_path, source).get_dataset_features(CONTEXT)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("function", "head"),
    [
        ("the module", "if True:"),
        ("get_dataset_features", "def get_dataset_features(*told):"),
        ("load_model", "def load_model(*told):"),
        ("ordered_input_keys", "def ordered_input_keys(*told):"),
    ],
)
@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "SystemExit: 0", "GeneratorExit"])
def test_a_function_that_ends_its_process_has_failed(tmp_path: Path, function: str, head: str, raised: str) -> None:
    name, _, said = raised.partition(": ")
    arguments = (CONTEXT,) if function == "get_dataset_features" else ("a", CONTEXT)
    with pytest.raises(UserCodeError) as error:
        getattr(load(tmp_path, f"{head}\n    raise {name}({said})\n"), function)(*arguments)
    assert str(error.value).startswith(
        f"user_defined_funcs.py: {function} failed: {raised} (user_defined_funcs.py, line 2, in "
    )
    assert str(error.value).endswith("raises an Exception (a ValueError, say) that tells what is wrong")


def test_a_stop_is_not_the_functions_failure(tmp_path: Path) -> None:
    found = load(tmp_path, "def ordered_input_keys(model_name, context):\n    context()\n")

    def stopped() -> None:
        raise Stopped(EXIT_STOPPED)

    with pytest.raises(Stopped):
        found.ordered_input_keys("a", stopped)  # type: ignore[arg-type]


def test_a_function_that_ends_its_process_without_a_word_is_known(tmp_path: Path) -> None:
    path, note = tmp_path / "user_defined_funcs.py", tmp_path / "output/running_function"
    path.write_text("import os\ndef ordered_input_keys(model_name, context):\n    return context or os._exit(0)\n")
    assert UserFunctions.load(path, note).ordered_input_keys("a", ["ids"]) == ("ids",)  # type: ignore[arg-type]
    assert not note.exists()
    ends = (
        "import pathlib, sys; from docml_trainer.functions import UserFunctions; "
        "UserFunctions.load(*map(pathlib.Path, sys.argv[1:])).ordered_input_keys('a', None)"
    )
    assert subprocess.run([sys.executable, "-c", ends, path, note], check=False).returncode == 0
    assert note.read_text() == "ordered_input_keys"


@pytest.mark.parametrize("returned", ["'input_ids'", "[]", "['a', 'a']", "[1]", "None"])
def test_input_keys_are_a_list_of_names(tmp_path: Path, returned: str) -> None:
    found = load(tmp_path, f"def ordered_input_keys(model_name, context):\n    return {returned}\n")
    with pytest.raises(UserCodeError, match="ordered_input_keys returned"):
        found.ordered_input_keys("a", CONTEXT)


def test_a_missing_function_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match="found no function load_model"):
        load(tmp_path, "").load_model("a", CONTEXT)
    with pytest.raises(UserCodeError, match="no such file"):
        UserFunctions.load(tmp_path / "other.py")
