"""What a run starts and may cost, and what is expected from the records of earlier runs' jobs."""

from pathlib import Path

import pytest

from docml_assets.experiment.settings.settings import parse_settings
from docml_assets.runs.cost_plan import CostPlan
from docml_contract.jobs import JobSpec
from resources.errors import StoreError
from resources.jobs.engine.records import JobRecord, Records
from resources.store import Store
from tests.contracts.jobs_contract import preparation, training
from tests.docml_assets.experiment.experiments import MACHINES, settings_text

PRICES = {"ml.m5.xlarge": 0.2, "ml.g5.xlarge": 1.5}
ALL = ("preparation", "training", "inference")
ONE_MACHINE = """
PREPARATION_INSTANCE_TYPE = ml.m5.xlarge
PREPARATION_MAX_RUNTIME_SECONDS = 3600
TRAINING_MAX_RUNTIME_SECONDS = 7200
INFERENCE_MAX_RUNTIME_SECONDS = 3600
"""


def plan(text: str = ONE_MACHINE, performed: tuple[str, ...] = ALL, prices: dict[str, float] = PRICES) -> CostPlan:
    return CostPlan.make(parse_settings(settings_text(text, tunable="epochs = 1 -> 3"), "f"), performed, prices)


def test_worst_cases_are_known_where_prices_are() -> None:
    worst = CostPlan.make(parse_settings(settings_text(MACHINES), "f"), ALL, PRICES).worst_cases()
    assert worst == pytest.approx({"preparation": 0.3, "merging of shards": 0.1, "training": 2.25})


def test_a_training_that_predicts_saves_a_job() -> None:
    assert plan().jobs == 2
    assert plan(ONE_MACHINE + "INFERENCE_IN_TRAINING = false").jobs == 3
    assert plan(ONE_MACHINE + "USE_DISTRIBUTED = true\nTRAINING_INSTANCE_COUNT = 2").jobs == 3
    assert plan(performed=("inference",)).jobs == 1
    assert plan(ONE_MACHINE + "LEARNING_CURVE = true").jobs == 2 + 6
    assert plan(ONE_MACHINE + "MODEL_NAMES = a, b", ("preparation", "tuning", "inference")).jobs == 4


def test_the_plan_without_an_earlier_run() -> None:
    assert plan().describe(on_aws=True) == [
        "jobs: 2 (preparation 1, training 1)",
        "machines: preparation on 1 x ml.m5.xlarge, training on 1 x ml.g5.xlarge, inference on 1 x ml.g5.xlarge",
        "worst case: 4.70 USD if every job runs into its time limit (preparation 0.20, training 3.00, inference 1.50)",
        "expected: not known: no earlier run had a job like those of preparation, and 12 min of waiting for machines (2 starts of 6 min)",
    ]
    worst = plan(prices={"ml.g5.xlarge": 1.5}).describe(on_aws=True)[2]
    assert worst.endswith("not counted: ml.m5.xlarge, of which DOCML_PRICES names no price")
    assert plan(prices={}).describe(on_aws=True)[2] == (
        "worst case: not known: DOCML_PRICES names no price of ml.g5.xlarge, ml.m5.xlarge"
    )
    assert plan().describe(on_aws=False)[0] == "jobs: 2 (preparation 1, training 1)"
    assert plan(performed=()).describe(on_aws=True) == ["jobs: none"]


def remember(store: Store, spec: JobSpec, run: int, seconds: float, instance_type: str) -> None:
    """A completed job of an earlier run, which waited four minutes for its machine."""
    compute = spec.compute.model_copy(update={"instance_type": instance_type})
    spec = spec.model_copy(update={"run": run, "compute": compute})
    intent = JobRecord(
        name=f"job-{spec.step}-{run}",
        backend="sagemaker",
        attempt=1,
        spec_hash="0" * 64,
        spec=spec,
        request={},
        holder="x",
        created_at=1_767_225_600.0,
        status="Completed",
        started_at="2026-01-01T00:04:00+00:00",
        seconds=seconds,
        billable_seconds=seconds,
    )
    Records(store).write(intent)


def test_time_and_cost_are_expected_as_in_the_newest_run_on_such_machines(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), environment={})
    for run, factor in ((1, 10), (2, 1)):
        remember(store, preparation(), run, 600.0 * factor, "ml.m5.xlarge")
        remember(store, training(), run, 1200.0 * factor, "ml.g5.xlarge")
    remember(store, training(), 3, 9.0, "ml.p3.2xlarge")
    text = ONE_MACHINE + "MODEL_NAMES = m"
    expected = plan(text).with_records(store, "EXP-1-contract", "sagemaker").describe(on_aws=True)[-1]
    # 600 s for 0.2 USD an hour, 1200 s for 1.5 USD an hour
    assert (
        expected
        == "expected: 30 min of jobs and 0.53 USD, as in run 2, and 8 min of waiting for machines (2 starts of 4 min)"
    )
    local = plan(text).with_records(store, "EXP-1-contract", "local").describe(on_aws=False)[-1]
    assert local == "expected: not known: no earlier run had a job like those of preparation"


def test_a_store_that_does_not_answer_leaves_it_unknown(tmp_path: Path) -> None:
    class Silent(Store):
        def list_folders(self, prefix: str = "") -> list[str]:
            raise StoreError("no answer")

    assert plan().with_records(Silent(str(tmp_path), {}), "EXP", "local").earlier == ()
