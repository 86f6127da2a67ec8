"""The best trial, and the table and picture that are added to its files."""

import json
from pathlib import Path

from docml_contract.hyperparameters import Choice, Interval
from docml_contract.jobs import Tuning
from docml_contract.manifests import JobOutput
from docml_contract.names import OUTPUT, TRIALS
from resources.jobs.sagemaker.describe import read_trial
from resources.jobs.trials import PICTURE, Trial, add_trials, best_trial
from resources.store import Store

SEARCH = Tuning(
    ranges={
        "learning_rate": Interval(low=1e-6, high=1e-4, log=True),
        "size": Choice(values=(8, 16)),
        "name": Choice(values=("a", "8")),
    }
)


def trial(number: int, objective: float | None, status: str = "Completed") -> Trial:
    values = {"learning_rate": number * 1e-5, "size": 8, "name": "a"}
    return Trial(number=number, job=f"t{number}", values=values, objective=objective, status=status)  # type: ignore[arg-type]


def test_only_completed_trials_with_a_value_can_be_best() -> None:
    trials = [trial(1, 0.5), trial(2, 0.7), trial(3, 0.9, "Failed"), trial(4, None), trial(5, 0.7)]
    best = best_trial(trials, SEARCH)
    assert best is not None
    assert best.number == 2
    least = best_trial(trials, SEARCH.model_copy(update={"objective_type": "Minimize"}))
    assert least is not None
    assert least.number == 1
    assert best_trial([trial(1, None)], SEARCH) is None


def test_table_and_picture_join_the_output_once(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), environment={})
    store.put(f"best/{OUTPUT}", JobOutput(command="train", data_version="v", files=()).to_bytes())
    trials = [trial(1, 0.5), trial(2, 0.7), trial(3, None, "Failed")]
    add_trials(store, "best", SEARCH, trials)
    first = store.get(f"best/{OUTPUT}")
    output = JobOutput.from_bytes(first, OUTPUT)
    assert [entry.path for entry in output.files] == [PICTURE, TRIALS]
    assert output.data_version == "v"
    assert output.facts["best_trial"] == 2
    assert store.get(f"best/{PICTURE}").startswith(b"\x89PNG")
    assert json.loads(store.get(f"best/{TRIALS}"))["best"] == 2
    add_trials(store, "best", SEARCH, trials)
    assert store.get(f"best/{OUTPUT}") == first


def test_a_childs_values_get_their_types_back() -> None:
    child = {
        "TrainingJobName": "tune-1-001",
        "TrainingJobStatus": "Completed",
        "TunedHyperParameters": {"learning_rate": "1e-05", "size": '"8"', "name": '"8"'},
        "FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "valid_f1", "Value": 0.5},
    }
    read = read_trial(1, child, SEARCH.ranges)
    assert read.values == {"learning_rate": 1e-05, "size": 8, "name": "8"}
    assert read.objective == 0.5
