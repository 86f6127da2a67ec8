"""Job specs -> SageMaker's Create requests. Pure functions: what goes over the wire can be read, compared and tested here.

Not in any request: secrets (references travel instead), the Debugger (it writes to buckets of its own), anything random.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from docml_contract import hyperparameters as encoding
from docml_contract.hyperparameters import Choice
from docml_contract.jobs import Channel, JobSpec, PrepareTask, TrainTask, Tuning
from resources.jobs.backend import Job
from resources.jobs.trials import metric_definitions, number_of_trials

TRAINING_ROOT = "/opt/ml/input/data"
PROCESSING_INPUT = "/opt/ml/processing/input"
PROCESSING_OUTPUT = "/opt/ml/processing/output/result"
CHECKPOINTS = "/opt/ml/checkpoints"
PROCESSING_CHECKPOINTS = "/opt/ml/processing/checkpoints"
SPEC_TAG = "docml:spec"
TRACKER_VARIABLES = ("WANDB_API_KEY", "WANDB_BASE_URL")
ENCODING_VARIABLES = ("DOCML_ENCODE_TIMEOUT_SECONDS",)
# Instances whose volumes are local disks: these are encrypted by hardware, and a key is refused for them.
_LOCAL_DISKS = re.compile(r"ml\.([a-z]+\d+[a-z]*d[a-z]*|g[56]e?|gr6|g7e?|p5[a-z]*|p6[a-z-]*\w*|trn\d\w*)\.")

Request = dict[str, Any]


@dataclass(frozen=True)
class Account:
    """Where jobs run: the deployment's settings. `environment`: variables for the containers of the steps that read them."""

    store_url: str
    role_arn: str
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    kms_key: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def role_of(self, experiment: str) -> str:
        """The role of an experiment's jobs and endpoints: one for all, or with `{experiment}` in its ARN one for each experiment."""
        return self.role_arn.replace("{experiment}", experiment)

    def uri(self, key: str) -> str:
        """The s3:// URI of a key of the store."""
        return f"{self.store_url}/{key}"


def build_request(job: Job, account: Account) -> Request:
    """The request for a job: CreateProcessingJob, CreateTrainingJob or CreateHyperParameterTuningJob by its kind."""
    build = {"processing": processing_request, "training": training_request, "tuning": tuning_request}
    return build[job.spec.kind](job, account)


def manifests(job: Job, account: Account) -> dict[str, bytes]:
    """The ManifestFile objects of channels that list their files: store key -> content.

    And one object beside a processing job's finished parts, of which there may be none yet: SageMaker refuses an input without objects.
    """
    begun = {f"{job.checkpoints}/begun.json": b"{}"} if job.spec.kind == "processing" and job.keeps_checkpoints else {}
    return begun | {
        _manifest_key(job, channel): json.dumps(
            [{"prefix": f"{account.uri(channel.prefix)}/"}, *channel.files]
        ).encode()
        for channel in job.spec.channels
        if channel.files is not None
    }


def processing_request(job: Job, account: Account) -> Request:
    """A preparation or an inference. The image's ENTRYPOINT runs; the step's command is its argument."""
    spec = job.spec
    compute = spec.compute
    network: Request = {"EnableNetworkIsolation": not spec.needs_network}
    if account.subnets:
        network["VpcConfig"] = _vpc(account)
    cluster = {
        "InstanceType": compute.instance_type,
        "InstanceCount": compute.instance_count,
        "VolumeSizeInGB": compute.volume_gb,
        **_volume_key(spec, account),
    }
    result = {"S3Uri": account.uri(job.output_prefix), "LocalPath": PROCESSING_OUTPUT, "S3UploadMode": "EndOfJob"}
    return {
        "ProcessingJobName": job.name,
        "RoleArn": account.role_of(spec.experiment),
        "AppSpecification": {"ImageUri": compute.image, "ContainerArguments": [spec.task.command]},
        "ProcessingInputs": [
            {
                "InputName": name,
                "S3Input": {**source, "LocalPath": f"{PROCESSING_INPUT}/{name}", "S3InputMode": "File"},
            }
            for name, source in _sources(job, account)
        ],
        "ProcessingOutputConfig": {
            "Outputs": [{"OutputName": "result", "S3Output": result}, *_kept_parts(job, account)],
            **({"KmsKeyId": account.kms_key} if account.kms_key else {}),
        },
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": {"MaxRuntimeInSeconds": compute.max_runtime_seconds},
        "Environment": _environment(job, account),
        "NetworkConfig": network,
        "Tags": _tags(job),
    }


