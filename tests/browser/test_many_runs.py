"""The UI over 20 cheap runs of 3 experiments, two of which fail: what lists, plots and pages say of them.

Screenshots of every page are kept below test-output/screenshots, for whoever looks whether one misleads.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from docml_assets.cli.home import prepare_dagster_home
from docml_assets.report.plots import length_histogram
from docml_assets.runs.summaries import summaries
from docml_contract import names
from docml_contract.jobs import InferTask, JobSpec, TrainTask
from docml_contract.log_lines import EPOCH
from resources.jobs.interface import JobFailed, Listener
from tests.browser.test_dagster_ui import keep
from tests.browser.test_dagster_ui import ui as ui
from tests.docml_assets.assets.materializing import materialize
from tests.docml_assets.world import LABELS, FakeJobs, World
from tests.servers.dagster_dev import DagsterDev, dagster_dev

RUNS = {"EXP-10-base": 10, "EXP-11-compare": 5, "EXP-12-long-name-of-an-experiment": 5}
TOO_FEW_LABELS, LOST_JOB = ("EXP-10-base", 8), ("EXP-11-compare", 5)
DOCUMENTS = 400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Learning(FakeJobs):
    """Jobs that say their epochs, give fewer wrong answers with each run, and fail where a run is to fail."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store, before=self._train)

    def _train(self, spec: JobSpec, listener: Listener, _: object) -> None:
        if not isinstance(spec.task, TrainTask):
            return
        if (spec.experiment, spec.run) == LOST_JOB:
            raise JobFailed("job-of-this-run", "out of memory")
        for epoch in (1, 2, 3):
            scores = {"train_loss": 1 / epoch, "valid_loss": 1.2 / epoch, "valid_accuracy": 1 - 0.3 / epoch}
            listener.event({"event": EPOCH, "epoch": epoch, "epochs": 3, "valid_f1": 1 - 0.4 / epoch, **scores})

    def _output(self, spec: JobSpec, files: Mapping[str, bytes]) -> tuple[dict[str, bytes], str]:
        output, version = super()._output(spec, files)
        if names.CURVES in output:
            output[names.CURVES] = length_histogram([0, 1, 2, 3], [3, 2, 1])
        return output, version

    def _inferred(self, spec: JobSpec, task: InferTask) -> tuple[dict[str, bytes], str]:
        output, version = super()._inferred(spec, task)
        rows = pq.read_table(io.BytesIO(output[names.PREDICTIONS])).to_pylist()
        for place, model in enumerate(task.model_names):
            for row in rows[:: 2 + spec.run + place]:
                row[f"{model}_prediction"] = LABELS[1 - LABELS.index(row["label"])]
        written = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), written)
        return {**output, names.PREDICTIONS: written.getvalue()}, f"{version}{spec.experiment}{spec.run}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The finished and failed runs. Made before a browser starts, beside whose event loop Dagster could not run."""
    world = World(tmp_path_factory.mktemp("many"))
    for number in range(DOCUMENTS):
        world.add_document(f"more-{number:03d}", LABELS[number % 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(world.root / "home"))
        prepare_dagster_home()
        with dg.DagsterInstance.get() as instance:
            for name, runs in RUNS.items():
                for run in range(1, runs + 1):
                    few = {"num_labels_threshold": 10_000} if (name, run) == TOO_FEW_LABELS else {}
                    models = "small, large" if "compare" in name else "small"
                    world.write_experiment(
                        name, hyperparameters={"epochs": run}, run_num=run, model_names=models, **few
                    )
                    done = materialize(world, instance, run, experiment=name, jobs=Learning(world))
                    assert done.success == ((name, run) not in (TOO_FEW_LABELS, LOST_JOB))
        yield world


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[DagsterDev]:
    with dagster_dev(world.root / "home", world.environment) as started:
        yield started


def test_partitions_are_runs_and_failed_ones_failed(server: DagsterDev, ui: Page) -> None:
    ui.goto(f"{server.url}/assets/inference_report?view=partitions&partition=EXP-10-base%7C10")
    for said in ("20 Partitions Selected", "Failed (2)", "Materialized (18)", "Missing (0)"):
        expect(ui.get_by_text(said)).to_be_visible()
    picture = ui.get_by_alt_text("macro-F1 by run")
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.naturalWidth") > 100
    keep(ui, "many-partitions")


@pytest.mark.parametrize("view", ["Partitions", "Events"])
@pytest.mark.parametrize("asset", ["inference_report", "best_torchscript_model", "encoded_splits", "reconciled_data"])
def test_no_plot_mixes_experiments(server: DagsterDev, ui: Page, asset: str, view: str) -> None:
    ui.goto(f"{server.url}/assets/{asset}")
    for name in ("Plots", view):
        ui.locator("button", has_text=re.compile(f"^{name}$")).click()
    expect(ui.locator("canvas").first).to_be_visible()
    ui.wait_for_timeout(3000)
    titles = ui.locator("xpath=//canvas/../../preceding-sibling::div/span").all_inner_texts()
    assert len(titles) == ui.locator("canvas").count()
    assert {re.sub("( run [0-9]+)?: .*", "", title) for title in titles} == set(RUNS)
    keep(ui, f"many-plots-{asset}-{view.lower()}")


def test_the_list_of_runs_has_one_line_a_run(server: DagsterDev, ui: Page) -> None:
    assert Counter(run["status"] for run in server.runs()) == {"SUCCESS": 18, "FAILURE": 2}
    ui.goto(f"{server.url}/runs")
    expect(ui.get_by_text("experiment: EXP-12").first).to_be_visible()
    keep(ui, "many-runs")
    ui.goto(f"{server.url}/runs?q%5B0%5D=tag%3Aexperiment%3DEXP-11-compare")
    expect(ui.get_by_text("experiment: EXP-11").first).to_be_visible()
    expect(ui.get_by_text("experiment: EXP-12")).to_have_count(0)
    keep(ui, "many-runs-of-one")


@pytest.mark.parametrize(
    ("run", "sentence"), [(TOO_FEW_LABELS, "a classifier needs at least 2"), (LOST_JOB, "out of memory")]
)
def test_a_failed_run_says_why(server: DagsterDev, ui: Page, run: tuple[str, int], sentence: str) -> None:
    key = f"{run[0]}|{run[1]}"
    (run_id,) = [found["runId"] for found in server.runs() if found["tags"].get("dagster/partition") == key]
    ui.goto(f"{server.url}/runs/{run_id}")
    expect(ui.get_by_text(sentence).last).to_be_visible()
    keep(ui, f"many-failed-{run[0]}")


@pytest.mark.parametrize(("asset", "runs"), [("encoded_splits", 19), ("inference_report", 18)])
def test_the_list_of_checks_calls_those_failed_that_failed(server: DagsterDev, ui: Page, asset: str, runs: int) -> None:
    """Not those that a failed run never came to, which the check's own page knows nothing of."""

    def look() -> dict[str, dict[str, int]] | None:
        found = server.checks(asset)
        return found if all(sum(counts.values()) == runs for counts in found.values()) else None

    found = server.wait_for(look, "failed runs are cleared away", 180)
    assert {status for counts in found.values() for status in counts} <= {"succeeded", "failed"}
    ui.goto(f"{server.url}/assets/{asset}?view=checks")
    failed = [name for name, counts in found.items() if "failed" in counts]
    listed = ui.locator("[class*=checkRow]")
    expect(listed).to_have_count(len(found))
    expect(listed.filter(has_text="Succeeded")).to_have_count(len(found) - len(failed))
    for name in failed:
        expect(listed.filter(has_text=name)).to_contain_text("Failed")
    keep(ui, f"many-{asset}-checks-listed")


@pytest.mark.parametrize("asset", ["inference_report", "label_counts", "encoded_splits", "experiment_snapshot"])
def test_pages_of_an_asset(server: DagsterDev, ui: Page, asset: str) -> None:
    for view in ("overview", "events", "checks"):
        ui.goto(f"{server.url}/assets/{asset}?view={view}")
        expect(ui.get_by_text(asset).first).to_be_visible()
        ui.wait_for_timeout(3000)
        keep(ui, f"many-{asset}-{view}")


def test_the_terminal_shows_the_same_runs(world: World) -> None:
    found = {name: summaries(world.store, name) for name in RUNS}
    assert {name: len(runs) for name, runs in found.items()} == RUNS
    failed = [(run.experiment, run.number) for runs in found.values() for run in runs if not run.scores]
    assert failed == [TOO_FEW_LABELS, LOST_JOB]
