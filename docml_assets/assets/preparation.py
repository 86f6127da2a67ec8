"""encoded_splits, with its checks."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any

import dagster as dg

from docml_assets.assets.checks import Check, Finding, make_checks
from docml_assets.assets.materialization import Results, materialize, run_asset
from docml_assets.assets.metadata import Metadata, column_schema, location, pictures, plotted, table
from docml_assets.assets.reconciliation import label_counts, reconciled_data
from docml_assets.assets.sources import experiment_snapshot
from docml_assets.numbers import counted, number, setting, share, size
from docml_assets.steps.preparation import lengths_picture, read_prepared, run_preparation
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.names import ENCODED_SPLITS, LABELS_PICTURE, SPLIT_METADATA, SPLITS, SPLITS_TABLE
from docml_contract.units import document_guid

MANY_TRUNCATED = 0.5
MANY_SUSPECTS = 0.1
SPLIT_TOLERANCE = 0.1

COLUMNS = {
    "artifact_guid": "the document",
    "unit": "which part of the artifact the document is, where the parts are documents of their own",
    "label": "its label",
    "split": "train, valid or test",
    "group": "its SPLIT_BY value; groups never straddle splits",
    "near_duplicate_group": "documents that are nearly the same; they never straddle splits",
}


@run_asset(
    ENCODED_SPLITS,
    deps=[experiment_snapshot, reconciled_data, label_counts],
    group="data",
    kinds={"huggingface", "parquet"},
    description="The documents as the models' features, split into train, valid and test: stratified by label, groups and "
    "near-duplicates kept together, earlier runs' assignments kept. Runs whose inputs are equal share one copy.",
)
def encoded_splits(context: dg.AssetExecutionContext) -> Results:
    """Encode the documents and assign them to splits."""
    yield from materialize(context, ENCODED_SPLITS, run_preparation, _metadata)


def _metadata(work: Work, outcome: Outcome) -> Metadata:
    data = read_prepared(work)
    found = split_metadata(work)
    by_split: dict[str, dict[str, int]] = found["labels"]
    labels = sorted({label for counts in by_split.values() for label in counts})
    shown = {LABELS_PICTURE: "documents by label and split"}
    shown |= {lengths_picture(model): f"token lengths ({model})" for model in found["models"]}
    rows = read_parquet(work.store.get(f"{data.folder}/{SPLITS_TABLE}"))
    return {
        "prepared data": location(work.store, data.folder),
        "made by run": str(data.made_by_run),
        **plotted(work.place.experiment, {"documents": sum(found["documents"].values())}),
        **({"artifacts": number(sum(found["artifacts"].values()), 0)} if "artifacts" in found else {}),
        **{f"documents in {split}": number(found["documents"].get(split, 0), 0) for split in SPLITS},
        "labels": number(len(labels), 0),
        "label table": table(
            {"label": label, **{split: by_split.get(split, {}).get(label, 0) for split in SPLITS}} for label in labels
        ),
        "left out": table(
            {"reason": reason.replace("_", " "), "documents": sum(counts.values())}
            for reason, counts in found["dropped"].items()
        ),
        "near-duplicates": table(
            {"what": what.replace("_", " "), "value": setting(value)}
            for what, value in found["near_duplicates"].items()
        ),
        "token lengths": table(length_row(model, lengths) for model, lengths in found["models"].items()),
        **pictures(work.store, outcome.folder, outcome.manifest, shown, made=outcome.how == "made"),
        "features": dg.MetadataValue.json(found["features"]),
        "size": size(found["bytes_on_disk"]),
        "documents a second": number(found["documents_per_second"], 1),
        "dagster/column_schema": column_schema(rows.schema, COLUMNS),
    }


def length_row(model: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A model's token lengths, and the share of its documents that the encoder cut."""
    lengths = found["token_lengths"] or {}
    cut = found["truncated_share"]
    return {
        "model": model,
        **{what: number(lengths.get(key), 0) for what, key in (("mean", "mean"), ("median", "p50"), ("95 %", "p95"))},
        "longest": number(lengths.get("max"), 0),
        "cut": cut if isinstance(cut, str) else share(cut),
    }


def split_metadata(work: Work) -> dict[str, Any]:
    """split_metadata.json of the prepared data that the run uses."""
    found: dict[str, Any] = json.loads(work.store.get(f"{read_prepared(work).folder}/{SPLIT_METADATA}"))
    return found


def no_leakage(work: Work) -> Finding:
    """No document, SPLIT_BY group or group of near-duplicates is in more than one split."""
    rows = read_parquet(work.store.get(f"{read_prepared(work).folder}/{SPLITS_TABLE}")).to_pylist()
    documents = Counter(document_guid(row["artifact_guid"], row.get("unit")) for row in rows)
    repeated = [guid for guid, count in documents.items() if count > 1]
    straddling = {}
    for column in ("artifact_guid", "group", "near_duplicate_group"):
        splits = defaultdict(set)
        for row in rows:
            if row[column] is not None:
                splits[row[column]].add(row["split"])
        straddling[column] = sorted(str(name) for name, found in splits.items() if len(found) > 1)
    count = len(repeated) + sum(len(names) for names in straddling.values())
    return Finding(
        passed=count == 0,
        text=f"twice: {counted(len(repeated), 'document')}; in several splits: {counted(len(straddling['group']), 'group')} of SPLIT_BY and "
        f"{counted(len(straddling['near_duplicate_group']), 'group')} of near-duplicates"
        + (f", and {counted(len(straddling['artifact_guid']), 'artifact')}" if straddling["artifact_guid"] else "")
        if count
        else f"{len(rows)} documents, each in one split, groups kept together",
        facts={"examples": ", ".join([*repeated, *chain.from_iterable(straddling.values())][:20])} if count else {},
        error=True,
    )


