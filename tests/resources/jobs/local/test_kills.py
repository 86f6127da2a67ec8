"""kill -9 of real processes: orchestrator, supervisor, trainer. What is left runs on or is noticed; nothing is done twice."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from docml_contract.jobs import JobSpec
from docml_contract.names import TRIALS
from resources.jobs.backend import Job, NameTaken
from resources.jobs.interface import JobFailed
from resources.jobs.local import backend as local_backend
from resources.jobs.local.container import BASE_VARIABLE
from resources.jobs.local.fork_server import SWITCH
from resources.jobs.local.state import LocalState, is_locked, state_key, stop_key
from resources.jobs.trials import Trials
from resources.processes import Process, booted_at, start_of
from resources.store import Store
from tests.contracts.jobs_contract import (
    FILES,
    RATES,
    RecordingListener,
    Tuning,
    fill,
    preparation,
    records,
    training,
    tuning,
)
from tests.resources.jobs.cloud import Cloud, cloud
from tests.resources.jobs.local.test_backend import LocalBench
from tests.servers.s3 import S3Server

ROOT = Path(__file__).parents[4]


@pytest.fixture
def bench(tmp_path: Path) -> LocalBench:
    return LocalBench(tmp_path)


@pytest.fixture
def running_cloud(tmp_path: Path, s3_server: S3Server) -> Iterator[Cloud]:
    with cloud(tmp_path, s3_server) as running:
        fill(running.store)
        yield running


def orchestrate(kind: str, store: Store, environment: dict[str, str], spec: JobSpec, folder: Path, until: str) -> None:
    """Run an orchestrator in a process of its own and kill -9 it when it has printed a line that begins with `until`."""
    (folder / "spec.json").write_bytes(spec.to_bytes())
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.resources.jobs.orchestrate", kind, store.url, str(folder / "spec.json"), "run-a"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        heard = []
        for line in process.stdout:
            heard.append(line)
            if line.startswith(until):
                break
        else:
            raise AssertionError(f"never heard {until!r}: {''.join(heard)}")
        process.kill()
    process.wait()


def state_of(bench: LocalBench, spec: JobSpec, attempt: int = 1) -> LocalState:
    key = state_key(Job.plan(spec, attempt, bench.store.url))
    return LocalState.from_bytes(bench.store.get(key), key)


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def killing(
    bench: LocalBench, spec: JobSpec, victim: Callable[[LocalState], int], after: str = "epoch 3 ends"
) -> RecordingListener:
    """Run `spec`; SIGKILL a process of its first attempt when the log says `after`."""
    killed = threading.Event()

    def kill(text: str) -> None:
        if text == after and not killed.is_set():
            killed.set()
            os.kill(victim(state_of(bench, spec)), signal.SIGKILL)

    hearing = RecordingListener(kill)
    result = bench.engine().run(spec, FILES, holder="run-a", listener=hearing)
    assert killed.is_set()
    assert (result.attempt, result.launched) == (2, True)
    assert result.output.facts["starts"] == 2
    return hearing


def test_a_killed_orchestrator_leaves_its_job_running_and_the_next_attaches(bench: LocalBench, tmp_path: Path) -> None:
    spec = training({"steps": 60})
    orchestrate("local", bench.store, bench.environment, spec, tmp_path, "epoch 2 ends")
    assert state_of(bench, spec).process.is_alive
    hearing = RecordingListener()
    result = bench.engine().run(spec, FILES, holder="run-b", listener=hearing)
    assert (result.attempt, result.launched) == (1, False)
    assert hearing.lines[0] == "train starts at step 0 on host 0"
    assert len(bench.started()) == 1


def test_a_state_that_is_deleted_while_its_job_runs_starts_no_second_one(bench: LocalBench, tmp_path: Path) -> None:
    spec = training({"steps": 60})
    job = Job.plan(spec, 1, bench.store.url)
    orchestrate("local", bench.store, bench.environment, spec, tmp_path, "epoch 2 ends")
    supervisor = state_of(bench, spec).process
    os.kill(supervisor.pid, signal.SIGSTOP)  # it cannot write its state again before anybody looks
    try:
        bench.store.delete([state_key(job)])
        with pytest.raises(NameTaken):
            bench.engine().context.backend.create(job)
        assert state_of(bench, spec).process == supervisor
        bench.store.delete([state_key(job)])
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    result = bench.engine().run(spec, FILES, holder="run-b", listener=RecordingListener())
    assert (result.attempt, result.launched) == (1, False)
    assert len(bench.started()) == 1


@pytest.mark.parametrize("until", ["status: starting", "status: Training", "epoch 1 ends"])
def test_a_killed_orchestrator_in_the_cloud_too(running_cloud: Cloud, tmp_path: Path, until: str) -> None:
    spec = training({"steps": 40})
    orchestrate("sagemaker", running_cloud.store, running_cloud.environment, spec, tmp_path, until)
    result = running_cloud.engine().run(spec, FILES, holder="run-b", listener=RecordingListener())
    assert result.attempt == 1
    assert len(running_cloud.started()) == 1


def test_a_killed_supervisor_is_noticed_and_the_next_attempt_resumes(bench: LocalBench) -> None:
    spec = training({"steps": 90})
    hearing = killing(bench, spec, lambda state: state.process.pid, after="epoch 70 ends")
    (first, second) = [line for line in hearing.lines if line.startswith("train starts at step")]
    assert first.split()[4] == "0"
    assert int(second.split()[4]) >= 1
    for group in state_of(bench, spec).groups:
        wait_for(lambda group=group: start_of(group) is None)  # type: ignore[misc]


def test_a_killed_trainer_is_noticed_and_the_next_attempt_resumes(bench: LocalBench) -> None:
    hearing = killing(bench, training({"steps": 60}), lambda state: state.groups[0])
    assert any("killed by SIGKILL" in said for said in hearing.said)
    starts = [int(line.split()[4]) for line in hearing.lines if line.startswith("train starts at step")]
    assert starts[1] >= 3


def test_a_trainer_that_is_always_killed_is_given_up(bench: LocalBench) -> None:
    with pytest.raises(JobFailed, match="killed by SIGKILL"):
        bench.engine().run(
            training({"die": "always", "steps": 1000}), FILES, holder="run-a", listener=RecordingListener()
        )
    assert len(bench.started()) == 3


def test_a_state_from_before_a_restart_counts_as_lost(bench: LocalBench, tmp_path: Path) -> None:
    spec = training({"steps": 1000})
    orchestrate("local", bench.store, bench.environment, spec, tmp_path, "epoch 2 ends")
    state = state_of(bench, spec)
    os.kill(state.process.pid, signal.SIGKILL)
    wait_for(lambda: start_of(state.process.pid) is None)
    wait_for(lambda: not is_locked(Path(state.folder)))  # what it started holds the lock until it has ended, too
    # The machine has restarted since, and another process has got the supervisor's number.
    revenant = Process(host=state.process.host, boot="another", pid=os.getpid(), start=start_of(os.getpid()) or "")
    content = state.model_copy(update={"process": revenant, "beat": booted_at() - 1})
    bench.store.put(state_key(Job.plan(spec, 1, bench.store.url)), content.to_bytes())
    observed = bench.engine().context.backend.observe(Job.plan(spec, 1, bench.store.url))
    assert observed is not None
    assert (observed.status, observed.cause) == ("Failed", "lost")


def daemon_of(bench: LocalBench, spec: JobSpec) -> int:
    """The process that the trainer of the option `daemon` left in another session."""
    text = (Path(state_of(bench, spec).folder) / "logs" / "algo-1.log").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("daemon ")))


def test_a_job_whose_orchestrator_and_supervisor_are_gone_ends_by_itself(bench: LocalBench, tmp_path: Path) -> None:
    spec = training({"steps": 150, "daemon": True})
    orchestrate("local", bench.store, bench.environment, spec, tmp_path, "epoch 2 ends")
    state = state_of(bench, spec)
    processes = [*state.groups, daemon_of(bench, spec)]
    wait_for(lambda: bench.store.exists(f"{Job.plan(spec, 1, bench.store.url).checkpoints}/state.json"))
    os.kill(state.process.pid, signal.SIGKILL)
    for process in processes:
        wait_for(lambda process=process: start_of(process) is None)  # type: ignore[misc]
    result = bench.engine().run(spec, FILES, holder="run-b", listener=RecordingListener())
    assert (result.attempt, result.launched) == (2, True)
    assert result.output.facts["starts"] == 2


def test_what_a_job_leaves_behind_ends_with_it(bench: LocalBench) -> None:
    spec = training({"daemon": True})
    bench.engine().run(spec, FILES, holder="run-a", listener=RecordingListener())
    assert start_of(daemon_of(bench, spec)) is None


def test_a_supervisor_that_is_slow_to_start_is_waited_for(bench: LocalBench) -> None:
    spec = training()
    engine = bench.engine()
    job = Job.plan(spec, 1, bench.store.url)
    for name, content in {"spec.json": spec.to_bytes(), **FILES}.items():
        bench.store.put(f"{job.spec_prefix}/{name}", content)
    engine.context.backend.create(job)  # returns at once, whatever the supervisor does
    supervisor = state_of(bench, spec).process
    os.kill(supervisor.pid, signal.SIGSTOP)
    observed = engine.context.backend.observe(job)
    assert observed is not None
    assert observed.status == "InProgress"
    os.kill(supervisor.pid, signal.SIGCONT)
    result = engine.run(spec, FILES, holder="run-a", listener=RecordingListener())
    assert (result.attempt, result.launched) == (1, False)
    assert len(bench.started()) == 1


def test_a_supervisor_that_stands_still_is_told_then_ended(bench: LocalBench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = training({"steps": 60})
    stopped = threading.Event()

    def stop(text: str) -> None:
        if text == "epoch 3 ends" and not stopped.is_set():
            stopped.set()
            os.kill(state_of(bench, spec).process.pid, signal.SIGSTOP)
            monkeypatch.setattr(local_backend, "SILENCE_SECONDS", -1.0)
            monkeypatch.setattr(local_backend, "STALL_SECONDS", 0.5)

    class Resuming(RecordingListener):
        def status(self, text: str) -> None:
            super().status(text)
            if "next attempt" in text:
                monkeypatch.undo()

    hearing = Resuming(stop)
    result = bench.engine().run(spec, FILES, holder="run-a", listener=hearing)
    assert result.attempt == 2
    assert any("shows no sign of life: is it stopped (SIGSTOP)?" in said for said in hearing.said)


def test_the_folder_of_a_job_that_has_run_for_long_stays(bench: LocalBench, tmp_path: Path) -> None:
    spec = training({"steps": 60})
    orchestrate("local", bench.store, bench.environment, spec, tmp_path, "epoch 2 ends")
    folder = Path(state_of(bench, spec).folder)
    gone = folder.with_name("of-a-job-long-past")
    gone.mkdir()
    for each in (folder, gone):
        os.utime(each, (1, 1))
    bench.engine().run(preparation(), FILES, holder="run-b", listener=RecordingListener())
    assert folder.is_dir()
    assert not gone.exists()
    result = bench.engine().run(spec, FILES, holder="run-a", listener=RecordingListener())
    assert (result.attempt, result.launched) == (1, False)


def test_a_job_of_another_pid_namespace_lives_while_its_folder_is_locked_or_it_gives_signs(
    bench: LocalBench, tmp_path: Path
) -> None:
    spec = training({"steps": 1000})
    orchestrate("local", bench.store, bench.environment, spec, tmp_path, "epoch 2 ends")
    state = state_of(bench, spec)
    job = Job.plan(spec, 1, bench.store.url)
    os.kill(state.process.pid, signal.SIGSTOP)  # it leaves its state alone

    def status(**changes: object) -> str:
        """As another container with the same host name sees it, to which the number belongs to nobody."""
        elsewhere = state.process.model_copy(update={"namespace": "1", "pid": 1 << 22})
        bench.store.put(state_key(job), state.model_copy(update={"process": elsewhere, **changes}).to_bytes())
        observed = bench.engine().context.backend.observe(job)
        assert observed is not None
        return observed.status

    assert status(beat=0.0) == "InProgress"  # the folder is locked
    assert status(folder="/of/another/machine", beat=time.time()) == "InProgress"
    assert status(folder="/of/another/machine", beat=0.0) == "Failed"
    os.kill(state.process.pid, signal.SIGKILL)
    wait_for(lambda: start_of(state.process.pid) is None)
    wait_for(lambda: not is_locked(Path(state.folder)))  # what it started holds the lock until it has ended, too
    assert status(beat=time.time()) == "Failed"


def test_a_store_has_one_job_for_one_work_at_whatever_path_it_is_mounted(bench: LocalBench, tmp_path: Path) -> None:
    spec = training()
    first = bench.engine().run(spec, FILES, holder="run-a", listener=RecordingListener())
    (tmp_path / "store").rename(tmp_path / "mounted elsewhere")
    bench.store = Store.open(str(tmp_path / "mounted elsewhere"), environment=bench.environment)
    second = bench.engine().run(spec, FILES, holder="run-b", listener=RecordingListener())
    assert (second.name, second.launched) == (first.name, False)
    assert len(bench.started()) == 1


def test_a_second_interrupt_leaves_nothing_open(bench: LocalBench, tmp_path: Path) -> None:
    spec = training({"steps": 100_000, "deaf": True})
    (tmp_path / "spec.json").write_bytes(spec.to_bytes())
    command = [sys.executable, "-m", "tests.resources.jobs.orchestrate", "local", bench.store.url]
    process = subprocess.Popen(
        [*command, str(tmp_path / "spec.json"), "run-a"],
        env=bench.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.startswith("epoch 2 ends"):
                process.send_signal(signal.SIGINT)
                wait_for(lambda: bench.store.exists(stop_key(Job.plan(spec, 1, bench.store.url))))
                process.send_signal(signal.SIGINT)
                break
        for _ in process.stdout:
            pass
    assert process.wait(60) != 0
    (record,) = records(bench.store).values()
    assert record.status == "Stopped"
    assert not list(bench.store.list("_active_jobs"))
    assert not [stored.key for stored in bench.store.list() if stored.key.endswith(".lease.json")]


def test_a_cancel_ends_all_processes_within_ten_seconds(bench: LocalBench) -> None:
    spec = training({"steps": 100_000, "deaf": True})
    cancel = threading.Event()
    hearing = RecordingListener(lambda text: cancel.set())
    begun: list[float] = []

    def watch() -> None:
        cancel.wait()
        begun.append(time.monotonic())
        wait_for(lambda: all(start_of(group) is None for group in state_of(bench, spec).groups))
        begun.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(JobFailed):
        bench.engine().run(spec, FILES, holder="run-a", listener=hearing, cancel=cancel)
    watcher.join()
    print(f"gone {begun[1] - begun[0]:.1f} s after the cancel")


@pytest.mark.parametrize("forking", ["on", "off"])
def test_a_killed_search_goes_on_with_the_trials_it_had(bench: LocalBench, forking: str) -> None:
    bench.environment[SWITCH] = forking
    search = Tuning(ranges={"learning_rate": RATES}, strategy="Random", max_jobs=4, max_parallel_jobs=1)
    spec = tuning(search, {"steps": 8})
    killed = threading.Event()

    class Killing(RecordingListener):
        def status(self, text: str) -> None:
            super().status(text)
            if text.startswith("Trial 3 of 4: ") and not killed.is_set():
                killed.set()
                os.kill(state_of(bench, spec).process.pid, signal.SIGKILL)

    hearing = Killing()
    result = bench.engine().run(spec, FILES, holder="run-a", listener=hearing)
    assert killed.is_set()
    assert result.attempt == 2
    table = Trials.from_bytes(bench.store.get(f"{result.output_prefix}/{TRIALS}"), TRIALS)
    assert [trial.status for trial in table.trials] == ["Completed"] * 4
    assert len({trial.values["learning_rate"] for trial in table.trials}) == 4
    ended = [said for said in hearing.said if "ended:" in said]
    assert len(ended) == 4  # no trial that had ended was run again
    wait_for(lambda: not marked(bench.scratch))


def marked(folder: Path) -> list[str]:
    """Processes of containers below a folder, and what they are forks of."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found += [str(path)] if f"{BASE_VARIABLE}={folder}".encode() in path.read_bytes() else []
    return found


