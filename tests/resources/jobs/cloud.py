"""A cloud of our own: the local SageMaker endpoint over HTTP, real subprocess jobs, a bucket on a real S3 server."""

import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.jobs.engine.engine import Engine
from resources.jobs.sagemaker.backend import SageMakerBackend
from resources.store import Store
from tests.servers.s3 import S3Server
from tests.servers.sagemaker.containers import SubprocessRuntime
from tests.servers.sagemaker.faults import Faults
from tests.servers.sagemaker.hosting import Hosting, ServedContainers
from tests.servers.sagemaker.neighbours import CloudWatchLogs, SecretsManager
from tests.servers.sagemaker.server import LocalEndpoint, serve
from tests.servers.sagemaker.service import SageMaker
from tests.servers.sagemaker.transfer import Transfer

ROLE = "arn:aws:iam::123456789012:role/docml-job"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/docml:1"
HURRY = {"calls_a_second": 0.0, "log_calls_a_second": 0.0, "poll_seconds": 0.2, "log_settle_seconds": 0.6}
FAKE_TRAINER = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))


@dataclass
class Cloud:
    """The services, and the environment of an orchestrator that uses them."""

    endpoint: LocalEndpoint
    store: Store
    environment: dict[str, str]

    @property
    def faults(self) -> Faults:
        return self.endpoint.faults

    def engine(self) -> Engine:
        """An engine as a fresh process would make it, in a hurry."""
        backend = SageMakerBackend(self.store, self.environment, **HURRY)
        return Engine(self.store, backend, prices={"ml.m5.xlarge": 0.23})

    def started(self) -> list[str]:
        return sorted(name for (_, name), job in self.endpoint.sagemaker.jobs.items() if job.parent is None)

    def calls(self, operation: str) -> list[dict[str, Any]]:
        return [request for _, called, request in self.endpoint.calls if called == operation]


@contextmanager
def cloud(
    work: Path,
    s3: S3Server,
    command: tuple[str, ...] = FAKE_TRAINER,
    *,
    bucket: str | None = None,
    jobs_s3: S3Server | None = None,
    containers: Mapping[str, str] | None = None,
    role: str = ROLE,
    grace: float = 2.0,
) -> Iterator[Cloud]:
    """A cloud with one image, whose ENTRYPOINT is `command`, and a fresh bucket.

    jobs_s3: where the jobs reach S3, if not where the orchestrator does. containers: further variables of theirs. role: the jobs'.
    """
    faults = Faults()
    logs = CloudWatchLogs(faults)
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "OMP_NUM_THREADS": "1", **(containers or {})}
    transfer = Transfer((jobs_s3 or s3).client())
    runtime = SubprocessRuntime(work, transfer, logs, faults, {IMAGE: list(command)}, environment, grace=grace)
    served = ServedContainers(work, transfer, logs, runtime.images, environment)
    hosting = Hosting(served, faults, transfer)
    account = {"images": frozenset({IMAGE}), "roles": frozenset({role}), "region": s3.environment["AWS_REGION"]}
    service = SageMaker(runtime, faults=faults, hosting=hosting, **account)
    runtime.service = service
    endpoint = LocalEndpoint(service, logs, SecretsManager())
    url = s3.bucket(bucket or f"jobs-{uuid.uuid4().hex[:12]}") + "/experiments"
    try:
        with serve(endpoint) as address:
            services = (
                *("SAGEMAKER", "SAGEMAKER_RUNTIME", "CLOUDWATCH", "APPLICATION_AUTO_SCALING"),
                *("CLOUDWATCH_LOGS", "SECRETS_MANAGER", "STS"),
            )
            orchestrator = {
                **s3.environment,
                **{f"AWS_ENDPOINT_URL_{service}": address for service in services},
                "PATH": os.environ["PATH"],
                "DOCML_SAGEMAKER_ROLE_ARN": role,
                "DOCML_IMAGE": IMAGE,
            }
            yield Cloud(endpoint, Store.open(url, environment=orchestrator), orchestrator)
    finally:
        served.close()
        runtime.close()
