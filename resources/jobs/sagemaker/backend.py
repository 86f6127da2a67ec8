"""Jobs on SageMaker: Processing, Training and HyperParameterTuning jobs.

Create goes through the SDK's typed layer (`sagemaker.core.resources`), which checks types and takes a chosen name. Everything
else goes through boto3: the typed layer's Describe, Stop and log readers add calls and open sessions of their own, and its
`wait()` returns normally when a job was stopped.
"""

import contextlib
import random
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from docml_contract.jobs import JobSpec, TrainTask
from resources import aws
from resources.aws import is_reference
from resources.errors import SettingError
from resources.jobs.backend import Busy, Cursor, Job, JobState, LogLine
from resources.jobs.interface import JobElsewhere, JobError, JobRefused
from resources.jobs.sagemaker import describe
from resources.jobs.sagemaker.create import TypedLayer, check_request
from resources.jobs.sagemaker.describe import NOUNS, Pacer
from resources.jobs.sagemaker.errors import NoSuchJob, translate
from resources.jobs.sagemaker.requests import (
    ENCODING_VARIABLES,
    SPEC_TAG,
    TRACKER_VARIABLES,
    Account,
    build_request,
    manifests,
)
from resources.jobs.trials import add_trials, best_trial, metric_definitions
from resources.store import Store

# Calls a second of this process, all its jobs together: SageMaker throttles an account at about 2.
CALLS_A_SECOND = 1.0
LOG_CALLS_A_SECOND = 5.0
POLL_SECONDS = 10.0
LOG_SETTLE_SECONDS = 6.0  # CloudWatch shows lines some seconds after they were written
CONTAINER_VARIABLES = (*TRACKER_VARIABLES, *ENCODING_VARIABLES)


def sagemaker_backend(store: Store, environment: Mapping[str, str]) -> "SageMakerBackend":
    """Jobs on SageMaker, with the deployment's settings."""
    return SageMakerBackend(
        store,
        environment,
        calls_a_second=CALLS_A_SECOND,
        log_calls_a_second=LOG_CALLS_A_SECOND,
        poll_seconds=POLL_SECONDS,
        log_settle_seconds=LOG_SETTLE_SECONDS,
    )


