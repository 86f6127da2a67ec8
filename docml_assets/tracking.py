"""Experiment tracking as the orchestrator sees it: where a training reports, and whether it can."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from docml_assets.errors import DocmlError
from docml_assets.experiment.settings.settings import Settings
from docml_contract.jobs import Tracking
from docml_contract.names import RunPlace


class TrackingError(DocmlError):
    """Tracking is asked for and cannot work."""


@dataclass(frozen=True)
class TrackingAccount:
    """The deployment's Weights & Biases account (WANDB_API_KEY)."""

    environment: Mapping[str, str]

    def of(self, settings: Settings, place: RunPlace, model: str, *, tuned: bool) -> Tracking:
        """Where `model`'s training reports: group = experiment, one tracked run a model. TrackingError without a key."""
        if settings.wandb_mode == "online" and not self.environment.get("WANDB_API_KEY"):
            raise TrackingError(
                "WANDB_MODE is online and WANDB_API_KEY is not set: set it (on aws as a reference "
                "secretsmanager:NAME#key), or set WANDB_MODE to offline or disabled"
            )
        job_type: Literal["training", "tuning", "comparison"] = (
            "tuning" if tuned else "comparison" if settings.is_comparison else "training"
        )
        return Tracking(
            mode=settings.wandb_mode,
            project=settings.wandb_project,
            entity=settings.wandb_entity,
            group=place.experiment,
            name=f"run_{place.number}-{model}",
            job_type=job_type,
        )
