"""What the service refuses of a Create, besides what its model says: machines, disks, warm pools, quotas, images. In its own words."""

from collections.abc import Iterable
from typing import Any

from tests.servers.sagemaker.errors import ServiceError
from tests.servers.sagemaker.jobs import PROCESSING, TUNING, Job, Kind

# GB of the local disks that stand in for a volume, by instance type, as far as tests ask for them.
LOCAL_DISKS = {
    **{"ml.g4dn.xlarge": 125, "ml.g4dn.12xlarge": 900, "ml.g5.xlarge": 250, "ml.g5.2xlarge": 450, "ml.g5.12xlarge": 3800},
    **{"ml.g6.xlarge": 250, "ml.m5d.large": 75, "ml.p4d.24xlarge": 8000, "ml.p5.48xlarge": 30720},
}  # fmt: skip


def validation(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def check_image(kind: Kind | None, role: str, image: str, images: frozenset[str] | None) -> None:
    """A repository that does not exist is refused; a missing image of a processing job is found when the job starts."""
    if images is None or image in images or (kind is PROCESSING and repository(image) in map(repository, images)):
        return
    registry = image.split(".", 1)[0]
    raise validation(
        f"Cannot find repository: {repository(image)} in registry ID: {registry} Please check if your ECR repository exists and "
        f"role {role} has proper pull permissions for SageMaker: ecr:BatchCheckLayerAvailability, ecr:BatchGetImage, "
        "ecr:GetDownloadUrlForLayer"
    )


def repository(image: str) -> str:
    """Its name, without registry and tag."""
    return image.rpartition("/")[2].partition(":")[0]


def missing_image(image: str) -> str:
    """The reason of a processing job whose image does not exist."""
    return f"ClientError: API error (404): manifest for {image} not found: manifest unknown: Requested image not found"


def check_machines(kind: Kind, request: dict[str, Any]) -> None:
    """Volumes, warm pools and spot, which the model knows nothing about."""
    definition, machines = machines_of(kind, request)
    type_, volume = machines["InstanceType"], machines.get("VolumeSizeInGB", 1)
    disk = LOCAL_DISKS.get(type_)
    if disk is not None and "VolumeKmsKeyId" in machines:
        raise validation(
            f"VolumeKmsKeyId is not supported for instance type {type_}, which uses NVMe instance storage that is encrypted by hardware."
        )
    if disk is not None and volume > disk:
        raise validation(
            f"VolumeSizeInGB {volume} exceeds the total size of the local instance storage of {type_}, which is {disk} GB."
        )
    if "KeepAlivePeriodInSeconds" in machines and definition.get("EnableManagedSpotTraining"):
        raise validation("KeepAlivePeriodInSeconds is not supported for managed spot training jobs.")
    if "KeepAlivePeriodInSeconds" in machines and kind is TUNING:
        raise validation("KeepAlivePeriodInSeconds is not supported for hyperparameter tuning jobs.")
    if definition.get("EnableManagedSpotTraining"):
        limits = definition.get("StoppingCondition", {})
        if limits.get("MaxWaitTimeInSeconds", 0) < limits.get("MaxRuntimeInSeconds", 86_400):
            raise validation(
                "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
            )


def machines_of(kind: Kind, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the definition, its instances)."""
    if kind is PROCESSING:
        return request, request["ProcessingResources"]["ClusterConfig"]
    definition = request.get("TrainingJobDefinition", request)
    return definition, definition.get("ResourceConfig") or definition["HyperParameterTuningResourceConfig"]


def quota(kind: Kind, request: dict[str, Any]) -> tuple[str, int]:
    """(name of the quota that a job counts against, number of instances)."""
    definition, machines = machines_of(kind, request)
    spot = "spot " if definition.get("EnableManagedSpotTraining") else ""
    use = "processing job" if kind is PROCESSING else f"{spot}training job"
    return f"{machines['InstanceType']} for {use} usage", machines.get("InstanceCount", 1)


def check_quota(kind: Kind, request: dict[str, Any], jobs: Iterable[Job], quotas: dict[str, int]) -> None:
    """ResourceLimitExceeded where the quota's name has a limit and this job would exceed it. A tuning counts by its trials."""
    if kind is TUNING:
        return
    name, asked = quota(kind, request)
    if name not in quotas:
        return
    counted = [quota(job.kind, job.request) for job in jobs if job.kind is not TUNING and not job.done]
    used = sum(count for other, count in counted if other == name)
    if used + asked > quotas[name]:
        raise over_quota(name, quotas[name], used, asked)


def over_quota(name: str, limit: int, used: int, asked: int, unit: str = "Instances") -> ServiceError:
    return ServiceError(
        "ResourceLimitExceeded",
        f"The account-level service limit '{name}' is {limit} {unit}, with current utilization of {used} {unit} and a request delta "
        f"of {asked} {unit}. Please use AWS Service Quotas to request an increase for this quota. If AWS Service Quotas is not "
        "available, contact AWS support to request an increase for this quota.",
    )
