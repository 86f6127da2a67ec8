"""Asset checks by partition: plain functions over a finished step's files, run as one op per asset."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from docml_assets.assets.materialization import RESOURCES, explained, work_for
from docml_assets.dagster_internals import ExplainedFailure
from docml_assets.partitions import experiment_runs
from docml_assets.steps.work import Work

# Dagster shows the worst of all partitions beside a check's name, and the last finding of any on its page.
ABOUT_THE_LIST = "The list of checks says Failed while any run of any experiment fails it; Partitions says which."


@dataclass(frozen=True)
class Finding:
    """What a check found. A failed check is a warning unless it says that it is an error."""

    passed: bool
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: bool = False


@dataclass(frozen=True)
class Check:
    """One check of an asset; blocking ones keep what comes after from starting when they fail as errors."""

    name: str
    description: str
    find: Callable[[Work], Finding]
    blocking: bool = False


@contextmanager
def preview_features() -> Iterator[None]:
    """Checks by partition are a preview feature of Dagster; its version is pinned, so that the warning says nothing new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield


def make_checks(asset: str, *checks: Check) -> dg.AssetChecksDefinition:
    """The checks of an asset as Dagster runs them: after it is materialized, or alone."""
    by_name = {check.name: check for check in checks}
    with preview_features():
        specs = [
            dg.AssetCheckSpec(
                check.name,
                asset=asset,
                description=f"{check.description} {ABOUT_THE_LIST}",
                blocking=check.blocking,
                partitions_def=experiment_runs,
            )
            for check in checks
        ]

    @dg.multi_asset_check(name=f"{asset}_checks", specs=specs, can_subset=True, required_resource_keys=set(RESOURCES))
    def run_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        selected = {key.name for key in context.selected_asset_check_keys}
        stopping = []
        with explained():
            work = work_for(context, asset)
            for name, check in by_name.items():
                if name in selected:
                    finding = check.find(work)
                    yield check_result(asset, name, finding)
                    if check.blocking and finding.error and not finding.passed:
                        stopping.append(finding.text)
        if stopping:  # Dagster's own error would only name the check
            raise ExplainedFailure("\n".join(stopping))

    return run_checks


def check_result(asset: str, name: str, finding: Finding) -> dg.AssetCheckResult:
    """A finding as Dagster records it."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=finding.passed,
        severity=dg.AssetCheckSeverity.ERROR if finding.error else dg.AssetCheckSeverity.WARN,
        description=finding.text,
        metadata=dict(finding.facts),
    )
