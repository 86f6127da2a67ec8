"""The encoding processes: loaded once where that is safe, watched, named when they hang or die, never left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docml_trainer.jobfolder import JobFolder, assert_gone
from tests.docml_trainer.preparations import ENCODER, documents, preparation

DOCS = documents(20)
# The process writes its number into $NOTES: when it loads the module, and when it begins a document.
NOTED = (
    ENCODER.replace("    text = json", "    note('encoding')\n    at(instance)\n    text = json")
    + """
import os
import time

def note(what):
    with open(os.environ["NOTES"] + "/" + what, "a") as file:
        file.write(f"{os.getpid()}\\n")

def at(instance):
    pass

note("loading")
"""
)
# At one document.
AT_7 = """
def at(instance):
    if instance["raw_text.json"].parent.parent.name == "doc-00007":
        {does}
"""
SLOWLY = """
import functools

@functools.cache
def tokenizer():
    note("first use")

def at(instance):
    tokenizer()
    time.sleep(0.2)
"""
HANGS = AT_7.format(does="time.sleep(1000)")
BATCHED = "\ndef encode_batch(instances, context):\n    return [encode_data(i, context) for i in instances]\n"
# Why a process cannot be forked.
THREAD = "\nimport threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
OPEN_FILE = "\nkept = open(__file__)\n"


def job_of(tmp_path: Path, source: str, processes: int = 2) -> JobFolder:
    return preparation(tmp_path / "job", DOCS, functions=source, processes=processes)


def noted(tmp_path: Path, what: str) -> list[int]:
    """The processes that wrote it, in order."""
    path = tmp_path / what
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_the_module_is_loaded_once_and_forked(tmp_path: Path) -> None:
    job = job_of(tmp_path, NOTED + SLOWLY)
    done = job.run(NOTES=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (first,) = noted(tmp_path, "loading")
    assert noted(tmp_path, "first use") == [first]
    encoding = noted(tmp_path, "encoding")
    assert len(set(encoding) - {first}) == 2
    assert len(encoding) == len(DOCS) + 1, "one on trial"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_thread_that_encoding_left_behind_ends_with_its_process(tmp_path: Path, processes: int) -> None:
    leaves = AT_7.format(does="import threading; threading.Thread(target=time.sleep, args=(100_000,)).start()")
    job = job_of(tmp_path, NOTED + leaves, processes=processes)
    done = job.run(NOTES=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Threads that were left behind end with their process: Thread-" in done.stdout


@pytest.mark.parametrize("reason", [THREAD, OPEN_FILE], ids=["thread", "open file"])
def test_a_module_that_cannot_be_forked_is_loaded_by_every_process(tmp_path: Path, reason: str) -> None:
    job = job_of(tmp_path, NOTED + SLOWLY + reason)
    done = job.run(NOTES=str(tmp_path))
    assert done.returncode == 0, done.stderr
    loading = noted(tmp_path, "loading")
    assert len(loading) == 2
    assert set(noted(tmp_path, "encoding")) <= set(loading)
    forked = preparation(tmp_path / "forked", DOCS)
    assert forked.run().returncode == 0
    assert job.result().data_version == forked.result().data_version


@pytest.mark.parametrize("batched", ["", BATCHED], ids=["encode_data", "encode_batch"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_document_that_never_comes_back_is_named(tmp_path: Path, processes: int, batched: str) -> None:
    job = job_of(tmp_path, NOTED + HANGS + batched, processes)
    assert job.run(NOTES=str(tmp_path), DOCML_ENCODE_TIMEOUT_SECONDS="4").returncode == 1
    assert "has not returned within 4 s while it was at artifact doc-00007 (label 'letter')" in job.failure
    assert "in at\n" in job.failure
    assert_gone(noted(tmp_path, "encoding"), seconds=0)


@pytest.mark.parametrize("reason", ["", THREAD], ids=["forked", "spawned"])
def test_a_killed_encoder_is_reported_with_its_document(tmp_path: Path, reason: str) -> None:
    job = job_of(tmp_path, NOTED + AT_7.format(does="os.kill(os.getpid(), 9)") + reason)
    assert job.run(NOTES=str(tmp_path)).returncode == 1
    assert "was killed by SIGKILL (out of memory?" in job.failure
    assert "while it was at artifact doc-00007" in job.failure
    assert_gone(noted(tmp_path, "encoding"), seconds=0)


def test_a_killed_first_process_takes_its_forks_with_it(tmp_path: Path) -> None:
    job = job_of(tmp_path, NOTED + AT_7.format(does="os.kill(os.getppid(), 9); time.sleep(1000)"))
    assert job.run(NOTES=str(tmp_path)).returncode == 1
    assert "was killed by SIGKILL (out of memory?" in job.failure
    assert "while it waited for the others" in job.failure
    assert_gone(noted(tmp_path, "encoding"), seconds=0)


@pytest.mark.parametrize("reason", ["", THREAD], ids=["forked", "spawned"])
def test_a_killed_job_leaves_no_process(tmp_path: Path, reason: str) -> None:
    job = job_of(tmp_path, NOTED + HANGS + reason)
    environment = job.environment(NOTES=str(tmp_path))
    with subprocess.Popen([sys.executable, "-m", "docml_trainer", "prepare"], env=environment) as process:
        deadline = time.monotonic() + 60
        while len(set(noted(tmp_path, "encoding"))) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert_gone({*noted(tmp_path, "loading"), *noted(tmp_path, "encoding")}, seconds=10)


@pytest.mark.parametrize("where", ["", "\ndef at(instance):\n    "], ids=["loading", "encoding"])
def test_an_encoder_that_exits_has_not_encoded(tmp_path: Path, where: str) -> None:
    job = job_of(tmp_path, NOTED + where + "raise SystemExit('enough')\n")
    assert job.run(NOTES=str(tmp_path)).returncode == 1
    assert "SystemExit: enough" in job.failure


@pytest.mark.parametrize(
    ("does", "missing", "where"),
    [
        ("os._exit(0)\n", 2, ""),
        (AT_7.format(does="os._exit(0)"), 1, " One was at artifact doc-00007 (label 'letter')"),
    ],
    ids=["loading", "encoding"],
)
def test_a_process_that_ends_without_a_word_has_not_encoded(
    tmp_path: Path, does: str, missing: int, where: str
) -> None:
    job = job_of(tmp_path, NOTED + does)
    assert job.run(NOTES=str(tmp_path)).returncode == 1
    assert f"{missing} of 2 parts of the documents are not encoded" in job.failure
    assert f"(does user_defined_funcs.py end the process?{where})" in job.failure
    assert "a function that cannot go on raises an Exception" in job.failure


def test_a_process_that_ends_with_a_code_names_its_document(tmp_path: Path) -> None:
    job = job_of(tmp_path, NOTED + AT_7.format(does="os._exit(3)"))
    assert job.run(NOTES=str(tmp_path)).returncode == 1
    assert "an encoding process ended with code 3 (does user_defined_funcs.py" in job.failure
    assert "a function that cannot go on raises an Exception" in job.failure
    assert "while it was at artifact doc-00007" in job.failure


@pytest.mark.parametrize("reason", ["", THREAD], ids=["forked", "alone"])
def test_a_stopped_preparation_ends_with_its_processes(tmp_path: Path, reason: str) -> None:
    job = job_of(tmp_path, NOTED + HANGS + reason)
    code = job.stop_once(lambda _: bool(noted(tmp_path, "encoding")), NOTES=str(tmp_path))
    assert code == 143
    assert_gone({*noted(tmp_path, "loading"), *noted(tmp_path, "encoding")}, seconds=10)
    assert not job.failure, "stopped is not failed"
    assert not (job.output / "OUTPUT.json").exists()
