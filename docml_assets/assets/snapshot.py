"""experiment_snapshot: what a run is made of, frozen before anything costs money."""

import dagster as dg

from docml_assets.assets.common import OWNERS, RESOURCES, note_process, place_of, trigger_of
from docml_assets.assets.metadata import locations, table
from docml_assets.partitions import experiment_runs
from docml_assets.progress import display
from docml_assets.steps.snapshot import claim_from_ui, frozen_settings, snapshot
from docml_contract.versions import CODE_VERSIONS

NAME = "experiment_snapshot"


@dg.asset(
    name=NAME,
    partitions_def=experiment_runs,
    group_name="experiment",
    kinds={"python", "json"},
    owners=OWNERS,
    code_version=CODE_VERSIONS[NAME],
    required_resource_keys=set(RESOURCES),
    description="Settings and functions of a run, frozen when it was claimed. Everything after it reads these and never the "
    "experiment folder. An unclaimed run is accepted here only if it is the experiment's RUN_NUM.",
)
def experiment_snapshot(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    display().started(NAME)
    note_process(context)
    place = place_of(context)
    resources = context.resources
    claim = claim_from_ui(
        resources.store,
        place,
        resources.deployment.experiment_folder(place.experiment),
        resources.deployment.environment,
        holder=context.run.root_run_id or context.run.run_id,
        trigger=trigger_of(context),
    )
    outcome = snapshot(resources.store, claim)
    settings = frozen_settings(claim, None)
    display().finished(NAME, outcome.why)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(outcome.data_version),
        metadata={
            "how": outcome.why,
            **locations(resources.store, outcome.folders),
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
        },
    )
