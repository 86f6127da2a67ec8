"""label_counts: how many documents each label has, before anything is left out."""

import json

import pyarrow.compute as pc

from docml_assets.steps.finished import finished, required
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.names import COUNTS_BY_LABEL, LABEL_ROWS
from docml_contract.versions import CODE_VERSIONS, cache_key, label_counts_version
from resources.store.manifests import publish_bytes

ASSET = "label_counts"


def label_counts(work: Work) -> Outcome:
    """Count the reconciled documents by label; `unique_labels_and_counts.json`, most frequent first."""
    folder = work.place.labels
    done = finished(work, folder)
    if done is not None:
        return done
    reconciled = required(work, work.place.reconciliation, "reconciled_data")
    rows = read_parquet(work.store.get(f"{work.place.reconciliation}/{LABEL_ROWS}"))
    counted = pc.value_counts(rows["label"]).to_pylist()
    counts = {item["values"]: item["counts"] for item in sorted(counted, key=lambda c: (-c["counts"], c["values"]))}
    inputs = {"reconciled_data": reconciled.data_version}
    manifest = publish_bytes(
        work.store,
        folder,
        {COUNTS_BY_LABEL: (json.dumps(counts, indent=2, ensure_ascii=False) + "\n").encode()},
        asset=ASSET,
        experiment=work.place.experiment,
        run=work.place.number,
        cache_key=cache_key(ASSET, **inputs),
        data_version=label_counts_version(counts),
        inputs=inputs,
        code_version=CODE_VERSIONS[ASSET],
    )
    return Outcome(
        asset=ASSET,
        how="made",
        why=f"{sum(counts.values())} documents with {len(counts)} labels",
        data_version=manifest.data_version,
        inputs=manifest.inputs,
        folders={"": folder},
        manifests={"": manifest},
    )


def read_counts(work: Work) -> dict[str, int]:
    """The counts of a finished step."""
    counts: dict[str, int] = json.loads(work.store.get(f"{work.place.labels}/{COUNTS_BY_LABEL}"))
    return counts
