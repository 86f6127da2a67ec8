"""reconciled_data and label_counts, with their checks."""

from collections.abc import Mapping

import dagster as dg
import pyarrow.compute as pc

from docml_assets.assets.checks import ABOUT_THE_LIST, Check, Finding, check_result, make_checks, preview_features
from docml_assets.assets.materialization import RESOURCES, Results, materialize, run_asset, work_for
from docml_assets.assets.metadata import Metadata, column_schema, pictures, plotted, table
from docml_assets.assets.sources import SOURCES, experiment_snapshot, input_tags, observe
from docml_assets.numbers import counted, number, size
from docml_assets.partitions import PRODUCTION_UNCHANGED, experiment_runs
from docml_assets.steps.reconciliation import describe_change, read_counts, read_findings, reconciliation, versions
from docml_assets.steps.reconciliation import label_counts as count_labels
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import read_parquet
from docml_contract.file_names import is_optional, matches
from docml_contract.names import LABEL_COUNTS, LABEL_ROWS, LABELS_PICTURE, RECONCILED_DATA, RECONCILED_TABLE
from resources.errors import ResourceError
from resources.label_values import describe_idle, describe_look_alikes, idle_names, look_alikes
from resources.store.manifests import read_manifest

# From these shares of the label rows a check warns: duplicates and refusals are normal in small numbers only.
MANY_DUPLICATES = 0.3
MANY_REFUSED = 0.01
IMBALANCE = 50
FEWEST_DOCUMENTS = 3  # one for each split

COLUMNS = {
    "artifact_guid": "the document",
    "label": "its label in production",
    "file_hash": "hash of the original file, by which duplicates are found",
    "file": "file name",
    "key": "where the file lies in the store",
    "size": "bytes",
    "etag": "version in the store",
    "source_etag": "version in production",
    "origin": "prod, or process_func that made it",
}


@run_asset(
    RECONCILED_DATA,
    deps=[experiment_snapshot, *SOURCES],
    group="data",
    kinds={"parquet"},
    description="Every label with its files: joined with production, duplicates dropped by file hash, copied into the experiment, "
    "processed by process_func, verified. The only asset that reads production. Its check production_unchanged, "
    "which new_data_sensor keeps up to date, says whether production is still what a run was made of; the assets "
    "below it are as old as what they are made of.",
)
def reconciled_data(context: dg.AssetExecutionContext) -> Results:
    """Join labels with files, and record the versions of production that were seen."""

    def step(work: Work) -> Outcome | None:
        outcome = reconciliation(work)
        if outcome is not None and outcome.how == "made":
            observe(context, outcome.inputs)
        return outcome

    def tags(outcome: Outcome) -> dict[str, str]:
        return input_tags(context.instance, str(context.partition_key), outcome.inputs)

    yield from materialize(context, RECONCILED_DATA, step, _reconciled_metadata, tags)


def _reconciled_metadata(work: Work, outcome: Outcome) -> Metadata:
    files = read_parquet(work.store.get(f"{outcome.folder}/{RECONCILED_TABLE}"))
    findings = read_findings(work)
    counts = _counts(work, outcome.folder)
    return {
        **plotted(work.place.experiment, {"documents": sum(counts.values())}),
        "labels": number(len(counts), 0),
        "files": number(files.num_rows, 0),
        "size": size(pc.sum(files["size"]).as_py() or 0),
        "dagster/column_schema": column_schema(files.schema, COLUMNS),
        "funnel": table({"stage": stage, "count": count} for stage, count in findings.funnel.items()),
        **{name: table(rows) for name, rows in findings.samples.items() if rows},
    }


def _counts(work: Work, folder: str) -> dict[str, int]:
    rows = read_parquet(work.store.get(f"{folder}/{LABEL_ROWS}"))
    return {item["values"]: item["counts"] for item in pc.value_counts(rows["label"]).to_pylist()}


@run_asset(
    LABEL_COUNTS,
    deps=[reconciled_data],
    group="data",
    kinds={"json"},
    description="How many documents each label has, before IGNORED_LABELS and NUM_LABELS_THRESHOLD leave any out.",
)
def label_counts(context: dg.AssetExecutionContext) -> Results:
    """Count the reconciled documents by label."""
    yield from materialize(context, LABEL_COUNTS, count_labels, _counts_metadata)


