"""Training as a step: a job a model, kept when another fails, stopped together."""

import json
import threading

import pytest

from docml_assets.steps.learning_curve import read_parts
from docml_assets.steps.preparation import run_preparation
from docml_assets.steps.reconciliation import reconciliation
from docml_assets.steps.training import read_models, read_seeds, run_training
from docml_assets.steps.work import ModelsFailed, NothingToReuse, NotReady, Work
from docml_contract.jobs import JobSpec, TrainTask
from resources.jobs.interface import JobFailed, Listener
from tests.docml_assets.world import LABELS, FakeJobs, Hook, World


def ready(work: Work) -> Work:
    reconciliation(work)
    run_preparation(work)
    return work


def fail(*names: str) -> Hook:
    def before(spec: JobSpec, listener: Listener, cancel: threading.Event | None) -> None:
        if spec.model in names:
            raise JobFailed(f"job-{spec.model}", "out of memory")

    return before


def test_every_model_is_trained_once(world: World) -> None:
    world.write_experiment(model_names="one, two")
    jobs = FakeJobs(world.store)
    work = ready(world.work(world.claim(1), jobs))
    made = run_training(work)
    assert jobs.ran == ["preparation", "training one", "training two"]
    assert made is not None
    assert [job.launched for job in made.jobs] == [True, True]
    again = run_training(work)
    assert again is not None
    assert (again.how, again.data_version, again.jobs) == ("finished", made.data_version, ())
    assert len(jobs.ran) == 3


def test_a_failed_model_leaves_the_others_and_is_the_only_one_trained_next(world: World) -> None:
    world.write_experiment(model_names="one, two, three")
    claim = world.claim(1)
    work = ready(world.work(claim, FakeJobs(world.store, fail("two"))))
    with pytest.raises(ModelsFailed, match=r"finished and kept: one, three\)[\s\S]*two: job job-two: out of memory"):
        run_training(work)
    with pytest.raises(NotReady, match="no model for two"):
        read_models(work)
    jobs = FakeJobs(world.store)
    made = run_training(world.work(claim, jobs))
    assert jobs.ran == ["training two"]
    assert made is not None
    assert "kept one, three" in made.why


def test_a_single_failed_model_fails_with_its_own_error(world: World) -> None:
    world.write_experiment(model_names="one")
    work = ready(world.work(world.claim(1), FakeJobs(world.store, fail("one"))))
    with pytest.raises(JobFailed, match="out of memory"):
        run_training(work)


def test_models_train_at_once_and_stop_together(world: World) -> None:
    world.write_experiment(model_names="one, two")
    both = threading.Barrier(2)
    stopped = []

    class Interrupt(BaseException):
        pass

    def before(spec: JobSpec, listener: Listener, cancel: threading.Event | None) -> None:
        if spec.model is None:
            return
        assert cancel is not None
        both.wait(30)
        if spec.model == "one":
            threading.Timer(0.2, interrupt).start()
        assert cancel.wait(30)
        stopped.append(spec.model)
        raise JobFailed(f"job-{spec.model}", "stopped")

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        import signal

        signal.pthread_kill(main, signal.SIGUSR1)

    def handler(*_: object) -> None:
        raise Interrupt

    import signal

    before_handler = signal.signal(signal.SIGUSR1, handler)
    work = world.work(world.claim(1), FakeJobs(world.store, before), comparison_parallel_jobs=2)
    try:
        ready(work)
        with pytest.raises(Interrupt):
            run_training(work)
    finally:
        signal.signal(signal.SIGUSR1, before_handler)
    assert sorted(stopped) == ["one", "two"]


def test_a_tuning_leaves_the_searched_constant_out(world: World) -> None:
    folder = world.write_experiment(
        run_training="false", run_tuning="true", hyperparameters={"epochs": 1, "learning_rate": 0.1}
    )
    with (folder / "settings.ini").open("a") as stream:
        stream.write("[tunable]\nlearning_rate = 1e-4 -> 1e-2 log\n")
    jobs = FakeJobs(world.store)
    work = ready(world.work(world.claim(1), jobs))
    made = run_training(work)
    assert made is not None
    assert made.folders == {"small": "EXP-1/run_1/tuning/small"}
    spec = jobs.specs[-1]
    assert spec.kind == "tuning"
    assert spec.tuning is not None
    assert set(spec.tuning.ranges) == {"learning_rate"}
    assert "learning_rate" not in spec.hyperparameters


def test_turned_off_it_takes_models_of_the_same_names_that_saw_the_same_data(world: World) -> None:
    world.write_experiment()
    made = run_training(ready(world.work(world.claim(1))))
    jobs = FakeJobs(world.store)
    second = ready(
        world.work(world.claim(2), jobs, performed=frozenset({"reconciliation", "preparation", "inference"}))
    )
    taken = run_training(second)
    assert made is not None
    assert taken is not None
    assert jobs.ran == []
    assert (taken.how, taken.reused_from, taken.data_version) == ("reused", 1, made.data_version)
    world.write_experiment(model_names="other")
    third = ready(world.work(world.claim(3), performed=frozenset({"reconciliation", "preparation", "inference"})))
    with pytest.raises(NothingToReuse, match="RUN_TRAINING = true"):
        run_training(third)


