"""Every refusal that people can do something about names the setting to change, once, without a traceback's worth of text."""

from collections.abc import Callable
from typing import Any

import pytest

from resources.jobs.backend import Job
from resources.jobs.interface import JobError, JobFailed, JobRefused, JobUnreachable
from resources.jobs.sagemaker.errors import advice
from tests.contracts.jobs_contract import FILES, RecordingListener, compute, training
from tests.resources.jobs.simulation import Actor, World
from tests.servers.sagemaker.refusals import missing_image

ANSWERS: dict[str, tuple[Callable[[World], None], type[JobError], str]] = {
    "wrong role": (
        lambda world: setattr(world.service, "roles", frozenset({"arn:aws:iam::123456789012:role/other"})),
        JobRefused,
        "DOCML_SAGEMAKER_ROLE_ARN",
    ),
    "missing image": (
        lambda world: setattr(world.service, "images", frozenset({"another"})),
        JobRefused,
        "DOCKER_IMAGE",
    ),
    "quota 0": (lambda world: world.faults.order("CreateTrainingJob", "limit"), JobRefused, "INSTANCE_TYPE"),
    "bucket in another region": (
        lambda world: world.faults.order("CreateTrainingJob", "bucket_region"),
        JobRefused,
        "DOCML_STORE",
    ),
    "expired credentials": (
        lambda world: world.faults.order("CreateTrainingJob", "expired"),
        JobUnreachable,
        "AWS_SESSION_TOKEN",
    ),
    "no permission": (
        lambda world: world.faults.order("CreateTrainingJob", "denied"),
        JobRefused,
        "deploy/cloudformation.yaml",
    ),
    # What a Create lacks is not the job: none of these waits for a job to appear.
    "no such subnet": (lambda world: world.faults.order("CreateTrainingJob", "subnet"), JobRefused, "DOCML_SUBNETS"),
    "no such group": (lambda world: world.faults.order("CreateTrainingJob", "security_group"), JobRefused, "DOCML_SEC"),
    "no such key": (lambda world: world.faults.order("CreateTrainingJob", "key"), JobRefused, "DOCML_KMS_KEY"),
    "no such bucket": (lambda world: world.faults.order("CreateTrainingJob", "no_inputs"), JobRefused, "DOCML_STORE"),
    "no such thing": (lambda world: world.faults.order("CreateTrainingJob", "resource"), JobRefused, "not found"),
    "quota of another unit": (
        lambda world: world.faults.order("CreateTrainingJob", "storage"),
        JobRefused,
        "the quota 'Size of EBS volume for a processing job instance' is 1024 Gigabytes, 2000 are asked for",
    ),
}


def run(world: World, holder: str = "run-a") -> Actor:
    def body(actor: Actor) -> Any:
        return actor.engine().run(training(), FILES, holder=holder, listener=RecordingListener())

    actor = world.actor(holder, body)
    world.run()
    return actor


@pytest.mark.parametrize("name", ANSWERS)
def test_one_clear_message_names_the_setting(name: str) -> None:
    arrange, kind, setting = ANSWERS[name]
    world = World()
    arrange(world)
    error = run(world).error
    assert type(error) is kind
    assert setting in str(error)
    assert len(str(error)) < 700
    assert str(error).count("\n") == 0
    assert world.jobs() == []


def test_after_the_setting_was_corrected_the_same_attempt_runs() -> None:
    world = World()
    world.service.images = frozenset({"another"})
    assert isinstance(run(world).error, JobRefused)
    world.service.images = None
    again = run(world, "run-b")
    assert again.error is None
    assert again.result.attempt == 1
    assert [job.name for job in world.jobs()] == [again.result.name]


def test_the_containers_own_reason_is_passed_on_without_wrapping() -> None:
    world = World()
    world.failing = ["AlgorithmError: the loss is NaN at step 3, exit code: 1"]
    error = run(world).error
    assert isinstance(error, JobFailed)
    assert error.reason == "the loss is NaN at step 3"
    assert "console.aws.amazon.com" in error.links["log"]


def test_a_service_that_does_not_answer_is_given_up_after_the_budget() -> None:
    world = World()
    world.faults.order("DescribeTrainingJob", "throttle", 100_000)
    started = world.clock.now
    error = run(world).error
    assert isinstance(error, JobUnreachable)
    assert "run again to attach" in str(error)
    assert 900 < world.clock.now - started < 1500


INSTANCES = "ml.m5.xlarge for training job usage"


def test_a_quota_that_can_never_be_met_is_refused_at_once_by_its_name() -> None:
    world = World()
    world.service.quotas = {INSTANCES: 4}
    begun = world.clock.now
    spec = training(compute=compute(instance_count=11))
    actor = world.actor(
        "run-a", lambda actor: actor.engine().run(spec, FILES, holder="run-a", listener=RecordingListener())
    )
    world.run()
    assert isinstance(actor.error, JobRefused)
    assert f"the quota '{INSTANCES}' is 4 Instances, 11 are asked for" in str(actor.error)
    assert world.clock.now - begun < 60


def test_a_quota_that_others_use_is_waited_for() -> None:
    world = World()
    world.service.quotas = {INSTANCES: 1}
    world.runtime.seconds = 900
    other = training().model_copy(update={"run": 2})
    for name, spec in (("run-a", training()), ("run-b", other)):
        world.actor(
            name, lambda actor, s=spec: actor.engine().run(s, FILES, holder=actor.name, listener=RecordingListener())
        )
    world.run()
    assert [actor.error for actor in world.actors] == [None, None]
    first, second = world.jobs()
    assert second.created >= (first.ended or 0)


def test_a_missing_image_of_a_processing_job_is_told_when_it_starts() -> None:
    assert "DOCKER_IMAGE" in advice(missing_image("123456789012.dkr.ecr.eu-west-1.amazonaws.com/docml:2"))


def test_throttling_for_a_while_is_waited_for() -> None:
    world = World()
    world.faults.order("*", "throttle", 12)
    assert run(world).error is None


def test_a_taken_name_is_recognised_by_its_spec() -> None:
    world = World()
    job = Job.plan(training(), 1, "s3://simulated/docml")
    assert run(world).result.name == job.name
    world.objects.clear()  # the store was deleted and made anew; the account still knows the job
    world.service.jobs["training-job", job.name].tags[-1]["Value"] = "0" * 64
    refused = run(world, "run-b").error
    assert isinstance(refused, JobRefused)
    assert "next run number" in str(refused)
