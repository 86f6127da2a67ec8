"""`python -m docml_trainer prepare`: artifacts -> encoded train, valid and test splits.

    processing/input/spec        spec.json, user_defined_funcs.py, artifacts.parquet, perhaps previous_splits.parquet
    processing/input/artifacts   <guid>/<version>/<file>
    processing/input/checkpoints parts that an earlier attempt finished (locally they lie in processing/checkpoints at once)
    processing/checkpoints       rows-…arrow, report-…json: finished parts, synced with the store while the job runs
    processing/output/result     train/ valid/ test/ label2id.json id2label.json split_metadata.json splits.parquet
                                 baseline.parquet label_suspects.parquet (unless BASELINE is false) OUTPUT.json

Three phases. `whole` does it all. `shard` encodes this host's part of the documents into `shards/<host index>/`; `merge` takes all shards
from the channel `shards`, and assigns splits. Cut into shards or not, taken up from an earlier attempt or not, the result has the same content.

DOCML_ENCODE_TIMEOUT_SECONDS (300): how long one call of encode_data or encode_batch may take before it counts as stuck.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from docml_contract import names
from docml_contract.base import digest
from docml_contract.jobs import PrepareTask
from docml_contract.log_lines import FACTS, PROGRESS, format_event
from docml_contract.manifests import JobOutput, verify_folder, write_output
from docml_trainer.container import Folders
from docml_trainer.errors import DataError, FolderError
from docml_trainer.preparation.documents import Documents, Tally, labels_too_small, read_documents
from docml_trainer.preparation.parts import KeptParts, identify
from docml_trainer.preparation.pool import BATCH, encode, stuck_seconds
from docml_trainer.preparation.splits import SplitAssignment, assign
from docml_trainer.preparation.worker import EncodingPlan

COMMAND = "prepare"
SHARD = "shard.json"


@dataclass(frozen=True)
class Shard:
    """Encoded rows of a contiguous part of the documents, and how they came about."""

    rows: list[Path]
    positions: range
    features: dict[str, Any]
    near_duplicate_feature: str | None
    tally: dict[str, Any]
    seconds: float
    processes: int


def main(folders: Folders) -> None:
    """Run the phase that the spec asks for."""
    started = time.monotonic()
    task = folders.spec().task
    if not isinstance(task, PrepareTask):
        raise FolderError(f"the spec's task is {task.command!r}; expected 'prepare'")
    documents = read_documents(folders.channel("spec") / names.ARTIFACTS_TABLE, task)
    _report_selection(documents, task)
    scratch = folders.base / "processing" / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    kept = KeptParts(scratch, folders.checkpoints, folders.channel("checkpoints"), identify(folders))
    try:
        if task.phase == "shard":
            _shard(folders, task, documents, kept)
        elif task.phase == "merge":
            shards = _read_shards(folders.channel("shards"), documents)
            _finish(folders, task, documents, shards, kept, started)
        else:
            shard = _encode(folders, task, documents, range(len(documents)), kept)
            _finish(folders, task, documents, [shard], kept, started)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _report_selection(documents: Documents, task: PrepareTask) -> None:
    print(
        f"{len(documents):,} documents with {len(documents.label_names)} labels; dropped: {documents.dropped}",
        flush=True,
    )
    for label, count in labels_too_small(documents, task.split).items():
        print(
            f"warning: label {label!r} has {count} independent documents, too few to appear in every split; "
            "add documents, or leave the label out with IGNORED_LABELS or NUM_LABELS_THRESHOLD",
            flush=True,
        )


def _encode(folders: Folders, task: PrepareTask, documents: Documents, positions: range, kept: KeptParts) -> Shard:
    processes = task.processes or len(os.sched_getaffinity(0))
    plan = EncodingPlan(
        functions=folders.user_functions,
        artifacts=folders.channel("artifacts"),
        prefix=folders.prefix_of("artifacts"),
        task=task,
        label_names=documents.label_names,
        batch=BATCH,
        parallel_tokenizer=processes == 1,
    )
    started = time.monotonic()

    def progress(done: int, total: int) -> None:
        print(format_event(PROGRESS, what="encoding", done=done, total=total, unit="documents"), flush=True)

    parts = encode(
        documents,
        positions,
        plan,
        kept,
        processes=processes,
        stuck_seconds=stuck_seconds(),
        progress=progress,
    )

    reports = [part.read_report() for part in parts]
    tally = Tally()
    for report in reports:
        tally.add(Tally.from_json(report["tally"]))
    return Shard(
        rows=[part.rows for part in parts],
        positions=positions,
        features=reports[0]["features"],
        near_duplicate_feature=reports[0]["near_duplicate_feature"],
        tally=tally.to_json(),
        seconds=time.monotonic() - started,
        processes=processes,
    )


# --- several hosts


def _shard(folders: Folders, task: PrepareTask, documents: Documents, kept: KeptParts) -> None:
    """Encode this host's part. Every host leaves its own OUTPUT.json in its folder; the first one's stands for the job."""
    hosts = folders.resource_config()
    folder = folders.output / "shards" / str(hosts.index)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shard = _encode(folders, task, documents, documents.part(hosts.index, len(hosts.hosts)), kept)
    for path in shard.rows:
        _link_or_copy(path, folder / path.name)
    content = {
        "documents": documents.digest,
        "hosts": len(hosts.hosts),
        "positions": [shard.positions.start, shard.positions.stop],
        "features": shard.features,
        "near_duplicate_feature": shard.near_duplicate_feature,
        "tally": shard.tally,
        "seconds": shard.seconds,
        "processes": shard.processes,
    }
    (folder / SHARD).write_text(json.dumps(content), encoding="utf-8")
    facts = {"shard": hosts.index, "shards": len(hosts.hosts), "documents": len(shard.positions)}
    version = digest(["shard", documents.digest, content["positions"]])
    write_output(folder, COMMAND, version, facts)
    if hosts.index == 0:
        write_output(folders.output, COMMAND, version, facts)


def _link_or_copy(source: Path, target: Path) -> None:
    """The same rows in two folders that are uploaded: once on the disk, where both lie on one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _read_shards(channel: Path, documents: Documents) -> list[Shard]:
    """All shards, in order. DataError if one is missing, incomplete, or made from other documents."""
    folders = sorted((path.parent for path in channel.glob(f"**/{SHARD}")), key=lambda path: int(path.name))
    shards = []
    hosts = 0
    for folder in folders:
        output = JobOutput.from_bytes((folder / names.OUTPUT).read_bytes(), str(folder / names.OUTPUT))
        verify_folder(folder, output.files)
        content = json.loads((folder / SHARD).read_text(encoding="utf-8"))
        if content["documents"] != documents.digest:
            raise DataError(
                f"{folder}: made from other documents than {names.ARTIFACTS_TABLE} lists; expected the same table"
            )
        hosts = content["hosts"]
        shards.append(
            Shard(
                rows=sorted(folder.glob("rows-*.arrow")),
                positions=range(*content["positions"]),
                features=content["features"],
                near_duplicate_feature=content["near_duplicate_feature"],
                tally=content["tally"],
                seconds=content["seconds"],
                processes=content["processes"],
            )
        )
    if not shards or [path.name for path in folders] != [str(index) for index in range(hosts)]:
        raise DataError(f"{channel}: found shards {[path.name for path in folders]}, expected 0 to {max(hosts, 1) - 1}")
    return shards