def test_the_environment_request_and_log_of_a_job_hold_no_secret(bench: LocalBench, running_cloud: Cloud) -> None:
    canaries = {
        "AWS_SECRET_ACCESS_KEY": "CANARY-aws",
        "AWS_SESSION_TOKEN": "CANARY-token",
        "WANDB_API_KEY": "CANARY-wandb",
        "DOCML_LABELS_URL": "postgresql://reader:CANARY-labels@db/labels",
        "DOCML_WEBHOOK_URL": "https://hooks.example/CANARY-hook",
        "MY_TOKEN": "CANARY-mine",
    }
    bench.environment |= canaries
    hearing = RecordingListener()
    bench.engine().run(training(), FILES, holder="run-a", listener=hearing)
    everything = b"".join(bench.store.get(stored.key) for stored in bench.store.list())
    assert b"CANARY" not in everything
    assert "CANARY" not in str(hearing.lines)
    deadline = time.monotonic() + 60
    while any(bench.scratch.glob("*/base")):  # the supervisor removes it after it has told the end
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for path in bench.scratch.rglob("*"):
        assert not path.is_file() or b"CANARY" not in path.read_bytes(), path
    running_cloud.environment |= {key: value for key, value in canaries.items() if not key.startswith("AWS")}
    running_cloud.environment["WANDB_API_KEY"] = "secretsmanager:docml/wandb#key"
    hearing = RecordingListener()
    running_cloud.engine().run(training(), FILES, holder="run-a", listener=hearing)
    assert "CANARY" not in str(running_cloud.endpoint.calls)
    assert "CANARY" not in str(hearing.lines)
    assert "CANARY" not in str(records(running_cloud.store))
