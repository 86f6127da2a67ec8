"""encoded_splits: the documents as features, in train, valid and test splits.

Prepared data belong to the experiment, `data/prepared_data/<ENCODED_DATA_DIR>/<key>/`; a run says in `preparation/prepared.json`
which it uses. Equal inputs (`preparation_key`) give equal data, so that a run whose preparation would repeat an earlier one launches
no job.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from docml_assets.experiment.source import functions_digest
from docml_assets.steps import specs
from docml_assets.steps.reconciliation import read_units, restore_artifacts
from docml_assets.steps.reuse import (
    find_finished,
    nothing_to_reuse,
    read_previous_splits,
    read_required,
    reused_outcome,
    take_earlier,
)
from docml_assets.steps.work import Outcome, Work
from docml_assets.tables import parquet_bytes, read_parquet
from docml_contract.base import IncompleteArtifact, UnreadableDocument, digest, short
from docml_contract.file_names import matches
from docml_contract.jobs import Channel, RecordedFiles
from docml_contract.manifests import Manifest, PreparedData, cache_key
from docml_contract.names import (
    ARTIFACTS_TABLE,
    ENCODED_SPLITS,
    ID2LABEL,
    INFERENCE,
    LABEL_ROWS,
    LABELS_PICTURE,
    PREPARATION,
    PREPARED,
    PREVIOUS_SPLITS,
    RECONCILED_DATA,
    RECONCILED_TABLE,
    SPLIT_METADATA,
    TRAINING,
    TUNING,
    USER_FUNCTIONS,
)
from docml_contract.units import document_guid, files_of_unit
from resources.jobs.interface import JobResult
from resources.label_values import column_named
from resources.store.manifests import check_finished, is_damaged, read_manifest, read_recorded

# What of user_defined_funcs.py decides the encoded rows.
ENCODING_NAMES = ("get_dataset_features", "encode_data", "encode_batch", "PADDING")


def run_preparation(work: Work) -> Outcome | None:
    """Encode and split. None where the step is not performed, nothing fits and nothing needs it."""
    own = work.place.preparation
    done = find_finished(work, own)
    if done is not None:
        note = read_prepared(work)
        manifest = read_manifest(work.store, note.folder)
        if manifest is None:
            return _make_again(work, done, note)
        check_finished(work.store, manifest, note.folder)
        return done
    if not work.performs(PREPARATION) and not _needed(work) and not _reconciled(work):
        return None
    reconciled = read_required(work, work.place.reconciliation, RECONCILED_DATA)
    rows = _reconciled_table(work, LABEL_ROWS)
    key = preparation_key(work, reconciled, rows)
    if not work.performs(PREPARATION):
        return _skip(work, key)
    found = _find(work, key)
    if found is not None:
        return _use(work, *found)
    return _make(work, reconciled, rows, key)


def read_prepared(work: Work) -> PreparedData:
    """Which prepared data this run uses; NotReady before the step is finished."""
    manifest = read_required(work, work.place.preparation, ENCODED_SPLITS)
    content = read_recorded(work.store, work.place.preparation, manifest.file(PREPARED))
    return PreparedData.from_bytes(content, work.store.uri(f"{work.place.preparation}/{PREPARED}"))


def read_labels(work: Work) -> list[str]:
    """The labels of the run's prepared data in the order of their ids."""
    entry = read_prepared_manifest(work).file(ID2LABEL)
    by_id: dict[str, str] = json.loads(read_recorded(work.store, read_prepared(work).folder, entry))
    return [label for _, label in sorted(by_id.items(), key=lambda item: int(item[0]))]


def read_prepared_manifest(work: Work) -> Manifest:
    """The manifest of the prepared data that this run uses."""
    folder = read_prepared(work).folder
    manifest = read_manifest(work.store, folder)
    if manifest is None:
        raise IncompleteArtifact(
            f"{work.describe()} uses the prepared data in {work.store.uri(folder)}, which have no manifest any more: restore the "
            f"folder, or materialize {ENCODED_SPLITS} of this run again, which makes them anew"
        )
    return manifest