# --- the end of `whole` and of `merge`


def _finish(
    folders: Folders, task: PrepareTask, documents: Documents, shards: list[Shard], kept: KeptParts, started: float
) -> None:
    import datasets

    from docml_trainer.preparation import metadata, rows

    datasets.disable_progress_bars()
    tally = Tally()
    for shard in shards:
        tally.add(Tally.from_json(shard.tally))
    _check_failures(tally, len(documents), task.max_failed_share, kept)
    files = [file for shard in shards for file in shard.rows]
    declared = datasets.Features.from_dict(shards[0].features)
    feature = shards[0].near_duplicate_feature
    compared = task.near_duplicate_threshold < 1 and feature is not None
    found = rows.read_overview(files, declared, task.model_names, signed=compared)
    if not len(found.positions):
        raise DataError(f"no document is left: encode_data returned None for all; dropped {tally.returned_none}")
    guids, labels, groups = (
        [column[position] for position in found.positions]
        for column in (documents.guids, documents.labels, documents.groups)
    )
    assignment = assign(task, guids, labels, groups, found.signatures, _read_previous_splits(folders))
    splits = {int(position): split for position, split in zip(found.positions, assignment.splits, strict=True) if split}
    stored = rows.stored_features(declared, found.limits, documents.label_names)
    version = rows.data_version(documents, found, splits, stored)
    rows.write_splits(files, documents, splits, stored, folders.output, version)
    _write_tables(folders.output, documents.label_names, assignment)
    column = _token_column(task, feature, declared)
    fitted = _fit_baseline(folders.output, task, column, assignment, documents.label_names)
    done = metadata.Preparation(
        task, documents, tally, found, assignment, feature if compared else None, stored, fitted
    )
    seconds = max(shard.seconds for shard in shards) if task.phase == "merge" else time.monotonic() - started
    content = metadata.describe_preparation(done, folders.output, seconds, [shard.processes for shard in shards])
    (folders.output / names.SPLIT_METADATA).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    facts = metadata.summarize(content)
    print(format_event(FACTS, **facts), flush=True)
    write_output(folders.output, COMMAND, version, facts)


