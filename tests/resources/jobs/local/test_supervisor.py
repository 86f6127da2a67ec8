"""The supervisor claims a job once, enforces its time limit, and says in its state how it ended."""

import os
import signal
import time
from pathlib import Path

import pytest

from docml_contract.hyperparameters import Choice
from docml_contract.jobs import Tuning
from docml_contract.manifests import JobOutput, verify_folder
from docml_contract.names import OUTPUT
from resources.jobs.backend import Job
from resources.jobs.local import container, state
from resources.jobs.local.state import Assignment, LocalJob, state_key
from resources.jobs.local.supervisor import Supervisor
from resources.processes import start_of, this_process
from resources.store import Store
from tests.contracts.jobs_contract import FILES, fill, training, tuning
from tests.resources.jobs.cloud import FAKE_TRAINER


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "store"), environment={})
    fill(store)
    return store


def supervisor(
    store: Store,
    folder: Path,
    token: str = "a",
    options: dict[str, object] | None = None,
    search: Tuning | None = None,
) -> Supervisor:
    job = Job.plan(tuning(search, options) if search else training(options), 1, store.url)
    for name, content in {"spec.json": job.spec.to_bytes(), **FILES}.items():
        store.put(f"{job.spec_prefix}/{name}", content)
    assignment = Assignment(
        name=job.name, attempt=1, token=token, store_url=store.url, spec=job.spec, command=FAKE_TRAINER
    )
    folder.mkdir()
    return Supervisor(LocalJob(folder, assignment, store, dict(os.environ), this_process()))


def test_one_of_several_supervisors_wins(store: Store, tmp_path: Path) -> None:
    both = [supervisor(store, tmp_path / token, token) for token in ("a", "b")]
    assert [each.local.claim() for each in both] == [True, False]


def test_a_supervisor_whose_state_was_deleted_gives_way_to_one_that_claimed_the_job_elsewhere(
    store: Store, tmp_path: Path
) -> None:
    one, other = (supervisor(store, tmp_path / token, token, {"steps": 100_000}) for token in ("a", "b"))
    assert one.local.claim()
    store.delete([state_key(one.job)])
    assert other.local.claim(), "it sees neither the state nor the supervisor"
    one.run()
    kept = state.LocalState.from_bytes(store.get(state_key(one.job)), "state")
    assert (kept.token, kept.status) == ("b", "InProgress")
    assert not store.exists(state.log_key(one.job))
    assert not list(store.list(one.job.output_prefix))
    assert not (tmp_path / "a" / "base").exists()


def test_a_job_that_exceeds_its_time_is_stopped_and_says_so(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = supervisor(store, tmp_path / "a", options={"steps": 100_000})
    assert one.local.claim()
    begun = time.monotonic()
    monkeypatch.setattr(one, "_out_of_time", lambda _: Supervisor._out_of_time(one, begun - 600))
    one.run()
    assert (one.local.state.status, one.local.state.cause) == ("Stopped", "time")
    assert "the longest it may run: raise MAX_RUNTIME_SECONDS of the step" in one.local.state.reason
    assert not (tmp_path / "a" / "base").exists()


def test_a_trainer_that_ends_without_a_word_is_told_by_its_exit_code(store: Store, tmp_path: Path) -> None:
    one = supervisor(store, tmp_path / "a")
    store.delete([stored.key for stored in store.list(one.job.spec_prefix)])  # it finds no spec
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.cause, one.local.state.reason) == ("Failed", "work", "exit code 1")
    assert b'"Failed"' in store.get(state_key(one.job))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            "load_model",
            "user_defined_funcs.py: load_model ended its process (exit code 0); a function that cannot go on",
        ),
        (
            "",
            "it ended without writing OUTPUT.json: does user_defined_funcs.py, or a library that it uses, end the process?",
        ),
    ],
)
def test_a_function_that_ends_the_process_is_the_jobs_own_failure(
    store: Store, tmp_path: Path, function: str, reason: str
) -> None:
    one = supervisor(store, tmp_path / "a", options={"exits": function})
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.cause) == ("Failed", "work"), "it would end so again"
    assert one.local.state.reason.startswith(reason)
    assert one.local.state.reason.endswith("raises an Exception (a ValueError, say) that tells what is wrong")


def test_an_output_that_no_store_takes_is_the_jobs_own_failure(store: Store, tmp_path: Path) -> None:
    one = supervisor(store, tmp_path / "a", options={"link": "debug.log"})
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.cause) == ("Failed", "work"), (
        "it would happen again: not tried again"
    )
    assert "its output cannot be stored: " in one.local.state.reason
    assert "debug.log: a symbolic link; put a copy of the file there instead" in one.local.state.reason


