"""best_torchscript_model, with its checks."""

import json
import math
from collections.abc import Iterator
from typing import Any

import dagster as dg

from docml_assets.assets.checking import Check, Finding, checks_of
from docml_assets.assets.common import OWNERS, RESOURCES, work_for
from docml_assets.assets.metadata import Metadata, common, stored_image, table
from docml_assets.assets.preparation import encoded_splits
from docml_assets.assets.snapshot import experiment_snapshot
from docml_assets.partitions import experiment_runs
from docml_assets.progress import display
from docml_assets.steps.training import models, training
from docml_assets.steps.work import Outcome, Work
from docml_contract.names import CURVES, EXPORT, HISTORY, STATISTICS, TRIALS
from docml_contract.versions import CODE_VERSIONS

NAME = "best_torchscript_model"


@dg.asset(
    name=NAME,
    partitions_def=experiment_runs,
    deps=[experiment_snapshot, encoded_splits],
    group_name="models",
    kinds={"pytorch", "torchscript"},
    owners=OWNERS,
    tags={"docml/costly": "gpu"},
    code_version=CODE_VERSIONS[NAME],
    required_resource_keys=set(RESOURCES),
    output_required=False,
    pool="docml_training",
    description="One model for each name in MODEL_NAMES: fine-tuned (or the best of a tuning), its best epoch by validation macro-F1, "
    "exported as TorchScript and checked against the model that was trained.",
)
def best_torchscript_model(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    display().started(NAME)
    work = work_for(context, NAME)
    outcome = training(work)
    if outcome is None:
        display().finished(NAME, "not performed; nothing needs it")
        return
    display().finished(NAME, outcome.why)
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(outcome.data_version),
        metadata={**common(work, outcome), **_metadata(work, outcome)},
    )


def _metadata(work: Work, outcome: Outcome) -> Metadata:
    shown: Metadata = {
        "models": table({"model": name, **_row(work, folder)} for name, folder in outcome.folders.items())
    }
    for name, folder in outcome.folders.items():
        best = best_epoch(history(work, folder))
        if best:
            shown |= {
                f"{key} ({name})": float(value)
                for key, value in best.items()
                if isinstance(value, int | float) and key != "epoch" and math.isfinite(value)
            }
        shown |= stored_image(work.store, f"{folder}/{CURVES}", f"learning curves ({name})")
        shown[f"model card ({name})"] = dg.MetadataValue.json(_json(work, f"{folder}/{STATISTICS}"))
        if work.store.exists(f"{folder}/{TRIALS}"):
            shown[f"trials ({name})"] = dg.MetadataValue.json(_json(work, f"{folder}/{TRIALS}"))
    for job in outcome.jobs:
        url = job.output.facts.get("tracking_url")
        if isinstance(url, str):
            shown[f"tracking: {job.name}"] = dg.MetadataValue.url(url)
    return shown


def _row(work: Work, folder: str) -> dict[str, Any]:
    epochs = history(work, folder)
    best = best_epoch(epochs) or {}
    export = _json(work, f"{folder}/{EXPORT}")
    return {
        "epochs": len(epochs),
        "best epoch": best.get("epoch", ""),
        "validation macro-F1": float(best.get("valid_f1", float("nan"))),
        "validation accuracy": float(best.get("valid_accuracy", float("nan"))),
        "input shape": "any" if not export.get("fixed_shape") else json.dumps(export["fixed_shape"]),
    }


def _json(work: Work, key: str) -> Any:
    return json.loads(work.store.get(key))


def history(work: Work, folder: str) -> list[dict[str, Any]]:
    """history.json of a model: one entry an epoch."""
    found: list[dict[str, Any]] = _json(work, f"{folder}/{HISTORY}")
    return found


def best_epoch(epochs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first epoch with the best macro-F1, ties by lower loss, as the trainer chooses."""
    scored = [epoch for epoch in epochs if epoch.get("valid_f1_epoch") is not None]
    return max(scored, key=lambda e: (e["valid_f1_epoch"], -e["valid_loss"]), default=None)


def traced_equals_eager(work: Work) -> Finding:
    """The TorchScript gives the logits of the model that was trained, on every case that the export tried."""
    problems, differences = [], {}
    for name, folder in models(work)[0].items():
        export = _json(work, f"{folder}/{EXPORT}")
        cases = export["cases"]
        held = [case["max_difference"] for case in cases if case.get("held", True)]
        worst = max(held, default=math.inf)
        differences[f"largest difference ({name})"] = float(worst) if math.isfinite(worst) else -1.0
        if worst > export["tolerance"]:
            problems.append(f"{name}: off by {worst:.3g}, tolerance {export['tolerance']:.3g}")
    return Finding(
        passed=not problems,
        text="; ".join(problems) or "every model's TorchScript equals the trained model within its tolerance",
        facts=differences,
        error=True,
    )


def not_diverged(work: Work) -> Finding:
    """Losses are finite and training loss fell."""
    problems = []
    for name, folder in models(work)[0].items():
        losses = [epoch["train_loss"] for epoch in history(work, folder)]
        if not all(math.isfinite(loss) for loss in losses):
            problems.append(f"{name}: the loss is not finite")
        elif len(losses) > 1 and min(losses[1:]) >= losses[0]:
            problems.append(f"{name}: the loss never fell below the first epoch's {losses[0]:.3g}: lower learning_rate")
    return Finding(passed=not problems, text="; ".join(problems) or "every model's training loss is finite and fell")


model_checks = checks_of(
    NAME,
    Check(
        "traced_equals_eager", "The TorchScript gives the trained model's logits.", traced_equals_eager, blocking=True
    ),
    Check("not_diverged", "Losses are finite, and training loss fell.", not_diverged),
)