def read_account(store: Store, environment: Mapping[str, str]) -> Account:
    """The deployment's settings for jobs. SettingError names what is missing."""
    if store.local_path is not None:
        raise SettingError(
            f"DOCML_STORE is {store.url}: SageMaker's jobs read and write S3, expected s3://bucket/prefix"
        )
    role = environment.get("DOCML_SAGEMAKER_ROLE_ARN")
    if not role:
        raise SettingError("DOCML_SAGEMAKER_ROLE_ARN is not set: expected the role that jobs run under (see deploy/)")
    subnets, groups = (_words(environment.get(key)) for key in ("DOCML_SUBNETS", "DOCML_SECURITY_GROUPS"))
    if bool(subnets) != bool(groups):
        raise SettingError("DOCML_SUBNETS and DOCML_SECURITY_GROUPS belong together: set both, or neither")
    return Account(
        store_url=store.url,
        role_arn=role,
        subnets=subnets,
        security_groups=groups,
        kms_key=environment.get("DOCML_KMS_KEY") or None,
        environment={key: environment[key] for key in CONTAINER_VARIABLES if environment.get(key)},
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


class SageMakerBackend:
    """Implements `Backend`."""

    name = "sagemaker"
    stop_seconds = 240.0  # SIGTERM, 120 s, SIGKILL, upload

    def __init__(
        self,
        store: Store,
        environment: Mapping[str, str],
        *,
        session: Any = None,
        calls_a_second: float,
        log_calls_a_second: float,
        poll_seconds: float,
        log_settle_seconds: float,
    ) -> None:
        self.log_settle_seconds = log_settle_seconds
        self.store = store
        self.environment = dict(environment)
        self._given_session = session
        self._pacer = Pacer(calls_a_second)
        self._log_pacer = Pacer(log_calls_a_second)
        self._poll_seconds = poll_seconds
        self._jitter = random.Random()

    @property
    def poll_seconds(self) -> float:
        """Jittered, so that many jobs are not asked after at once."""
        return self._poll_seconds * self._jitter.uniform(0.8, 1.2)

    # -- clients, made at first use

    @cached_property
    def account(self) -> Account:
        """What requests need to know of the deployment: bucket, role, network, environment."""
        return read_account(self.store, self.environment)

    @cached_property
    def session(self) -> Any:
        """The boto3 session, made on first use."""
        return self._given_session or aws.session(self.environment)

    @cached_property
    def region(self) -> str:
        """The session's region."""
        return self.session.region_name or "us-east-1"

    def _client(self, service: str) -> Any:
        from botocore.config import Config

        # The engine alone tries again: botocore's own retries would multiply with its.
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=40)
        return self.session.client(service, endpoint_url=aws.endpoint(service, self.environment), config=config)

    @cached_property
    def sagemaker(self) -> Any:
        """The client of SageMaker."""
        return self._client("sagemaker")

    @cached_property
    def cloudwatch(self) -> Any:
        """The client of CloudWatch Logs."""
        return self._client("logs")

    @cached_property
    def sts(self) -> Any:
        """The client that tells whose the credentials are."""
        return self._client("sts")

    @cached_property
    def typed_layer(self) -> TypedLayer:
        """The SDK's classes, which create jobs."""
        return TypedLayer(self.session, self.sagemaker)

    def _call(self, what: str, operation: Callable[..., Any], **request: Any) -> Any:
        self._pacer.turn()
        try:
            return operation(**request)
        except Exception as error:
            raise translate(error, what) from error

    # -- Backend

    def where(self) -> str:
        """The account and region, asked anew: credentials may change under a process that goes on."""
        return describe.where(self._call("account", self.sts.get_caller_identity)["Account"], self.region)

    def check(self, spec: JobSpec) -> None:
        """JobRefused without an image; SettingError if a key would travel in plain text."""
        if not spec.compute.image:
            raise JobRefused(
                f"{spec.step} of {spec.experiment} has no image: set DOCKER_IMAGE in settings.ini, or DOCML_IMAGE "
                "(docml image push prints the URI)"
            )
        key = self.account.environment.get("WANDB_API_KEY")
        if key and not is_reference(key):
            raise SettingError(
                "WANDB_API_KEY must be a reference on aws (secretsmanager:NAME#key): containers resolve it"
            )
        if isinstance(spec.task, TrainTask) and spec.task.tracking.mode == "online" and not key:
            raise SettingError("WANDB_MODE is online and WANDB_API_KEY is not set: expected secretsmanager:NAME#key")
        if spec.tuning and spec.tuning.objective_metric not in metric_definitions(spec):
            raise JobRefused(
                f"OBJECTIVE_METRIC_NAME is {spec.tuning.objective_metric}, which the trainer does not print: choose one of "
                f"{', '.join(metric_definitions(spec))}, or define it in METRIC_DEFINITIONS"
            )
        job = Job.plan(spec, 1, self.store.url)
        check_request(f"Create{NOUNS[spec.kind]}", self.request(job))

    def request(self, job: Job) -> dict[str, Any]:
        """The Create request."""
        return build_request(job, self.account)

    def stage(self, job: Job) -> None:
        """Write the manifests of channels that list their files."""
        for key, content in manifests(job, self.account).items():
            self.store.put(key, content)

    def create(self, job: Job) -> None:
        """Create the job. NameTaken, NoCapacity, JobRefused."""
        with contextlib.suppress(NoSuchJob):  # created; the typed layer's Describe came too early to see it
            self._call(job.name, self.typed_layer.create, noun=NOUNS[job.spec.kind], request=self.request(job))

    def spec_hash(self, job: Job) -> str | None:
        """From the job's tag; None if it has none."""
        noun = NOUNS[job.spec.kind]
        arn = self._describe(job)[f"{noun}Arn"]
        tags = self._call(job.name, self.sagemaker.list_tags, ResourceArn=arn)["Tags"]
        return next((tag["Value"] for tag in tags if tag["Key"] == SPEC_TAG), None)

    def observe(self, job: Job) -> JobState | None:
        """What Describe answers; None: no such job. JobElsewhere where the record names another account or region."""
        try:
            answer = self._describe(job)
        except NoSuchJob:
            if job.where:
                self._check_place(job, self.where())
            return None
        return describe.read_state(job, answer, lambda: self._children(job))

    def _describe(self, job: Job) -> dict[str, Any]:
        noun = NOUNS[job.spec.kind]
        ask = {
            "processing": self.sagemaker.describe_processing_job,
            "training": self.sagemaker.describe_training_job,
            "tuning": self.sagemaker.describe_hyper_parameter_tuning_job,
        }[job.spec.kind]
        answer: dict[str, Any] = self._call(job.name, ask, **{f"{noun}Name": job.name})
        if job.where:
            self._check_place(job, describe.where_of(answer[f"{noun}Arn"]))
        return answer

    def _check_place(self, job: Job, here: str) -> None:
        """A job that was started elsewhere is neither gone nor another one of the same name."""
        if here != job.where:
            raise JobElsewhere(
                f"job {job.name} was started in {job.where}, this is {here}: run again with the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) "
                f"and AWS_REGION of there, or take the next run number; its record is {self.store.uri(job.place.job_record(job.name))}"
            )

    def logs(self, job: Job, cursor: Cursor) -> list[LogLine]:
        """New lines of the job's CloudWatch streams."""

        def ask(operation: str, **request: Any) -> dict[str, Any]:
            self._log_pacer.turn()
            try:
                answer: dict[str, Any] = getattr(self.cloudwatch, operation)(**request)
            except Exception as error:
                translated = translate(error, f"log of {job.name}")
                if isinstance(translated, NoSuchJob):  # no group or stream yet
                    return {}
                raise translated from error
            return answer

        return describe.read_logs(job, cursor, ask)

    def stop(self, job: Job) -> None:
        """Call Stop; a job that is gone or has ended is no error."""
        noun = NOUNS[job.spec.kind]
        stop = {
            "processing": self.sagemaker.stop_processing_job,
            "training": self.sagemaker.stop_training_job,
            "tuning": self.sagemaker.stop_hyper_parameter_tuning_job,
        }[job.spec.kind]
        try:
            self._call(job.name, stop, **{f"{noun}Name": job.name})
        except NoSuchJob:
            pass
        except JobRefused as error:
            if "in status" not in str(error):  # it has ended already
                raise

    def collect(self, job: Job) -> str:
        """Where the output lies; of a tuning, its best trial's, gathered."""
        if job.spec.kind == "processing":
            return job.output_prefix
        if job.spec.kind == "training":
            return self._artifacts(job, job.name)
        return self._collect_best(job)

    def _artifacts(self, job: Job, training: str) -> str:
        """The store's key prefix of the output of a training, `job` itself or a trial of it, as Describe names it."""
        try:
            found = self._call(job.name, self.sagemaker.describe_training_job, TrainingJobName=training)
        except NoSuchJob as error:  # SageMaker does not show everything at once
            raise Busy(f"{training} is not visible") from error
        uri = found["ModelArtifacts"]["S3ModelArtifacts"].rstrip("/")
        if not uri.startswith(f"{self.store.url}/"):
            raise JobError(f"job {job.name} left its output at {uri}, expected a place below {self.store.url}")
        return str(uri.removeprefix(f"{self.store.url}/"))

    def links(self, job: Job) -> Mapping[str, str]:
        """Log and console."""
        return describe.links(job, self.region)

    # -- trials

    def _children(self, job: Job) -> list[dict[str, Any]]:
        """Summaries of a tuning's training jobs, oldest first."""
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._call(
                job.name,
                self.sagemaker.list_training_jobs_for_hyper_parameter_tuning_job,
                HyperParameterTuningJobName=job.name,
                MaxResults=100,
                **more,
            )
            found += answer["TrainingJobSummaries"]
            if not answer.get("NextToken"):
                return sorted(found, key=lambda child: (child["CreationTime"], child["TrainingJobName"]))
            more = {"NextToken": answer["NextToken"]}

    def _collect_best(self, job: Job) -> str:
        """Add trials.json to the best trial's output, and delete the other trials'."""
        assert job.spec.tuning is not None
        trials = [
            describe.read_trial(n, child, job.spec.tuning.ranges) for n, child in enumerate(self._children(job), 1)
        ]
        best = best_trial(trials, job.spec.tuning)
        if best is None:
            raise JobError(f"job {job.name} completed, and no trial has a value of {job.spec.tuning.objective_metric}")
        prefix = self._artifacts(job, best.job)
        add_trials(self.store, prefix, job.spec.tuning, trials)
        others = [
            stored.key for stored in self.store.list(job.output_prefix) if not stored.key.startswith(f"{prefix}/")
        ]
        self.store.delete(others)
        return prefix
