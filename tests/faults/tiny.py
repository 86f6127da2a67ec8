"""An experiment as small as one can be, in a folder with a store, a home and production of its own; real commands, and what they leave.

`TMPDIR/slow-<function>` holds seconds by which a function of the experiment waits: a fault meets it there.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
EXPERIMENT = "EXP-1-tiny"
LOOK_SECONDS = 0.03
SETTINGS = """[settings]
RUN_NUM = 1
MODEL_NAMES = bow
LABELS_QUERY = SELECT artifact_guid, label, sha256 AS file_hash FROM document_labels
FILES_FROM_PROD = raw_text.json
FILES_ON_RESEARCH = raw_text.json, upper.json
MODEL_INPUT_FILES = raw_text.json, upper.json
SPLIT = 0.6, 0.2, 0.2
NEAR_DUPLICATE_THRESHOLD = 1
PREPARATION_PROCESSES = 2
RECONCILIATION_PROCESSES = 2
BASELINE = false
INFERENCE_IN_TRAINING = false

[hyperparameters]
epochs = 2
learning_rate = 5e-2
train_batch_size = 4
checkpoint_every_steps = 1
seed = 3
"""
# A search instead of a training: every point once, and no two of one loss, so that the best is the same in whatever order.
SEARCH = """
[tunable]
learning_rate = 5e-2, 1e-1
"""
SEARCH_SETTINGS = """
RUN_TRAINING = false
RUN_TUNING = true
TUNING_STRATEGY = Grid
MAX_JOBS = 2
OBJECTIVE_METRIC_NAME = valid_loss
OBJECTIVE_TYPE = Minimize

[hyperparameters]"""
FUNCTIONS = """
import json
import os
import time
import zlib


def pause(name):
    try:
        with open(os.environ["TMPDIR"] + "/slow-" + name) as file:
            time.sleep(float(file.read()))
    except (KeyError, OSError, ValueError):
        pass


def process_func(artifact, directory):
    pause("process")
    text = json.loads((directory / "raw_text.json").read_text())["text"]
    (directory / "upper.json").write_text(json.dumps({"text": text.upper()}))


def get_dataset_features(context):
    import datasets

    return datasets.Features({"ids": datasets.Sequence(datasets.Value("int64"))})


def encode_data(instance, context):
    pause("encode")
    text = json.loads(instance["upper.json"].read_text())["text"]
    return {"ids": [zlib.crc32(w.encode()) % 500 + 1 for w in text.split()]}


def load_model(model_name, context):
    import torch

    class Bow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = torch.nn.EmbeddingBag(501, 8, mode="mean", padding_idx=0)
            self.drop = torch.nn.Dropout(0.1)
            self.out = torch.nn.Linear(8, context.num_labels)

        def forward(self, ids):
            if not torch.jit.is_tracing():
                pause("train")
            return {"logits": self.out(self.drop(self.emb(ids)))}

    return Bow()


def ordered_input_keys(model_name, context):
    return ["ids"]
