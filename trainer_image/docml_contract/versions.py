"""Cache keys and data versions.

A *cache key* hashes a step's inputs and decides reuse. A *data version* hashes the meaning of what came out, never times,
paths, job names or containers, so that equal results are equal wherever they were made.
"""

from typing import Any

from docml_contract import names
from docml_contract.base import digest

# Raise a step's number when its code changes what it produces from the same inputs: it enters every cache key and is
# shown as the asset's code_version.
CODE_VERSIONS: dict[str, str] = {
    names.EXPERIMENT_SNAPSHOT: "1",
    names.RECONCILED_DATA: "1",
    names.LABEL_COUNTS: "1",
    names.ENCODED_SPLITS: "1",
    names.BEST_MODEL: "1",
    names.INFERENCE_REPORT: "1",
    names.DEPLOYMENT: "1",
    names.PREDICTION: "1",
}


def cache_key(asset: str, **inputs: Any) -> str:
    """sha256 over the asset's name, its code version and its inputs (JSON values)."""
    return digest({"asset": asset, "code_version": CODE_VERSIONS[asset], "inputs": inputs})


def snapshot_version(settings: dict[str, Any], functions_sha256: str) -> str:
    """Data version of a snapshot: its frozen settings and the text of its functions."""
    return digest(["snapshot", settings, functions_sha256])


def label_counts_version(counts: dict[str, int]) -> str:
    """Data version of the label counts."""
    return digest(["label_counts", counts])


def model_version(weights: dict[str, str], exports: dict[str, Any]) -> str:
    """Data version of a run's models: by model, the sha256 of its weights and its export.json."""
    return digest(["model", weights, exports])
