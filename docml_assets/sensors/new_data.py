"""new_data_sensor: changed labels or files start the next run of experiments that ask for it (RERUN_ON_NEW_DATA).

For every experiment that has reconciled a run, the versions of its label query and of its production files are compared with
those that the run was made of. A change is shown in any case (observations make the run stale, `production_unchanged` warns); it
starts a run if the folder says so, once it has stood for two ticks, with the settings of the newest run.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from docml_assets.dagster_internals import about_last, check_history
from docml_assets.errors import DocmlError
from docml_assets.experiment.folder import SETTINGS, experiment_folders
from docml_assets.experiment.settings.settings import Settings
from docml_assets.partitions import PARTITION_TAG, PRODUCTION_UNCHANGED, partition_key
from docml_assets.runs.claims import Claim, claim_next, read_claim, read_or_note, run_folders
from docml_assets.sensors.launching import (
    TICK_PATIENCE_SECONDS,
    Launch,
    SensorCursor,
    TickFindings,
    in_turn,
    minute,
    read_settings,
)
from docml_assets.sensors.launching import State as TickState
from docml_assets.steps.reconciliation import describe_change, files_version
from docml_assets.steps.work import flagged_steps
from docml_contract.base import Document, digest, short
from docml_contract.names import PRODUCTION_FILES, PRODUCTION_LABELS, RECONCILIATION, RunPlace
from resources.labels import LabelSource
from resources.store import Store
from resources.store.manifests import read_manifest

NAME = "new_data_sensor"

Versions = Mapping[str, str]  # production_labels, production_files -> data version


class ExperimentMemory(Document):
    """What the sensor knows of one experiment."""

    current: str | None = Field(None, description="digest of the production versions at the last tick")
    shown: str | None = Field(None, description="versions and run whose difference has been shown")
    reported: str | None = Field(None, description="digest of what went wrong at the last tick")
    since: str | None = Field(None, description="since when something has gone wrong")
    reconciled_run: int | None = Field(None, description="the newest run that had reconciled")
    made_of: dict[str, str] = Field(default_factory=dict, description="the versions it was made of")
    launched: int | None = Field(None, description="the run that was started last")


class NewDataCursor(SensorCursor):
    """What the sensor knows of all of them."""

    experiments: dict[str, ExperimentMemory] = Field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """One experiment at one tick."""

    newest: Claim  # the newest run
    newest_reconciled: bool
    made_of: Versions  # of the newest run that has reconciled
    current: Versions
    in_progress: bool  # the newest run is queued or running; asked only where it matters
    settled: bool  # the current versions are those of the tick before
    wanted: bool  # RERUN_ON_NEW_DATA


Decision = Literal["nothing", "wait", "start", "continue"]


def decide(state: State) -> Decision:
    """What to do about an experiment.

    continue: the newest run was claimed for just these versions; make sure that it was started. wait: they may still change, or
    the newest run has yet to read them.
    """
    if state.newest.trigger.get("kind") == NAME and state.newest.trigger.get("versions") == dict(state.current):
        return "nothing" if state.newest_reconciled else "continue"
    if not changed(state) or not state.wanted:
        return "nothing"
    if not state.settled or (state.in_progress and not state.newest_reconciled):
        return "wait"
    return "start"


def changed(state: State) -> list[str]:
    """The external assets whose version is not the one that the newest reconciled run was made of."""
    return [asset for asset, version in state.current.items() if state.made_of.get(asset) != version]


def describe_state(state: State, run: int) -> tuple[TickState, str]:
    """How an experiment stands at a tick, `run` being its newest run that has read production."""
    if not changed(state):
        return "unchanged", ""
    said = f"{describe_change(changed(state))} (run {run})"
    if not state.wanted:
        return "changed", f"{said}; nothing starts, since RERUN_ON_NEW_DATA is off"
    return "waiting", f"{said}; " + (
        f"run {state.newest.run} is under way"
        if state.in_progress
        else "the next run starts once this has stood for two ticks"
    )


@dg.sensor(
    name=NAME,
    job_name="run_experiment",
    description="Looks for changed labels and production files. Shows them on the runs made of older ones, and starts the next run of "
    "experiments with RERUN_ON_NEW_DATA, once the change has stood for two ticks, with the settings of the newest run. "
    "Stopped until switched on: runs can cost money.",
    default_status=dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=120,
)
def new_data_sensor(context: dg.SensorEvaluationContext, deployment: dg.ResourceParam[Any]) -> dg.SensorResult:
    """The thin Dagster side of `Watch`."""
    watch = Watch(
        experiment_folders(deployment.experiments),
        deployment.store.with_patience(TICK_PATIENCE_SECONDS),
        Production(deployment.labels, deployment.production),
        lambda place: is_in_progress(context.instance, place),
        lambda place: is_warned(context.instance, place),
    )
    cursor, findings = watch.look(NewDataCursor.read(context.cursor))
    findings.events = [
        about_last(context.instance, event) if isinstance(event, dg.AssetCheckEvaluation) else event
        for event in findings.events
    ]
    return findings.result(context, cursor.write(), watch.folders, deployment.experiments)


def is_in_progress(instance: dg.DagsterInstance, place: RunPlace) -> bool:
    """Whether a Dagster run of this partition is queued or running."""
    wanted = dg.RunsFilter(
        tags={PARTITION_TAG: partition_key(place.experiment, place.number)},
        statuses=[status for status in dg.DagsterRunStatus if status not in _ENDED],
    )
    return bool(instance.get_run_ids(wanted, limit=1))


def is_warned(instance: dg.DagsterInstance, place: RunPlace) -> bool:
    """Whether this sensor has warned of a run already.

    Dagster keeps one check evaluation without a run for each partition and refuses a second one, which would fail the whole tick.
    """
    return None in check_history(instance, PRODUCTION_UNCHANGED, partition_key(place.experiment, place.number))


_ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


class Production:
    """Production's versions, asked once a tick for each query and each set of files."""

    def __init__(self, labels: LabelSource, files: Store) -> None:
        self._labels = labels
        self._files = files
        self._known: dict[Any, str] = {}

    def versions(self, settings: Settings) -> dict[str, str]:
        """As `docml_assets.steps.reconciliation.versions`."""
        query, names = settings.labels_query, tuple(sorted(settings.files_from_prod))
        return {
            PRODUCTION_LABELS: self._once(query, lambda: self._labels.fingerprint(query)),
            PRODUCTION_FILES: self._once(names, lambda: files_version(self._files, names)),
        }

    def _once(self, key: Any, ask: Callable[[], str]) -> str:
        if key not in self._known:
            self._known[key] = ask()
        return self._known[key]