def recorded_data(work: Work) -> RecordedFiles:
    """What the files of the run's prepared data hold, for the jobs that read them."""
    return RecordedFiles(folder=read_prepared(work).folder, files=read_prepared_manifest(work).files)


def preparation_key(work: Work, reconciled: Manifest, rows: pa.Table) -> str:
    """Hash of everything that decides the encoded rows and, for a first run, their splits."""
    settings = work.settings
    groups = (
        sorted(zip(rows["artifact_guid"].to_pylist(), _groups(work, rows), strict=True)) if settings.split_by else None
    )
    return cache_key(
        ENCODED_SPLITS,
        functions=functions_digest(work.functions_source, ENCODING_NAMES),
        model_names=list(settings.model_names),
        hyperparameters=settings.own_hyperparameters,
        **({"model_hyperparameters": by_model} if (by_model := settings.own_model_hyperparameters) else {}),
        model_input_files=sorted(settings.model_input_files),
        **({"optional_files": optional} if (optional := sorted(settings.optional_input_files)) else {}),
        ignored_labels=sorted(settings.ignored_labels),
        num_labels_threshold=settings.num_labels_threshold,
        max_artifacts=settings.max_artifacts,
        near_duplicate_threshold=settings.near_duplicate_threshold,
        split=list(settings.split),
        split_seed=settings.split_seed,
        split_by=settings.split_by,
        max_failed_share=settings.max_failed_share,
        reconciled=reconciled.data_version,
        groups=digest(groups),
    )


def _needed(work: Work) -> bool:
    return any(work.performs(step) for step in (TRAINING, TUNING, INFERENCE))


def _reconciled(work: Work) -> bool:
    return read_manifest(work.store, work.place.reconciliation) is not None


def _skip(work: Work, key: str) -> Outcome | None:
    own = work.place.preparation
    taken = take_earlier(
        work, lambda place: {"": place.preparation}, {"": own}, lambda found: found[""].cache_key == key
    )
    if taken is not None:
        check_finished(work.store, read_prepared_manifest(work), read_prepared(work).folder)
        return reused_outcome(ENCODED_SPLITS, taken, {"": own}, taken[""].data_version)
    if _needed(work):
        raise nothing_to_reuse(work, PREPARATION, "made of the same data with the same functions and settings")
    return None


def _find(work: Work, key: str) -> tuple[Manifest, str] | None:
    """Prepared data with an equal key that are complete; damaged ones are passed over, and said."""
    parent = work.place.shared.prepared_data(work.settings.encoded_data_dir)
    for name in work.store.list_folders(parent):
        folder = f"{parent}/{name}"
        try:
            manifest = read_manifest(work.store, folder)
            if manifest is None or manifest.cache_key != key:
                continue
            check_finished(work.store, manifest, folder)
        except (IncompleteArtifact, UnreadableDocument) as error:
            work.reporter.say(f"prepared data cannot be reused: {error}")
            continue
        return manifest, folder
    return None


def _make(work: Work, reconciled: Manifest, rows: pa.Table, key: str) -> Outcome:
    previous = read_previous_splits(work)
    inputs = {RECONCILED_DATA: reconciled.data_version}
    results = tuple(_jobs(work, rows, previous, inputs))
    assigned = digest(previous.select(["artifact_guid", "split"]).to_pylist()) if previous is not None else None
    parent = work.place.shared.prepared_data(work.settings.encoded_data_dir)
    folder = f"{parent}/{short(digest([key, assigned]))}"
    if is_damaged(work.store, folder):  # it stays as it is: somebody may want to look at it
        folder = f"{parent}/{short(digest([key, assigned, work.place.number]))}"
    version = results[-1].output.data_version
    manifest = work.publish(ENCODED_SPLITS, folder, results[-1], cache_key=key, data_version=version, inputs=inputs)
    _forget_parts(work)
    return _use(work, manifest, folder, jobs=results)


