"""process_func over many artifacts: fetch their files, let a worker process them, keep what it wrote."""

import fcntl
import json
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docml_contract.manifests import sha256_file
from docml_contract.sandbox import TIMEOUT_SECONDS, TaskOutcome, Worker
from docml_contract.untrusted_files import MARKER, Misdeed, UntrustedFolder, find_misdeeds, open_made
from docml_contract.use_cases import UseCaseCode, UseCaseWorker
from resources.label_values import as_text
from resources.store import Store

ATTEMPTS = 2
SCRATCH_PREFIX = "docml-reconcile-"
_LOCK = "lock"


@dataclass(frozen=True)
class ArtifactTask:
    """An artifact to process: its label row, the folder of its version in the store, its files from production there, and what an
    earlier attempt already made."""

    row: Mapping[str, Any]
    folder: str
    files: tuple[str, ...]
    made: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ArtifactFailure:
    """An artifact that could not be processed."""

    artifact_guid: str
    reason: str
    traceback: str


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_artifacts(
    tasks: Iterable[ArtifactTask],
    *,
    store: Store,
    functions_source: str,
    environment: Mapping[str, str],
    processes: int,
    processed: Callable[[], None],
    timeout: float = TIMEOUT_SECONDS,
) -> list[ArtifactFailure]:
    """Run process_func for every task in `processes` worker processes. Raises ProcessFuncBroken.

    A failing artifact is tried a second time, then it is a ArtifactFailure and the rest goes on. An artifact's outputs are stored one by
    one, and last an empty object with their number in its name: without it, the artifact is processed again.
    """
    pending = iter(tasks)
    lock, stop = threading.Lock(), threading.Event()
    idle: queue.Queue[Worker] = queue.Queue()
    failures: list[ArtifactFailure] = []

    def work(scratch: Path) -> None:
        while not stop.is_set():
            with lock:
                task = next(pending, None)
            if task is None:
                return
            outcome = TaskOutcome(None)
            for _ in range(ATTEMPTS):
                outcome = _process(task, store, idle, scratch)
                if outcome.error is None or stop.is_set():
                    break
            with lock:
                if outcome.error is not None:
                    failures.append(ArtifactFailure(task.row["artifact_guid"], outcome.error, outcome.traceback))
                processed()

    with scratch_folder() as scratch, ExitStack() as closing:
        workers = [Worker(scratch / f"worker-{n}", functions_source, environment, timeout) for n in range(processes)]
        for worker in workers:
            closing.callback(worker.close)
            idle.put(worker)
        # Twice as many threads as workers: one artifact is fetched and stored while another is processed.
        with ThreadPoolExecutor(processes * 2) as pool:
            try:
                threads = [pool.submit(work, scratch) for _ in range(processes * 2)]
                wait(threads, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                if any(thread.done() and thread.exception() for thread in threads) or not all(
                    t.done() for t in threads
                ):
                    for worker in workers:
                        worker.end()
    for thread in threads:
        thread.result()
    return sorted(failures, key=lambda failure: failure.artifact_guid)


def _process(task: ArtifactTask, store: Store, idle: "queue.Queue[Worker]", scratch: Path) -> TaskOutcome:
    directory = Path(tempfile.mkdtemp(prefix="artifact-", dir=scratch))
    try:
        for name in task.files:
            store.get_file(f"{task.folder}/{name}", directory / name)
        before = {name: sha256_file(directory / name) for name in task.files}
        with UntrustedFolder(directory) as folder:
            worker = idle.get()
            try:
                outcome = worker.run(json.loads(json.dumps(dict(task.row), default=as_text)), directory)
            finally:
                idle.put(worker)
            if outcome.error is None:
                if complaint := "; ".join(find_misdeeds(folder, before)):
                    return TaskOutcome(complaint)
                _keep(folder, task, store)
        return outcome
    except Misdeed as misdeed:  # between the look at what was made and its storing
        return TaskOutcome(str(misdeed))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _keep(folder: UntrustedFolder, task: ArtifactTask, store: Store) -> None:
    """Store what was made. What is there already stays: a finished run's manifest may name it."""
    made = {name for name in folder.names() if name not in task.files}
    for name in sorted(made - task.made):
        with open_made(folder, name) as stream:
            store.put_file(f"{task.folder}/{name}", stream)
    store.put(f"{task.folder}/{MARKER}{len(made | task.made)}", b"")


@contextmanager
def open_use_case(
    code: UseCaseCode, environment: Mapping[str, str], timeout: float = TIMEOUT_SECONDS
) -> Iterator[UseCaseWorker]:
    """A worker that calls the functions of a use case."""
    with scratch_folder() as scratch, UseCaseWorker(code, environment, scratch / "use-case", timeout) as worker:
        yield worker


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of one's own, removed at the end; those whose owner was killed are removed first.

    The owner holds a lock on a file in it, which the system lets go when the process ends, however it ends.
    """
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX))
    new = folder / "new"
    lock = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder / _LOCK)  # not seen by others before it is locked
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the scratch folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*/{_LOCK}"):
        try:
            lock = os.open(path, os.O_RDWR)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.parent, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)
