"""Dagster's queue of runs (`run_coordinator` in dagster.yaml), which ends at once what a backfill has nothing to do for.

A backfill makes a Dagster run for each of its partitions, and the process of each takes seconds to start. A run that is finished needs
none: its files are verified here, and its versions reported again. Everything else is queued, also what a process that does not know the
deployment (its store, its credentials) cannot see: the run itself knows.
"""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from docml_assets.assets.metadata import brief
from docml_assets.dagster_internals import end_without_process, last_materialization
from docml_assets.deployment import Deployment
from docml_assets.execution import ASSETS, JOB, finished_folders, is_checked, lasting_checks
from docml_assets.partitions import BACKFILL_TAG, PARTITION_TAG, run_place
from docml_assets.runs.claims import Claim, read_claim
from docml_contract.names import CLASSIFIED_DOCUMENTS
from docml_contract.plain_text import plain
from resources.store import Store
from resources.store.manifests import check_finished

PATIENCE_SECONDS = 5.0  # with a store that does not answer; then the run itself waits for it


class AlreadyFinished(Exception):
    """Why a run ends at once, what it would have reported, and the checks whose findings hold for it."""

    def __init__(
        self, reason: str, made: Iterable[dg.AssetMaterialization], checks: Iterable[dg.AssetCheckKey]
    ) -> None:
        super().__init__(reason)
        self.made = list(made)
        self.checks = list(checks)


class RunQueue(dg.QueuedRunCoordinator):
    """Queues runs, other than those that have nothing to do."""

    def submit_run(self, context: Any) -> dg.DagsterRun:
        """Queue the run of a `SubmitRunContext`, or end it."""
        run: dg.DagsterRun = context.dagster_run
        if BACKFILL_TAG in run.tags and not run.run_config:
            try:
                look_for_work(self._instance, run, Deployment.current())
            except AlreadyFinished as found:
                return end_without_process(self._instance, run, plain(str(found)), found.made, found.checks)
            except Exception as error:  # the run meets it again and says so, in its own log
                self._logger.info(f"run {run.run_id} is queued without a look at what it has to do: {error}")
        return super().submit_run(context)


def look_for_work(instance: dg.DagsterInstance, run: dg.DagsterRun, deployment: Deployment) -> None:
    """AlreadyFinished if a backfill's run is not to be executed."""
    partition = run.tags[PARTITION_TAG]
    place = run_place(partition)
    store = deployment.store.with_patience(PATIENCE_SECONDS)
    claim = read_claim(store, place.experiment, place.number)
    if claim is None:
        return
    selected = {key.to_user_string() for key in run.asset_selection or ()}
    if CLASSIFIED_DOCUMENTS in selected and claim.settings.predict_query is not None:
        return  # production may have new documents
    job = _job()
    if is_verified(instance, job, store, claim):
        known = (last_materialization(instance, asset, partition) for asset, _ in ASSETS if asset in selected)
        again = [retold(made) for made in known if made is not None]
        raise AlreadyFinished("finished; its files are verified", again, lasting_checks(job))


def _job() -> dg.JobDefinition:
    from docml_assets.definitions import defs  # only the process that submits backfills loads them

    return defs.resolve_job_def(JOB)


def is_verified(instance: dg.DagsterInstance, job: dg.JobDefinition, store: Store, claim: Claim) -> bool:
    """Whether a run is finished, with all its files, and this instance has its versions and its checks' findings."""
    finished = finished_folders(store, claim)
    if finished is None or not is_checked(instance, job, claim, finished):
        return False
    for folder, manifest in finished.items():
        check_finished(store, manifest, folder)
    return True


def retold(made: dg.AssetMaterialization) -> dg.AssetMaterialization:
    """A materialization as it is reported again: its versions, without tables and pictures."""
    metadata = {**brief(dict(made.metadata)), "how": "finished, verified by a backfill"}
    return dg.AssetMaterialization(made.asset_key, partition=made.partition, metadata=metadata, tags=made.tags)
