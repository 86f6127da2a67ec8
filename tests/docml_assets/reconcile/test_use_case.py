"""Use cases at work on label rows, in real worker processes."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from docml_assets.experiment.use_case import UseCase
from docml_assets.reconcile.findings import NothingLeft, ReconciliationError, ReconciliationFindings, TooManyFailures
from docml_assets.reconcile.use_case import UseCaseAtWork
from docml_contract import use_cases
from tests.docml_assets.reconcile.scene import Scene, build, guids

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
    return UseCaseAtWork(UseCase(name=name, text=text), ENVIRONMENT, timeout).label(TABLE, findings), findings


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
        ("return pandas.concat([table, table]).assign(unit=1)", "returned the unit '1' of 'a' twice"),
        ("print('x' * 3_000_000); return table", "it printed or wrote more than 2 MB"),
        ("os._exit(3)\n    return table", "the worker process died (exit code 3) in labels"),
        ("import nowhere\n    return table", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_what_is_wrong_is_one_message(monkeypatch: pytest.MonkeyPatch, body: str, expected: str) -> None:
    monkeypatch.setattr(use_cases, "ROOM_BYTES", 2_000_000)
    with pytest.raises(ReconciliationError) as caught:
        apply(f"import os, pandas\n\ndef labels(table):\n    {body}\n")
    assert expected in str(caught.value)


def test_one_that_runs_for_ever_is_stopped() -> None:
    with pytest.raises(ReconciliationError, match=r"labels did not end within 1 seconds and was stopped"):
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


PAGES = {"FILES_FROM_PROD": "raw_text.json, page_*.png", "MODEL_INPUT_FILES": "raw_text.json, page_*.png"}


def paged(tmp_path: Path, pages: dict[str, int], text: str = "", name: str = "./use_case.py") -> Scene:
    """Artifacts with a page or several, and a use case."""
    scene = build(tmp_path, [(guid, f"label {count % 2}", guid, "x") for guid, count in pages.items()])
    for guid, count in pages.items():
        scene.artifact(guid, **{f"page_{number:02d}__png": bytes([number]) for number in range(1, count + 1)})
    scene.use_case = UseCase(name=name, text=text)
    return scene


def test_files_chooses_what_is_copied_and_is_asked_once(tmp_path: Path) -> None:
    text = """
def files(artifact, names):
    assert artifact["site"] == "x"
    return [name for name in names if name != f"page_0{artifact['label'][-1]}.png"]
"""
    scene = paged(tmp_path, {"a": 2, "b": 3}, text)
    found = scene.run(1, **PAGES)
    assert found.units is None
    assert [(row["artifact_guid"], row["file"]) for row in found.table.to_pylist()] == [
        *(("a", name) for name in ("page_01.png", "page_02.png", "raw_text.json")),
        *(("b", name) for name in ("page_02.png", "page_03.png", "raw_text.json")),
    ]
    assert sorted(key.split("/")[-1] for key in scene.state() if key.startswith("b/")) == [
        *("page_02.png", "page_03.png", "raw_text.json")
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "return names + ['x']",
            "files of the use case ./use_case.py returned 'x' for 'a'; expected some of its files",
        ),
        ("return names[0]", "it returned str; expected a list out of the names that it got"),
        ("return 1 / 0", "files of the use case ./use_case.py: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_files_is_one_message_and_nothing_is_copied(
    tmp_path: Path, body: str, expected: str
) -> None:
    scene = paged(tmp_path, {"a": 1}, f"def files(artifact, names):\n    {body}\n")
    with pytest.raises(ReconciliationError) as caught:
        scene.run(1, **PAGES)
    assert expected in str(caught.value)
    assert scene.state() == {}


def test_what_files_leaves_out_is_lacking_unless_it_is_optional(tmp_path: Path) -> None:
    scene = paged(tmp_path, {"a": 1}, "def files(artifact, names):\n    return ['raw_text.json']\n")
    with pytest.raises(TooManyFailures, match=r"a page_\*.png: not in production"):
        scene.run(1, **PAGES)
    assert scene.run(2, **PAGES, FILES_OPTIONAL="page_*.png").table["file"].to_pylist() == ["raw_text.json"]


@pytest.mark.parametrize("text", ["", "def combine(predictions):\n    return predictions\n"])
def test_pages_makes_each_page_a_document_and_copies_its_artifact_once(tmp_path: Path, text: str) -> None:
    scene = paged(tmp_path, {"a": 2, "b": 11}, text, "./use_case.py" if text else "pages")
    found = scene.run(1, **PAGES)
    assert found.units is not None
    units = [(row["artifact_guid"], row["unit"], row["label"]) for row in found.units.to_pylist()]
    assert units[:2] == [("a", "page_01", "label 0"), ("a", "page_02", "label 0")]
    assert [unit for _, unit, _ in units[2:]] == [f"page_{number:02d}" for number in range(1, 12)]
    assert found.funnel["use case: units"] == 13
    assert found.label_rows.num_rows == 2
    assert found.table.num_rows == len(scene.state()) == 15
    scene.use_case = None
    without = scene.run(2, **PAGES)
    assert without.units is None
    assert without.data_version != found.data_version


def test_an_artifact_without_pages_is_left_out_and_counted(tmp_path: Path) -> None:
    scene = paged(tmp_path, {"a": 2, "b": 0}, name="pages")
    found = scene.run(1, **PAGES, FILES_OPTIONAL="page_*.png")
    assert found.funnel["use case: artifacts without units"] == 1
    assert found.label_rows["artifact_guid"].to_pylist() == ["a"]
    assert set(found.table["artifact_guid"].to_pylist()) == {"a"}
    with pytest.raises(NothingLeft, match=r"no file fits a pattern of MODEL_INPUT_FILES = raw_text.json"):
        scene.run(2)


LABELLED_PAGES = """
import pandas

