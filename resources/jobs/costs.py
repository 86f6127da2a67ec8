"""What a job costs, and the worst that it can cost, where prices are known (DOCML_PRICES)."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from docml_contract.jobs import Compute, JobSpec
from resources.errors import SettingError
from resources.jobs.interface import CostTooHigh

SECONDS_AN_HOUR = 3600.0
_PRICES = TypeAdapter(dict[str, Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]])


def read_prices(environment: Mapping[str, str]) -> dict[str, float]:
    """DOCML_PRICES: a JSON object of instance type -> USD an hour; {} if unset. SettingError."""
    text = environment.get("DOCML_PRICES")
    if not text:
        return {}
    try:
        return _PRICES.validate_json(text)
    except ValidationError as error:
        raise SettingError(
            f'DOCML_PRICES: expected JSON such as {{"ml.g5.xlarge": 1.408}} (USD an hour), found {text[:80]!r}'
        ) from error


def cost(compute: Compute, prices: Mapping[str, float], billable_seconds: float | None) -> float | None:
    """USD for `billable_seconds` of every host; none if the price or the time is unknown."""
    price = prices.get(compute.instance_type)
    if price is None or billable_seconds is None:
        return None
    return price * compute.instance_count * billable_seconds / SECONDS_AN_HOUR


def most(compute: Compute, prices: Mapping[str, float], jobs: int = 1) -> float | None:
    """USD if each of so many jobs runs into its time limit and its warm pool is never used again; spot counts in full."""
    single = cost(compute, prices, compute.max_runtime_seconds + (compute.keep_alive_seconds or 0))
    return single * jobs if single is not None else None


def worst_case(spec: JobSpec, prices: Mapping[str, float]) -> float | None:
    """The most that a job, or all trials of a search, can cost, in USD; none if the price is unknown."""
    return most(spec.compute, prices, spec.tuning.max_jobs if spec.tuning else 1)


def check_cost(spec: JobSpec, prices: Mapping[str, float]) -> None:
    """Refuse a job whose worst case exceeds MAX_COST_USD. CostTooHigh."""
    limit = spec.compute.max_cost_usd
    worst = worst_case(spec, prices)
    if limit is None or worst is None or worst <= limit:
        return
    compute = spec.compute
    trials = f"{spec.tuning.max_jobs} trials x " if spec.tuning else ""
    raise CostTooHigh(
        f"{spec.step} of {spec.experiment} run {spec.run} may cost {worst:.2f} USD ({trials}{compute.instance_count} x "
        f"{compute.instance_type} for {compute.max_runtime_seconds} s), MAX_COST_USD is {limit:g}: "
        "lower MAX_RUNTIME_SECONDS, INSTANCE_TYPE or INSTANCE_COUNT of the step, or raise MAX_COST_USD"
    )
