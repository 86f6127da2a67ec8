"""A mirror of champions in SageMaker Model Registry: a package group for each experiment, a package for each model that was ever its champion.

The champion's package is Approved, the experiment's others are Rejected. The history in the store stays the truth. Mirroring is repeatable: whoever
was killed between two calls, or lost an answer, finds what is there. Packages that docml did not make are left alone.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from docml_contract.names import REPORT_JSON, RunPlace
from resources.endpoints.interface import EndpointRefused, EndpointSpec, name_of
from resources.endpoints.sagemaker.backend import CALLS_A_SECOND, server_environment
from resources.endpoints.sagemaker.client import Client, Exists
from resources.endpoints.sagemaker.requests import STORE_TAG, Request, container
from resources.jobs.interface import JobRefused
from resources.jobs.sagemaker.backend import read_account
from resources.jobs.sagemaker.create import check_request
from resources.jobs.sagemaker.requests import Account
from resources.store import Store

CONTENT_TYPE = "application/json"
MARK = "docml: "  # begins what describes our packages
TOKEN_CHARACTERS = 36


@dataclass(frozen=True)
class Package:
    """A package as the registry lists it. approval: Approved, Rejected or PendingManualApproval."""

    arn: str
    description: str
    approval: str


def group_name(experiment: str) -> str:
    """`docml-<experiment>`, as far as that is a name."""
    return name_of(f"docml-{experiment}")


def describe_package(champion: EndpointSpec) -> str:
    """By which a model's package is found again: the run, the model and the hash of what answers."""
    return f"{MARK}{champion.experiment} run {champion.run}, {champion.model}; manifest {champion.manifest_sha256}"


def package_request(champion: EndpointSpec, account: Account, environment: dict[str, str]) -> Request:
    """CreateModelPackage. A package of a group has no tags of its own; the token makes the same call the same package."""
    group, description = group_name(champion.experiment), describe_package(champion)
    report = account.uri(f"{RunPlace(champion.experiment, champion.run).inference}/{REPORT_JSON}")
    return {
        "ModelPackageGroupName": group,
        "ModelPackageDescription": description,
        "ModelApprovalStatus": "PendingManualApproval",  # until it is there, and found again
        "InferenceSpecification": {
            "Containers": [container(champion, account, environment)],
            "SupportedContentTypes": [CONTENT_TYPE],
            "SupportedResponseMIMETypes": [CONTENT_TYPE],
            "SupportedRealtimeInferenceInstanceTypes": [champion.instance_type],
        },
        "ModelMetrics": {"ModelQuality": {"Statistics": {"ContentType": CONTENT_TYPE, "S3Uri": report}}},
        "CustomerMetadataProperties": {
            "docml:experiment": champion.experiment,
            "docml:run": str(champion.run),
            "docml:model": champion.model,
            "docml:store": account.store_url[:256],
        },
        "ClientToken": hashlib.sha256(f"{account.store_url} {group} {description}".encode()).hexdigest()[
            :TOKEN_CHARACTERS
        ],
    }


class ModelRegistry:
    """It neither waits nor tries again: `mirror` may raise BusyEndpoint, and is called again as a whole."""

    name = "SageMaker Model Registry"

    def __init__(self, store: Store, environment: Mapping[str, str], client: Client | None = None) -> None:
        self.store = store
        self.environment = dict(environment)
        self.client = client or Client(self.environment, CALLS_A_SECOND)

    @cached_property
    def account(self) -> Account:
        """What requests need to know of the deployment."""
        return read_account(self.store, self.environment)

    def mirror(self, champion: EndpointSpec, why: str) -> str:
        """Let the champion's package be there and be the approved one of ours; its ARN. EndpointRefused for what cannot be registered."""
        request = self._checked_request(champion)
        group = self._group(champion.experiment)
        packages = list(self._packages(group))
        mine = next((each for each in packages if each.description == request["ModelPackageDescription"]), None)
        arn = mine.arn if mine else str(self._call("create_model_package", **request)["ModelPackageArn"])
        if mine is None or mine.approval != "Approved":
            self._approve(arn, "Approved", why)
        for other in packages:
            if other.arn != arn and other.description.startswith(MARK) and other.approval != "Rejected":
                self._approve(other.arn, "Rejected", f"run {champion.run}, {champion.model} is the champion")
        return arn

    def _checked_request(self, champion: EndpointSpec) -> Request:
        if not champion.image:
            raise EndpointRefused(
                f"run {champion.run}, {champion.model} has no image: set DOCKER_IMAGE in settings.ini, or DOCML_IMAGE (docml image push "
                "prints the URI)"
            )
        request = package_request(champion, self.account, server_environment(self.store, self.environment))
        try:
            check_request("CreateModelPackage", request)
        except JobRefused as error:
            raise EndpointRefused(str(error)) from None
        return request

    def _group(self, experiment: str) -> str:
        """The experiment's group, made now if it is not there. EndpointRefused if it is another store's."""
        name = group_name(experiment)
        tags = {STORE_TAG: self.account.store_url[:256], "docml:experiment": experiment}
        try:
            self._call(
                "create_model_package_group",
                ModelPackageGroupName=name,
                ModelPackageGroupDescription=f"Champions of {experiment}, mirrored by docml",
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            )
        except Exists:
            arn = self._call("describe_model_package_group", ModelPackageGroupName=name)["ModelPackageGroupArn"]
            found = {tag["Key"]: tag["Value"] for tag in self._call("list_tags", ResourceArn=arn)["Tags"]}
            if found.get(STORE_TAG) != tags[STORE_TAG]:
                raise EndpointRefused(
                    f"the model registry has a group {name} that belongs to {found.get(STORE_TAG) or 'somebody else'}, expected "
                    f"{self.account.store_url}: it is left alone; ask its owner to delete it, or unset DOCML_MODEL_REGISTRY"
                ) from None
        return name

    def _packages(self, group: str) -> Iterator[Package]:
        pages = self.client.pages(
            group,
            "sagemaker",
            "list_model_packages",
            "ModelPackageSummaryList",
            ModelPackageGroupName=group,
            MaxResults=100,
        )
        for entry in pages:
            yield Package(
                entry["ModelPackageArn"], entry.get("ModelPackageDescription", ""), entry.get("ModelApprovalStatus", "")
            )

    def _approve(self, arn: str, status: str, why: str) -> None:
        self._call(
            "update_model_package", ModelPackageArn=arn, ModelApprovalStatus=status, ApprovalDescription=why[:1024]
        )

    def _call(self, operation: str, **request: object) -> Request:
        found: Request = self.client.call("the model registry", "sagemaker", operation, **request)
        return found