def labels(table):
    rows = [table.assign(unit=f"page_{number:02d}", label=label) for number, label in ((1, "cover"), (2, "text"), (3, "text"))]
    return pandas.concat(rows)
"""


def test_labels_names_units_and_labels_each(tmp_path: Path) -> None:
    scene = paged(tmp_path, {"a": 2, "b": 4}, LABELLED_PAGES)
    found = scene.run(1, **PAGES)
    assert found.units is not None
    assert [tuple(row.values()) for row in found.units.to_pylist()] == [
        *(("a", "page_01", "cover"), ("a", "page_02", "text")),
        *(("b", "page_01", "cover"), ("b", "page_02", "text"), ("b", "page_03", "text")),
    ]
    assert found.label_rows.select(["artifact_guid", "label"]).to_pylist() == [
        {"artifact_guid": "a", "label": "text"},
        {"artifact_guid": "b", "label": "text"},
    ]
    assert "unit" not in found.label_rows.column_names
    counted = {stage.removeprefix("use case: "): n for stage, n in found.funnel.items() if stage.startswith("use case")}
    assert counted == {
        **{"rows in": 2, "rows out": 6, "artifacts relabelled": 2, "artifacts dropped": 0},
        **{"units": 5, "units without files": 1, "artifacts without units": 0},
    }
    assert found.problems["units_without_files"].to_pylist() == [{"artifact_guid": "a", "unit": "page_03"}]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "return pandas.concat([table, table])",
            "returned 2 rows for 'a', of which it got 1; several need a column unit",
        ),
        ("return pandas.concat([table, table]).assign(unit='page_01')", "returned the unit 'page_01' of 'a' twice"),
        ("return table.assign(unit=None)", "returned a row of 'a' (label 'label 1') without a unit"),
        (
            "return table.assign(unit='page_01', label='')",
            "gave the unit 'page_01' of 'a' no usable label (label is empty)",
        ),
        (
            "return table.assign(unit='page_1')",
            "names units that no artifact has, page_1 of 'a' for example, which has page_01",
        ),
        (
            "return table.assign(unit='page_01', artifact_guid='n')",
            "returned rows for 'n', which LABELS_QUERY does not yield",
        ),
    ],
)
def test_what_is_wrong_with_units_is_one_message(tmp_path: Path, body: str, expected: str) -> None:
    scene = paged(tmp_path, {"a": 1}, f"import pandas\n\ndef labels(table):\n    {body}\n")
    with pytest.raises(ReconciliationError) as caught:
        scene.run(1, **PAGES)
    assert expected in str(caught.value)
