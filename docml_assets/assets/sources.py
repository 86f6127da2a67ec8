"""What the lineage starts from: production as it is observed, and the snapshot of what a run is made of.

production_labels and production_files are external, observed by their readers as each run's query and file names see them. experiment_snapshot is frozen
before anything costs money.
"""

from collections.abc import Mapping

import dagster as dg

from docml_assets.assets.materialization import (
    OWNERS,
    Context,
    Results,
    materialize,
    note_process,
    place_of,
    run_asset,
    say_changes,
)
from docml_assets.assets.metadata import Metadata, code_block, table
from docml_assets.partitions import BACKFILL_TAG, experiment_runs, trigger_of
from docml_assets.runs.claims import CLAIM_DIGEST, Claim, describe_trigger
from docml_assets.steps.snapshot import claim_from_ui, snapshot
from docml_contract.names import EXPERIMENT_SNAPSHOT, PRODUCTION_FILES, PRODUCTION_LABELS

POINTER = "dagster/input_event_pointer"
VERSION = "dagster/input_data_version"

production_labels = dg.AssetSpec(
    PRODUCTION_LABELS,
    partitions_def=experiment_runs,
    group_name="production",
    kinds={"sql"},
    owners=OWNERS,
    description="The label table, as a run's LABELS_QUERY sees it (DOCML_LABELS_URL). "
    "docml only reads it; its data version is a fingerprint of the query's result.",
)
production_files = dg.AssetSpec(
    PRODUCTION_FILES,
    partitions_def=experiment_runs,
    group_name="production",
    kinds={"file"},
    owners=OWNERS,
    description="The documents' files in production, `<artifact_guid>/<file>` (DOCML_PRODUCTION_FILES). "
    "docml only reads them; the data version is a fingerprint of the listing of FILES_FROM_PROD.",
)
SOURCES = (production_labels, production_files)


def observe(context: Context, versions: Mapping[str, str]) -> None:
    """Report the versions of the external assets that this run has just seen."""
    partition = str(context.partition_key)
    for asset, version in versions.items():
        context.op_execution_context.log_event(
            dg.AssetObservation(
                asset_key=asset,
                partition=partition,
                tags={"dagster/data_version": version},
                metadata={"version": version},
            )
        )


def input_tags(instance: dg.DagsterInstance, partition: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Tags that tie a materialization to the observations of the versions it was made of.

    Dagster compares the newest observation of the run's partition with the one that the pointer names. Left to itself it would record
    the newest one, also where a finished step is materialized again.
    """
    tags = {}
    for asset in (PRODUCTION_LABELS, PRODUCTION_FILES):
        version = inputs.get(asset)
        if version is None:
            continue
        tags[f"{VERSION}/{asset}"] = version
        storage_id = _observation_of(instance, asset, partition, version)
        if storage_id is not None:
            tags[f"{POINTER}/{asset}"] = str(storage_id)
    return tags


def _observation_of(instance: dg.DagsterInstance, asset: str, partition: str, version: str) -> int | None:
    """The newest observation of that version; none if Dagster's history does not hold it."""
    cursor = None
    while True:
        found = instance.fetch_observations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]), limit=100, cursor=cursor
        )
        for record in found.records:
            observation = record.asset_observation
            if observation and observation.tags and observation.tags.get("dagster/data_version") == version:
                return record.storage_id
        if not found.has_more:
            return None
        cursor = found.cursor


@run_asset(
    EXPERIMENT_SNAPSHOT,
    group="experiment",
    kinds={"python", "json"},
    description="Settings and functions of a run, frozen when it was claimed. Everything after it reads these and never the "
    "experiment folder. An unclaimed run is accepted here only if it is the experiment's RUN_NUM or its next free number; "
    "in a backfill only if it is RUN_NUM: other partitions are skipped.",
)
def experiment_snapshot(context: dg.AssetExecutionContext) -> Results:
    """Claim the run, or check its claim, and freeze its settings and functions."""
    begun = note_process(context)
    place = place_of(context)
    resources = context.resources
    claim = claim_from_ui(
        resources.store,
        place,
        resources.deployment.experiment_folder(place.experiment),
        resources.deployment.environment,
        holder=context.run.root_run_id or context.run.run_id,
        trigger=trigger_of(context.run.tags, context.run.run_id),
        backfill=BACKFILL_TAG in context.run.tags,
    )
    if begun:
        say_changes(context, claim)
    yield from materialize(
        context, EXPERIMENT_SNAPSHOT, lambda work: snapshot(work.store, claim), lambda work, outcome: _metadata(claim)
    )


def _metadata(claim: Claim) -> Metadata:
    settings = claim.settings
    return {
        "models": ", ".join(settings.model_names),
        "started by": describe_trigger(claim.trigger),
        "claimed at": claim.created_at,
        CLAIM_DIGEST: claim.digest,
        "settings": table(
            {"section": section, "key": key, "value": value}
            for section, values in settings.as_written().items()
            for key, value in values.items()
        ),
        "functions": code_block(claim.functions_source),
        **({"use case": claim.use_case.describe()} if claim.use_case else {}),
    }
