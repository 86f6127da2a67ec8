"""Costs are computed where prices are known, and the worst case is held against MAX_COST_USD."""

import pytest

from docml_contract.hyperparameters import Interval
from docml_contract.jobs import Tuning
from resources.errors import SettingError
from resources.jobs.interface import CostTooHigh, check_cost, cost, read_prices, worst_case
from tests.contracts.jobs_contract import compute, training, tuning

PRICES = {"ml.m5.xlarge": 0.36}


def test_prices_are_json() -> None:
    assert read_prices({}) == {}
    assert read_prices({"DOCML_PRICES": '{"ml.m5.xlarge": 0.36}'}) == PRICES
    for wrong in ("0.36", "ml.m5.xlarge=0.36", '{"ml.m5.xlarge": "cheap"}'):
        with pytest.raises(SettingError, match="DOCML_PRICES"):
            read_prices({"DOCML_PRICES": wrong})


def test_cost_is_hosts_times_hours() -> None:
    assert cost(compute(instance_count=2), PRICES, 1800) == pytest.approx(0.36)
    assert cost(compute(), PRICES, None) is None
    assert cost(compute(instance_type="ml.p5.48xlarge"), PRICES, 10) is None


def test_the_worst_case_counts_trials_and_warm_pools() -> None:
    spec = training(compute=compute(max_runtime_seconds=3600, keep_alive_seconds=3600))
    assert worst_case(spec, PRICES) == pytest.approx(0.72)
    search = Tuning(ranges={"x": Interval(low=0, high=1)}, max_jobs=10)
    spec = tuning(search).model_copy(update={"compute": compute(max_runtime_seconds=3600)})
    assert worst_case(spec, PRICES) == pytest.approx(3.6)


def test_too_high_a_worst_case_is_refused_with_its_sum() -> None:
    spec = training(compute=compute(max_runtime_seconds=7200, max_cost_usd=0.5))
    with pytest.raises(CostTooHigh, match=r"may cost 0\.72 USD .* MAX_COST_USD is 0\.5: lower"):
        check_cost(spec, PRICES)
    check_cost(spec, {})
    check_cost(training(compute=compute(max_runtime_seconds=3600, max_cost_usd=0.5)), PRICES)
