"""Containers get what programs need, and no credential of the orchestrator."""

from pathlib import Path

from docml_contract.jobs import JobSpec
from resources.jobs.backend import Job
from resources.jobs.local.container import Container, trainer_environment
from tests.contracts.jobs_contract import preparation, training

ENVIRONMENT = {
    "PATH": "/bin",
    "HOME": "/mine",
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
        passed = {"PATH", "LC_ALL", "OMP_NUM_THREADS", "HF_HOME"}
        assert {name: kept.pop(name) for name in passed} == {name: ENVIRONMENT[name] for name in passed}
        assert kept == {
            "SAGEMAKER_BASE_DIR": "/base",
            "PYTHONUNBUFFERED": "1",
            "HOME": "/base/home",
            "XDG_CACHE_HOME": "/mine/.cache",
            "HF_TOKEN_PATH": "/base/home/token",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def test_a_proxys_password_stays_here() -> None:
    kept = trainer_environment(
        {
            **ENVIRONMENT,
            "HTTPS_PROXY": "http://user:p%40ss@proxy:3128/x",
            "http_proxy": "me:secret@proxy:1",
            "NO_PROXY": "a,b",
        },
        preparation(),
        Path("/base"),
    )
    assert kept["HTTPS_PROXY"] == "http://proxy:3128/x"
    assert kept["http_proxy"] == "proxy:1"
    assert kept["NO_PROXY"] == "a,b"


def test_the_trackers_key_is_for_trainings_that_report_online() -> None:
    assert trainer_environment(ENVIRONMENT, online(), Path("/base"))["WANDB_API_KEY"] == "key"


def test_a_reason_is_what_the_job_left_and_not_what_a_link_leads_to(tmp_path: Path) -> None:
    one = Container(Job.plan(training(), 1, "file:///store"), tmp_path, tmp_path / "log", ["algo-1"], 0)
    failure = tmp_path / "output/failure"
    failure.parent.mkdir()
    (tmp_path / "secret").write_text("CANARY")
    failure.symlink_to(tmp_path / "secret")
    assert not one.has_reason
    assert one.reason() == (
        "it ended without writing OUTPUT.json: does user_defined_funcs.py, or a library that it uses, end the process? a function that "
        "cannot go on raises an Exception (a ValueError, say) that tells what is wrong"
    )
    failure.unlink()
    failure.write_text("no labels\n")
    assert one.has_reason
    assert one.reason() == "no labels"
