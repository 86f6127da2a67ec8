"""best_torchscript_model, with its checks."""

import json
import math
from typing import Any

import dagster as dg

from docml_assets.assets.checks import Check, Finding, make_checks
from docml_assets.assets.materialization import Results, materialize, run_asset
from docml_assets.assets.metadata import Metadata, pictures, plotted, table
from docml_assets.assets.preparation import encoded_splits
from docml_assets.assets.sources import experiment_snapshot
from docml_assets.numbers import number, share
from docml_assets.steps.training import read_models, run_training
from docml_assets.steps.work import Outcome, Work
from docml_contract.names import BEST_MODEL, CURVES, HISTORY, STATISTICS, TRIALS


@run_asset(
    BEST_MODEL,
    deps=[experiment_snapshot, encoded_splits],
    group="models",
    kinds={"pytorch", "torchscript"},
    tags={"docml/costly": "gpu"},
    pool="docml_training",
    description="One model for each name in MODEL_NAMES: fine-tuned (or the best of a tuning), its best epoch by validation macro-F1, "
    "exported as TorchScript and checked against the model that was trained.",
)
def best_torchscript_model(context: dg.AssetExecutionContext) -> Results:
    """Train, or tune, every model of the run and keep the best as TorchScript."""
    yield from materialize(context, BEST_MODEL, run_training, _metadata)


def _metadata(work: Work, outcome: Outcome) -> Metadata:
    cards = {name: _json(work, f"{folder}/{STATISTICS}") for name, folder in outcome.folders.items()}
    shown: Metadata = {
        "models, on the validation split": table({"model": name, **_row(card)} for name, card in cards.items())
    }
    for name, folder in outcome.folders.items():
        scores = cards[name]["scores"].items()
        shown |= plotted(work.place.experiment, {f"{score} ({name})": value for score, value in scores})
        curves = {CURVES: f"learning curves ({name})"}
        shown |= pictures(work.store, folder, outcome.manifests[name], curves, made=outcome.how == "made")
        if fixed := cards[name]["export"]["fixed_shape"]:
            shown[f"only input shape ({name})"] = json.dumps(fixed)
        shown[f"model card ({name})"] = dg.MetadataValue.json(cards[name])
        if any(entry.path == TRIALS for entry in outcome.manifests[name].files):
            shown[f"trials ({name})"] = dg.MetadataValue.json(_json(work, f"{folder}/{TRIALS}"))
    shown |= {title: dg.MetadataValue.url(url) for title, url in work.reporter.links.items()}
    return shown


def _row(card: dict[str, Any]) -> dict[str, Any]:
    return {
        "kept epoch": f"{card['best_epoch']} of {card['epochs']}",
        "macro-F1": number(card["scores"]["valid_f1"]),
        "accuracy": share(card["scores"]["valid_accuracy"]),
        "parameters": number(card["parameters"]["total"], 0),
    }


def _json(work: Work, key: str) -> Any:
    return json.loads(work.store.get(key))


def traced_equals_eager(work: Work) -> Finding:
    """The TorchScript gives the logits of the model that was trained, on every case that the export tried."""
    problems: list[str] = []
    worst: dict[str, float] = {}
    for name, folder in read_models(work)[0].items():
        export = _json(work, f"{folder}/{STATISTICS}")["export"]
        differences: dict[str, float] = export["relative_difference"]
        case = max(differences, key=lambda key: differences[key], default=None)
        if case is None:
            problems.append(f"{name}: no case was tried")
            continue
        worst[f"largest relative difference ({name})"] = float(differences[case])
        if not differences[case] <= export["tolerance"]:
            problems.append(f"{name}: {case}: off by {differences[case]:.3g}, tolerance {export['tolerance']:.3g}")
    return Finding(
        passed=not problems,
        text="; ".join(problems) or "every model's TorchScript equals the trained model within its tolerance",
        facts={what: f"{value:.2g}" for what, value in worst.items()},
        error=True,
    )


def not_diverged(work: Work) -> Finding:
    """Losses are finite and training loss fell."""
    problems = []
    for name, folder in read_models(work)[0].items():
        losses = [epoch["train_loss"] for epoch in _json(work, f"{folder}/{HISTORY}")]
        if not all(math.isfinite(loss) for loss in losses):
            problems.append(f"{name}: the loss is not finite")
        elif len(losses) > 1 and min(losses[1:]) >= losses[0]:
            problems.append(f"{name}: the loss never fell below the first epoch's {losses[0]:.3g}: lower learning_rate")
    return Finding(passed=not problems, text="; ".join(problems) or "every model's training loss is finite and fell")


model_checks = make_checks(
    BEST_MODEL,
    Check(
        "traced_equals_eager", "The TorchScript gives the trained model's logits.", traced_equals_eager, blocking=True
    ),
    Check("not_diverged", "Losses are finite, and training loss fell.", not_diverged),
)
