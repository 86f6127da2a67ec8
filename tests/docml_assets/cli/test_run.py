"""docml run and docml runs as a person calls them: real processes, a real training of a tiny model."""

import json
import re
import signal
import subprocess
from functools import partial

import dagster as dg
import pytest

from docml_contract.jobs import JobSpec
from resources.jobs.engine.records import JobRecord
from tests.contracts.jobs_contract import FILES, RecordingListener, hashes
from tests.docml_assets.cli.here import DOCML, Here
from tests.resources.jobs.simulation import IMAGE, Actor
from tests.resources.jobs.simulation import World as SageMakerWorld

CANCELED = 130


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A folder whose run 1 is finished."""
    here = Here(tmp_path_factory.mktemp("here"))
    said = here.docml("run", "EXP-7-words")
    assert "macro-F1" in said
    return here


def test_a_second_run_launches_no_job_and_says_why(finished: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = finished.jobs(1)
    assert len(jobs) == 2, "the training's job has predicted the test split"
    assert wait_on_sagemaker(finished) == 12
    monkeypatch.setitem(finished.environment, "PYTHONPROFILEIMPORTTIME", "1")
    said = finished.docml("run", "EXP-7-words")
    assert finished.jobs(1) == jobs
    assert "starting the job" not in said
    assert not re.findall(r"\| +(pandas|polars|pyarrow\.dataset|sagemaker|boto3)\n", said), "nothing is computed"
    assert len(re.findall("verified; no job was launched", said)) == 5
    assert finished.unevaluated(1) == [], "Dagster's list of checks has the findings, of what was told again too"


def wait_on_sagemaker(here: Here) -> int:
    """Minutes for which the jobs of run 1 wait for their machines, one after another, on a service that takes 6 minutes a start."""
    folder = here.root / "storage/EXP-7-words/run_1/jobs"
    records = [JobRecord.from_bytes((folder / f"{name}.json").read_bytes(), name) for name in here.jobs(1)]
    world = SageMakerWorld()
    world.runtime.seconds = 3 * 6 * 60  # a third of which is the start
    for record in sorted(records, key=lambda record: record.created_at):
        compute = record.spec.compute.model_copy(update={"image": IMAGE})
        spec = record.spec.model_copy(update={"files": hashes(FILES), "compute": compute})
        actor = world.actor(spec.step, partial(run_simulated, spec))
        world.run()
        assert actor.error is None
    assert len(world.jobs()) == len(records)
    return round(sum(job.started - job.created for job in world.jobs() if job.started) / 60)


def run_simulated(spec: JobSpec, actor: Actor) -> None:
    actor.engine().run(spec, FILES, holder="run", listener=RecordingListener())


def test_a_job_of_its_own_would_have_made_the_same_report(finished: Here) -> None:
    run = finished.root / "storage/EXP-7-words/run_1"
    (answers,) = run.glob("jobs/*/output/inference")
    with_training = finished.version("run_1/inference")
    kept = finished.root / "kept"
    (run / "inference").rename(kept)
    answers.rename(finished.root / "answers")
    said = finished.docml("run", "EXP-7-words", "--run", "1", "--steps", "inference")
    assert "starting the job" in said
    assert len(finished.jobs(1)) == 3
    assert wait_on_sagemaker(finished) == 18
    assert finished.version("run_1/inference") == with_training
    # With the answers back, and no report: it is made of them, and no job is launched.
    (run / "inference").rename(finished.root / "made by a job")
    (finished.root / "answers").rename(answers)
    said = finished.docml("run", "EXP-7-words", "--run", "1", "--steps", "inference")
    assert "the jobs of the trainings have predicted the test split" in said
    assert len(finished.jobs(1)) == 3
    assert finished.version("run_1/inference") == with_training


def test_the_next_run_trains_anew_on_the_same_data(finished: Here) -> None:
    finished.set(epochs="3000")
    changed = finished.docml("run", "EXP-7-words", code=1)
    assert "[hyperparameters] epochs" in changed
    assert "Traceback" not in changed
    process = subprocess.Popen(
        [*DOCML, "run", "EXP-7-words", "--next"],
        cwd=finished.root,
        env=finished.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "epoch 2" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == CANCELED, said
    process.stdout.close()
    assert "canceled; its job was stopped" in said
    assert finished.statuses()[0] == dg.DagsterRunStatus.CANCELED
    assert [name.split("-r2-")[1].rsplit("-", 2)[0] for name in finished.jobs(2)] == ["training-averaged-words"]
    for folder in ("reconciliation", "preparation"):
        assert finished.version(f"run_2/{folder}") == finished.version(f"run_1/{folder}")
    (record,) = (finished.root / "storage/EXP-7-words/run_2/jobs").glob("*-1.json")
    assert json.loads(record.read_text())["status"] == "Stopped"


WAITING = """