def every_label_everywhere(work: Work) -> Finding:
    """Every label is in every split."""
    by_split: dict[str, dict[str, int]] = split_metadata(work)["labels"]
    labels = {label for counts in by_split.values() for label in counts}
    lacking = [(label, split) for label in sorted(labels) for split in SPLITS if not by_split.get(split, {}).get(label)]
    return Finding(
        passed=not lacking,
        text=f"missing from a split: {counted(len({label for label, _ in lacking}), 'label')}, whose scores mean little"
        if lacking
        else f"all {len(labels)} labels are in train, valid and test",
        facts={"missing": table({"label": label, "split": split} for label, split in lacking)} if lacking else {},
    )


def splits_not_empty(work: Work) -> Finding:
    """Train, valid and test hold documents, in about the shares that SPLIT asks for."""
    found = split_metadata(work)
    documents: dict[str, int] = found.get("artifacts", found["documents"])
    total = sum(documents.values())
    empty = [split for split in SPLITS if not documents.get(split)]
    shares = {split: documents.get(split, 0) / total if total else 0.0 for split in SPLITS}
    off = [
        split
        for split, wanted in zip(SPLITS, work.settings.split, strict=True)
        if abs(shares[split] - wanted) > SPLIT_TOLERANCE
    ]
    shown = ", ".join(f"{split} {share:.1%}" for split, share in shares.items())
    together = _largest_group(work) if empty or off else ""
    remedy = together or "more documents, or another SPLIT, are needed"
    return Finding(
        passed=not empty and not off,
        text=f"{', '.join(empty)} without documents: {remedy}" if empty else ": ".join(filter(None, (shown, together))),
        error=bool(empty),
    )


def _largest_group(work: Work) -> str:
    """What keeps most of the documents in one split, if anything does."""
    rows = read_parquet(work.store.get(f"{read_prepared(work).folder}/{SPLITS_TABLE}"))
    for column, what in (
        ("group", f"have one value of SPLIT_BY = {work.settings.split_by}"),
        ("near_duplicate_group", "are near-duplicates of one another (NEAR_DUPLICATE_THRESHOLD = 1 turns this off)"),
    ):
        sizes = Counter(group for group in rows[column].to_pylist() if group is not None)
        if sizes and 2 * max(sizes.values()) > rows.num_rows:
            return f"{max(sizes.values())} of {rows.num_rows} documents {what} and stay in one split"
    return ""


def truncation_share(work: Work) -> Finding:
    """Most documents fit into what the encoder keeps."""
    shares = {model: found["truncated_share"] for model, found in split_metadata(work)["models"].items()}
    known = {model: share for model, share in shares.items() if not isinstance(share, str)}
    return Finding(
        passed=all(share <= MANY_TRUNCATED for share in known.values()),
        text="; ".join(
            f"{model}: {f'{share:.1%} of the documents are cut' if model in known else 'truncation is not reported'}"
            for model, share in shares.items()
        )
        + f" (more than {MANY_TRUNCATED:.0%} is a warning: raise max_length, or encode in chunks)",
        facts={f"truncated share ({model})": share(value) for model, value in known.items()},
    )


def label_suspects(work: Work) -> Finding:
    """Few labels look wrong to the baseline, which says so of documents that it was not fitted on."""
    baseline = split_metadata(work).get("baseline", {})
    found = baseline.get("suspects")
    if found is not None and "none" in found:
        return Finding(passed=True, text=f"not estimated: {found['none']}")
    if found is None:
        return Finding(
            passed=True,
            text=f"not estimated: {baseline.get('none', 'these data were prepared before docml estimated label suspects')}",
        )
    place = work.place
    command = f"docml labels {place.experiment} {place.number} --suspects"
    return Finding(
        passed=found["share"] <= MANY_SUSPECTS,
        text=f"up to {found.get('share_upper95', found['share']):.1%} of the labels may be wrong ({found['documents']:,} documents, "
        f"{found['share']:.1%}, look so by confident learning from the baseline; its own mistakes are among them where labels have few documents; a share above {MANY_SUSPECTS:.0%} is a warning, and may also mean labels that overlap): {command}",
        facts={
            "label and likely label": table(
                {"label": row["label"], "likely label": row["likely_label"], "documents": row["count_all"]}
                for row in found["pairs"]
            ),
        },
    )


split_checks = make_checks(
    ENCODED_SPLITS,
    Check(
        "no_leakage",
        "No document, SPLIT_BY group or group of near-duplicates is in two splits.",
        no_leakage,
        blocking=True,
    ),
    Check("splits_filled", "Every split has documents, in about the shares of SPLIT.", splits_not_empty, blocking=True),
    Check("every_label_everywhere", "Every label is in every split.", every_label_everywhere),
    Check("truncation_share", "Most documents fit into what the encoder keeps.", truncation_share),
    Check("label_suspects", "Few labels look wrong to the baseline.", label_suspects),
)
