"""Settings -> job specs."""

from docml_assets.steps import specs
from docml_contract.jobs import Channel, ExportedModel, InferencePhase, PrepareTask, RecordedFiles, TrainTask
from docml_contract.manifests import FileEntry
from tests.docml_assets.world import World

DATA = RecordedFiles(
    folder="data",
    files=tuple(
        FileEntry(path=path, size=1, sha256="a" * 64)
        for path in ("label2id.json", "train/a.arrow", "trains/x", "valid/b/c.arrow")
    ),
)


def planned(model: str) -> specs.PlannedTraining:
    return specs.PlannedTraining(model, f"EXP-1/run_1/training/{model}")


def test_machines_come_from_the_settings_that_do_not_freeze(world: World) -> None:
    world.write_experiment(training_instance_type="ml.p3.2xlarge", training_use_spot="true", docker_image="mine")
    work = world.work(world.claim(1), max_cost_usd=3.0)
    compute = specs.step_compute(work, "training")
    assert (compute.instance_type, compute.use_spot, compute.max_cost_usd) == ("ml.p3.2xlarge", True, 3.0)
    assert compute.image is None, "local jobs run in no image"
    assert not specs.step_compute(work, "inference").use_spot


def test_machines_do_not_change_the_work(world: World) -> None:
    world.write_experiment(use_distributed="true")
    claim = world.claim(1)

    def spec_hash(**operation: object) -> str:
        work = world.work(claim, **operation)
        files = {"user_defined_funcs.py": b"code"}
        return specs.training_spec(
            work, planned("small"), prepared=DATA, files=files, inputs={}, provenance={"git": "1"}
        ).spec_hash

    assert spec_hash(training_instance_type="ml.p3.2xlarge", max_cost_usd=3.0) == spec_hash()
    damaged = RecordedFiles(folder="data", files=(FileEntry(path="train/a.arrow", size=1, sha256="b" * 64),))
    work = world.work(claim)
    spec = specs.training_spec(
        work, planned("small"), prepared=damaged, files={"user_defined_funcs.py": b"code"}, inputs={}, provenance={}
    )
    assert spec.spec_hash == spec_hash()
    assert spec_hash(wandb_mode="offline", wandb_project="other") == spec_hash()
    assert spec_hash(training_instance_count=2) != spec_hash()
    assert spec_hash(inference_in_training=False) == spec_hash()

    def preparation_hash(**operation: object) -> str:
        channel = Channel(name="artifacts", prefix="p")
        work = world.work(claim, **operation)
        return specs.preparation_spec(work, phase="whole", channel=channel, files={}, inputs={}).spec_hash

    assert preparation_hash(preparation_processes=3) == preparation_hash()


def test_one_machine_that_trains_predicts_the_test_split_too(world: World) -> None:
    world.write_experiment(auto_accept_precision="0.9", use_distributed="true")
    claim = world.claim(1)

    def phase(performed: frozenset[str] | None = None, **operation: object) -> object:
        work = world.work(claim, performed=performed, **operation)
        spec = specs.training_spec(work, planned("small"), prepared=DATA, files={}, inputs={}, provenance={})
        assert isinstance(spec.task, TrainTask)
        assert ("test" in {channel.name for channel in spec.channels}) is (spec.task.inference is not None)
        return spec.task.inference

    assert phase() == InferencePhase(validation=True)
    assert phase(inference_in_training=False) is None
    assert phase(training_instance_count=2) is None
    assert phase(performed=frozenset({"training"})) is None, "nobody asked for a report"


def test_tasks_carry_what_the_settings_say(world: World) -> None:
    world.write_experiment(
        model_names="one, two", split_by="customer", max_artifacts=9, hyperparameters={"epochs": 2, "width": 3}
    )
    work = world.work(world.claim(1))
    channel = Channel(name="artifacts", prefix="p", files=("a",))
    task = specs.preparation_spec(work, phase="whole", channel=channel, files={}, inputs={}).task
    assert isinstance(task, PrepareTask)
    assert (task.own_hyperparameters, task.split_by, task.max_artifacts) == ({"width": 3}, "customer", 9)
    spec = specs.training_spec(work, planned("two"), prepared=DATA, files={}, inputs={}, provenance={})
    assert isinstance(spec.task, TrainTask)
    assert spec.task.model_names == ("one", "two")
    assert spec.hyperparameters["epochs"] == 2
    assert [channel.prefix for channel in spec.channels] == ["data/train", "data/valid", "data/test"]
    recorded = [channel.recorded for channel in spec.channels]
    assert [[entry.path for entry in found.files] for found in recorded if found] == [["a.arrow"], ["b/c.arrow"], []]


def test_inference_reads_the_models_of_whichever_run_made_them(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(3))
    model = ExportedModel(path="run_1/training/small", torchscript_sha256="a" * 64, export_sha256="b" * 64)
    spec = specs.inference_spec(work, prepared=DATA, models={"small": model}, inputs={})
    channels = {channel.name: channel for channel in spec.channels}
    assert channels["test"].prefix == "data/test"
    assert channels["models"].files == ("run_1/training/small/model.pt", "run_1/training/small/export.json")


def test_a_model_of_a_comparison_has_its_own_values(world: World) -> None:
    folder = world.write_experiment(model_names="one, two", hyperparameters={"epochs": 2, "width": 3})
    settings = folder / "settings.ini"
    settings.write_text(settings.read_text() + "\n[hyperparameters.two]\nepochs = 5\nwidth = 7\n")
    work = world.work(world.claim(1))
    found = {
        model: specs.training_spec(
            work, planned(model), prepared=DATA, files={}, inputs={}, provenance={}
        ).hyperparameters
        for model in ("one", "two")
    }
    assert {model: (values["epochs"], values["width"]) for model, values in found.items()} == {
        "one": (2, 3),
        "two": (5, 7),
    }
    channel = Channel(name="artifacts", prefix="p")
    task = specs.preparation_spec(work, phase="whole", channel=channel, files={}, inputs={}).task
    assert isinstance(task, PrepareTask)
    assert (task.own_hyperparameters, task.model_hyperparameters) == ({"width": 3}, {"two": {"width": 7}})