def _make_again(work: Work, done: Outcome, note: PreparedData) -> Outcome:
    """Prepared data that vanished after the run had recorded them: equal inputs give equal data, in the same place."""
    work.reporter.say(f"the prepared data in {work.store.uri(note.folder)} are gone: they are made again")
    rows = _reconciled_table(work, LABEL_ROWS)
    results = tuple(_jobs(work, rows, read_previous_splits(work), done.inputs))
    version = results[-1].output.data_version
    if version != note.data_version:
        raise IncompleteArtifact(
            f"{work.describe()}: the prepared data in {work.store.uri(note.folder)} are gone, and what was made again differs from them "
            "(earlier runs' assignments are gone too, or the encoder's libraries changed): restore the folder, or take the next run number"
        )
    work.publish(
        ENCODED_SPLITS,
        note.folder,
        results[-1],
        cache_key=done.manifest.cache_key,
        data_version=version,
        inputs=done.inputs,
        made_by_run=note.made_by_run,
    )
    _forget_parts(work)
    return replace(done, how="made", why="encoded and split again", jobs=results)


def _jobs(work: Work, rows: pa.Table, previous: pa.Table | None, inputs: Mapping[str, str]) -> Iterator[JobResult]:
    """One job, or a sharded one and the merge of its shards."""
    files = {
        USER_FUNCTIONS: work.functions_source.encode(),
        ARTIFACTS_TABLE: parquet_bytes(_artifacts(work, rows)),
        **({PREVIOUS_SPLITS: parquet_bytes(previous)} if previous is not None else {}),
    }
    sharded = work.settings.preparation_instance_count > 1
    table = read_parquet(files[ARTIFACTS_TABLE])
    channel = Channel(
        name="artifacts",
        prefix=work.place.shared.reconciled_artifacts,
        files=tuple(table["path"].drop_null().to_pylist()),
    )
    spec = specs.preparation_spec(
        work, phase="shard" if sharded else "whole", channel=channel, files=files, inputs=inputs
    )
    result = work.jobs.run(spec, files, holder=work.holder, listener=work.reporter.listener(None))
    yield result
    if sharded:
        shards = Channel(name="shards", prefix=result.output_prefix)
        spec = specs.preparation_spec(work, phase="merge", channel=shards, files=files, inputs=inputs)
        yield work.jobs.run(spec, files, holder=work.holder, listener=work.reporter.listener(None))


def _forget_parts(work: Work) -> None:
    """Delete what the jobs kept for a next attempt."""
    work.store.delete([stored.key for stored in work.store.list(work.place.encoded_parts)])


def _use(work: Work, manifest: Manifest, folder: str, jobs: tuple[JobResult, ...] = ()) -> Outcome:
    """Record in the run which prepared data it uses; `jobs`: those that have just made them."""
    own = work.place.preparation
    note = PreparedData(folder=folder, made_by_run=manifest.run, data_version=manifest.data_version)
    recorded = work.publish(
        ENCODED_SPLITS,
        own,
        {PREPARED: note.to_bytes(), **_pictures(work, folder)},
        cache_key=manifest.cache_key,
        data_version=manifest.data_version,
        inputs=manifest.inputs,
        made_by_run=manifest.run,
    )
    found = f"prepared data with the same inputs exist (made by run {manifest.run}); no job was launched"
    why = "encoded and split" if jobs else found
    return Outcome.of(work, recorded, own, how="made" if jobs else "reused", why=why, jobs=jobs)


def _pictures(work: Work, folder: str) -> dict[str, bytes]:
    """Documents by label and split, and every model's token lengths where they are known."""
    from docml_assets.report.plots import length_histogram, stacked_bars

    found = json.loads(work.store.get(f"{folder}/{SPLIT_METADATA}"))
    pictures = {LABELS_PICTURE: stacked_bars(found["labels"], "documents by label and split")}
    for model, facts in found["models"].items():
        if histogram := (facts["token_lengths"] or {}).get("histogram"):
            pictures[lengths_picture(model)] = length_histogram(histogram["edges"], histogram["counts"])
    return pictures


