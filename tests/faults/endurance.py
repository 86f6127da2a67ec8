"""`python -m tests.faults.endurance TIMES ARGUMENTS…`: one `docml` command again and again in one process.

Prints a line of JSON after each: the process's memory (kB), open files and threads, and the size and the number of files of its home.
"""

import contextlib
import gc
import json
import os
import sys
import threading
from pathlib import Path

from docml_assets.cli import main


def measure() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = [path for path in Path(os.environ["DAGSTER_HOME"]).rglob("*") if path.is_file()]
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "home": sum(path.stat().st_size for path in files) // 1000,
        "files": len(files),
    }


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
            main(sys.argv[2:])
        print(json.dumps(measure()), flush=True)