def _token_column(task: PrepareTask, feature: str | None, declared: Mapping[str, Any]) -> str | None:
    """The column of the tokens: in a comparison it has the prefix of the first model that has them."""
    columns = (f"{names.column_prefix(model, task.model_names)}{feature}" for model in task.model_names)
    return next((column for column in columns if column in declared), None)


def _fit_baseline(
    output: Path, task: PrepareTask, column: str | None, assignment: SplitAssignment, label_names: tuple[str, ...]
) -> dict[str, Any]:
    """Write baseline.parquet and label_suspects.parquet, where they are wanted and possible; what split_metadata.json says of them."""
    if not task.baseline:
        return {"none": "BASELINE is false"}
    from docml_trainer.preparation.baseline import fit_baseline
    from docml_trainer.preparation.learning_curve import estimate_curve
    from docml_trainer.preparation.near_duplicates import nearest_train
    from docml_trainer.preparation.suspects import list_suspects

    print("fitting the baseline", flush=True)
    baseline = fit_baseline(output, column, assignment, label_names)
    if isinstance(baseline, str):
        return {"none": baseline}
    pq.write_table(baseline.table, output / names.BASELINE_TABLE)
    suspects, found = list_suspects(
        baseline.documents, baseline.probabilities, baseline.weighted, label_names, baseline.chance
    )
    pq.write_table(suspects, output / names.SUSPECTS_TABLE)
    return {
        **baseline.facts,
        "suspects": found,
        "learning_curve": estimate_curve(baseline, label_names),
        "nearest_train": nearest_train(baseline.weighted, baseline.documents.splits),
    }


def _check_failures(tally: Tally, documents: int, allowed: float, kept: KeptParts) -> None:
    failed = sum(tally.failed.values())
    for failure in tally.failures:
        print(f"failed: {failure}", flush=True)
    if failed > allowed * documents:
        kept.note_too_many_failed()
        raise DataError(
            f"{failed:,} of {documents:,} documents could not be encoded ({failed / documents:.2%}, allowed by MAX_FAILED_SHARE: "
            f"{allowed:.2%}), by label {tally.failed}. The first: {tally.failures[0]}"
        )


def _read_previous_splits(folders: Folders) -> Mapping[str, str]:
    """Split by GUID, as earlier runs assigned them; {} for a first run."""
    path = folders.channel("spec") / names.PREVIOUS_SPLITS
    if not path.is_file():
        return {}
    table = pq.read_table(path, columns=["artifact_guid", "split"])
    return dict(zip(table["artifact_guid"].to_pylist(), table["split"].to_pylist(), strict=True))


def _write_tables(output: Path, label_names: tuple[str, ...], assignment: SplitAssignment) -> None:
    ids = {label: index for index, label in enumerate(label_names)}
    for name, content in ((names.LABEL2ID, ids), (names.ID2LABEL, {str(index): label for label, index in ids.items()})):
        (output / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    pq.write_table(assignment.to_table(), output / names.SPLITS_TABLE)