def _kept_parts(job: Job, account: Account) -> list[Request]:
    """The output that the finished parts of a preparation or a prediction go to while it runs; the next attempt gets them from there."""
    if not job.keeps_checkpoints:
        return []
    kept = {"S3Uri": account.uri(job.checkpoints), "LocalPath": PROCESSING_CHECKPOINTS, "S3UploadMode": "Continuous"}
    return [{"OutputName": "checkpoints", "S3Output": kept}]


def training_request(job: Job, account: Account) -> Request:
    """One training. Its output is not compressed, so that publishing is a copy within the bucket."""
    spec = job.spec
    return {
        "TrainingJobName": job.name,
        "AlgorithmSpecification": _algorithm(spec),
        "HyperParameters": encoding.encode(spec.hyperparameters),
        **_training_definition(job, account, output=job.place.jobs),
        "ProfilerConfig": {"DisableProfiler": True},
        "Tags": _tags(job),
    }


def tuning_request(job: Job, account: Account) -> Request:
    """A search; each trial is a training job whose output lies below the search's own."""
    spec = job.spec
    assert spec.tuning is not None
    static = {name: value for name, value in spec.hyperparameters.items() if name not in spec.tuning.ranges}
    return {
        "HyperParameterTuningJobName": job.name,
        "HyperParameterTuningJobConfig": {
            "Strategy": spec.tuning.strategy,
            "HyperParameterTuningJobObjective": {
                "Type": spec.tuning.objective_type,
                "MetricName": spec.tuning.objective_metric,
            },
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": number_of_trials(spec.tuning),
                "MaxParallelTrainingJobs": spec.tuning.max_parallel_jobs,
            },
            "ParameterRanges": _ranges(spec.tuning),
            "TrainingJobEarlyStoppingType": "Off",
            "RandomSeed": spec.tuning.seed,
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": encoding.encode(static),
            "AlgorithmSpecification": _algorithm(spec),
            **_training_definition(job, account, output=job.output_prefix),
        },
        "Tags": _tags(job),
    }


