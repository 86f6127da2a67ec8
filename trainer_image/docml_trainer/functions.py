"""The experimenter's module, user_defined_funcs.py: what its functions are told, and what they leave behind in a process.

Whatever goes wrong in it is a UserCodeError that names the function and the experimenter's own line.
"""

import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from docml_contract.names import RAISE_INSTEAD
from docml_trainer.errors import Stopped, UserCodeError

if TYPE_CHECKING:
    import datasets
    import torch

# What encode_data gets for an entry of MODEL_INPUT_FILES: a path for a name (None if it is optional and missing), a list for a pattern.
InputFile = Path | list[Path] | None
Instance = Mapping[str, InputFile]
MODULE = "user_defined_funcs"


@dataclass(frozen=True)
class Context:
    """What the experimenter's functions are told; nothing of Dagster or AWS."""

    model_name: str
    model_names: tuple[str, ...]
    labels: tuple[str, ...]
    label2id: Mapping[str, int] = field(hash=False)
    id2label: Mapping[int, str] = field(hash=False)
    hyperparameters: Mapping[str, Any] = field(hash=False)

    @property
    def num_labels(self) -> int:
        """The number of labels, for the size of a model's output."""
        return len(self.labels)

    @classmethod
    def of(
        cls,
        model_name: str,
        model_names: Sequence[str],
        labels: Sequence[str],
        hyperparameters: Mapping[str, Any],
    ) -> "Context":
        """`labels` in the order of their ids."""
        return cls(
            model_name=model_name,
            model_names=tuple(model_names),
            labels=tuple(labels),
            label2id={label: index for index, label in enumerate(labels)},
            id2label=dict(enumerate(labels)),
            hyperparameters=dict(hyperparameters),
        )


@dataclass(frozen=True)
class UserFunctions:
    """The module's functions. The optional ones are None where the module does not define them."""

    module: ModuleType
    path: Path
    padding: Mapping[str, float]
    note: Path | None = None

    @classmethod
    def load(cls, path: Path, note: Path | None = None) -> "UserFunctions":
        """Import the file; UserCodeError names the line on which it fails. note: a file that names the function that runs, while it runs."""
        if not path.is_file():
            raise UserCodeError(f"{path}: no such file; expected the experiment's {path.name} in the channel 'spec'")
        module_spec = importlib.util.spec_from_file_location(MODULE, path)
        assert module_spec is not None
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[MODULE] = module  # so that objects defined there can be pickled
        with user_code(path, "the module", note):
            module_spec.loader.exec_module(module)
        return cls(module, path, _padding(module, path), note)

    @property
    def encode_data(self) -> Callable[[Instance, Context], dict[str, Any] | None] | None:
        """Called by the encoder, which reports its errors by artifact."""
        return self._optional("encode_data")

    @property
    def encode_batch(self) -> Callable[[Sequence[Instance], Context], Any] | None:
        """Called by the encoder, which reports its errors by artifact."""
        return self._optional("encode_batch")

    def get_dataset_features(self, context: Context) -> "datasets.Features":
        """The declared features of one model's encoding."""
        import datasets

        features = self._call("get_dataset_features", context)
        if not isinstance(features, datasets.Features):
            raise self._wrong("get_dataset_features", features, "a datasets.Features")
        return features

    def load_model(self, model_name: str, context: Context) -> "torch.nn.Module":
        """The model to train, in whatever state the experimenter loads it."""
        import torch

        model = self._call("load_model", model_name, context)
        if not isinstance(model, torch.nn.Module):
            raise self._wrong("load_model", model, "a torch.nn.Module")
        return model

    def ordered_input_keys(self, model_name: str, context: Context) -> tuple[str, ...]:
        """forward()'s parameter names in the order in which torch.jit.trace passes them."""
        keys = self._call("ordered_input_keys", model_name, context)
        if isinstance(keys, str) or not isinstance(keys, Sequence) or not all(isinstance(key, str) for key in keys):
            raise self._wrong("ordered_input_keys", keys, "a list of forward()'s parameter names")
        if not keys or len(set(keys)) != len(keys):
            raise self._wrong("ordered_input_keys", keys, "at least one name, each once")
        return tuple(keys)

    def _optional(self, name: str) -> Callable[..., Any] | None:
        function = getattr(self.module, name, None)
        return function if callable(function) else None

    def _call(self, name: str, *arguments: Any) -> Any:
        function = self._optional(name)
        if function is None:
            raise UserCodeError(f"{self.path.name}: found no function {name}; the job needs it")
        with user_code(self.path, name, self.note):
            return function(*arguments)

    def _wrong(self, name: str, found: Any, expected: str) -> UserCodeError:
        return UserCodeError(f"{self.path.name}: {name} returned {describe(found)}; expected {expected}")


@contextmanager
def user_code(path: Path, function: str, note: Path | None = None) -> Iterator[None]:
    """Turn what the experimenter's code raises, sys.exit() and a KeyboardInterrupt too, into a UserCodeError with their own line."""
    if note is not None:
        with suppress(OSError):  # no space: then nobody knows
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(function, encoding="utf-8")
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        raise UserCodeError(f"{path.name}: {function} failed: {explain(error, path)}") from error
    finally:
        if note is not None:
            with suppress(OSError):  # another process of the training has removed it
                note.unlink()


def explain(error: BaseException, path: Path) -> str:
    """`ValueError: … (user_defined_funcs.py, line 12, in encode_data: <the line>)`: the innermost line of the user's own."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return said
    remedy = "" if isinstance(error, Exception) else f"; {RAISE_INSTEAD}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if not own:
        return said + remedy
    frame = own[-1]
    return f"{said} ({path.name}, line {frame.lineno}, in {frame.name}: {frame.line}){remedy}"


def describe(value: Any) -> str:
    """A value's type and the beginning of its text, for error messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '…'}"


def _padding(module: ModuleType, path: Path) -> Mapping[str, float]:
    padding = getattr(module, "PADDING", {})
    wrong = not isinstance(padding, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Real) for key, value in padding.items()
    )
    if wrong:
        raise UserCodeError(
            f"{path.name}: PADDING is {describe(padding)}; expected a mapping of feature names to numbers"
        )
    return dict(padding)


def open_files() -> dict[str, str]:
    """This process' open files by descriptor; empty where the system does not tell."""
    found = {}
    for path in Path("/proc/self/fd").glob("*"):
        try:
            found[path.name] = str(path.readlink())
        except OSError:  # the one that lists the folder
            continue
    return found


def can_fork(files_before: dict[str, str]) -> bool:
    """Whether forks of this process are as good as fresh ones: no other thread runs, and the module has left no file or connection open.

    A fork has none of the threads, and what they had locked stays locked; an open file's position, or a connection, would be shared.
    """
    return len(list(Path("/proc/self/task").glob("*"))) == 1 and open_files() == files_before


def leave_threads(code: int) -> None:
    """End the process now if the experimenter's functions left threads behind: Python would wait for them, perhaps for ever."""
    left = [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.current_thread()
    ]
    if left:
        print(f"Threads that were left behind end with their process: {', '.join(left[:5])}", flush=True)
        sys.stderr.flush()
        os._exit(code)