def lengths_picture(model: str) -> str:
    """The file name of a model's histogram of token lengths."""
    return f"token_lengths_{model}.png"


def _artifacts(work: Work, rows: pa.Table) -> pa.Table:
    """artifacts.parquet: one row a file that encode_data gets (artifact_guid, label, group, file, path, etag), in a fixed order.

    Where units are the documents, artifact_guid names artifact and unit.

    An artifact that lacks all of these files, which are optional then, has a row without file, path and etag.
    """
    table = _reconciled_table(work, RECONCILED_TABLE)
    restore_artifacts(work, table)
    present = table["file"].unique().to_pylist()
    wanted = [file for file in present if any(matches(file, entry) for entry in work.settings.model_input_files)]
    everyone = table.select(["artifact_guid", "label"])
    table = table.filter(pc.is_in(table["file"], value_set=pa.array(wanted, pa.string())))
    table = pa.concat_tables([table, _without_files(everyone, table)], promote_options="default")
    table = table.sort_by([("artifact_guid", "ascending"), ("file", "ascending")])
    group_of = dict(zip(rows["artifact_guid"].to_pylist(), _groups(work, rows), strict=True))
    prefix = len(work.place.shared.reconciled_artifacts) + 1
    guids, labels = table["artifact_guid"].cast(pa.string()), table["label"].cast(pa.string())
    group = pa.array([group_of.get(guid) for guid in table["artifact_guid"].to_pylist()], pa.string())
    if (units := read_units(work)) is not None:
        taken, guids, labels = _of_units(work, table, units)
        table, group = table.take(taken), group.take(taken)
    return pa.table(
        {
            "artifact_guid": guids,
            "label": labels,
            "group": group,
            "file": table["file"].cast(pa.string()),
            "path": pa.array([key and key[prefix:] for key in table["key"].to_pylist()], pa.string()),
            "etag": table["etag"].cast(pa.string()),
        }
    )


def _of_units(work: Work, table: pa.Table, units: pa.Table) -> tuple[pa.Array, pa.Array, pa.Array]:
    """A row a file of each unit: the number of the file's row in `table`, the unit's GUID as a document, and its label."""
    row_of: dict[str, dict[str, int]] = {}
    for row, (guid, file) in enumerate(zip(table["artifact_guid"].to_pylist(), table["file"].to_pylist(), strict=True)):
        row_of.setdefault(guid, {})[file] = row
    entries = work.settings.model_input_files
    found = sorted(
        (document_guid(guid, unit), file, row_of[guid][file], label)
        for guid, unit, label in zip(*(units[name].to_pylist() for name in units.column_names), strict=True)
        for file in files_of_unit(row_of[guid], entries, unit)
    )
    guids, _, rows, labels = zip(*found, strict=True)
    return pa.array(rows, pa.int64()), pa.array(guids, pa.string()), pa.array(labels, pa.string())


def _reconciled_table(work: Work, name: str) -> pa.Table:
    """A table of the reconciled data, which holds what was written."""
    manifest = read_required(work, work.place.reconciliation, RECONCILED_DATA)
    return read_parquet(read_recorded(work.store, work.place.reconciliation, manifest.file(name)))


def _without_files(everyone: pa.Table, found: pa.Table) -> pa.Table:
    """The artifacts, once each, of which `found` has no file."""
    absent = pc.invert(pc.is_in(everyone["artifact_guid"], value_set=found["artifact_guid"]))
    left = everyone.filter(absent).group_by("artifact_guid").aggregate([("label", "min")])
    return left.rename_columns(["artifact_guid", "label"])


def _groups(work: Work, rows: pa.Table) -> list[str | None]:
    """The SPLIT_BY value of every label row, as text."""
    if work.settings.split_by is None:
        return [None] * rows.num_rows
    column = column_named(rows.column_names, work.settings.split_by)
    assert column is not None, "reconciliation refuses a query without it"
    return [None if value is None else str(value) for value in rows[column].to_pylist()]
