"""The Dagster UI as people use it, on a real `dagster dev` and in a real browser.

One server and one experiment for the whole file: the tests follow one another as a person would. Screenshots are kept below
test-output/screenshots.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from docml_assets.experiment.scaffold import new_experiment
from tests.servers.dagster_dev import REPOSITORY, DagsterDev, dagster_dev

EXPERIMENT = "EXP-5-ui"
ASSETS = (
    "experiment_snapshot",
    "reconciled_data",
    "label_counts",
    "encoded_splits",
    "best_torchscript_model",
    "inference_report",
)
SCREENSHOTS = REPOSITORY / "test-output" / "screenshots"
WIDE, NARROW = {"width": 1280, "height": 1000}, {"width": 400, "height": 900}
FOLLOW = "uri => document.body.appendChild(Object.assign(document.createElement('a'), {href: uri, target: '_blank'})).click()"
PATIENCE = 60_000  # ms; a busy machine draws slowly


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDev]:
    root = tmp_path_factory.mktemp("ui")
    new_experiment(root / "experiments" / EXPERIMENT, model=None)
    environment = {"DOCML_EXPERIMENTS": str(root / "experiments"), "DOCML_STORE": str(root / "storage")}
    with dagster_dev(root / "home", environment) as started:
        yield started


@pytest.fixture
def ui(page: Page) -> Page:
    page.set_viewport_size(WIDE)
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    return page


def keep(page: Page, name: str) -> None:
    """Keep screenshots as test output: of a wide window and of a telephone's, where the navigation takes most of the screen until it is
    hidden."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for size in (WIDE, NARROW):
        page.set_viewport_size(size)
        navigation = page.get_by_text("Hide navigation")
        if size is NARROW and navigation.is_visible():
            navigation.evaluate("text => text.click()")  # also behind a dialog
        page.screenshot(path=SCREENSHOTS / f"{name}-{size['width']}.png")
    page.set_viewport_size(WIDE)


def open_dialog(page: Page, server: DagsterDev) -> None:
    page.goto(f"{server.url}/asset-groups")
    page.get_by_role("button", name=re.compile("Materialize all")).click()
    expect(page.get_by_text("Add a partition")).to_have_count(1)


def choose_partition(page: Page, key: str) -> None:
    page.get_by_text("Select a partition or create one").first.click()
    page.get_by_role("menuitem").filter(has=page.get_by_title(key, exact=True)).click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("menuitem")).to_have_count(0)


