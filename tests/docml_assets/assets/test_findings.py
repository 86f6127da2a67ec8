"""The checks' plain functions, on artifacts that are wrong."""

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from docml_assets.assets.preparation import every_label_everywhere, splits_not_empty, truncation_share
from docml_assets.assets.reconciliation import (
    distinct_labels,
    duplicates_share,
    enough_labels,
    files_complete,
    ignored_labels_exist,
    label_balance,
    minimum_counts,
    optional_files_exist,
    refused_share,
)
from docml_assets.assets.training import not_diverged, traced_equals_eager
from docml_assets.steps.preparation import read_prepared, run_preparation
from docml_assets.steps.reconciliation import FINDINGS, FindingsDocument, label_counts, reconciliation
from docml_assets.steps.training import run_training
from docml_assets.steps.work import Work
from docml_assets.tables import parquet_bytes, read_parquet
from docml_contract.names import COUNTS_BY_LABEL, HISTORY, RECONCILED_TABLE, SPLIT_METADATA, SPLITS_TABLE, STATISTICS
from tests.docml_assets.world import World


@pytest.fixture
def work(world: World) -> Work:
    world.write_experiment(num_labels_threshold=2, ignored_labels="noise")
    work = world.work(world.claim(1))
    reconciliation(work)
    label_counts(work)
    run_preparation(work)
    run_training(work)
    return work


def rewrite(work: Work, key: str, **changes: Any) -> None:
    content = json.loads(work.store.get(key))
    content.update(changes)
    work.store.put(key, json.dumps(content).encode())


def test_a_missing_file_is_an_error_that_names_it(work: Work) -> None:
    key = f"{work.place.reconciliation}/{RECONCILED_TABLE}"
    assert files_complete(work).passed
    work.store.put(key, parquet_bytes(read_parquet(work.store.get(key)).slice(1)))
    found = files_complete(work)
    assert (found.passed, found.error) == (False, True)
    assert "missing: 1 file" in found.text


def test_files_by_pattern_are_complete_with_one_and_optional_ones_without(world: World) -> None:
    pages = {"files_from_prod": "raw_text.json, page_*.png, scan_?.tif", "files_optional": "scan_*"}
    world.write_experiment(**pages)
    for guid in world.deployment.production.list_folders():
        world.deployment.production.put(f"{guid}/page_1.png", b"")
    work = world.work(world.claim(1))
    reconciliation(work)
    assert files_complete(work).passed
    key = f"{work.place.reconciliation}/{RECONCILED_TABLE}"
    rows = read_parquet(work.store.get(key))
    work.store.put(key, parquet_bytes(rows.filter([name != "page_1.png" for name in rows["file"].to_pylist()])))
    assert "missing: 24 files" in files_complete(work).text


def test_many_duplicates_or_refusals_are_a_warning(work: Work) -> None:
    funnel = {"labels": 100, "duplicates": 31, "refused": 2}
    work.store.put(f"{work.place.reconciliation}/{FINDINGS}", FindingsDocument(funnel=funnel, samples={}).to_bytes())
    assert not duplicates_share(work).passed
    assert "2 of 100 label rows (2.0%) were refused" in refused_share(work).text
    assert not refused_share(work).error
    funnel |= {"refused: label is NULL": 2}
    work.store.put(f"{work.place.reconciliation}/{FINDINGS}", FindingsDocument(funnel=funnel, samples={}).to_bytes())
    assert "were refused (2 label is NULL)" in refused_share(work).text


@pytest.mark.parametrize(
    ("counts", "enough", "minimum", "balance"),
    [
        ({"a": 10, "b": 5}, True, True, True),
        ({"a": 10, "noise": 5, "rare": 1}, False, True, True),
        ({"a": 10, "b": 2}, True, False, True),
        ({"a": 510, "b": 10}, True, True, False),
        ({}, False, True, True),
    ],
)
def test_labels(work: Work, counts: dict[str, int], enough: bool, minimum: bool, balance: bool) -> None:
    work.store.put(f"{work.place.labels}/{COUNTS_BY_LABEL}", json.dumps(counts).encode())
    assert (enough_labels(work).passed, minimum_counts(work).passed, label_balance(work).passed) == (
        enough,
        minimum,
        balance,
    )
    assert enough_labels(work).error


