"""What a Dagster run carries as tags: what it is to do, what started it, and which process executes it."""

import json
from collections.abc import Mapping
from typing import Any

from docml_assets.experiment.settings.settings import Settings
from docml_contract.names import STEPS

# The steps that the run performs, others are reused (absent: whatever is selected).
STEPS_TAG = "docml/steps"
# The settings that do not freeze, as the experiment folder had them.
OPERATION_TAG = "docml/operation"
# What started the run.
TRIGGER_TAG = "docml/trigger"
# Dagster's own, on every run of a backfill.
BACKFILL_TAG = "dagster/backfill"
# The process that executes it: a `resources.processes.Process` as text.
PROCESS_TAG = "docml/process"

Tags = Mapping[str, str]


def run_tags(steps: frozenset[str], settings: Settings, trigger: Mapping[str, Any]) -> dict[str, str]:
    """The tags by which the assets know what a run is to do."""
    return {
        STEPS_TAG: ",".join(step for step in STEPS if step in steps),
        OPERATION_TAG: json.dumps(settings.operational(), sort_keys=True),
        TRIGGER_TAG: json.dumps(trigger, sort_keys=True),
    }


def steps_of(tags: Tags) -> frozenset[str] | None:
    """The steps that a run performs; None: whatever is selected. ValueError if the tag names unknown ones."""
    tag = tags.get(STEPS_TAG)
    if tag is None:
        return None
    steps = frozenset(filter(None, tag.split(",")))
    unknown = sorted(steps - set(STEPS))
    if unknown:
        raise ValueError(
            f"run tag {STEPS_TAG}={tag!r}: unknown {', '.join(unknown)}; expected some of {', '.join(STEPS)}"
        )
    return steps


def operation_of(tags: Tags) -> dict[str, Any] | None:
    """The settings that do not freeze, as the experiment folder had them; None where the run carries none."""
    text = tags.get(OPERATION_TAG)
    return json.loads(text) if text else None


def trigger_of(tags: Tags, run_id: str) -> dict[str, Any]:
    """What started a run, for its claim; without a tag someone did it in the UI."""
    text = tags.get(TRIGGER_TAG)
    return json.loads(text) if text else {"kind": "ui", "dagster_run_id": run_id}