def _counts_metadata(work: Work, outcome: Outcome) -> Metadata:
    counts = read_counts(work)
    return {
        **plotted(work.place.experiment, {"documents": sum(counts.values())}),
        "labels": number(len(counts), 0),
        "label table": table({"label": label, "documents": count} for label, count in counts.items()),
        **pictures(
            work.store,
            outcome.folder,
            outcome.manifest,
            {LABELS_PICTURE: "documents by label"},
            made=outcome.how == "made",
        ),
    }


def files_complete(work: Work) -> Finding:
    """Every document has every file of FILES_ON_RESEARCH."""
    files = read_parquet(work.store.get(f"{work.place.reconciliation}/{RECONCILED_TABLE}"))
    guids = set(read_parquet(work.store.get(f"{work.place.reconciliation}/{LABEL_ROWS}"))["artifact_guid"].to_pylist())
    files_of: dict[str, list[str]] = {guid: [] for guid in guids}
    for guid, name in zip(files["artifact_guid"].to_pylist(), files["file"].to_pylist(), strict=True):
        files_of[guid].append(name)
    settings = work.settings
    entries = [name for name in settings.files_on_research if not is_optional(name, settings.files_optional)]
    lacking = [
        (guid, entry)
        for guid in sorted(guids)
        for entry in entries
        if not any(matches(name, entry) for name in files_of[guid])
    ]
    return Finding(
        passed=not lacking,
        text=f"missing: {counted(len(lacking), 'file')}"
        if lacking
        else f"all {len(guids)} documents have all their files",
        facts={"missing": table({"artifact_guid": g, "file": n} for g, n in lacking[:50])} if lacking else {},
        error=True,
    )


def optional_files_exist(work: Work) -> Finding:
    """Every entry of FILES_OPTIONAL matches a file of some document."""
    files = read_parquet(work.store.get(f"{work.place.reconciliation}/{RECONCILED_TABLE}"))["file"].unique().to_pylist()
    idle = [entry for entry in work.settings.files_optional if not any(matches(name, entry) for name in files)]
    return Finding(
        passed=not idle,
        text=f"no document has {', '.join(idle)} of FILES_OPTIONAL: correct or remove it"
        if idle
        else "every entry of FILES_OPTIONAL matches a file of some document",
    )


def duplicates_share(work: Work) -> Finding:
    """Few label rows are duplicates of others."""
    funnel = read_findings(work).funnel
    return _share(funnel, "duplicates", MANY_DUPLICATES, "are duplicates by file hash")


def refused_share(work: Work) -> Finding:
    """Few label rows were refused (unsafe GUIDs, labels that are none)."""
    funnel = read_findings(work).funnel
    reasons = [
        f"{count} {stage.removeprefix('refused: ')}" for stage, count in funnel.items() if stage.startswith("refused: ")
    ]
    return _share(funnel, "refused", MANY_REFUSED, "were refused" + (f" ({', '.join(reasons)})" if reasons else ""))


def _share(funnel: dict[str, int], stage: str, limit: float, what: str) -> Finding:
    rows, count = funnel.get("labels", 0), funnel.get(stage, 0)
    share = count / rows if rows else 0.0
    return Finding(
        passed=share <= limit,
        text=f"{count} of {rows} label rows ({share:.1%}) {what}; up to {limit:.0%} is expected",
    )


def remaining_labels(work: Work) -> dict[str, int]:
    """The labels that preparation keeps: neither ignored nor below the threshold."""
    settings = work.settings
    return {
        label: count
        for label, count in read_counts(work).items()
        if label not in settings.ignored_labels and count >= settings.num_labels_threshold
    }


def enough_labels(work: Work) -> Finding:
    """At least two labels remain to tell apart."""
    labels = remaining_labels(work)
    return Finding(
        passed=len(labels) >= 2,
        text=f"{counted(len(labels), 'label')} left by IGNORED_LABELS and NUM_LABELS_THRESHOLD; a classifier needs at least 2",
        error=True,
    )