"""
WORDS = {
    "cat": ["meow", "purr", "fur", "claw", "milk", "mouse", "nap"],
    "dog": ["woof", "bark", "bone", "leash", "fetch", "tail", "run"],
}
# What a process of a run is, by a part of its command line; the first that fits counts.
ROLES = {
    "supervisor": "resources.jobs.local.supervisor",
    "container": "container_init.py",
    "fork server": "fork_server_script.py",
    "preparation": "docml_trainer prepare",
    "trainer": "docml_trainer train",
    "inference": "docml_trainer infer",
    "worker": "sandbox_script.py",
    "log of Dagster": "tail -F",
    "watch of Dagster": "watch_orphans",
}


@dataclass(frozen=True)
class Running:
    """A process of a run."""

    pid: int
    parent: int
    role: str
    command: str


class Tiny:
    """One folder: store, home, experiment, production, temporary files."""

    def __init__(self, root: Path, **more: str) -> None:
        self.root = root
        self.store, self.home, self.temporary = root / "store", root / "home", root / "tmp"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DOCML_", "DAGSTER_"))
        }
        self.environment |= {
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'trainer_image'}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "TMPDIR": str(self.temporary),
            "DAGSTER_HOME": str(self.home),
            "DOCML_STORE": str(self.store),
            "DOCML_EXPERIMENTS": str(root / "experiments"),
            "DOCML_PRODUCTION_FILES": str(root / "production"),
            "DOCML_LABELS_URL": f"sqlite:///{root / 'labels.sqlite'}",
            **more,
        }

    @classmethod
    def make(cls, root: Path, documents: int = 24, *, tuned: bool = False) -> "Tiny":
        """A folder with production, labels and the experiment; nothing has run."""
        made = cls(root)
        made.temporary.mkdir(parents=True)
        folder = root / "experiments" / EXPERIMENT
        folder.mkdir(parents=True)
        settings = SETTINGS.replace("\n[hyperparameters]", SEARCH_SETTINGS) + SEARCH if tuned else SETTINGS
        (folder / "settings.ini").write_text(settings)
        (folder / "user_defined_funcs.py").write_text(FUNCTIONS)
        draw = random.Random(1)
        with closing(sqlite3.connect(root / "labels.sqlite")) as database, database:
            database.execute("CREATE TABLE document_labels (artifact_guid TEXT PRIMARY KEY, label TEXT, sha256 TEXT)")
            for number in range(documents):
                label = ("cat", "dog")[number % 2]
                words = [*WORDS[label], "the", "a", "of", f"w{number}", f"z{number * 7}"]
                data = json.dumps({"text": " ".join(draw.choices(words, k=60))}).encode()
                guid = str(uuid.UUID(int=number + 1))
                (root / "production" / guid).mkdir(parents=True)
                (root / "production" / guid / "raw_text.json").write_bytes(data)
                row = (guid, label, hashlib.sha256(data).hexdigest())
                database.execute("INSERT INTO document_labels VALUES (?, ?, ?)", row)
        return made

    def copy(self, root: Path, *, without: Sequence[str] = (), home: bool = True) -> "Tiny":
        """The same folder again, without some folders of its store (`run_1/inference`, `data/prepared_data`)."""
        for name in ("production", "experiments", "store", *(["home"] if home else [])):
            if (self.root / name).exists():
                shutil.copytree(self.root / name, root / name)
        shutil.copy(self.root / "labels.sqlite", root / "labels.sqlite")
        made = Tiny(root)
        made.temporary.mkdir()
        for name in without:
            shutil.rmtree(made.place / name)
        return made

    @property
    def place(self) -> Path:
        """The experiment's folder in the store."""
        return self.store / EXPERIMENT

    def slow(self, function: str, seconds: float) -> None:
        """From now on `function` (process, encode, train) waits before it does anything."""
        (self.temporary / f"slow-{function}").write_text(str(seconds))

    def docml(self, *arguments: str, code: int = 0, **more: str) -> str:
        """Output of a cold command that must end with `code`."""
        done = subprocess.run(
            [sys.executable, "-c", "from docml_assets.cli import main; main()", *arguments],
            cwd=self.root,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    # -- what is there

    def versions(self, run: int = 1) -> dict[str, str]:
        """Data version by folder of the run."""
        found = {}
        for path in sorted((self.place / f"run_{run}").rglob("MANIFEST.json")):
            content = json.loads(path.read_text())
            if "data_version" in content:
                found[path.parent.relative_to(self.place).as_posix()] = content["data_version"]
        return found

    def report(self, run: int = 1) -> Any:
        """report.json without what a clock or a job's name says."""
        content = json.loads((self.place / f"run_{run}/inference/report.json").read_text())
        return _without(
            content, {"docs_per_second", "latency_ms", "jobs", "timings", "seconds", "hardware", "torchscript_sha256"}
        )

    def processes(self) -> list[Running]:
        """The living processes that belong to this folder, commands that were forked warm excepted."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                place = (entry / "environ").read_bytes() + command.encode()
                if fields[0] in "ZX" or f"{self.root}/".encode() not in place or int(entry.name) == os.getpid():
                    continue
                role = next((role for role, part in ROLES.items() if part in command), "other")
                found.append(Running(int(entry.name), int(fields[1]), role, command[:200]))
        return found

    def leftovers(self) -> dict[str, list[str]]:
        """What nobody needs once everything has ended: processes, drafts, active entries, leases, temporary files."""
        names = {
            "drafts": self.store.glob(".docml-drafts/*"),
            "active": self.store.glob("_active_jobs/*"),
            "leases": self.store.rglob("*.lease.json"),
            "temporary": (
                path for path in self.temporary.iterdir() if not path.name.startswith(("slow-", "torchinductor"))
            ),
        }
        found = {kind: sorted(str(path.relative_to(self.root)) for path in paths) for kind, paths in names.items()}
        found["processes"] = [f"{process.pid} {process.command}" for process in self.processes()]
        return {kind: left for kind, left in found.items() if left}

    def wait_until_quiet(self, seconds: float = 30) -> dict[str, list[str]]:
        """`leftovers` once there are none, or after so long: what ends, ends a moment after who started it."""
        wait_for(lambda: not self.leftovers(), seconds)
        return self.leftovers()

    def end_everything(self) -> None:
        """SIGKILL to all processes of this folder."""
        for _ in range(3):
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def dagster_runs(self) -> dict[str, int]:
        """Status -> number of Dagster runs."""
        with closing(sqlite3.connect(self.home / "history/runs.db")) as database:
            return dict(database.execute("SELECT status, count(*) FROM runs GROUP BY 1").fetchall())


def _without(content: Any, keys: set[str]) -> Any:
    if isinstance(content, dict):
        return {key: _without(value, keys) for key, value in content.items() if key not in keys}
    if isinstance(content, list):
        return [_without(value, keys) for value in content]
    return content


def wait_for(happened: Callable[[], object], seconds: float) -> bool:
    """Whether it happened in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


class Command:
    """A `docml` command, forked warm."""

    def __init__(self, warm: "Warm", tiny: Tiny, arguments: Sequence[str], log: str = "log") -> None:
        self.log = tiny.root / log
        self.log.write_text("")
        self.code: int | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(warm.address)
        request = {
            "argv": [*arguments],
            "cwd": str(tiny.root),
            "env": tiny.environment,
            "log": str(self.log),
        }
        self._socket.sendall((json.dumps(request) + "\n").encode())
        self._answers = self._socket.makefile()
        warm.commands.append(self)
        self.pid = int(self._answers.readline())
        self.begun = time.monotonic()

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float) -> int | None:
        """Its exit code (of a signal the negative number), or None if it still runs then."""
        if self.code is None:
            self._socket.settimeout(max(0.001, seconds))
            try:
                self.code = int(self._answers.readline())
            except TimeoutError:
                self._socket.settimeout(None)
                self._answers.close()
                self._answers = self._socket.makefile()
                return None
            self.close()
        return self.code

    def close(self) -> None:
        """End it, if it still runs."""
        self._answers.close()
        self._socket.close()

    def send(self, number: signal.Signals) -> None:
        """A signal to the command itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def until(self, pattern: str, seconds: float = 120) -> None:
        """Wait until it has said so."""
        assert wait_for(lambda: re.search(pattern, self.text) or self.wait(0.001) is not None, seconds), self.text
        assert re.search(pattern, self.text), self.text


class Warm:
    """A process that forks commands."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.commands: list[Command] = []

    def start(self, tiny: Tiny, *arguments: str, log: str = "log") -> Command:
        """A command in a folder."""
        return Command(self, tiny, arguments, log)

    def run(self, tiny: Tiny, *arguments: str, code: int = 0, log: str = "log", seconds: float = 1500) -> str:
        """Output of a command that must end with `code`."""
        command = self.start(tiny, *arguments, log=log)
        ended = command.wait(seconds)
        assert ended == code, f"exit code {ended}:\n{command.text}"
        return command.text


@contextlib.contextmanager
def warm_commands() -> Iterator[Warm]:
    """Start a process that forks commands; ended with the block."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/warm.sock"
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'trainer_image'}"}
        environment["OMP_NUM_THREADS"] = environment["POLARS_MAX_THREADS"] = "1"
        running = Warm(address)
        with subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm", address],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield running
            finally:
                for command in running.commands:
                    command.close()
                process.kill()
