"""SageMaker Model Registry: groups, versioned packages, their approval."""

import time
from typing import Any

from tests.servers.sagemaker.errors import ServiceError
from tests.servers.sagemaker.jobs import ACCOUNT, REGION

ROOT = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"


class Registry:
    """What the account has registered. The same ClientToken is the same package."""

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, Any]] = {}
        self.packages: list[dict[str, Any]] = []

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None if it is no operation of the registry."""
        method = getattr(self, f"_{operation}", None)
        return None if method is None else method(request)

    def tags_of(self, resource: str) -> list[dict[str, str]] | None:
        """Of a group; None if it is something else."""
        found = {f"{ROOT}:model-package-group/{name}": group.get("Tags", []) for name, group in self.groups.items()}
        return found.get(resource)

    def approvals(self, group: str) -> dict[str, str]:
        """Description -> approval of a group's packages, each once."""
        mine = [package for package in self.packages if package["ModelPackageGroupName"] == group]
        found = {package["ModelPackageDescription"]: package["ModelApprovalStatus"] for package in mine}
        assert len(found) == len(mine)
        return found

    def _CreateModelPackageGroup(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["ModelPackageGroupName"]
        arn = f"{ROOT}:model-package-group/{name}"
        if name in self.groups:
            raise ServiceError("ValidationException", f"Model Package Group already exists: {arn}")
        self.groups[name] = request
        return {"ModelPackageGroupArn": arn}

    def _DescribeModelPackageGroup(self, request: dict[str, Any]) -> dict[str, Any]:
        name = self._group(request)
        return {
            "ModelPackageGroupName": name,
            "ModelPackageGroupArn": f"{ROOT}:model-package-group/{name}",
            "CreationTime": 0.0,
            "CreatedBy": {},
            "ModelPackageGroupStatus": "Completed",
        }

    def _group(self, request: dict[str, Any]) -> str:
        name: str = request["ModelPackageGroupName"]
        if name not in self.groups:
            arn = f"{ROOT}:model-package-group/{name}"
            raise ServiceError("ValidationException", f"Model Package Group {arn} does not exist.")
        return name

    def _CreateModelPackage(self, request: dict[str, Any]) -> dict[str, Any]:
        group = self._group(request)
        if request.get("Tags"):
            raise ServiceError("ValidationException", "Tags cannot be provided for a versioned model package.")
        token = request.get("ClientToken")
        for package in self.packages:
            if token and package.get("ClientToken") == token:
                return {"ModelPackageArn": package["ModelPackageArn"]}
        version = 1 + sum(package["ModelPackageGroupName"] == group for package in self.packages)
        package = {
            "ModelApprovalStatus": "PendingManualApproval",
            **request,
            "ModelPackageVersion": version,
            "ModelPackageArn": f"{ROOT}:model-package/{group}/{version}",
            "ModelPackageStatus": "Completed",
            "CreationTime": time.time(),
        }
        self.packages.append(package)
        return {"ModelPackageArn": package["ModelPackageArn"]}

    def _UpdateModelPackage(self, request: dict[str, Any]) -> dict[str, Any]:
        for package in self.packages:
            if package["ModelPackageArn"] == request["ModelPackageArn"]:
                package.update({key: value for key, value in request.items() if key != "ModelPackageArn"})
                return {"ModelPackageArn": package["ModelPackageArn"]}
        raise ServiceError("ValidationException", f"ModelPackage {request['ModelPackageArn']} does not exist.")

    def _ListModelPackages(self, request: dict[str, Any]) -> dict[str, Any]:
        group = self._group(request)
        mine = [package for package in self.packages if package["ModelPackageGroupName"] == group]
        start = int(request.get("NextToken", 0))
        end = start + request.get("MaxResults", 10)
        shown = (
            *("ModelPackageGroupName", "ModelPackageVersion", "ModelPackageArn", "ModelPackageDescription"),
            *("CreationTime", "ModelPackageStatus", "ModelApprovalStatus"),
        )
        entries = [{key: package[key] for key in shown if key in package} for package in mine[start:end]]
        return {"ModelPackageSummaryList": entries, **({"NextToken": str(end)} if end < len(mine) else {})}