def _training_definition(job: Job, account: Account, *, output: str) -> Request:
    """What a training job and the trials of a search have in common."""
    spec = job.spec
    compute = spec.compute
    stopping = {"MaxRuntimeInSeconds": compute.max_runtime_seconds}
    if compute.use_spot:
        stopping["MaxWaitTimeInSeconds"] = compute.max_wait_seconds or 2 * compute.max_runtime_seconds
    resources: Request = {
        "InstanceType": compute.instance_type,
        "InstanceCount": compute.instance_count,
        "VolumeSizeInGB": compute.volume_gb,
        **_volume_key(spec, account),
    }
    if compute.keep_alive_seconds and spec.kind == "training" and not compute.use_spot:  # spot knows no warm pools
        resources["KeepAlivePeriodInSeconds"] = compute.keep_alive_seconds
    definition: Request = {
        "RoleArn": account.role_of(spec.experiment),
        "InputDataConfig": [
            {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": "File"}
            for name, source in _sources(job, account)
        ],
        "OutputDataConfig": {
            "S3OutputPath": account.uri(output),
            "CompressionType": "NONE",
            **({"KmsKeyId": account.kms_key} if account.kms_key else {}),
        },
        "ResourceConfig": resources,
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": compute.use_spot,
        "CheckpointConfig": {"S3Uri": account.uri(job.checkpoints), "LocalPath": CHECKPOINTS},
        "EnableNetworkIsolation": False,  # models come from hubs, curves go to the tracker
        "EnableInterContainerTrafficEncryption": False,
    }
    definition["Environment"] = _environment(job, account)
    if account.subnets:
        definition["VpcConfig"] = _vpc(account)
    return definition


def _algorithm(spec: JobSpec) -> Request:
    definitions = [{"Name": name, "Regex": regex} for name, regex in metric_definitions(spec).items()]
    return {"TrainingImage": spec.compute.image, "TrainingInputMode": "File", "MetricDefinitions": definitions}


def _sources(job: Job, account: Account) -> list[tuple[str, Request]]:
    """(channel, S3 source) of the `spec` channel and the others. Prefixes end in '/': S3 matches inside names too."""
    sources = [("spec", {"S3DataType": "S3Prefix", "S3Uri": f"{account.uri(job.spec_prefix)}/"})]
    for channel in job.spec.channels:
        if channel.files is None:
            source = {"S3DataType": "S3Prefix", "S3Uri": f"{account.uri(channel.prefix)}/"}
        else:
            source = {"S3DataType": "ManifestFile", "S3Uri": account.uri(_manifest_key(job, channel))}
        sources.append((channel.name, source))
    if job.spec.kind == "processing" and job.keeps_checkpoints:
        sources.append(("checkpoints", {"S3DataType": "S3Prefix", "S3Uri": f"{account.uri(job.checkpoints)}/"}))
    # Every host sees all files: sharding by key would tear the files of one document apart.
    return [(name, {**source, "S3DataDistributionType": "FullyReplicated"}) for name, source in sources]


def _manifest_key(job: Job, channel: Channel) -> str:
    return f"{job.folder}/manifests/{channel.name}.json"


def _ranges(tuning: Tuning) -> Request:
    ranges: Request = {}
    for name, searched in sorted(tuning.ranges.items()):
        if isinstance(searched, Choice):
            values = [encoding.encode({name: value})[name] for value in searched.values]
            ranges.setdefault("CategoricalParameterRanges", []).append({"Name": name, "Values": values})
            continue
        low, high = (str(int(end)) if searched.integer else repr(end) for end in (searched.low, searched.high))
        kind = "IntegerParameterRanges" if searched.integer else "ContinuousParameterRanges"
        scale = "Logarithmic" if searched.log else "Linear"
        ranges.setdefault(kind, []).append({"Name": name, "MinValue": low, "MaxValue": high, "ScalingType": scale})
    return ranges


def _environment(job: Job, account: Account) -> dict[str, str]:
    """What the job must know from its request, and the deployment's variables that the step reads: of the tracker only where a training
    reports online."""
    spec = job.spec
    read: tuple[str, ...] = ()
    if isinstance(spec.task, TrainTask) and spec.task.tracking.mode == "online":
        read = TRACKER_VARIABLES
    elif isinstance(spec.task, PrepareTask):
        read = ENCODING_VARIABLES
    return job.request_variables | {key: account.environment[key] for key in read if key in account.environment}


def _vpc(account: Account) -> Request:
    return {"Subnets": list(account.subnets), "SecurityGroupIds": list(account.security_groups)}


def _volume_key(spec: JobSpec, account: Account) -> Request:
    if not account.kms_key or has_local_disk(spec.compute.instance_type):
        return {}
    return {"VolumeKmsKeyId": account.kms_key}


def has_local_disk(instance_type: str) -> bool:
    """Whether a key for its volume is refused."""
    return _LOCAL_DISKS.match(instance_type) is not None


def _tags(job: Job) -> list[Request]:
    spec = job.spec
    tags = {
        "docml:experiment": spec.experiment,
        "docml:run": str(spec.run),
        "docml:step": spec.step,
        **({"docml:model": spec.model} if spec.model else {}),
        SPEC_TAG: spec.spec_hash,
    }
    return [{"Key": key, "Value": value} for key, value in tags.items()]
