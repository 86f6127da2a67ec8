"""deploy/dagster/dagster.yaml makes a working Dagster instance on a real PostgreSQL, with compute logs in S3."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_aws.s3 import S3ComputeLogManager
from dagster_postgres import PostgresEventLogStorage

from tests.servers.postgres import PostgresServer

SETTINGS = Path(__file__).resolve().parents[2] / "deploy" / "dagster" / "dagster.yaml"


@pytest.fixture
def instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_server: PostgresServer
) -> Iterator[dg.DagsterInstance]:
    postgres_server.execute(
        "DROP DATABASE IF EXISTS dagster_deployment WITH (FORCE)", "CREATE DATABASE dagster_deployment"
    )
    url = postgres_server.url.replace("/postgres?", "/dagster_deployment?")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url.replace("postgresql://", "postgresql+psycopg2://"))
    monkeypatch.setenv("DAGSTER_COMPUTE_LOGS_BUCKET", "docml-123456789012-eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    shutil.copy(SETTINGS, tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made
    postgres_server.execute("DROP DATABASE dagster_deployment WITH (FORCE)")


def test_partitions_and_events_live_in_postgresql(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
    instance.add_dynamic_partitions("experiment", ["EXP-1"])
    instance.report_runless_asset_event(dg.AssetMaterialization("inference_report", partition="EXP-1|1"))
    assert instance.get_dynamic_partitions("experiment") == ["EXP-1"]
    assert instance.get_materialized_partitions(dg.AssetKey("inference_report")) == {"EXP-1|1"}


def test_costly_steps_are_bounded_and_logs_go_to_s3(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.compute_log_manager, S3ComputeLogManager)
    assert instance.get_concurrency_config().pool_config.default_pool_limit == 4
    assert instance.run_monitoring_enabled
    assert not instance.telemetry_enabled
