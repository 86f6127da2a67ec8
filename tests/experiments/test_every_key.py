"""Every optional key of docs/settings.md is switched on in a whole `docml run` that ends with its report, and does what it says."""

import re
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from docml_assets.experiment.settings.keys import Keys
from docml_assets.experiment.settings.settings import Settings, parse_settings
from docml_contract.hyperparameters import TrainingHyperparameters
from tests.docml_assets.cli.here import REPOSITORY, Here
from tests.experiments.every_key import FUNCTIONS, PLANS, RUNS, Plan, Run

REQUIRED = {
    "MODEL_NAMES": "plain",
    "LABELS_QUERY": "SELECT * FROM labels WHERE artifact_guid < 'doc-060'",
    "FILES_FROM_PROD": "text.txt",
    "MODEL_INPUT_FILES": "text.txt",
}
USUAL = {"epochs": "2", "learning_rate": "0.01", "train_batch_size": "8", "max_length": "32"}
SEEN = [(run, key) for run, keys in RUNS.items() for key in keys]


class Scene(Here):
    """Production with 68 short documents, their labels, and the experiments of PLANS."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.environment |= {
            "DOCML_PRODUCTION_FILES": str(root / "production"),
            "DOCML_LABELS_URL": f"sqlite:///{root / 'labels.sqlite'}",
            "DOCML_PRICES": '{"ml.m5.2xlarge": 0.5}',
        }
        with closing(sqlite3.connect(root / "labels.sqlite")) as database, database:
            database.execute("CREATE TABLE labels (artifact_guid TEXT, label TEXT, file_hash TEXT, customer TEXT)")
            for number in range(60):
                self.add(database, number, ("invoice", "letter", "memo")[(number % 10 > 4) + (number % 10 > 7)])
            for number in range(60, 66):
                self.add(database, number, "rare" if number < 63 else "unknown")
            self.add(database, 900, "invoice", "PROCESSFAILS")
            self.add(database, 901, "letter", "ENCODEFAILS")
        self.runs: dict[str, Run] = {}

    def add(self, database: sqlite3.Connection, number: int, label: str, word: str = "") -> None:
        """A document of words that tell its label and words of its own; 50 and 51 nearly are the same."""
        guid, source = f"doc-{number:03d}", 50 if number == 51 else number
        words = [f"{label}{index}" for index in range(4)] + [
            f"w{zlib.crc32(f'{source} {n}'.encode()) % 900}" for n in range(28)
        ]
        folder = self.root / "production" / guid
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text(" ".join([*words, f"number{number}", word]))
        if number % 3 == 0:
            (folder / "notes.txt").write_text("seen by the back office")
        row = (guid, label, f"hash-{number}", f"customer-{number // 2}")
        database.execute("INSERT INTO labels VALUES (?, ?, ?, ?)", row)

    def run(self, name: str) -> Run:
        """The run called so; those before it are made first."""
        for each in list(RUNS)[: list(RUNS).index(name) + 1]:
            if each not in self.runs:
                self.runs[each] = self.make(each, PLANS[each])
        return self.runs[name]

    def make(self, name: str, plan: Plan) -> Run:
        refused = ""
        if plan.refused:
            self.write(f"{plan.experiment}-refused", settings_text(name, dict([plan.refused])))
            refused = self.docml("run", f"{plan.experiment}-refused", code=1)
        if name == "steps":
            self.write(plan.experiment, settings_text(name, {"RUN_NUM": "7", "RUN_TRAINING": "true"}))
            self.docml("run", plan.experiment)
            self.write(plan.experiment, settings_text(name, {"RUN_INFERENCE": "true"}))
        else:
            self.write(plan.experiment, settings_text(name))
        number = [] if "RUN_NUM" in RUNS[name] else ["--run", str(plan.number)]
        said = self.docml("run", plan.experiment, *number, code=1 if plan.fails else 0)
        self.docml("report", plan.experiment, str(plan.number))
        return Run(self.root / "storage" / plan.experiment, plan.number, said, refused)

    def write(self, experiment: str, settings: str) -> None:
        folder = self.root / "experiments" / experiment
        folder.mkdir(exist_ok=True)
        (folder / "settings.ini").write_text(settings)
        (folder / "user_defined_funcs.py").write_text(FUNCTIONS)
        (folder / "labels.csv").write_text("label,becomes\nmemo,notice\n")  # read where USE_CASE says so


def settings_text(name: str, instead: dict[str, str] | None = None) -> str:
    """settings.ini of a run."""
    plan, known = PLANS[name], TrainingHyperparameters.model_fields
    switched_on = {key: value for key, (value, _) in RUNS[name].items() if key not in known}
    values = REQUIRED | plan.settings | switched_on | (instead or {})
    lines = ["[settings]", *(f"{key} = {value}" for key, value in values.items()), "[hyperparameters]"]
    return "\n".join(
        [*lines, *(f"{key} = {value}" for key, value in (USUAL | plan.hyperparameters).items()), plan.sections]
    )


def test_no_key_is_left_out() -> None:
    documented = re.findall(r"(?m)^\| (\w+) \| .* \|$", (REPOSITORY / "docs/settings.md").read_text())
    keys = [key for key in documented if key not in ("key", "written", *REQUIRED)]
    assert len(keys) > 70
    assert sorted(keys) == sorted(key for _, key in SEEN)


@pytest.mark.parametrize("name", RUNS)
def test_every_key_is_switched_on(name: str) -> None:
    settings = parse_settings(settings_text(name), "settings.ini")
    usual = Settings.model_validate(
        {key.lower(): value for key, value in REQUIRED.items()} | {"hyperparameters": {}, "tunable": {}}
    )
    for key in RUNS[name]:
        if key in TrainingHyperparameters.model_fields:
            mine = settings.hyperparameters_of(key.replace("_", "-"))
            assert mine[key] != settings.hyperparameters_of("plain").get(key)
        else:
            assert key.lower() in Keys.model_fields
            assert getattr(settings, key.lower()) != getattr(usual, key.lower())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), SEEN)
def test_a_run_with_the_key_ends_with_its_report(scene: Scene, name: str, key: str) -> None:
    run = scene.run(name)
    assert run.report["models"]
    _, effect = RUNS[name][key]
    assert effect(run), run.said


@pytest.mark.slow
def test_models_that_differ_in_nothing_are_equal(scene: Scene) -> None:
    run = scene.run("hyperparameters")
    assert run.weights("twin") == run.weights("plain"), "so what differs above is the hyperparameter's doing"


@pytest.mark.slow
def test_values_and_ranges_of_one_model_are_its_own(scene: Scene) -> None:
    run = scene.run("tuning")
    found = {
        model: [trial["values"]["learning_rate"] for trial in run.trials(model)["trials"]]
        for model in ("plain", "wide")
    }
    assert all(0.001 <= value <= 0.01 for value in found["plain"])
    assert all(0.02 <= value <= 0.03 for value in found["wide"])
    assert "width 16" in run.log("tuning", "plain")
    assert "width 24" in run.log("tuning", "wide")
    assert "width 16" not in run.log("tuning", "wide")
