"""Create requests, checked and sent.

Checked against the service model that botocore carries: lengths, patterns, enums, ranges, unknown members. botocore itself checks
required members and types only; the service answers the rest one error at a time, after a round trip.

Sent through `sagemaker.core.resources`, the SDK's typed layer, with our client under it. It makes two calls: Create, and Describe of
what it created. Its import takes seconds, so it is made where a job is created. No other module touches the typed layer.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from resources.jobs.interface import JobRefused

# Members whose wrong value has a setting behind it: what to change.
SETTINGS = {
    "RoleArn": "DOCML_SAGEMAKER_ROLE_ARN",
    "ImageUri": "DOCKER_IMAGE or DOCML_IMAGE",
    "TrainingImage": "DOCKER_IMAGE or DOCML_IMAGE",
    "InstanceType": "PREPARATION_, TRAINING_ or INFERENCE_INSTANCE_TYPE",
    "InstanceCount": "PREPARATION_, TRAINING_ or INFERENCE_INSTANCE_COUNT",
    "VolumeSizeInGB": "PREPARATION_, TRAINING_ or INFERENCE_VOLUME_GB",
    "MaxRuntimeInSeconds": "PREPARATION_, TRAINING_ or INFERENCE_MAX_RUNTIME_SECONDS",
    "MaxWaitTimeInSeconds": "TRAINING_MAX_WAIT_SECONDS",
    "KeepAlivePeriodInSeconds": "TRAINING_KEEP_ALIVE_SECONDS",
    "KmsKeyId": "DOCML_KMS_KEY",
    "VolumeKmsKeyId": "DOCML_KMS_KEY",
    "Subnets": "DOCML_SUBNETS",
    "SecurityGroupIds": "DOCML_SECURITY_GROUPS",
    "S3Uri": "DOCML_STORE",
    "S3OutputPath": "DOCML_STORE",
    "HyperParameters": "[hyperparameters]",
    "StaticHyperParameters": "[hyperparameters]",
    "ParameterRanges": "[tunable]",
    "MetricDefinitions": "METRIC_DEFINITIONS",
    "MetricName": "OBJECTIVE_METRIC_NAME",
    "MaxNumberOfTrainingJobs": "MAX_JOBS",
    "MaxParallelTrainingJobs": "MAX_PARALLEL_JOBS",
}

_SIZES = ("xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge", "48xlarge")
# family -> size -> GB of the local disks that an instance has instead of a volume.
LOCAL_DISKS_GB: dict[str, dict[str, int]] = {
    "g4dn": dict(zip(_SIZES, (125, 225, 225, 900, 900, 900), strict=False)),
    "g5": dict(zip(_SIZES, (250, 450, 600, 900, 3800, 1900, 3800, 7600), strict=True)),
    "g6": dict(zip(_SIZES, (250, 450, 600, 900, 3760, 1880, 3760, 7520), strict=True)),
    "g6e": dict(zip(_SIZES, (250, 450, 600, 900, 3800, 1900, 3800, 7600), strict=True)),
    "m5d": {"large": 75, **dict(zip(_SIZES, (150, 300, 600, 1200, 1800, 2400, 3600), strict=False))},
    "r5d": {"large": 75, **dict(zip(_SIZES, (150, 300, 600, 1200, 1800, 2400, 3600), strict=False))},
    "p3dn": {"24xlarge": 1800},
    "p4d": {"24xlarge": 8000},
    "p4de": {"24xlarge": 8000},
}


def check_request(operation: str, request: dict[str, Any]) -> None:
    """JobRefused with every problem of the request, each with the setting to change where there is one."""
    problems = [*_problems(_model().operation_model(operation).input_shape, request, ()), *_full_disks(request, ())]
    if problems:
        raise JobRefused(f"{operation} would be refused:\n" + "\n".join(f"  {problem}" for problem in problems))


@cache
def _model() -> Any:
    from botocore.session import get_session

    return get_session().get_service_model("sagemaker")


def _problems(shape: Any, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    kind = shape.type_name
    if kind == "structure":
        yield from _structure(shape, value, path)
        return
    if kind in ("list", "map", "string"):
        yield from _length(shape, value, path)
    if kind == "list":
        for index, item in enumerate(value):
            yield from _problems(shape.member, item, (*path, str(index)))
    elif kind == "map":
        for key, item in value.items():
            yield from _problems(shape.key, key, (*path, key))
            yield from _problems(shape.value, item, (*path, key))
    elif kind == "string":
        yield from _text(shape, value, path)
    elif kind in ("integer", "long", "float", "double"):
        low, high = shape.metadata.get("min", value), shape.metadata.get("max", value)
        if not low <= value <= high:
            yield _say(path, f"{value}", f"{low} to {high}")


def _structure(shape: Any, value: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for name in shape.required_members:
        if value.get(name) is None:
            yield _say((*path, name), "nothing", "a value")
    for name, member in value.items():
        if name not in shape.members:
            yield _say((*path, name), "a member", "nothing: the service knows no such member")
        elif member is not None:
            yield from _problems(shape.members[name], member, (*path, name))


def _length(shape: Any, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    low, high = shape.metadata.get("min", 0), shape.metadata.get("max", len(value))
    if not low <= len(value) <= high:
        unit = "characters" if shape.type_name == "string" else "entries"
        yield _say(path, f"{len(value)} {unit}", f"{low} to {high}")


def _text(shape: Any, value: str, path: tuple[str, ...]) -> Iterator[str]:
    pattern = shape.metadata.get("pattern")
    if pattern and not re.fullmatch(_in_python(pattern), value, re.DOTALL):
        yield _say(path, repr(value[:80]), f"text that matches {pattern}")
    allowed = getattr(shape, "enum", None)
    if allowed and value not in allowed:
        family = value.rsplit(".", 1)[0]
        near = [entry for entry in allowed if entry.startswith(family)] or list(allowed)
        yield _say(path, repr(value), f"one of {', '.join(near[:8])}{' …' if len(near) > 8 else ''}")


def _in_python(pattern: str) -> str:
    """Unicode classes, which Python's expressions do not know, by their nearest kin; without the lengths that some patterns repeat behind `$`."""
    printable = re.sub(r"\$\{\d+,\d+\}$", "", pattern).replace(r"[\p{L}\p{M}\p{Z}\p{S}\p{N}\p{P}]", r"[^\x00-\x1f\x7f]")
    return printable.replace(r"\p{L}\p{Z}\p{N}", r"\w\s").replace(r"\p{L}", r"\w").replace(r"\p{N}", r"\d")


