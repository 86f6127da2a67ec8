"""A process is known by number and start, and a group is killed only where it is ours."""

import os
import subprocess
import sys
import time
from pathlib import Path

from resources.processes import Process, kill_marked, start_of, this_process

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_this_process_is_alive_here() -> None:
    me = this_process()
    assert me.is_visible
    assert me.is_alive
    assert not me.model_copy(update={"start": "0"}).is_alive  # the number went to another process
    assert not me.model_copy(update={"boot": "another"}).is_alive
    assert not Process(host="elsewhere", boot=me.boot, pid=me.pid, start=me.start).is_visible


def test_a_process_in_another_pid_namespace_is_not_visible() -> None:
    assert not this_process().model_copy(update={"namespace": "1"}).is_visible


def test_a_process_is_read_back_from_its_text() -> None:
    me = this_process()
    assert Process.parse(str(me)) == me
    assert Process.parse(f"{me.host} {me.pid} {me.start}").is_alive


def test_the_remains_of_a_process_are_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    while start_of(process.pid) is not None:
        time.sleep(0.01)
    assert process.poll() == 0
    assert start_of(process.pid) is None


def test_only_processes_with_the_mark_are_killed() -> None:
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": "/somewhere/marked"}
    marked = subprocess.Popen(SLEEP, env=environment, start_new_session=True)
    try:
        while b"marked" not in Path(f"/proc/{marked.pid}/environ").read_bytes():
            time.sleep(0.01)
        for other in ("/somewhere/else", "/somewhere/mark", "/somewhere/marked/below"):
            kill_marked(f"SAGEMAKER_BASE_DIR={other}")
        assert start_of(marked.pid) is not None
        kill_marked("SAGEMAKER_BASE_DIR=/somewhere")
        assert marked.wait(60) == -9
    finally:
        marked.kill()
        marked.wait()
