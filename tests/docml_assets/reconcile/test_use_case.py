"""Use cases at work on label rows, in real worker processes."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from docml_assets.experiment.use_case import UseCase
from docml_assets.reconcile import use_case as applying
from docml_assets.reconcile.findings import ReconciliationError, ReconciliationFindings
from docml_assets.reconcile.use_case import apply_use_case
from tests.docml_assets.reconcile.scene import build, guids

ENVIRONMENT = {"PATH": os.environ["PATH"]}
TABLE = pa.table(
    {
        "ARTIFACT_GUID": ["a", "b", "c", "d", "d"],
        "label": ["Invoice", "invoice", "letter", "junk", "junk"],
        "file_hash": ["1", "2", None, "4", "4"],
        "pages": [1, 2, 3, 4, 4],
    }
)
MERGE = """
def labels(table):
    assert list(table.columns) == ["artifact_guid", "label", "file_hash", "pages"]
    table["label"] = table.label.str.lower()
    return table[table.label != "junk"].assign(site="x")
"""


def apply(text: str, name: str = "./use_case.py", timeout: float = 100) -> tuple[pa.Table, ReconciliationFindings]:
    findings = ReconciliationFindings()
    return apply_use_case(UseCase(name=name, text=text), ENVIRONMENT, TABLE, findings, timeout), findings


def test_labels_merges_drops_and_adds_columns_and_is_counted() -> None:
    table, findings = apply(MERGE)
    assert table.column_names == ["artifact_guid", "label", "file_hash", "pages", "site"]
    assert table["label"].to_pylist() == ["invoice", "invoice", "letter"]
    assert table["file_hash"].to_pylist() == ["1", "2", None]
    assert findings.funnel == {
        "use case: rows in": 5,
        "use case: rows out": 3,
        "use case: artifacts relabelled": 1,
        "use case: artifacts dropped": 1,
    }
    assert findings.problems["relabelled"].to_pylist() == [
        {"label": "Invoice", "becomes": "invoice", "artifacts": "1"},
        {"label": "junk", "becomes": None, "artifacts": "1"},
    ]


def test_mapped_renames_and_leaves_out_and_lists_what_it_does_not_know() -> None:
    table, findings = apply("label,becomes\ninvoice,Invoice\njunk,\n", "mapped")
    assert table["label"].to_pylist() == ["Invoice", "Invoice", "letter"]
    assert findings.funnel["use case: artifacts dropped"] == 1
    assert findings.funnel["use case: labels not in labels.csv"] == 2
    assert findings.problems["not_mapped"]["label"].to_pylist() == ["Invoice", "letter"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise ValueError('no labels today')", "labels of the use case ./use_case.py: ValueError: no labels today"),
        (
            "return table.drop(columns='label')",
            "returned the columns artifact_guid, file_hash, pages; expected label too",
        ),
        ("return None or 5", "returned int; expected a pandas DataFrame"),
        ("return pandas.concat([table, table])", "returned 2 rows for 'a', of which it got 1"),
        ("return table.assign(artifact_guid='new')", "rows for 'new', which LABELS_QUERY does not yield"),
        ("return table.assign(unit=1)", "returned a column unit"),
        ("print('x' * 3_000_000); return table", "it printed or wrote more than 2 MB"),
        ("os._exit(3)\n    return table", "the worker process died (exit code 3) in labels"),
        ("import nowhere\n    return table", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_what_is_wrong_is_one_message(monkeypatch: pytest.MonkeyPatch, body: str, expected: str) -> None:
    monkeypatch.setattr(applying, "ROOM_BYTES", 2_000_000)
    with pytest.raises(ReconciliationError) as caught:
        apply(f"import os, pandas\n\ndef labels(table):\n    {body}\n")
    assert expected in str(caught.value)


def test_one_that_runs_for_ever_is_stopped() -> None:
    with pytest.raises(ReconciliationError, match=r"labels was stopped after 1 seconds without an end"):
        apply("import time\ndef labels(table):\n    time.sleep(3600)\n    return table\n", timeout=1)


def test_a_module_that_cannot_be_loaded_is_said() -> None:
    with pytest.raises(ReconciliationError, match=r"use_case.py cannot be loaded by DOCML_WORKER_PYTHON"):
        apply("import nowhere\ndef labels(table):\n    return table\n")


def test_counts_and_version_follow_and_without_it_nothing_changes(tmp_path: Path) -> None:
    labels = ["Invoice", "invoice", "letter", "junk"]
    scene = build(tmp_path, [(guid, label, guid, "x") for guid, label in zip(guids(4), labels, strict=True)])
    for guid in guids(4):
        scene.artifact(guid)
    before = scene.run(1)
    scene.use_case = UseCase(name="./use_case.py", text=MERGE.replace(', "pages"', ', "site"'))
    cleaned = scene.run(2)
    assert sorted(cleaned.label_rows["label"].to_pylist()) == ["invoice", "invoice", "letter"]
    assert cleaned.funnel["use case: artifacts relabelled"] == 1
    assert cleaned.data_version != before.data_version
    scene.use_case = None
    assert scene.run(3).data_version == before.data_version
