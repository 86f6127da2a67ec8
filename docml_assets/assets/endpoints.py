"""deployed_endpoint, below model and report, and `production`: which run answers. External, partitioned by experiment."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dagster as dg

from docml_assets.assets.inference import inference_report
from docml_assets.assets.materialization import OWNERS, Results, run_asset, work_for
from docml_assets.assets.metadata import Metadata, location
from docml_assets.assets.sources import POINTER, VERSION
from docml_assets.assets.training import best_torchscript_model
from docml_assets.display import display
from docml_assets.numbers import number
from docml_assets.partitions import experiments, partition_key
from docml_assets.steps.deployment import choose_model
from docml_assets.steps.endpoints import DeployedModel, EndpointRequest, deploy_model, idle_cost
from docml_assets.steps.work import Work
from docml_contract.base import digest
from docml_contract.manifests import CODE_VERSIONS
from docml_contract.names import DEPLOYED_ENDPOINT, PRODUCTION
from resources.endpoints.endpoints import Endpoints
from resources.store import Store

CONFIG = {
    "deploy": dg.Field(
        bool, default_value=False, description="Endpoints cost money: nothing is done unless this is true."
    ),
    "model": dg.Field(str, is_required=False, description="The model, where the run compares several."),
    "mode": dg.Field(
        dg.Enum("EndpointMode", [dg.EnumValue("realtime"), dg.EnumValue("async")]), default_value="realtime"
    ),
    "alias": dg.Field(str, is_required=False, description="A stable endpoint that is moved to this run."),
    "expire": dg.Field(float, is_required=False, description="Hours until it is taken down."),
}
NOT_ASKED = "nothing is deployed unless somebody asks: deploy: true in the run config, or docml deploy"


@run_asset(
    DEPLOYED_ENDPOINT,
    deps=[best_torchscript_model, inference_report],
    group="serving",
    kinds={"torchscript"},
    config_schema=CONFIG,
    description="An endpoint that answers with a model of the run. It goes into service once its answers on test "
    "documents are the report's. Does nothing unless asked (deploy: true).",
)
def deployed_endpoint(context: dg.AssetExecutionContext) -> Results:
    """Deploy the run's model where the launch asks for it."""
    config: Mapping[str, Any] = context.op_execution_context.op_config
    if not config["deploy"]:
        context.log.info(NOT_ASKED)
        display().finished(DEPLOYED_ENDPOINT, NOT_ASKED)
        return
    display().started(DEPLOYED_ENDPOINT)
    work = work_for(context, DEPLOYED_ENDPOINT)
    expire = config.get("expire")
    request = EndpointRequest(
        model=choose_model(work, config.get("model")),
        mode=config["mode"],
        alias=config.get("alias"),
        expires_after=timedelta(hours=expire) if expire else None,
        by=f"Dagster run {context.run.run_id}",
    )
    endpoints = context.op_execution_context.resources.endpoints
    deployed = deploy_model(work, endpoints, request)
    display().finished(DEPLOYED_ENDPOINT, f"{deployed.endpoint.name} is up")
    observe_production(context.instance, work.store, work.place.experiment, endpoints)
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(deployed.data_version), metadata=endpoint_metadata(work, deployed)
    )


production = dg.AssetSpec(
    PRODUCTION,
    deps=[dg.AssetDep(deployed_endpoint, partition_mapping=dg.AllPartitionMapping())],
    partitions_def=experiments,
    group_name="serving",
    kinds={"torchscript"},
    owners=OWNERS,
    description="Which run answers: the experiment's champion, and the run behind each of its aliases. Observed when either changes.",
)


def endpoint_metadata(work: Work, deployed: DeployedModel) -> Metadata:
    """What the materialization shows: the endpoints, what they cost, and what they answer with."""
    shown: Metadata = {}
    for title, endpoint in (("endpoint", deployed.endpoint), ("alias", deployed.alias)):
        if endpoint is None:
            continue
        record = endpoint.record
        shown |= {
            title: endpoint.name,
            f"{title}: idle cost": idle_cost(endpoint),
            f"{title}: compared test documents": number(record.checked_documents or 0, 0),
        }
        if endpoint.state is not None and endpoint.state.url:
            shown[f"{title}: url"] = dg.MetadataValue.url(endpoint.state.url)
        if record.expires_at:
            shown[f"{title}: expires"] = record.expires_at
    spec = deployed.endpoint.record.spec
    return {**shown, "model": spec.model, "mode": spec.mode, "storage": location(work.store, spec.folder)}


def record_deployment(instance: dg.DagsterInstance, work: Work, deployed: DeployedModel) -> None:
    """Let Dagster know of an endpoint that was deployed outside of it, with what it is made of."""
    key = partition_key(work.place.experiment, work.place.number)
    tags = {"dagster/data_version": deployed.data_version, "dagster/code_version": CODE_VERSIONS[DEPLOYED_ENDPOINT]}
    for asset, version in deployed.inputs.items():
        tags[f"{VERSION}/{asset}"] = version
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[key]), limit=1
        ).records
        if records:
            tags[f"{POINTER}/{asset}"] = str(records[0].storage_id)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(DEPLOYED_ENDPOINT, partition=key, metadata=endpoint_metadata(work, deployed), tags=tags)
    )


def observe_production(instance: dg.DagsterInstance, store: Store, experiment: str, endpoints: Endpoints) -> None:
    """Report which run answers now: the champion, and what the aliases lead to."""
    from docml_assets.runs.champion import ChampionError, read_champion  # its statistics take a second to import

    try:
        champion = read_champion(store, experiment)
        answering = {"champion": f"run {champion.run}, {champion.model}"}
    except ChampionError:
        answering = {"champion": "none"}
    for record in endpoints.records:
        spec = record.spec
        if spec.experiment == experiment and spec.alias:
            answering[f"alias {spec.name}"] = f"run {spec.run}, {spec.model}"
    instance.report_runless_asset_event(
        dg.AssetObservation(
            PRODUCTION,
            partition=experiment,
            metadata=dict(sorted(answering.items())),
            tags={"dagster/data_version": digest(answering)},
        )
    )
