"""Calls a function on a generated input within the bounds that docml promises: a second of processor time, and little memory."""

import gc
import os
import resource
import time
from collections.abc import Callable
from typing import Any

# Machines that run the tests beside other work are slower; `make fuzz` holds the promise itself.
SECONDS = 1.0 if int(os.environ.get("DOCML_FUZZ_EXAMPLES") or 0) >= 1_000 else 10.0
MEGABYTES = 300


def bounded(function: Callable[..., Any], *arguments: Any, expected: tuple[type[Exception], ...] = ()) -> Any:
    """What the function returns, or the expected error; any other one fails the test, and so does an excess."""
    gc.disable()  # it would look through all that Hypothesis holds, which takes a second now and then
    started, before = time.process_time(), _peak_megabytes()
    try:
        return function(*arguments)
    except expected as error:
        return error
    finally:
        gc.enable()
        assert time.process_time() - started < SECONDS
        assert _peak_megabytes() - before < MEGABYTES


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
