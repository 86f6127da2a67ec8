"""deploy/cloudformation.yaml lets the orchestrator make exactly the calls that endpoints take."""

from pathlib import Path

import cfnlint.decode

from tests.contracts.endpoints_contract import deploy
from tests.resources.endpoints.sagemaker.test_backend import CloudBench
from tests.resources.endpoints.sagemaker.test_backend import bench as bench
from tests.servers.iam import as_list

TEMPLATE = Path(__file__).parents[4] / "deploy/cloudformation.yaml"
STATEMENTS = {"RunEndpoints", "FindEndpoints", "WatchEndpoints", "ScaleEndpoints"}
# What the service itself asks of the caller: tags at Create, the alarm's state at UpdateEndpoint.
ASKED_BY_THE_SERVICE = {"sagemaker:AddTags", "cloudwatch:DescribeAlarms"}
NEEDS_NO_PERMISSION = {"sts:GetCallerIdentity"}


def test_endpoints_need_what_the_template_allows_and_no_more(bench: CloudBench) -> None:
    deploy(bench, bench.spec(1, alias="live"))
    deploy(bench, bench.spec(2, alias="live"))
    deploy(bench, bench.spec(1, mode="async"))
    endpoints = bench.endpoints()
    endpoints.sweep()
    for record in list(endpoints.records):
        endpoints.remove(record)
    assert bench.left() == []
    requests = [request for _, operation, request in bench.cloud.endpoint.calls if operation == "PutMetricAlarm"]
    assert all(request["AlarmName"].startswith("docml-") for request in requests)  # as the template names alarms
    called = {f"{service.removesuffix('-runtime')}:{operation}" for service, operation, _ in bench.cloud.endpoint.calls}
    template, _ = cfnlint.decode.decode(str(TEMPLATE))
    (policy,) = template["Resources"]["OrchestratorRole"]["Properties"]["Policies"]
    allowed = {
        action
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Sid"] in STATEMENTS
        for action in as_list(statement["Action"])
    }
    assert called - NEEDS_NO_PERMISSION == allowed - ASKED_BY_THE_SERVICE
