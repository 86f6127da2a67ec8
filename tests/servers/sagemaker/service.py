"""SageMaker's job operations over a runtime that runs the jobs (real subprocesses, or scripted for fast schedules)."""

import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol

from tests.servers.sagemaker.errors import ServiceError, not_found
from tests.servers.sagemaker.faults import ROLE, Faults
from tests.servers.sagemaker.hosting import Hosting
from tests.servers.sagemaker.jobs import (
    ACCOUNT,
    KINDS,
    PROCESSING,
    REGION,
    TRAINING,
    TUNING,
    Job,
    Kind,
    describe,
    summarize_child,
)
from tests.servers.sagemaker.model_registry import Registry
from tests.servers.sagemaker.refusals import check_image, check_machines, check_quota
from tests.servers.sagemaker.validation import validate_request


class Runtime(Protocol):
    """Runs jobs; the only one that changes their status after Create."""

    def start(self, job: Job) -> None: ...


class SageMaker:
    """The service's state. `images` and `roles` are what exists in the account; None accepts any."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.time,
        images: frozenset[str] | None = None,
        roles: frozenset[str] | None = None,
        hosting: Hosting | None = None,
        region: str = REGION,
    ) -> None:
        self.hosting = hosting
        self.registry = Registry()
        self.runtime = runtime
        self.faults = faults or Faults()
        self.clock = clock
        self.images = images
        self.roles = roles
        self.quotas: dict[str, int] = {}  # name -> limit; none: no limit
        self.artifacts = "output/model"  # where the trainings that are created from here on leave their files
        self.account, self.region = ACCOUNT, region
        self._places: defaultdict[tuple[str, str], dict[tuple[str, str], Job]] = defaultdict(dict)
        self.lock = threading.RLock()

    @property
    def jobs(self) -> dict[tuple[str, str], Job]:
        """The jobs of the account and region that answer now."""
        return self._places[self.account, self.region]

    def move(self, *, account: str | None = None, region: str | None = None) -> None:
        """Answer for another account or region from here on, as under credentials that were changed while a client runs."""
        self.account, self.region = account or self.account, region or self.region

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one operation; ServiceError is its error answer."""
        validate_request(operation, request)
        if operation == "CreateModel":
            self._check_image(None, request["ExecutionRoleArn"], request["PrimaryContainer"]["Image"])
        if self.hosting is not None and (answer := self.hosting.call(operation, request)) is not None:
            return answer
        if (answer := self.registry.call(operation, request)) is not None:
            return answer
        for noun, kind in KINDS.items():
            if operation == f"Create{noun}":
                return self._create(kind, request)
            if operation == f"Describe{noun}":
                return self._describe(kind, request[f"{noun}Name"])
            if operation == f"Stop{noun}":
                return self._stop(kind, request[f"{noun}Name"])
            if operation == f"List{noun}s":
                return self._list(kind, request)
        other = {
            "ListTrainingJobsForHyperParameterTuningJob": self._children,
            "ListTags": self._list_tags,
            "AddTags": self._add_tags,
        }.get(operation)
        if other is None:
            raise ServiceError("UnknownOperationException", f"{operation} is not served here")
        return other(request)

    def job(self, noun: str, name: str) -> Job:
        """A job for the eyes of a test, or KeyError."""
        return self.jobs[KINDS[noun].name, name]

    def add(self, kind: Kind, request: dict[str, Any], *, parent: Job | None = None) -> Job:
        """Register a job and start it. ResourceInUse if the name was ever used."""
        name = request[f"{kind.noun}Name"]
        with self.lock:
            if (kind.name, name) in self.jobs:
                words = kind.name.replace("-", " ").capitalize()
                raise ServiceError(
                    "ResourceInUse",
                    f"{words} names must be unique within an AWS account and region, and a {words.lower()} with this "
                    f"name already exists ({kind.arn(name, self.account, self.region)})",
                )
            check_quota(kind, request, self.jobs.values(), self.quotas)
            place = {"account": self.account, "region": self.region, "artifacts": self.artifacts}
            job = Job(kind, name, request, self.clock, list(request.get("Tags", [])), parent=parent, **place)
            job.unseen_describes = self.faults.describe_lag
            self.jobs[kind.name, name] = job
        self.runtime.start(job)
        return job

    def _create(self, kind: Kind, request: dict[str, Any]) -> dict[str, Any]:
        definition = request.get("TrainingJobDefinition", request) if kind is TUNING else request
        self._check_account(kind, definition)
        check_machines(kind, request)
        return {f"{kind.noun}Arn": self.add(kind, request).arn}

    def _check_account(self, kind: Kind, definition: dict[str, Any]) -> None:
        specification = definition["AppSpecification" if kind is PROCESSING else "AlgorithmSpecification"]
        image = specification["ImageUri" if kind is PROCESSING else "TrainingImage"]
        self._check_image(kind, definition["RoleArn"], image)

    def _check_image(self, kind: Kind | None, role: str, image: str) -> None:
        if self.roles is not None and role not in self.roles:
            raise ServiceError("ValidationException", ROLE.format(role=role))
        check_image(kind, role, image, self.images)

    def _find(self, kind: Kind, name: str) -> Job:
        with self.lock:
            job = self.jobs.get((kind.name, name))
        if job is None:
            raise not_found()
        with self.lock:  # what was just created is not seen by every call yet
            if job.unseen_describes > 0:
                job.unseen_describes -= 1
                raise not_found()
        return job

    def _describe(self, kind: Kind, name: str) -> dict[str, Any]:
        job = self._find(kind, name)
        return describe(job, self.faults.clock_skew)

    def _stop(self, kind: Kind, name: str) -> dict[str, Any]:
        job = self._find(kind, name)
        if job.done:
            raise ServiceError(
                "ValidationException",
                f"The request was rejected because the {kind.name.replace('-', ' ')} is in status {job.status}.",
            )
        for each in (*job.children, job):
            each.ask_to_stop()
        return {}

    def _list(self, kind: Kind, request: dict[str, Any]) -> dict[str, Any]:
        wanted = request.get("NameContains", "")
        status = request.get("StatusEquals")
        with self.lock:
            jobs = [
                job
                for (kind_name, name), job in sorted(self.jobs.items())
                if kind_name == kind.name and wanted in name and status in (None, job.status)
            ]
        page, answer = self._page(jobs, request)
        skew = self.faults.clock_skew
        answer[f"{kind.noun}Summaries"] = [
            {
                f"{kind.noun}Name": job.name,
                f"{kind.noun}Arn": job.arn,
                f"{kind.noun}Status": job.status,
                "CreationTime": job.created + skew,
                "LastModifiedTime": job.modified + skew,
            }
            for job in page
        ]
        return answer

    def _children(self, request: dict[str, Any]) -> dict[str, Any]:
        parent = self._find(TUNING, request["HyperParameterTuningJobName"])
        page, answer = self._page(parent.children, request)
        answer["TrainingJobSummaries"] = [summarize_child(child, self.faults.clock_skew) for child in page]
        return answer

    @staticmethod
    def _page(items: list[Job], request: dict[str, Any]) -> tuple[list[Job], dict[str, Any]]:
        start = int(request.get("NextToken", 0))
        end = start + request.get("MaxResults", 10)
        return items[start:end], ({"NextToken": str(end)} if end < len(items) else {})

    def _by_arn(self, arn: str) -> Job:
        with self.lock:
            for job in self.jobs.values():
                if job.arn == arn:
                    return job
        raise not_found()

    def _list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        hosted = self.registry.tags_of(request["ResourceArn"])
        if hosted is None and self.hosting is not None:
            hosted = self.hosting.tags_of(request["ResourceArn"])
        return {"Tags": self._by_arn(request["ResourceArn"]).tags if hosted is None else hosted}

    def _add_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._by_arn(request["ResourceArn"])
        added = {tag["Key"] for tag in request["Tags"]}
        job.tags[:] = [tag for tag in job.tags if tag["Key"] not in added] + request["Tags"]
        return {"Tags": job.tags}