def test_a_search_takes_no_link_for_what_it_leads_to(store: Store, tmp_path: Path) -> None:
    search = Tuning(ranges={"learning_rate": Choice(values=(0.1,))}, strategy="Grid", max_jobs=1)
    one = supervisor(store, tmp_path / "a", options={"steps": 1, "link": "debug.log"}, search=search)
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.cause) == ("Failed", "work")
    assert "debug.log: a symbolic link; put a copy of the file there instead" in one.local.state.reason


def test_a_search_keeps_the_offline_tracking_of_all_trials(store: Store, tmp_path: Path) -> None:
    rates = (0.1, 0.3, 0.9)
    search = Tuning(ranges={"learning_rate": Choice(values=rates)}, strategy="Grid", max_jobs=3)
    one = supervisor(store, tmp_path / "a", options={"steps": 1, "tracked": True}, search=search)
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.reason) == ("Completed", "")
    store.download(one.job.output_prefix, tmp_path / "output")
    output = JobOutput.from_bytes((tmp_path / "output" / OUTPUT).read_bytes(), OUTPUT)
    verify_folder(tmp_path / "output", output.files)
    kept = [entry.path for entry in output.files if entry.path.startswith("wandb/")]
    assert kept == [f"wandb/offline-run-{rate}/run.wandb" for rate in rates]


@pytest.mark.parametrize(("die", "statuses"), [("once", ["Completed"]), ("always", ["Failed"])])
def test_a_trial_that_is_killed_begins_again_once(store: Store, tmp_path: Path, die: str, statuses: list[str]) -> None:
    search = Tuning(ranges={"learning_rate": Choice(values=(0.1,))}, strategy="Grid", max_jobs=1)
    one = supervisor(store, tmp_path / "a", options={"die": die}, search=search)
    assert one.local.claim()
    one.run()
    assert [one.local.state.status] == statuses
    said = one.local.state.model_dump_json()
    assert said.count("killed by SIGKILL (out of memory?); it begins again where its checkpoints end") == 1
    if die == "once":
        store.download(one.job.output_prefix, tmp_path / "output")
        output = JobOutput.from_bytes((tmp_path / "output" / OUTPUT).read_bytes(), OUTPUT)
        assert output.facts["starts"] == 2, "it went on"
    else:
        assert one.local.state.reason == "all 1 trials failed: trial 1: killed by SIGKILL (out of memory?)"


def test_an_output_that_is_not_what_it_says_is_the_jobs_own_failure(store: Store, tmp_path: Path) -> None:
    one = supervisor(store, tmp_path / "a", options={"untrue": True})
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.cause) == ("Failed", "work")
    assert "result-0.json has 1 bytes, and OUTPUT.json says" in one.local.state.reason


def test_a_sparse_file_is_not_copied_out(store: Store, tmp_path: Path) -> None:
    one = supervisor(store, tmp_path / "a", options={"sparse": True})
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.cause) == ("Failed", "work")
    assert "hollow is 1099511627776 bytes long and holds next to nothing" in one.local.state.reason
    assert not store.exists(f"{one.job.output_prefix}/hollow")


def test_a_thread_that_was_left_behind_does_not_keep_the_job(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "LEFTOVER_SECONDS", 0.0)
    monkeypatch.setattr(state, "LIFE_SECONDS", 0.1)
    one = supervisor(store, tmp_path / "a", options={"linger": True})
    assert one.local.claim()
    one.run()
    assert (one.local.state.status, one.local.state.reason) == ("Completed", "")
    assert any("left behind were ended" in phase for phase in one.local.state.phases)


def test_a_job_in_which_nothing_moves_is_told_then_lost(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LIFE_SECONDS", 0.2)
    monkeypatch.setattr(state, "QUIET_SECONDS", 1.0)
    monkeypatch.setattr(state, "STALL_SECONDS", 5.0)
    one = supervisor(store, tmp_path / "a", options={"steps": 100_000})
    assert one.local.claim()
    looks: list[int] = []

    def stop(containers: list[container.Container]) -> list[tuple[int, int]]:
        """Stop the trainer once it has begun, as somebody's SIGSTOP would."""
        if not looks and containers[0].log.exists() and "epoch 2 ends" in containers[0].log.read_text():
            looks.extend(children(containers[0].pid))
            os.kill(looks[0], signal.SIGSTOP)
        return container.signs_of_life(containers)

    monkeypatch.setattr("resources.jobs.local.supervisor.signs_of_life", stop)
    one.run()
    assert looks
    assert (one.local.state.status, one.local.state.cause) == ("Failed", "lost")
    assert "stalled: no processor time and no output for" in one.local.state.reason
    assert any("is it stopped (SIGSTOP)" in phase for phase in one.local.state.phases)
    assert start_of(looks[0]) is None


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
