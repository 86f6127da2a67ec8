"""Endpoint specs -> SageMaker's requests, and those of scaling and alarms. Pure functions: what goes over the wire can be read here.

The model and the configuration of an endpoint are called like it, with the hash of what they are behind: the same name is the same
content, and whoever was killed finds what is there.
"""

import re
from typing import Any

from resources.endpoints.interface import HASH_DIGITS, EndpointSpec
from resources.jobs.sagemaker.requests import Account, has_local_disk

Request = dict[str, Any]
VARIANT = "main"
STORE_TAG, ENDPOINT_TAG = "docml:store", "docml:endpoint"
PART = re.compile(rf"(.+)-([0-9a-f]{{{HASH_DIGITS}}})")
# AWS/SageMaker's defaults are 4 minutes for a container that loads a model, and 15 for its files.
START_SECONDS = 1_800
ROLLBACK_PERIOD_SECONDS = 60
BAKE_SECONDS = 120  # both versions run for so long after traffic has moved; an alarm within it moves traffic back
MAX_ASYNC_INSTANCES = 1
IDLE_SECONDS = 600  # without work until an async endpoint has no instance
SCALABLE = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}


def part_name(spec: EndpointSpec) -> str:
    """Of the spec's model and configuration."""
    return f"{spec.name}-{spec.configuration}"


def tags(spec: EndpointSpec, account: Account) -> list[dict[str, str]]:
    """Who made it, and the full names of what a name may have had to shorten."""
    values = {
        STORE_TAG: account.store_url[:256],
        ENDPOINT_TAG: spec.name,
        "docml:experiment": spec.experiment,
        "docml:run": str(spec.run),
        "docml:model": spec.model,
        "docml:configuration": spec.configuration,
    }
    return [{"Key": key, "Value": value} for key, value in values.items()]


def container(spec: EndpointSpec, account: Account, environment: dict[str, str]) -> Request:
    """What answers: the deployment folder as it lies in the store, the image's command `serve`."""
    source = {
        "S3Uri": f"{account.uri(spec.folder)}/",
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }
    return {
        "Image": spec.image,
        "ModelDataSource": {"S3DataSource": source},
        "Environment": {**environment, "DOCML_MANIFEST_SHA256": spec.manifest_sha256},
    }


def model_request(spec: EndpointSpec, account: Account, environment: dict[str, str]) -> Request:
    """CreateModel: what answers, under the job role."""
    request: Request = {
        "ModelName": part_name(spec),
        "ExecutionRoleArn": account.role_of(spec.experiment),
        "PrimaryContainer": container(spec, account, environment),
        "Tags": tags(spec, account),
    }
    if account.subnets:
        request["VpcConfig"] = {"Subnets": list(account.subnets), "SecurityGroupIds": list(account.security_groups)}
    return request


def configuration_request(spec: EndpointSpec, account: Account) -> Request:
    """CreateEndpointConfig: one variant on one instance; an async one leaves answers in the store."""
    request: Request = {
        "EndpointConfigName": part_name(spec),
        "ProductionVariants": [
            {
                "VariantName": VARIANT,
                "ModelName": part_name(spec),
                "InitialInstanceCount": 1,
                "InstanceType": spec.instance_type,
                "ModelDataDownloadTimeoutInSeconds": START_SECONDS,
                "ContainerStartupHealthCheckTimeoutInSeconds": START_SECONDS,
            }
        ],
        "Tags": tags(spec, account),
    }
    if account.kms_key and not has_local_disk(spec.instance_type or ""):
        request["KmsKeyId"] = account.kms_key  # of the instance's volume
    if spec.mode == "async":
        output = {
            "S3OutputPath": f"{account.uri(spec.data_key)}/answers",
            "S3FailurePath": f"{account.uri(spec.data_key)}/failures",
        }
        if account.kms_key:
            output["KmsKeyId"] = account.kms_key
        request["AsyncInferenceConfig"] = {"OutputConfig": output}
    return request


def deployment_config(spec: EndpointSpec) -> Request:
    """Blue/green: the new version takes all traffic once it answers /ping, and gives it back if the alarm sounds meanwhile."""
    return {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": BAKE_SECONDS},
            "TerminationWaitInSeconds": 0,
            "MaximumExecutionTimeoutInSeconds": 2 * START_SECONDS,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": error_alarm(spec.name)}]},
    }


def endpoint_request(spec: EndpointSpec, account: Account) -> Request:
    """CreateEndpoint."""
    return {"EndpointName": spec.name, "EndpointConfigName": part_name(spec), "Tags": tags(spec, account)}


def update_request(spec: EndpointSpec) -> Request:
    """UpdateEndpoint."""
    return {
        "EndpointName": spec.name,
        "EndpointConfigName": part_name(spec),
        "DeploymentConfig": deployment_config(spec),
    }


def error_alarm(name: str) -> str:
    """The alarm that rolls an update back."""
    return f"docml-{name}-errors"


def backlog_alarm(name: str) -> str:
    """The alarm that wakes an async endpoint."""
    return f"docml-{name}-backlog"


def error_alarm_request(spec: EndpointSpec) -> Request:
    """PutMetricAlarm: a server error within a minute."""
    return {
        "AlarmName": error_alarm(spec.name),
        "AlarmDescription": f"{spec.describe()} answers with server errors; an update that is under way is rolled back",
        "Namespace": "AWS/SageMaker",
        "MetricName": "Invocation5XXErrors",
        "Dimensions": [
            {"Name": "EndpointName", "Value": spec.name},
            {"Name": "VariantName", "Value": VARIANT},
        ],
        "Statistic": "Sum",
        "Period": ROLLBACK_PERIOD_SECONDS,
        "EvaluationPeriods": 1,
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",
    }


def scalable_target(name: str) -> Request:
    """The endpoint's variant, as Application Auto Scaling names it."""
    return {**SCALABLE, "ResourceId": f"endpoint/{name}/variant/{VARIANT}"}


def scaling_requests(spec: EndpointSpec) -> tuple[Request, Request, Request]:
    """RegisterScalableTarget from 0 on, PutScalingPolicy that follows the backlog, PutScalingPolicy that wakes it from 0."""
    target = scalable_target(spec.name)
    backlog = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": spec.name}],
        "Statistic": "Average",
    }
    follow = {
        **target,
        "PolicyName": f"docml-{spec.name}-backlog",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": 5.0,
            "CustomizedMetricSpecification": backlog,
            "ScaleInCooldown": IDLE_SECONDS,
            "ScaleOutCooldown": 60,
        },
    }
    wake = {
        **target,
        "PolicyName": f"docml-{spec.name}-wake",
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": {
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": 60,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
        },
    }
    return {**target, "MinCapacity": 0, "MaxCapacity": MAX_ASYNC_INSTANCES}, follow, wake


def backlog_alarm_request(spec: EndpointSpec, policy_arn: str) -> Request:
    """PutMetricAlarm: requests wait, and no instance is there."""
    return {
        "AlarmName": backlog_alarm(spec.name),
        "AlarmDescription": f"requests wait for {spec.describe()}, which has no instance",
        "Namespace": "AWS/SageMaker",
        "MetricName": "HasBacklogWithoutCapacity",
        "Dimensions": [{"Name": "EndpointName", "Value": spec.name}],
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 1,
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [policy_arn],
    }
