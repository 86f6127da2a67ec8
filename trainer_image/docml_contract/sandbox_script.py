"""Runs process_func, or another FUNCTION, in a process of its own, under any Python: standard library only.

    python sandbox_script.py MODULE REPLIES-FD FUNCTION        tasks come on stdin, one JSON object a line

Replies go to a pipe of their own, so that what user code prints cannot be mistaken for one.
"""

import importlib.util
import json
import os
import pathlib
import sys
import threading
import time
import traceback
from typing import Any


def main() -> None:
    """Load the experimenter's module, then answer one request after the other until there are no more."""
    # Python puts the script's folder first: docml's modules must not stand in for those that the experiment imports.
    sys.path[:] = [entry for entry in sys.path if entry != str(pathlib.Path(__file__).parent)]
    module_path, replies = sys.argv[1], os.fdopen(int(sys.argv[2]), "w", encoding="utf-8")
    # A hung process_func would outlive a killed orchestrator.
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()

    def reply(**fields: Any) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    try:
        process_func = getattr(_load(module_path), sys.argv[3])
    except BaseException as error:
        reply(broken=_said(error), traceback=_user_traceback(error))
        return
    reply(ready=True)
    tasks = sys.stdin.buffer
    for line in iter(tasks.readline, b""):
        task = json.loads(line)
        try:
            process_func(task["artifact"], pathlib.Path(task["directory"]))
        except BaseException as error:  # a SystemExit of user code costs its artifact, not the worker
            reply(error=_said(error), traceback=_user_traceback(error), token=task["token"])
        else:
            reply(token=task["token"])


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("user_defined_funcs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_defined_funcs"] = module
    spec.loader.exec_module(module)
    return module


def _said(error: BaseException) -> str:
    """The error in one bounded sentence, whatever its own code does when it is asked for it."""
    try:
        return _encodable(f"{type(error).__name__}: {error}"[:2000])
    except BaseException:
        return type(error).__name__


def _encodable(text: str) -> str:
    """The text with an escape for what no file can hold: half of a surrogate pair, as Python gives for bytes of a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def _user_traceback(error: BaseException) -> str:
    """The traceback from user_defined_funcs.py on, its last 8,000 characters."""
    frames = traceback.extract_tb(error.__traceback__)
    start = next(
        (i for i, frame in enumerate(frames) if frame.filename != __file__ and "importlib" not in frame.filename), 0
    )
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames[start:])]
    return _encodable("".join([*lines, *traceback.format_exception_only(error)])[-8000:])


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