def test_labels_that_look_alike_are_named(work: Work) -> None:
    assert distinct_labels(work).passed
    counts = {"invoice": 3, "Invoice": 2, "invoice ": 2, "Caf\u00e9": 1, "cafe\u0301": 1, "memo": 4, "memos": 1}
    work.store.put(f"{work.place.labels}/{COUNTS_BY_LABEL}", json.dumps(counts).encode())
    found = distinct_labels(work)
    assert (found.passed, found.error) == (False, False)
    assert "2 groups" in found.text
    assert "'Invoice' = 'invoice' = 'invoice '" in found.text


def test_names_that_filter_nothing_are_said(world: World) -> None:
    world.write_experiment(ignored_labels="Letter, unheard", files_optional="raw_text.json")
    work = world.work(world.claim(1))
    work.store.put(f"{work.place.labels}/{COUNTS_BY_LABEL}", json.dumps({"letter": 3, "invoice": 2}).encode())
    found = ignored_labels_exist(work)
    assert (found.passed, found.error) == (False, False)
    assert "'Letter' (did you mean 'letter'?), 'unheard' of IGNORED_LABELS" in found.text


def test_optional_files_that_nobody_has_are_said(work: Work) -> None:
    assert optional_files_exist(work).passed
    settings = work.settings.model_copy(update={"files_optional": ("raw_text.json", "page_*.png")})
    found = optional_files_exist(replace(work, settings=settings))
    assert (found.passed, "page_*.png of FILES_OPTIONAL" in found.text) == (False, True)


def test_splits(work: Work) -> None:
    key = f"{read_prepared(work).folder}/{SPLIT_METADATA}"
    rewrite(work, key, documents={"train": 30, "valid": 10, "test": 0}, labels={"train": {"a": 30}, "valid": {"b": 10}})
    empty = splits_not_empty(work)
    assert (empty.passed, empty.error) == (False, True)
    assert "test" in empty.text
    assert "missing from a split: 2 labels" in every_label_everywhere(work).text
    rewrite(work, key, documents={"train": 90, "valid": 5, "test": 5})
    assert not splits_not_empty(work).passed
    assert not splits_not_empty(work).error


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("group", "20 of 24 documents have one value of SPLIT_BY = customer and stay in one split"),
        ("near_duplicate_group", "20 of 24 documents are near-duplicates of one another (NEAR_DUPLICATE_THRESHOLD = 1"),
    ],
)
def test_what_keeps_documents_together_is_said_of_empty_splits(world: World, column: str, reason: str) -> None:
    world.write_experiment(split_by="customer")
    work = world.work(world.claim(1))
    reconciliation(work)
    run_preparation(work)
    folder = read_prepared(work).folder
    assert "stay in one split" not in splits_not_empty(work).text
    rows = read_parquet(work.store.get(f"{folder}/{SPLITS_TABLE}")).to_pylist()
    for index, row in enumerate(rows):
        row |= {"group": None, "near_duplicate_group": None} | ({column: "one"} if index < 20 else {})
    work.store.put(f"{folder}/{SPLITS_TABLE}", parquet_bytes(pa.Table.from_pylist(rows)))
    rewrite(work, f"{folder}/{SPLIT_METADATA}", documents={"train": 24, "valid": 0, "test": 0})
    assert splits_not_empty(work).text.startswith(f"valid, test without documents: {reason}")


def test_truncation(work: Work) -> None:
    assert truncation_share(work).passed
    key = f"{read_prepared(work).folder}/{SPLIT_METADATA}"
    rewrite(work, key, models={"one": {"truncated_share": 0.7}, "two": {"truncated_share": "not reported"}})
    found = truncation_share(work)
    assert not found.passed
    assert "two: truncation is not reported" in found.text


def test_a_trace_that_differs_is_an_error(work: Work) -> None:
    key = f"{work.place.trained('small', tuned=False)}/{STATISTICS}"
    rewrite(work, key, export={"tolerance": 1e-4, "fixed_shape": None, "relative_difference": {"batch 2": 0.5}})
    found = traced_equals_eager(work)
    assert (found.passed, found.error) == (False, True)
    assert "batch 2: off by 0.5" in found.text


@pytest.mark.parametrize(("losses", "passed"), [([2.0, 1.0], True), ([1.0], True), ([1.0, 1.5], False)])
def test_divergence(work: Work, losses: list[float], passed: bool) -> None:
    history = [{"train_loss": loss} for loss in losses]
    work.store.put(f"{work.place.trained('small', tuned=False)}/{HISTORY}", json.dumps(history).encode())
    assert not_diverged(work).passed is passed