_load_model = load_model


def load_model(model_name, context):
    import os
    import time

    model = _load_model(model_name, context)
    trained = []

    def wait(*_):
        trained.append(1)
        while len(trained) > 20 and os.path.exists({slow!r}):
            time.sleep(0.05)

    model.register_forward_pre_hook(wait)
    return model
"""


def test_after_a_kill_the_same_command_attaches_to_the_job(finished: Here) -> None:
    slow = finished.root / "slow"
    slow.touch()
    functions = finished.root / "experiments/EXP-7-words/user_defined_funcs.py"
    text = functions.read_text()
    functions.write_text(text + WAITING.format(slow=str(slow)))
    finished.set(epochs="20")
    command = [*DOCML, "run", "EXP-7-words", "--run", "5"]
    try:
        for expected in ("epoch 1", "attached to the job"):
            process = subprocess.Popen(
                command,
                cwd=finished.root,
                env=finished.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert process.stdout is not None
            with process.stdout:
                said = ""
                for line in process.stdout:
                    said += line
                    if expected in line:
                        slow.unlink() if expected.startswith("attached") else process.kill()
            code = process.wait()
            assert expected in said, said
        assert code == 0, said
    finally:
        functions.write_text(text)
    jobs = (finished.root / "storage/EXP-7-words/run_5/jobs").glob("*-training-*.json")
    records = [json.loads(job.read_text()) for job in jobs if "." not in job.stem]
    assert [record["status"] for record in records] == ["Completed"]
    assert not list((finished.root / "storage/_active_jobs").glob("*"))
    assert not list((finished.root / "storage").rglob("*.lease.json"))


def test_runs_shows_what_they_came_to(finished: Here) -> None:
    table = finished.ask("runs")
    assert re.search(r"EXP-7-words +1 +done +done +done +done +averaged-words 0\.\d+", table)
    assert "No runs of EXP-8" in finished.ask("runs", "EXP-8")


def test_a_run_whose_folder_changed_says_so_in_its_first_line(finished: Here) -> None:
    first = finished.docml("run", "EXP-7-words", "--run", "1", "--steps", "reconciliation").splitlines()[0]
    assert first.startswith("Run 1 of EXP-7-words was claimed on ")
    changed = r"its folder has changed since: \[hyperparameters\] epochs\. To use what is new take run \d+: docml run"
    assert re.search(changed, first)


def test_one_step_of_a_fresh_run_is_performed_with_what_it_needs(finished: Here) -> None:
    said = finished.docml("run", "EXP-7-words", "--run", "8", "--steps", "preparation")
    assert "taken from run" in said
    assert "best_torchscript_model" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "EXP-missing"], 1, "docml new EXP-missing"),
        (["run", "no experiment"], 1, "experiment name"),
        (["run", "EXP-7-words", "--steps", "cooking"], 2, "expected some of reconciliation"),
        (["run", "EXP-7-words", "--run", "1", "--next"], 2, "exclude each other"),
        (["cook"], 2, "No such command"),
    ],
)
def test_wrong_input_is_one_clear_message(finished: Here, arguments: list[str], code: int, message: str) -> None:
    said = finished.ask(*arguments, code=code)
    assert message in said
    assert "Traceback" not in said


def test_a_failed_step_says_its_reason(finished: Here) -> None:
    functions = finished.root / "experiments/EXP-7-words/user_defined_funcs.py"
    text = functions.read_text()
    try:
        functions.write_text(
            text.replace(
                "def encode_data(instance, context):",
                "def encode_data(instance, context):\n    raise ValueError('no such page')",
                1,
            )
        )
        said = finished.docml("run", "EXP-7-words", "--run", "9", code=1)
    finally:
        functions.write_text(text)
    (failed,) = re.findall(r"encoded_splits failed: (.*)", said)
    assert "152 of 152 documents could not be encoded" in failed
    assert said.count("documents could not be encoded") == 1
    assert "ValueError: no such page (user_defined_funcs.py, line" in failed
    assert "Traceback" not in said