def minimum_counts(work: Work) -> Finding:
    """Every remaining label has a document for each split."""
    few = {label: count for label, count in remaining_labels(work).items() if count < FEWEST_DOCUMENTS}
    return Finding(
        passed=not few,
        text=f"{counted(len(few), 'label')} with fewer than {FEWEST_DOCUMENTS} documents, too few for every split: "
        "ignore them, or set NUM_LABELS_THRESHOLD"
        if few
        else f"every label has at least {FEWEST_DOCUMENTS} documents",
        facts={"rare labels": table({"label": label, "documents": count} for label, count in few.items())}
        if few
        else {},
    )


def distinct_labels(work: Work) -> Finding:
    """No two labels look the same."""
    groups = look_alikes(read_counts(work))
    return Finding(
        passed=not groups,
        text=describe_look_alikes(groups) if groups else "all labels look different",
        facts={"look-alikes": table({"labels": " = ".join(map(repr, group))} for group in groups)} if groups else {},
    )


def ignored_labels_exist(work: Work) -> Finding:
    """Every label of IGNORED_LABELS is one that documents have."""
    idle = idle_names(work.settings.ignored_labels, read_counts(work))
    return Finding(
        passed=not idle,
        text=f"no document has {describe_idle(idle)} of IGNORED_LABELS, so that it filters nothing: correct or remove it"
        if idle
        else "documents have every label of IGNORED_LABELS",
    )


def label_balance(work: Work) -> Finding:
    """The most frequent label is not overwhelmingly more frequent than the rarest."""
    counts = remaining_labels(work).values()
    ratio = max(counts) / min(counts) if counts and min(counts) else float("inf") if counts else 1.0
    return Finding(
        passed=ratio <= IMBALANCE,
        text=f"the most frequent label has {ratio:.1f} times the documents of the rarest (more than {IMBALANCE} is a warning: "
        "consider class_weights = balanced)",
    )


def unchanged(work: Work, current: Mapping[str, str]) -> Finding:
    """Labels and files in production (`current` versions) are what this run was made of."""
    manifest = read_manifest(work.store, work.place.reconciliation)
    made_of = dict(manifest.inputs) if manifest else {}
    changed = [asset for asset, version in current.items() if made_of.get(asset) != version]
    return Finding(
        passed=not changed,
        text=describe_change(changed) if changed else "labels and files in production are what this run was made of",
    )


def _production_unchanged(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    work = work_for(context, RECONCILED_DATA)
    try:
        current = versions(work.settings, work.labels, work.production)
    except ResourceError as error:
        finding = Finding(passed=False, text=f"production could not be read: {error}")
    else:
        observe(context, current)
        finding = unchanged(work, current)
    return check_result(RECONCILED_DATA, PRODUCTION_UNCHANGED.name, finding)


with preview_features():
    production_unchanged = dg.asset_check(
        asset=reconciled_data,
        name=PRODUCTION_UNCHANGED.name,
        partitions_def=experiment_runs,
        required_resource_keys=set(RESOURCES),
        description="Labels and files in production are what this run was made of. Looks at production; never part of "
        f"run_experiment. {ABOUT_THE_LIST}",
    )(_production_unchanged)


data_checks = make_checks(
    RECONCILED_DATA,
    Check("files_complete", "Every document has every file of FILES_ON_RESEARCH.", files_complete, blocking=True),
    Check(
        "optional_files_exist", "Every entry of FILES_OPTIONAL matches a file of some document.", optional_files_exist
    ),
    Check("duplicates_share", "Few label rows are duplicates of others by file hash.", duplicates_share),
    Check("refused_share", "Few label rows were refused.", refused_share),
)
count_checks = make_checks(
    LABEL_COUNTS,
    Check("enough_labels", "At least two labels remain to tell apart.", enough_labels, blocking=True),
    Check("minimum_counts", "Every remaining label has a document for each split.", minimum_counts),
    Check("distinct_labels", "No two labels look the same (case, blanks, accents).", distinct_labels),
    Check("ignored_labels_exist", "Documents have every label of IGNORED_LABELS.", ignored_labels_exist),
    Check("label_balance", "No label is overwhelmingly more frequent than another.", label_balance),
)