def child_request(parent: Job, index: int, tuned: dict[str, str]) -> dict[str, Any]:
    """The CreateTrainingJob request of a tuning job's child: static, tuned and the objective's name as hyperparameters."""
    definition = parent.request["TrainingJobDefinition"]
    resources = definition.get("ResourceConfig") or definition["HyperParameterTuningResourceConfig"]
    objective = parent.request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]
    copied = (
        "RoleArn",
        "InputDataConfig",
        "OutputDataConfig",
        "StoppingCondition",
        "EnableManagedSpotTraining",
        "CheckpointConfig",
        "VpcConfig",
        "Environment",
        "EnableNetworkIsolation",
    )
    request = {key: definition[key] for key in copied if key in definition}
    return request | {
        "TrainingJobName": f"{parent.name}-{index:03d}-{zlib.crc32(f'{parent.name}{index}'.encode()):08x}",
        "AlgorithmSpecification": definition["AlgorithmSpecification"],
        "HyperParameters": {
            **definition.get("StaticHyperParameters", {}),
            **tuned,
            "_tuning_objective_metric": objective,
        },
        "ResourceConfig": {"VolumeSizeInGB": 30, **resources},
        "Tags": parent.tags,
    }


__all__ = ["PROCESSING", "TRAINING", "TUNING", "Runtime", "SageMaker", "child_request"]
