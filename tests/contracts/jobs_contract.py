"""What every implementation of `Jobs` keeps: this machine and SageMaker. Subclass `JobsContract` and give `bench`."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pytest

from docml_contract.hyperparameters import Choice, Interval
from docml_contract.jobs import Channel, Compute, JobSpec, PrepareTask, Tracking, TrainTask, Tuning
from docml_contract.names import TRIALS, RunPlace
from resources.jobs.engine.engine import Engine
from resources.jobs.engine.records import JobRecord
from resources.jobs.interface import JobFailed, JobRefused, JobStopped
from resources.jobs.trials import Trials
from resources.store import Store

FILES = {"user_defined_funcs.py": b"def load_model(model_name, context): ...\n"}
PLACE = RunPlace("EXP-1-contract", 1)


class Interrupt(BaseException):
    """Stands for Dagster's interrupt, which is a BaseException too."""


class RecordingListener:
    """A Listener that keeps what it is told; `on_line` may raise, or set a cancel event."""

    def __init__(self, on_line: Callable[[str], None] = lambda text: None) -> None:
        self.lines: list[str] = []
        self.hosts: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.on_line = on_line

    def line(self, host: str, text: str) -> None:
        self.hosts.add(host)
        self.lines.append(text)
        self.on_line(text)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def status(self, text: str) -> None:
        self.said.append(text)


class JobsBench(Protocol):
    """An implementation to test: its store, and an engine as a fresh process would make it."""

    store: Store

    def engine(self) -> Engine: ...

    def started(self) -> list[str]:
        """Names of all jobs that were ever started, a name as often as it was started."""


def hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def compute(**changes: Any) -> Compute:
    return Compute(
        **{
            "instance_type": "ml.m5.xlarge",
            "max_runtime_seconds": 600,
            "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/docml:1",
            **changes,
        }
    )


