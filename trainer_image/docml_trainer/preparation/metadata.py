"""split_metadata.json: what a preparation did, in numbers that people look at."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from docml_contract.jobs import PrepareTask
from docml_contract.names import SPLITS
from docml_contract.units import artifact_of, split_guid
from docml_trainer.data.shapes import ARTIFACT_GUID, LABELS, shape_of
from docml_trainer.preparation.documents import Documents, Tally, labels_too_small
from docml_trainer.preparation.splits import SplitAssignment

if TYPE_CHECKING:
    import datasets

    from docml_trainer.preparation.rows import Overview

NOT_REPORTED = "not reported"
HISTOGRAM_BINS = 30


@dataclass(frozen=True)
class Preparation:
    """What a preparation took, and what came of it."""

    task: PrepareTask
    documents: Documents
    tally: Tally
    found: "Overview"
    assignment: SplitAssignment  # by row of `found`
    near_duplicate_feature: str | None  # by which documents were compared
    features: "datasets.Features"  # as they are saved
    baseline: dict[str, Any]  # what `baseline.Baseline.facts` says, or {"none": reason}


def describe_preparation(done: Preparation, output: Path, seconds: float, encoders: Sequence[int]) -> dict[str, Any]:
    """The content of split_metadata.json.

    output: the folder of the splits. seconds: of the whole phase, or, for merged shards, of the slowest host's encoding.
    encoders: processes by host.
    """
    task, documents, tally, assignment = done.task, done.documents, done.tally, done.assignment
    by_split = {split: Counter[str]() for split in SPLITS}
    left_out: Counter[str] = Counter()
    for label, split in zip(assignment.labels, assignment.splits, strict=True):
        (by_split[split] if split else left_out)[label] += 1
    artifacts = {
        (artifact_of(guid), split) for guid, split in zip(assignment.guids, assignment.splits, strict=True) if split
    }
    units = any(split_guid(guid)[1] is not None for guid in assignment.guids)
    kept = np.array([split is not None for split in assignment.splits])
    return {
        "documents": {split: counts.total() for split, counts in by_split.items()},
        **({"artifacts": {split: sum(of == split for _, of in artifacts) for split in SPLITS}} if units else {}),
        "labels": {split: dict(sorted(counts.items())) for split, counts in by_split.items()},
        "dropped": {
            **documents.dropped,
            "returned_none": dict(sorted(tally.returned_none.items())),
            "failed": dict(sorted(tally.failed.items())),
            "joins_groups_in_different_splits": dict(sorted(left_out.items())),
        },
        "labels_too_small": labels_too_small(documents, task.split),
        "near_duplicates": _near_duplicates(done, left_out),
        "models": {
            model: _lengths(done.found.tokens[model][kept], done.found.untruncated[model][kept])
            for model in task.model_names
        },
        "features": {
            name: str(shape_of(name, feature))
            for name, feature in done.features.items()
            if name not in (LABELS, ARTIFACT_GUID)
        },
        "baseline": done.baseline,
        "bytes_on_disk": sum(path.stat().st_size for split in SPLITS for path in (output / split).iterdir()),
        "seconds": round(seconds, 3),
        "documents_per_second": round(len(documents) / max(seconds, 1e-9), 1),
        "hosts": len(encoders),
        "processes": sum(encoders),
        "failures": [vars(failure) for failure in tally.failures],
    }


def summarize(content: Mapping[str, Any]) -> dict[str, Any]:
    """The small part, for logs and asset metadata."""
    return {
        "documents": content["documents"],
        "dropped": {reason: sum(counts.values()) for reason, counts in content["dropped"].items()},
        "labels_too_small": sorted(content["labels_too_small"]),
        "near_duplicates": content["near_duplicates"],
        "truncated_share": {model: numbers["truncated_share"] for model, numbers in content["models"].items()},
        "baseline": {name: value for name, value in content["baseline"].items() if name != "learning_curve"},
        "bytes_on_disk": content["bytes_on_disk"],
        "documents_per_second": content["documents_per_second"],
    }


def _near_duplicates(done: Preparation, left_out: Counter[str]) -> dict[str, Any]:
    groups = zip(done.assignment.guids, done.assignment.near_duplicate_groups, strict=True)
    group_of = {artifact_of(guid): group for guid, group in groups if group is not None}
    sizes = Counter(group_of.values())
    return {
        "threshold": done.task.near_duplicate_threshold,
        "feature": done.near_duplicate_feature,
        "documents": sizes.total(),
        "groups": len(sizes),
        "largest_group": max(sizes.values(), default=0),
        "left_out": left_out.total(),
    }


def _lengths(tokens: "np.ndarray[Any, Any]", untruncated: "np.ndarray[Any, Any]") -> dict[str, Any]:
    """Token lengths of one model's documents, as they are encoded, and the share that the encoder cut."""
    known = tokens[~np.isnan(tokens)]
    reported = ~np.isnan(untruncated)
    cut: float | str = NOT_REPORTED
    if reported.any():
        cut = round(float((untruncated[reported] > tokens[reported]).mean()), 4)
    if not known.size:
        return {"token_lengths": None, "truncated_share": cut}
    low, high = int(known.min()), int(known.max()) + 1
    width = -(-(high - low) // HISTOGRAM_BINS)  # whole tokens
    counts, edges = np.histogram(known, bins=np.arange(low, high + width, width))
    p50, p95 = np.percentile(known, [50, 95])
    return {
        "token_lengths": {
            "mean": round(float(known.mean()), 1),
            "p50": float(p50),
            "p95": float(p95),
            "max": int(known.max()),
            "total": int(known.sum()),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        },
        "truncated_share": cut,
    }