def test_the_ui_says_where_it_is_once_it_answers_and_its_home_has_no_second_one(server: DagsterDev) -> None:
    ready = f"The Dagster UI is ready: {server.url}  (Ctrl-C stops it)"
    server.wait_for(lambda: ready in server.log.read_text(), "it says that it is ready")
    said = server.log.read_text()
    assert said.index(f"Starting the Dagster UI with the runs of {server.home} …") < said.index(ready)
    assert "warning" not in said.lower(), said
    second = subprocess.run(
        [sys.executable, "-m", "docml_assets.cli.home", "--port", "1"],
        cwd=REPOSITORY,
        env={**os.environ, **server.environment, "DAGSTER_HOME": str(server.home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert f"is running already: open {server.url}, or stop it first" in second.stderr


def test_the_catalog_lists_every_asset(server: DagsterDev, ui: Page) -> None:
    ui.goto(f"{server.url}/assets")
    for name in (*ASSETS, "production_labels", "production_files"):
        expect(ui.get_by_text(name, exact=True).first).to_be_attached()  # long names are cut in the middle
    keep(ui, "catalog")


def test_a_run_chosen_in_the_dialog_materializes_to_success(server: DagsterDev, ui: Page) -> None:
    open_dialog(ui, server)
    choose_partition(ui, f"{EXPERIMENT}|1")  # offered, since the folder is there
    expect(ui.get_by_text("1 partition", exact=False).first).to_be_visible()
    keep(ui, "partition-dialog")
    ui.get_by_role("button", name="Launch").last.click()
    run = server.wait_for(lambda: server.runs(), "a run was launched", 60)[0]
    assert run["tags"]["dagster/partition"] == f"{EXPERIMENT}|1"
    done = server.wait_for(
        lambda: [found for found in server.runs() if found["status"] in ("SUCCESS", "FAILURE", "CANCELED")],
        "the run ended",
        400,
    )
    assert [found["status"] for found in done] == ["SUCCESS"]


def test_the_lineage_starts_at_production(server: DagsterDev, ui: Page) -> None:
    ui.goto(f"{server.url}/assets/inference_report?view=lineage&lineageScope=upstream&lineageDepth=6")
    for name in (*ASSETS, "production_labels", "production_files"):
        expect(ui.get_by_text(re.compile(f"^{name[:8]}")).first).to_be_visible()  # long names are cut in the middle
    ui.wait_for_timeout(3000)  # the graph glides into place
    keep(ui, "lineage")


@pytest.mark.parametrize(
    ("asset", "words"),
    [
        ("label_counts", ["label table", "1790-1860"]),
        ("encoded_splits", ["documents in train", "label table", f"{EXPERIMENT}: documents"]),
        ("best_torchscript_model", [f"{EXPERIMENT}: valid_f1"]),
        ("inference_report", [f"{EXPERIMENT}: macro-F1", "report.html"]),
        ("experiment_snapshot", ["hyperparameters", "raw_text.json"]),
    ],
)
def test_metadata_answer_questions_on_the_page(server: DagsterDev, ui: Page, asset: str, words: list[str]) -> None:
    ui.goto(f"{server.url}/assets/{asset}?view=partitions&partition={EXPERIMENT}%7C1")
    for text in words:
        expect(ui.get_by_text(text).first).to_be_attached()
    keep(ui, f"metadata-{asset}")


@pytest.mark.parametrize(
    ("asset", "plots"),
    [("label_counts", 1), ("encoded_splits", 2), ("best_torchscript_model", 1), ("inference_report", 7)],
)
def test_pictures_are_shown_without_a_click(server: DagsterDev, ui: Page, asset: str, plots: int) -> None:
    ui.goto(f"{server.url}/assets/{asset}?view=partitions&partition={EXPERIMENT}%7C1")
    pictures = ui.locator("img[src^='/stored/']")
    expect(pictures).to_have_count(plots)
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        expect(picture).to_be_visible()
        assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 100
    keep(ui, f"plots-{asset}")


def test_the_report_is_one_click_away(server: DagsterDev, ui: Page) -> None:
    ui.goto(f"{server.url}/assets/inference_report?view=partitions&partition={EXPERIMENT}%7C1")
    with ui.context.expect_page() as opened:
        ui.get_by_role("link", name=f"/stored/{EXPERIMENT}/run_1/inference/report.html").click()
    report = opened.value
    report.wait_for_url("**/report.html?*")  # a page that is still being opened cannot be loaded again
    asked: list[str] = []
    complaints: list[str] = []
    report.on("request", lambda request: asked.append(request.url))
    report.on("console", lambda message: complaints.append(message.text))
    report.reload()
    report.set_viewport_size(WIDE)
    expect(report.locator("#scores h2")).to_be_visible()
    assert report.title() == f"{EXPERIMENT} run 1"
    assert (asked, complaints) == ([report.url], [])
    report.locator("nav a").first.click()
    assert "#" in report.url
    keep(report, "report")
    report.close()
    # what a path would be as a link: browsers follow none to a file from a page that came over http
    refused: list[str] = []
    ui.on("console", lambda message: refused.append(message.text))
    path = Path(server.environment["DOCML_STORE"]) / EXPERIMENT / "run_1" / "inference" / "report.html"
    ui.evaluate(FOLLOW, path.as_uri())
    ui.wait_for_timeout(1000)
    assert len(ui.context.pages) == 1
    assert any("Not allowed to load local resource" in text for text in refused)


def test_the_checks_of_an_asset_have_run(server: DagsterDev, ui: Page) -> None:
    ui.goto(f"{server.url}/assets/encoded_splits?view=checks")
    expect(ui.get_by_text("Succeeded").first).to_be_visible()
    keep(ui, "checks")


def test_a_run_that_may_not_come_into_being_fails_with_its_sentence(server: DagsterDev, ui: Page) -> None:
    run_id = server.launch(EXPERIMENT, 7)
    server.wait_for(lambda: server.runs()[0]["status"] == "FAILURE", "the run fails", 120)
    ui.goto(f"{server.url}/runs/{run_id}")
    sentence = f"{EXPERIMENT} run 7 is not claimed: expected a claimed run, the experiment's RUN_NUM (1) or the next free number (2)."
    expect(ui.get_by_text(sentence).last).to_be_visible()
    expect(ui.get_by_text("Stack Trace")).to_have_count(0)
    keep(ui, "refused-run")


def test_the_list_of_runs_shows_what_people_look_for(server: DagsterDev, ui: Page) -> None:
    ui.goto(f"{server.url}/runs")
    expect(ui.get_by_text(f"experiment: {EXPERIMENT}").first).to_be_visible()
    shown = ui.locator("body").inner_text()
    assert "docml-" not in shown
    assert "docml/" not in shown
    keep(ui, "runs")


def test_a_sensor_is_switched_on_and_ticks(server: DagsterDev, ui: Page) -> None:
    broken = Path(server.environment["DOCML_EXPERIMENTS"]) / "EXP-6-broken"
    new_experiment(broken, model=None)
    (broken / "settings.ini").write_text("[settings]\nRUN_NUM = none\n")
    ui.goto(f"{server.url}/locations/docml/sensors/experiment_sensor")
    ui.locator("label:has(input[type=checkbox])").first.click()
    query = """{ sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "docml",
        sensorName: "experiment_sensor"}) { ... on Sensor { sensorState { status ticks(limit: 1) { status skipReason } } } } }"""

    def ticked() -> bool:
        state = server.query(query)["sensorOrError"]["sensorState"]
        return state["status"] == "RUNNING" and any(
            "is broken" in (tick["skipReason"] or "") for tick in state["ticks"]
        )

    server.wait_for(ticked, "the sensor ticks", 180)
    ui.reload()
    expect(ui.get_by_text("experiment_sensor").first).to_be_visible()
    keep(ui, "sensor")
    assert len(server.runs()) == 2, "a finished run is not started again"