def preparation(options: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    """A processing job with a whole channel and a listed one; see PREPARATION_INPUTS."""
    task = PrepareTask(model_names=("m",), own_hyperparameters=options or {}, model_input_files=("raw_text.json",))
    return JobSpec(
        kind="processing",
        experiment=PLACE.experiment,
        run=PLACE.number,
        step="preparation",
        task=task,
        channels=(
            Channel(name="artifacts", prefix="in/artifacts", files=("a/v1/raw_text.json", "b/v2/raw_text.json")),
            Channel(name="all", prefix="in/all"),
        ),
        files=hashes(FILES),
        compute=changes.pop("compute", compute()),
        **changes,
    )


def training(options: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    tracking = Tracking(group=PLACE.experiment, name="run_1-m", job_type="training")
    return JobSpec(
        kind="training",
        experiment=PLACE.experiment,
        run=PLACE.number,
        step="training",
        model="m",
        task=TrainTask(
            experiment=PLACE.experiment, run=PLACE.number, model_name="m", model_names=("m",), tracking=tracking
        ),
        hyperparameters=options or {},
        channels=(Channel(name="train", prefix="in/all"),),
        files=hashes(FILES),
        compute=changes.pop("compute", compute()),
        **changes,
    )


def tuning(search: Tuning, options: dict[str, Any] | None = None) -> JobSpec:
    """A search around `training(options)`; the fake trainer's objective is best at learning_rate = 0.3."""
    content = training(options).model_dump() | {"kind": "tuning", "step": "tuning", "tuning": search.model_dump()}
    return JobSpec.model_validate(content)


RATES = Interval(low=0.1, high=0.9)


def fill(store: Store) -> None:
    """The inputs of the specs above, and some that must not be read."""
    for key in ("a/v1/raw_text.json", "b/v2/raw_text.json", "c/v3/raw_text.json", "a/v1/page.png"):
        store.put(f"in/artifacts/{key}", key.encode())
    for key in ("one.arrow", "deep/two.arrow"):
        store.put(f"in/all/{key}", key.encode())
    store.put("in/all-other/three.arrow", b"of another folder")


def outputs(store: Store) -> list[str]:
    return [stored.key for stored in store.list(PLACE.jobs)]


def records(store: Store) -> dict[str, JobRecord]:
    keys = [stored.key for stored in store.list(PLACE.jobs) if stored.key.count("/") == 3]
    keys = [key for key in keys if key.endswith(".json") and key.count(".") == 1]
    return {key: JobRecord.from_bytes(store.get(key), key) for key in keys}


class JobsContract:
    """The suite."""

    def run(
        self,
        bench: JobsBench,
        spec: JobSpec,
        hearing: RecordingListener | None = None,
        holder: str = "run-a",
        **more: Any,
    ) -> Any:
        return bench.engine().run(spec, FILES, holder=holder, listener=hearing or RecordingListener(), **more)

    def test_a_preparation_reads_its_channels_and_hands_over_its_output(self, bench: JobsBench) -> None:
        hearing = RecordingListener()
        result = self.run(bench, preparation({"print": "hello"}), hearing)
        assert (result.attempt, result.launched) == (1, True)
        assert result.output.command == "prepare"
        found = json.loads(bench.store.get(f"{result.output_prefix}/result-0.json"))
        assert sorted(found["inputs"]) == [
            "all/deep/two.arrow",
            "all/one.arrow",
            "artifacts/a/v1/raw_text.json",
            "artifacts/b/v2/raw_text.json",
        ]
        assert "hello" in hearing.lines
        assert len(hearing.hosts) == 1
        assert any("starting" in said for said in hearing.said)

    def test_two_hosts_each_see_themselves(self, bench: JobsBench) -> None:
        hearing = RecordingListener()
        result = self.run(bench, preparation(compute=compute(instance_count=2)), hearing)
        assert bench.store.exists(f"{result.output_prefix}/result-0.json")
        assert bench.store.exists(f"{result.output_prefix}/result-1.json")
        assert len(hearing.hosts) == 2

    def test_a_training_gets_its_hyperparameters_and_reports_epochs(self, bench: JobsBench) -> None:
        hearing = RecordingListener()
        result = self.run(bench, training({"learning_rate": 0.25, "note": "plain text", "steps": 2}), hearing)
        found = json.loads(bench.store.get(f"{result.output_prefix}/result-0.json"))
        assert found["options"] == {"learning_rate": 0.25, "note": "plain text", "steps": 2}
        assert sorted(found["inputs"]) == ["train/deep/two.arrow", "train/one.arrow"]
        assert [event["epoch"] for event in hearing.events] == [1, 2]
        assert result.seconds >= 0

    def test_the_record_says_what_was_asked_and_how_it_ended(self, bench: JobsBench) -> None:
        result = self.run(bench, training())
        (record,) = records(bench.store).values()
        assert (record.name, record.status, record.holder) == (result.name, "Completed", "run-a")
        assert record.request
        assert record.ended_at
        assert bench.store.list_folders("_active_jobs") == []
        assert not list(bench.store.list("_active_jobs"))

    def test_the_same_work_again_takes_the_result(self, bench: JobsBench) -> None:
        first = self.run(bench, training())
        second = self.run(bench, training(compute=compute(instance_type="ml.g5.xlarge")), holder="run-b")
        assert second.launched is False
        assert second.output == first.output
        assert bench.started() == [first.name]

    def test_a_second_waiter_attaches_and_hears_the_log_from_the_start(self, bench: JobsBench) -> None:
        started = threading.Event()
        first = RecordingListener(on_line=lambda text: started.set())
        results: list[Any] = []
        spec = training({"steps": 25})
        thread = threading.Thread(target=lambda: results.append(self.run(bench, spec, first)))
        thread.start()
        assert started.wait(60)
        second = RecordingListener()
        results.append(self.run(bench, spec, second, holder="run-b"))
        thread.join()
        assert [result.name for result in results] == bench.started() * 2
        assert sorted(result.launched for result in results) == [False, True]
        assert "train starts at step 0 on host 0" in second.lines
        assert any("attached" in said for said in second.said)

    def test_a_failure_carries_the_jobs_own_reason_and_is_not_tried_again(self, bench: JobsBench) -> None:
        with pytest.raises(JobFailed, match="learning_rate is out of range") as error:
            self.run(bench, training({"fail": "learning_rate is out of range"}))
        assert not isinstance(error.value, JobStopped)
        assert "train starts at step 0 on host 0" in error.value.last_lines
        assert error.value.links
        assert len(bench.started()) == 1
        with pytest.raises(JobFailed):
            self.run(bench, training({"fail": "learning_rate is out of range"}), holder="run-b")
        assert sorted(name.rsplit("-", 1)[1] for name in bench.started()) == ["1", "2"]

    def test_a_failed_preparation_tells_its_reason_too(self, bench: JobsBench) -> None:
        with pytest.raises(JobFailed, match="encode_data returned no features"):
            self.run(bench, preparation({"fail": "encode_data returned no features"}))

    @pytest.mark.parametrize("make", [training, preparation])
    def test_a_job_that_ends_without_a_word_is_not_tried_again(self, bench: JobsBench, make: Any) -> None:
        with pytest.raises(JobFailed, match=r"without writing OUTPUT\.json: does user_defined_funcs\.py, or a library"):
            self.run(bench, make({"exits": ""}))
        assert len(bench.started()) == 1

    @pytest.mark.parametrize("make", [training, preparation])
    def test_an_interrupt_stops_the_job_and_a_new_run_resumes(self, bench: JobsBench, make: Any) -> None:
        def interrupt(text: str) -> None:
            if text.startswith(("epoch 3 ", "part 3 ")):
                raise Interrupt

        spec = make({"steps": 60})
        with pytest.raises(Interrupt):
            self.run(bench, spec, RecordingListener(interrupt))
        (record,) = records(bench.store).values()
        assert record.status == "Stopped"
        assert not list(bench.store.list("_active_jobs"))
        hearing = RecordingListener()
        result = self.run(bench, spec, hearing, holder="run-b")
        assert result.attempt == 2
        assert result.output.facts["starts"] == 2
        (beginning,) = [line for line in hearing.lines if " starts at step" in line]
        assert int(beginning.split()[4]) >= 3

    def test_a_cancel_event_stops_the_job_from_another_thread(self, bench: JobsBench) -> None:
        cancel = threading.Event()
        hearing = RecordingListener(lambda text: cancel.set())
        with pytest.raises(JobStopped):
            self.run(bench, training({"steps": 1000}), hearing, cancel=cancel)
        (record,) = records(bench.store).values()
        assert record.status == "Stopped"

    def test_a_job_that_ignores_sigterm_is_killed(self, bench: JobsBench) -> None:
        cancel = threading.Event()
        hearing = RecordingListener(lambda text: cancel.set())
        with pytest.raises(JobStopped):
            self.run(bench, training({"steps": 1000, "deaf": True}), hearing, cancel=cancel)
        (record,) = records(bench.store).values()
        assert record.status == "Stopped"

    def test_files_that_are_not_those_of_the_spec_are_refused(self, bench: JobsBench) -> None:
        with pytest.raises(JobRefused, match="files"):
            bench.engine().run(training(), {}, holder="run-a", listener=RecordingListener())
        assert bench.started() == []

    def test_output_that_vanished_is_made_again(self, bench: JobsBench) -> None:
        first = self.run(bench, training())
        bench.store.delete([f"{first.output_prefix}/result-0.json"])
        second = self.run(bench, training(), holder="run-b")
        assert (second.attempt, second.launched) == (2, True)

    def test_output_with_a_flipped_bit_is_made_again_where_its_hash_is_known(self, bench: JobsBench) -> None:
        first = self.run(bench, training())
        key = f"{first.output_prefix}/result-0.json"
        content = bench.store.get(key)
        bench.store.put(key, bytes([content[0] ^ 1]) + content[1:])
        second = self.run(bench, training(), holder="run-b")
        is_known = bench.store.local_path is not None  # S3 guards what it holds itself
        assert (second.attempt, second.launched) == ((2, True) if is_known else (1, False))

    def test_other_work_under_the_name_is_passed_over_once_it_ended(self, bench: JobsBench) -> None:
        self.run(bench, training({"learning_rate": 0.1}))
        second = self.run(bench, training({"learning_rate": 0.2}), holder="run-b")
        assert second.attempt == 2
        assert second.output.data_version == "version-of-0.2"

    def test_a_search_keeps_the_best_trial_and_lists_all(self, bench: JobsBench) -> None:
        search = Tuning(
            ranges={"learning_rate": RATES, "size": Choice(values=(8, 16))},
            strategy="Random",
            max_jobs=4,
            max_parallel_jobs=2,
        )
        hearing = RecordingListener()
        result = self.run(bench, tuning(search, {"steps": 2, "learning_rate": 0.5, "note": "x"}), hearing)
        table = Trials.from_bytes(bench.store.get(f"{result.output_prefix}/{TRIALS}"), TRIALS)
        assert [trial.status for trial in table.trials] == ["Completed"] * 4
        best = table.trials[table.best - 1]
        scores = {round(trial.objective or 0, 6): trial for trial in table.trials}
        assert max(scores) == round(best.objective or 0, 6)
        kept = json.loads(bench.store.get(f"{result.output_prefix}/result-0.json"))
        assert kept["options"]["note"] == "x"
        assert kept["options"]["size"] in (8, 16)
        assert kept["options"]["size"] == best.values["size"]
        assert kept["options"]["_tuning_objective_metric"] == "valid_f1"
        assert 1 - abs(kept["options"]["learning_rate"] - 0.3) == pytest.approx(best.objective)
        assert {entry.path for entry in result.output.files} == {"result-0.json", TRIALS, "search.png"}
        assert [key for key in outputs(bench.store) if key.endswith("result-0.json")] == [
            f"{result.output_prefix}/result-0.json"
        ]
        assert len(hearing.hosts) == 4

    def test_a_grid_covers_its_points(self, bench: JobsBench) -> None:
        search = Tuning(ranges={"learning_rate": Choice(values=(0.1, 0.25, 0.9))}, strategy="Grid", max_parallel_jobs=3)
        result = self.run(bench, tuning(search, {"steps": 1}))
        assert result.attempt == 1
        table = Trials.from_bytes(bench.store.get(f"{result.output_prefix}/{TRIALS}"), TRIALS)
        assert sorted(trial.values["learning_rate"] for trial in table.trials) == [0.1, 0.25, 0.9]
        assert table.trials[table.best - 1].values == {"learning_rate": 0.25}

    def test_a_canceled_search_stops_its_trials(self, bench: JobsBench) -> None:
        cancel = threading.Event()
        search = Tuning(ranges={"learning_rate": RATES}, strategy="Random", max_jobs=3, max_parallel_jobs=2)
        with pytest.raises(JobStopped):
            self.run(
                bench, tuning(search, {"steps": 1000}), RecordingListener(lambda text: cancel.set()), cancel=cancel
            )
        (record,) = records(bench.store).values()
        assert record.status == "Stopped"
