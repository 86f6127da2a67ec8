"""DOCML_* environment variables -> stores, label source and jobs; read when used, never at import."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from docml_assets.errors import DocmlError
from docml_assets.experiment.folder import experiments_root
from docml_assets.runs.claims import Claim
from docml_assets.steps.snapshot import operated_settings
from docml_assets.steps.work import Reporter, TrackingAccount, Work
from docml_contract.names import check_experiment_name
from resources.endpoints.endpoints import Endpoints
from resources.jobs.engine.engine import Engine
from resources.jobs.interface import Jobs, read_prices
from resources.labels import LabelSource
from resources.store import Store

if TYPE_CHECKING:
    from resources.endpoints.sagemaker.model_registry import ModelRegistry

SAMPLE = Path(__file__).parent / "sample"


class DeploymentError(DocmlError):
    """A DOCML_* variable has a value that does not work."""


@dataclass(frozen=True)
class Deployment:
    """Where this installation keeps its data and runs its jobs. Each part is made on first use."""

    environment: Mapping[str, str]

    @classmethod
    def current(cls) -> "Deployment":
        """The deployment that the process environment describes now."""
        return cls(dict(os.environ))

    @property
    def kind(self) -> Literal["local", "aws"]:
        """DOCML_ENV: jobs as subprocesses on this machine, or on SageMaker."""
        match self.environment.get("DOCML_ENV") or "local":
            case "local":
                return "local"
            case "aws":
                return "aws"
            case other:
                raise DeploymentError(f"DOCML_ENV is {other!r}: expected local or aws")

    @cached_property
    def store(self) -> Store:
        """DOCML_STORE: where experiments keep data, models and reports."""
        return Store.open(self.environment.get("DOCML_STORE") or "./storage", environment=self.environment)

    @cached_property
    def production(self) -> Store:
        """DOCML_PRODUCTION_FILES: the documents' files, `<artifact_guid>/<file>`; only read."""
        url = self.environment.get("DOCML_PRODUCTION_FILES") or str(SAMPLE / "artifacts")
        return Store.open(url, environment=self.environment)

    @cached_property
    def labels(self) -> LabelSource:
        """DOCML_LABELS_URL: the database that LABELS_QUERY asks."""
        url = self.environment.get("DOCML_LABELS_URL") or f"sqlite:///{SAMPLE / 'labels.sqlite'}"
        return LabelSource(url, self.environment)

    @cached_property
    def jobs(self) -> Jobs:
        """Runs jobs exactly once; the imports are here because the SageMaker client takes seconds to load."""
        if self.kind == "local":
            from resources.jobs.local.backend import local_backend

            return Engine(self.store, local_backend(self.store, self.environment))
        from resources.jobs.sagemaker.backend import sagemaker_backend

        return Engine(self.store, sagemaker_backend(self.store, self.environment), read_prices(self.environment))

    @cached_property
    def endpoints(self) -> Endpoints:
        """DOCML_ENV: endpoints as server processes on this machine, or on SageMaker, each name exactly once."""
        if self.kind == "local":
            from resources.endpoints.local import local_endpoints

            return Endpoints(self.store, local_endpoints(self.store, self.environment))
        from resources.endpoints.sagemaker.backend import sagemaker_endpoints

        return Endpoints(self.store, sagemaker_endpoints(self.store, self.environment))

    @cached_property
    def registry(self) -> "ModelRegistry | None":
        """DOCML_MODEL_REGISTRY: where champions are mirrored; None: nowhere."""
        wanted = self.environment.get("DOCML_MODEL_REGISTRY") or "none"
        if wanted == "none":
            return None
        if wanted != "sagemaker":
            raise DeploymentError(f"DOCML_MODEL_REGISTRY is {wanted!r}: expected none or sagemaker")
        if self.kind != "aws":
            raise DeploymentError(
                "DOCML_MODEL_REGISTRY is 'sagemaker', which takes DOCML_ENV=aws and a store in S3: unset it here"
            )
        from resources.endpoints.sagemaker.model_registry import ModelRegistry

        return ModelRegistry(self.store, self.environment)

    @property
    def tracking(self) -> TrackingAccount:
        """WANDB_API_KEY: the account that trainings report to."""
        return TrackingAccount(self.environment)

    @property
    def experiments(self) -> Path:
        """DOCML_EXPERIMENTS: the folder of experiment folders."""
        return experiments_root(self.environment).resolve()

    def experiment_folder(self, name: str) -> Path:
        """The folder of an experiment, whether it exists or not; BadName if the name is not allowed."""
        return self.experiments / check_experiment_name(name)

    @property
    def image(self) -> str | None:
        """DOCML_IMAGE: the trainer image of experiments that name none; none where jobs run as subprocesses."""
        return None if self.kind == "local" else self.environment.get("DOCML_IMAGE")


def work_on(deployment: Deployment, claim: Claim, holder: str, reporter: Reporter) -> Work:
    """A claimed run outside of a Dagster run: whoever uses its models works with this. What does not freeze is as its folder has it."""
    folder = deployment.experiment_folder(claim.experiment)
    settings, note = operated_settings(claim, folder)
    if note and folder.exists():  # using a model does not take the folder
        reporter.say(note)
    return Work(
        place=claim.place,
        settings=settings,
        functions_source=claim.functions_source,
        use_case=claim.use_case,
        store=deployment.store,
        production=deployment.production,
        labels=deployment.labels,
        jobs=deployment.jobs,
        tracking=deployment.tracking,
        environment=deployment.environment,
        kind=deployment.kind,
        image=deployment.image,
        holder=holder,
        reporter=reporter,
    )
