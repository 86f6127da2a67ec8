"""label_counts: how many documents each label has, before anything is left out."""

import json

import pyarrow.compute as pc

from docml_assets.steps.reuse import find_finished, read_required
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.names import COUNTS_BY_LABEL, LABEL_COUNTS, LABEL_ROWS, RECONCILED_DATA
from docml_contract.versions import cache_key, label_counts_version
from resources.label_values import describe_look_alikes, look_alikes


def label_counts(work: Work) -> Outcome:
    """Count the reconciled documents by label; `unique_labels_and_counts.json`, most frequent first."""
    folder = work.place.labels
    done = find_finished(work, folder)
    if done is not None:
        return done
    reconciled = read_required(work, work.place.reconciliation, RECONCILED_DATA)
    rows = read_parquet(work.store.get(f"{work.place.reconciliation}/{LABEL_ROWS}"))
    counted = pc.value_counts(rows["label"]).to_pylist()
    counts = {item["values"]: item["counts"] for item in sorted(counted, key=lambda c: (-c["counts"], c["values"]))}
    inputs = {RECONCILED_DATA: reconciled.data_version}
    manifest = work.publish(
        LABEL_COUNTS,
        folder,
        {COUNTS_BY_LABEL: (json.dumps(counts, indent=2, ensure_ascii=False) + "\n").encode()},
        cache_key=cache_key(LABEL_COUNTS, **inputs),
        data_version=label_counts_version(counts),
        inputs=inputs,
    )
    if groups := look_alikes(counts):
        work.reporter.say(describe_look_alikes(groups))
    why = f"{sum(counts.values())} documents with {len(counts)} labels"
    return Outcome.of(work, manifest, folder, how="made", why=why)


def read_counts(work: Work) -> dict[str, int]:
    """The counts of a finished step."""
    counts: dict[str, int] = json.loads(work.store.get(f"{work.place.labels}/{COUNTS_BY_LABEL}"))
    return counts