def test_every_model_is_trained_once_a_seed_and_the_best_on_the_validation_split_is_the_runs(world: World) -> None:
    world.write_experiment(model_names="one, two", seeds="13, 14, 15")
    failing = FakeJobs(world.store, fail("two"))
    claim = world.claim(1)
    with pytest.raises(
        ModelsFailed, match=r"kept: one, seed 13; one, seed 14; one, seed 15\)[\s\S]*two, seed 14: job job-two"
    ):
        run_training(ready(world.work(claim, failing)))
    jobs = FakeJobs(world.store)
    work = world.work(claim, jobs)
    made = run_training(work)
    assert jobs.ran == [f"training two seed-{seed}" for seed in (13, 14, 15)], "those of the model one are kept"
    assert [spec.hyperparameters["seed"] for spec in jobs.specs] == [13, 14, 15]
    assert len({spec.spec_hash for spec in jobs.specs}) == 3
    assert made is not None
    assert made.why == "trained one, two with 3 seeds each"
    seeds = read_seeds(work)["two"]
    assert (seeds.chosen, next(iter(seeds.folders.values()))) == (14, "EXP-1/run_1/training/two/seed-13")
    folders, manifests = read_models(work)
    assert folders["two"] == "EXP-1/run_1/training/two"
    assert manifests["two"].file("model.pt") == seeds.manifests[14].file("model.pt")
    assert json.loads(world.store.get("EXP-1/run_1/training/two/seeds.json"))["chosen"] == 14
    again = run_training(work)
    assert again is not None
    assert (again.how, again.data_version, len(jobs.ran)) == ("finished", made.data_version, 3)


def test_the_next_run_takes_the_seeds_with_the_models(world: World) -> None:
    world.write_experiment(seeds="13, 14")
    made = run_training(ready(world.work(world.claim(1))))
    work = ready(world.work(world.claim(2), performed=frozenset({"reconciliation", "preparation", "inference"})))
    taken = run_training(work)
    assert made is not None
    assert taken is not None
    assert (taken.how, taken.data_version, list(taken.folders)) == ("reused", made.data_version, ["small"])
    assert read_seeds(work)["small"].chosen == 14
    world.write_experiment(seeds="13, 15")
    with pytest.raises(NothingToReuse):
        run_training(ready(world.work(world.claim(3), performed=frozenset({"preparation", "inference"}))))


def test_the_first_model_is_trained_once_on_every_part_for_its_learning_curve(world: World) -> None:
    world.write_experiment(model_names="one, two", learning_curve="true")
    for number in range(48):
        world.add_document(f"more-{number:02d}", LABELS[number % 2])
    claim = world.claim(1)

    def before(spec: JobSpec, listener: Listener, cancel: threading.Event | None) -> None:
        if spec.piece == "part-2-of-4":
            raise JobFailed("job-part", "out of memory")

    failing = FakeJobs(world.store, before)
    with pytest.raises(ModelsFailed, match=r"1 of 6 trainings failed[\s\S]*one, part 2 of 4: job job-part"):
        run_training(ready(world.work(claim, failing)))
    parts = ["part-1-of-2", "part-2-of-2", "part-1-of-4", "part-2-of-4"]  # eighths would have a handful of documents
    assert failing.ran[1:] == ["training one", "training two", *(f"training one {part}" for part in parts)]
    spec = failing.specs[-1]
    assert isinstance(spec.task, TrainTask)
    assert spec.task.inference is not None
    assert len({spec.spec_hash for spec in failing.specs}) == 7
    jobs = FakeJobs(world.store)
    work = world.work(claim, jobs)
    made = run_training(work)
    assert jobs.ran == ["training one part-2-of-4"], "what has finished is not trained again"
    assert made is not None
    assert made.why == "trained the first model on parts of the documents; kept one, two"
    again = run_training(work)
    assert again is not None
    assert (again.how, again.data_version, len(jobs.ran)) == ("finished", made.data_version, 1)
    kept = read_parts(work)
    assert kept is not None
    assert list(kept.folders.values()) == [f"EXP-1/run_1/training/one/{part}" for part in parts]
    assert "model.pt" not in {entry.path for manifest in kept.manifests.values() for entry in manifest.files}
    taken = run_training(ready(world.work(world.claim(2), performed=frozenset({"preparation", "inference"}))))
    assert taken is not None
    assert taken.how == "reused"
    assert world.store.head("EXP-1/run_2/training/one/part-1-of-2/predictions.parquet") is not None


def test_without_seeds_a_trainings_spec_and_versions_are_those_of_before(world: World) -> None:
    world.write_experiment()
    jobs = FakeJobs(world.store)
    work = ready(world.work(world.claim(1), jobs))
    run_training(work)
    spec = jobs.specs[-1]
    assert (spec.piece, spec.hyperparameters["seed"]) == (None, 13)
    assert work.settings.frozen_content().keys() & {"seeds", "learning_curve"} == set()
    assert spec.spec_hash == spec.model_copy(update={"task": spec.task.model_copy(update={"part": None})}).spec_hash
    assert read_seeds(work) == {}
