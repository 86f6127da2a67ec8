"""Containers get what programs need, and no credential of the orchestrator."""

from pathlib import Path

from docml_contract.jobs import JobSpec
from resources.jobs.local.container import trainer_environment
from tests.contracts.jobs_contract import preparation, training

ENVIRONMENT = {
    "PATH": "/bin",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "HF_HOME": "/cache",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "DOCML_LABELS_URL": "postgresql://u:p@h/db",
    "DOCML_WEBHOOK_URL": "https://hooks/x",
    "PYTHONPATH": "/mine",
    "WANDB_API_KEY": "key",
}


def online() -> JobSpec:
    content = training().model_dump()
    content["task"]["tracking"]["mode"] = "online"
    return JobSpec.model_validate(content)


def test_the_list_of_what_passes() -> None:
    for spec in (preparation(), training()):
        kept = trainer_environment(ENVIRONMENT, spec, Path("/base"))
        assert kept.keys() == {"PATH", "LC_ALL", "OMP_NUM_THREADS", "HF_HOME", "SAGEMAKER_BASE_DIR", "PYTHONUNBUFFERED"}
        assert kept["SAGEMAKER_BASE_DIR"] == "/base"


def test_the_trackers_key_is_for_trainings_that_report_online() -> None:
    assert trainer_environment(ENVIRONMENT, online(), Path("/base"))["WANDB_API_KEY"] == "key"