@dataclass(frozen=True)
class Watch:
    """What a tick looks at."""

    folders: Mapping[str, Path]
    store: Store
    production: Production
    in_progress: Callable[[RunPlace], bool]
    warned: Callable[[RunPlace], bool]

    def look(self, cursor: NewDataCursor) -> tuple[NewDataCursor, TickFindings]:
        """One tick. One experiment that cannot be read does not stop the others."""
        findings = TickFindings()
        known = {name: seen for name, seen in cursor.experiments.items() if name in self.folders}
        last = cursor.after
        for name in in_turn(self.folders, cursor.after):
            last = name
            seen = known.get(name, ExperimentMemory())
            try:
                known[name] = self._look_at(name, seen, cursor.id, findings)
            except Exception as error:  # whatever one experiment meets must not stop the others
                known[name] = report_once(name, error, seen, findings)
        return cursor.model_copy(update={"experiments": known, "after": last}), findings

    def _look_at(self, name: str, seen: ExperimentMemory, cursor_id: str, findings: TickFindings) -> ExperimentMemory:
        runs = run_folders(self.store, name)
        claims = (read_or_note(partial(read_claim, self.store, name, number), []) for number in reversed(runs))
        newest = next((claim for claim in claims if claim is not None), None)
        seen = self._newest_reconciled(name, runs, seen)
        if newest is None or seen.reconciled_run is None:
            findings.states[name] = ("waiting", "no run has read production yet")
            return seen
        path = self.folders[name] / SETTINGS
        folder = read_settings(path.read_text(encoding="utf-8"), path)
        current = self.production.versions(self._settings_of(name, seen.reconciled_run))
        state = State(
            newest=newest,
            newest_reconciled=seen.reconciled_run == newest.run,
            made_of=seen.made_of,
            current=current,
            in_progress=folder.rerun_on_new_data and current != seen.made_of and self.in_progress(newest.place),
            settled=seen.current == short(digest(current)),
            wanted=folder.rerun_on_new_data,
        )
        shown = short(digest([current, seen.reconciled_run]))
        findings.states[name] = describe_state(state, seen.reconciled_run)
        if shown != seen.shown:
            seen_by = runs if changed(state) else [seen.reconciled_run]
            findings.events += self._observe(name, seen_by)
            place = RunPlace(name, seen.reconciled_run)
            if changed(state) and not self.warned(place):
                findings.events.append(warning(place, state))
        seen = seen.model_copy(update={"current": short(digest(current)), "shown": shown})
        try:
            launch = self._act(state, folder, cursor_id)
        except DocmlError as error:
            return report_once(name, error, seen, findings)
        if launch is not None and launch.claim.run != seen.launched:
            findings.launches.append(launch)
            findings.states[name] = ("start", str(launch))
            seen = seen.model_copy(update={"launched": launch.claim.run})
        return seen.model_copy(update={"reported": None, "since": None})

    def _observe(self, name: str, runs: Iterable[int]) -> list[dg.AssetObservation]:
        """What those of the runs that have read production would see there now; runs that cannot be read are passed over."""
        events: list[dg.AssetObservation] = []
        for number in runs:
            place = RunPlace(name, number)
            manifest = read_or_note(partial(read_manifest, self.store, place.reconciliation), [])
            settings = read_or_note(partial(self._settings_of, name, number), []) if manifest is not None else None
            if settings is not None:
                events += observations(partition_key(name, number), self.production.versions(settings))
        return events

    def _settings_of(self, name: str, run: int) -> Settings:
        claim = read_claim(self.store, name, run)
        if claim is None:
            raise NewDataIgnored(f"run {run} has reconciled data and no claim: restore {RunPlace(name, run).claim}")
        return read_settings(claim.settings_text, claim.place.root, claim.dialect)

    def _newest_reconciled(self, name: str, runs: list[int], seen: ExperimentMemory) -> ExperimentMemory:
        """`seen` with the newest run that has reconciled; runs older than the one known are not read again."""
        for number in reversed(runs):
            if number == seen.reconciled_run:
                break
            manifest = read_manifest(self.store, RunPlace(name, number).reconciliation)
            if manifest is not None:
                return seen.model_copy(update={"reconciled_run": number, "made_of": dict(manifest.inputs)})
        return seen

    def _act(self, state: State, folder: Settings, cursor_id: str) -> Launch | None:
        """The run to start, claimed."""
        decision = decide(state)
        if decision == "continue":
            return Launch.of(state.newest, folder)
        if decision != "start":
            return None
        if RECONCILIATION not in flagged_steps(folder):
            raise NewDataIgnored(
                f"{' and '.join(changed(state))} changed and RERUN_ON_NEW_DATA is on, but RUN_RECONCILIATION is "
                "off: the next run would not read what is new. Turn RUN_RECONCILIATION on, or RERUN_ON_NEW_DATA off"
            )
        trigger = {
            "kind": NAME,
            "changed": changed(state),
            "versions": dict(state.current),
            "previous_run": state.newest.run,
        }
        request_id = f"{NAME} {cursor_id} {state.newest.experiment} after {state.newest.run} {digest(state.current)}"
        return Launch.of(claim_next(self.store, state.newest, trigger=trigger, request_id=request_id), folder)