def _full_disks(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Volumes larger than the local disk that an instance has instead of one."""
    if not isinstance(value, dict):
        return
    family, _, size = str(value.get("InstanceType", "")).removeprefix("ml.").partition(".")
    disk, volume = LOCAL_DISKS_GB.get(family, {}).get(size), value.get("VolumeSizeInGB")
    if disk is not None and volume is not None and volume > disk:
        yield _say(
            (*path, "VolumeSizeInGB"),
            f"{volume}",
            f"at most {disk}, the size of the local disks of {value['InstanceType']}",
        )
    for name, member in value.items():
        yield from _full_disks(member, (*path, name))


def _say(path: tuple[str, ...], found: str, expected: str) -> str:
    setting = next((SETTINGS[name] for name in reversed(path) if name in SETTINGS), None)
    change = f" (change {setting})" if setting else ""
    return f"{'.'.join(path)}: found {found}, expected {expected}{change}"


class TypedLayer:
    """Creates jobs through the typed layer, by `client`, which `session` made."""

    def __init__(self, session: Any, client: Any) -> None:
        import boto3
        from sagemaker.core import resources

        class ClientSession(boto3.Session):
            """Gives the typed layer our client (its endpoint, its time-outs, no retries); it asks for three others, uses none."""

            def client(self, service_name: str, *args: Any, **options: Any) -> Any:
                return client if service_name == "sagemaker" else None

        self._resources = resources
        self._region = client.meta.region_name
        self._session = ClientSession(botocore_session=session._session, region_name=self._region)

    def create(self, noun: str, request: dict[str, Any]) -> None:
        """Create<noun> with `request` (as in the API reference). Raises what botocore raises."""
        shape = _model().operation_model(f"Create{noun}").input_shape
        resource = getattr(self._resources, noun)
        resource.create(**_in_snake_case(shape, request), session=self._session, region=self._region)


def _in_snake_case(shape: Any, value: Any) -> Any:
    """Members' names in the typed layer's spelling; the keys of maps are data and stay."""
    from sagemaker.core.utils.utils import pascal_to_snake

    if shape.type_name == "structure":
        return {pascal_to_snake(name): _in_snake_case(shape.members[name], member) for name, member in value.items()}
    if shape.type_name == "list":
        return [_in_snake_case(shape.member, item) for item in value]
    return value
