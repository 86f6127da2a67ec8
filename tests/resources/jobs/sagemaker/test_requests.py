"""Requests are what they were: one golden file a job type. A changed file is a changed request: read it, then replace it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from docml_contract.hyperparameters import Choice, Interval
from docml_contract.jobs import JobSpec, Tuning
from resources.jobs.backend import Job
from resources.jobs.interface import JobRefused
from resources.jobs.sagemaker.create import check_request
from resources.jobs.sagemaker.describe import NOUNS
from resources.jobs.sagemaker.requests import Account, build_request, manifests
from tests.contracts.jobs_contract import compute, preparation, training, tuning

GOLDEN = Path(__file__).with_name("golden")
STORE = "s3://bucket/docml"
ROLE = "arn:aws:iam::123456789012:role/docml-job"
PLAIN = Account(STORE, ROLE)
PRIVATE = Account(
    STORE,
    ROLE,
    subnets=("subnet-0a1b2c3d", "subnet-4e5f6a7b"),
    security_groups=("sg-0a1b2c3d",),
    kms_key="arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555",
    environment={"WANDB_API_KEY": "secretsmanager:docml/wandb#key", "DOCML_ENCODE_TIMEOUT_SECONDS": "600"},
)
SEARCH = Tuning(
    ranges={
        "learning_rate": Interval(low=1e-6, high=1e-4, log=True),
        "epochs": Interval(low=1, high=4, integer=True),
        "train_batch_size": Choice(values=(8, 16, 32)),
        "pooling": Choice(values=("mean", "8")),
    },
    max_jobs=12,
    max_parallel_jobs=3,
)
VALUES = {"epochs": 3, "learning_rate": 5e-5, "lr_scheduler": "linear", "early_stopping_patience": None, "text": "12"}


def online(spec: JobSpec) -> JobSpec:
    tracking = {**spec.task.tracking.model_dump(), "mode": "online"}  # type: ignore[union-attr]
    content = spec.model_dump()
    content["task"]["tracking"] = tracking
    return JobSpec.model_validate(content)


SPOT = compute(
    instance_type="ml.g5.xlarge", instance_count=2, use_spot=True, max_wait_seconds=7200, keep_alive_seconds=600
)
CASES: dict[str, tuple[JobSpec, Account]] = {
    "processing": (preparation(), PLAIN),
    "processing-private": (preparation(compute=compute(instance_count=2, volume_gb=100)), PRIVATE),
    "training": (training(VALUES), PLAIN),
    "training-private-spot": (online(training(VALUES, compute=SPOT)), PRIVATE),
    "tuning": (tuning(SEARCH, VALUES), PLAIN),
    "tuning-private": (online(tuning(SEARCH, VALUES)), PRIVATE),
}


def refused(spec: JobSpec, account: Account = PLAIN) -> str:
    with pytest.raises(JobRefused) as error:
        check_request(f"Create{NOUNS[spec.kind]}", build_request(Job.plan(spec, 1, STORE), account))
    return str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    spec, account = CASES[name]
    request = build_request(Job.plan(spec, 1, STORE), account)
    check_request(f"Create{NOUNS[spec.kind]}", request)
    shown = json.dumps(request, indent=2) + "\n"
    assert shown == (GOLDEN / f"{name}.json").read_text()


def test_channels_that_list_their_files_get_a_manifest() -> None:
    job = Job.plan(preparation(), 1, STORE)
    begun, key = (found := manifests(job, PLAIN))
    assert begun == f"{job.checkpoints}/begun.json", "an input without objects would be refused"
    assert json.loads(found[key]) == [
        {"prefix": f"{STORE}/in/artifacts/"},
        "a/v1/raw_text.json",
        "b/v2/raw_text.json",
    ]
    inputs = {entry["InputName"]: entry["S3Input"] for entry in build_request(job, PLAIN)["ProcessingInputs"]}
    assert inputs["artifacts"]["S3Uri"] == f"{STORE}/{key}"
    assert inputs["artifacts"]["S3DataType"] == "ManifestFile"
    assert inputs["all"]["S3Uri"] == f"{STORE}/in/all/"


@pytest.mark.parametrize(
    ("spec", "account", "setting"),
    [
        (training(), Account(STORE, "docml-job"), "DOCML_SAGEMAKER_ROLE_ARN"),
        (training(compute=compute(instance_type="ml.g5.huge")), PLAIN, "INSTANCE_TYPE"),
        (preparation(compute=compute(instance_type="g5.xlarge")), PLAIN, "INSTANCE_TYPE"),
        (preparation(compute=compute(max_runtime_seconds=800_000)), PLAIN, "MAX_RUNTIME_SECONDS"),
        (preparation(compute=compute(volume_gb=50_000)), PLAIN, "VOLUME_GB"),
        (preparation(compute=compute(instance_type="ml.m5d.large", volume_gb=76)), PLAIN, "VOLUME_GB"),
        (
            tuning(SEARCH).model_copy(update={"compute": compute(instance_type="ml.g5.xlarge", volume_gb=300)}),
            PLAIN,
            "VOLUME_GB",
        ),
        (training({"text": "x" * 2501}), PLAIN, "[hyperparameters]"),
        (training({f"key_{n}": n for n in range(101)}), PLAIN, "[hyperparameters]"),
        (training(metric_definitions=tuple((f"m{n}", "x=(.*)") for n in range(40))), PLAIN, "METRIC_DEFINITIONS"),
        (tuning(Tuning(ranges={"size": Choice(values=tuple(range(31)))})), PLAIN, "[tunable]"),
        (training(), Account(STORE, ROLE, subnets=("net work",), security_groups=("sg-1",)), "DOCML_SUBNETS"),
        (training(), Account(STORE, ROLE, kms_key="my key"), "DOCML_KMS_KEY"),
    ],
)
def test_what_the_service_would_refuse_is_refused_here(spec: JobSpec, account: Account, setting: str) -> None:
    assert setting in refused(spec, account)


def test_all_problems_are_told_at_once() -> None:
    said = refused(preparation(compute=compute(instance_type="ml.g5.huge", volume_gb=50_000)), Account(STORE, "x"))
    assert all(word in said for word in ("INSTANCE_TYPE", "VOLUME_GB", "DOCML_SAGEMAKER_ROLE_ARN"))


def test_a_grid_larger_than_max_jobs_is_refused() -> None:
    search = Tuning(ranges={"size": Choice(values=(1, 2, 3, 4)), "x": Choice(values=(1, 2, 3))}, strategy="Grid")
    with pytest.raises(JobRefused, match="12 points and MAX_JOBS is 10"):
        build_request(Job.plan(tuning(search), 1, STORE), PLAIN)


def test_spot_knows_no_warm_pools() -> None:
    spec = training(compute=compute(keep_alive_seconds=600))
    assert build_request(Job.plan(spec, 1, STORE), PLAIN)["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
    spec = training(compute=compute(keep_alive_seconds=600, use_spot=True))
    assert "KeepAlivePeriodInSeconds" not in build_request(Job.plan(spec, 1, STORE), PLAIN)["ResourceConfig"]


def test_a_key_is_not_asked_for_on_local_disks() -> None:
    def resources(instance_type: str) -> dict[str, Any]:
        spec = training(compute=compute(instance_type=instance_type))
        return build_request(Job.plan(spec, 1, STORE), PRIVATE)["ResourceConfig"]

    for local in (
        "ml.g5.xlarge",
        "ml.g4dn.xlarge",
        "ml.m5d.large",
        "ml.p4d.24xlarge",
        "ml.p5.48xlarge",
        "ml.g6e.xlarge",
    ):
        assert "VolumeKmsKeyId" not in resources(local)
    for attached in ("ml.m5.xlarge", "ml.p3.2xlarge", "ml.c6i.xlarge"):
        assert "VolumeKmsKeyId" in resources(attached)


def test_each_experiment_may_have_a_role_of_its_own() -> None:
    account = replace(PLAIN, role_arn="arn:aws:iam::123456789012:role/docml-job-{experiment}")
    for spec in (preparation(), training(), tuning(SEARCH)):
        request = build_request(Job.plan(spec, 1, STORE), account)
        definition = request.get("TrainingJobDefinition", request)
        assert definition["RoleArn"] == f"arn:aws:iam::123456789012:role/docml-job-{spec.experiment}"
