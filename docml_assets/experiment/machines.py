"""On what machines the jobs of a run work, and the most that they can cost."""

from collections.abc import Mapping
from typing import Literal

from docml_assets.experiment.settings.settings import Settings
from docml_contract.jobs import Compute
from resources.jobs.costs import most

Step = Literal["preparation", "training", "inference"]


def compute(settings: Settings, step: Step, *, image: str | None = None, hosts: int | None = None) -> Compute:
    """On what a step's jobs run (a tuning's trials run on what a training runs on); `hosts` overrides the instance count."""
    training = step == "training"
    return Compute(
        instance_type=getattr(settings, f"{step}_instance_type"),
        instance_count=hosts or getattr(settings, f"{step}_instance_count"),
        volume_gb=getattr(settings, f"{step}_volume_gb"),
        max_runtime_seconds=getattr(settings, f"{step}_max_runtime_seconds"),
        use_spot=training and settings.training_use_spot,
        max_wait_seconds=settings.training_max_wait_seconds if training else None,
        keep_alive_seconds=settings.training_keep_alive_seconds if training else None,
        image=image,
        max_cost_usd=settings.max_cost_usd,
    )


def worst_cases(settings: Settings, prices: Mapping[str, float]) -> dict[str, float]:
    """Step -> USD if each of its jobs, in one attempt, runs into its time limit; of the steps that the RUN_* flags turn on, where the
    price is known."""
    models = len(settings.model_names)
    jobs: dict[Step, int] = {
        "preparation": int(settings.run_preparation),
        "training": models * (settings.max_jobs if settings.run_tuning else int(settings.run_training)),
        "inference": int(settings.run_inference),
    }
    found: dict[str, float | None] = {
        step: most(compute(settings, step), prices, count) for step, count in jobs.items() if count
    }
    if settings.run_preparation and settings.preparation_instance_count > 1:
        found["merging of shards"] = most(compute(settings, "preparation", hosts=1), prices)
    return {step: worst for step, worst in found.items() if worst is not None}