def report_once(name: str, error: Exception, seen: ExperimentMemory, findings: TickFindings) -> ExperimentMemory:
    """Report an error once, as long as it stays the same."""
    report = f"{name}: {error}"
    said, since = short(digest(report)), seen.since or minute()
    findings.states[name] = ("broken", f"not looked at, since {since}: {error}")
    if said != seen.reported:
        findings.reports.append(report)
    return seen.model_copy(update={"reported": said, "since": since})


class NewDataIgnored(DocmlError):
    """New data are wanted, but the settings keep a run from reading them."""


def observations(partition: str, current: Versions) -> list[dg.AssetObservation]:
    """The versions that a run's query and file names see now: Dagster shows what was made of others as stale."""
    return [
        dg.AssetObservation(
            asset_key=asset,
            partition=partition,
            tags={"dagster/data_version": version},
            metadata={"version": version},
        )
        for asset, version in current.items()
    ]


def warning(place: RunPlace, state: State) -> dg.AssetCheckEvaluation:
    """What the check `production_unchanged` of a run finds. It is said once a run: see `is_warned`."""
    return dg.AssetCheckEvaluation(
        asset_key=PRODUCTION_UNCHANGED.asset_key,
        check_name=PRODUCTION_UNCHANGED.name,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=describe_change(changed(state)),
        partition=partition_key(place.experiment, place.number),
    )
