"""experiment_snapshot: what a run is made of, frozen before anything costs money."""

import dagster as dg

from docml_assets.assets.materialization import Results, materialize, note_process, place_of, run_asset, say_changes
from docml_assets.assets.metadata import Metadata, table
from docml_assets.partitions import BACKFILL_TAG, trigger_of
from docml_assets.runs.claims import Claim
from docml_assets.steps.snapshot import claim_from_ui, snapshot
from docml_contract.names import EXPERIMENT_SNAPSHOT


@run_asset(
    EXPERIMENT_SNAPSHOT,
    group="experiment",
    kinds={"python", "json"},
    description="Settings and functions of a run, frozen when it was claimed. Everything after it reads these and never the "
    "experiment folder. An unclaimed run is accepted here only if it is the experiment's RUN_NUM or its next free number; "
    "in a backfill only if it is RUN_NUM: other partitions are skipped.",
)
def experiment_snapshot(context: dg.AssetExecutionContext) -> Results:
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
        "trigger": dg.MetadataValue.json(dict(claim.trigger)),
        "claimed at": claim.created_at,
        "settings": table(
            {"key": key.upper(), "value": str(value)}
            for key, value in {**settings.frozen_content(), **settings.operational()}.items()
            if key not in ("hyperparameters", "tunable")
        ),
        "hyperparameters": dg.MetadataValue.json(settings.hyperparameters),
        "functions": dg.MetadataValue.md(f"```python\n{claim.functions_source}\n```"),
    }
