import polars as pl
import pyarrow as pa
import pytest

from docml_assets.reconcile.findings import ReconciliationError, ReconciliationFindings
from docml_assets.reconcile.labels import drop_duplicates, near_misses, trusted_rows
from tests.resources.store.test_objects import HOSTILE


def trusted(
    rows: list[tuple[object, object, object]], **more: list[object]
) -> tuple[pl.DataFrame, ReconciliationFindings]:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("artifact_guid", "label", "file_hash"))}
    findings = ReconciliationFindings()
    return trusted_rows(pa.table({**columns, **more}), findings), findings


def test_columns_that_are_needed() -> None:
    with pytest.raises(ReconciliationError, match="guid, label; expected artifact_guid, label, file_hash too"):
        trusted_rows(pa.table({"guid": ["a"], "label": ["b"]}), ReconciliationFindings())


def test_all_is_well() -> None:
    rows, findings = trusted([("b", "x", "1"), ("a", "y", "2")], site=[1.5, None])
    assert rows.rows() == [("a", "y", "2", None), ("b", "x", "1", 1.5)]
    assert findings.funnel == {"labels": 2, "refused": 0, "conflicts": 0, "repeated rows": 0}


def test_numbers_become_text() -> None:
    rows, _ = trusted([(7, 3, 1)])
    assert rows.rows() == [("7", "3", "1")]


def test_hostile_guids_are_refused_and_counted() -> None:
    texts = [
        name
        for name in HOSTILE
        if name is None or (isinstance(name, str) and name.encode(errors="replace").decode() == name)
    ]
    rows, findings = trusted([("fine", "x", "h"), *((name, "x", f"h{i}") for i, name in enumerate(texts))])
    assert rows["artifact_guid"].to_list() == ["fine"]
    assert len(texts) > 180
    assert findings.funnel["refused"] == findings.funnel["refused: unsafe artifact_guid"] == len(texts)
    assert findings.refused.num_rows == len(texts)
    assert all(reason.startswith("unsafe artifact_guid: ") for reason in findings.refused["reason"].to_pylist())
    assert all(
        name.isprintable() and name.isascii() and len(name) <= 120 for name in findings.refused["name"].to_pylist()
    )


def test_unusable_labels_are_refused_and_counted() -> None:
    labels: dict[object, str] = {
        None: "label is NULL",
        "": "label is empty",
        "  \t": "label is empty",
        "x" * 10_000: "label is longer than 256 bytes",
        "caf\ufffd": "label is not UTF-8",
        "a\nb": "label has control or invisible characters",
        "in\u202evoice": "label has control or invisible characters",
        "in\u200bvoice": "label has control or invisible characters",
        "in\x9bvoice": "label has control or invisible characters",
    }
    rows, findings = trusted([("ok", "ünï label", "h"), *((f"g{i}", label, f"h{i}") for i, label in enumerate(labels))])
    assert rows.rows() == [("ok", "ünï label", "h")]
    assert findings.funnel["refused"] == 9
    assert findings.refused["reason"].to_pylist() == list(labels.values())
    assert findings.funnel["refused: label is empty"] == 2


def test_conflicting_labels_of_one_hash_leave_all_of_them_out() -> None:
    rows, findings = trusted(
        [("a", "x", "same"), ("b", "y", "same"), ("c", "x", "other"), ("d", "x", None), ("e", "y", None)]
    )
    assert rows["artifact_guid"].to_list() == ["c", "d", "e"], "a NULL hash equals no other"
    assert findings.funnel["conflicts"] == 2
    assert findings.conflicts.to_pylist() == [
        {"by": "file_hash", "value": "same", "artifact_guid": "a", "label": "x"},
        {"by": "file_hash", "value": "same", "artifact_guid": "b", "label": "y"},
    ]


def test_conflicting_labels_of_one_artifact_leave_it_out() -> None:
    rows, findings = trusted([("a", "x", "1"), ("a", "y", "1"), ("b", "x", "2")])
    assert rows["artifact_guid"].to_list() == ["b"]
    assert findings.funnel["conflicts"] == 2
    assert set(findings.conflicts["by"].to_pylist()) == {"artifact_guid", "file_hash"}


@pytest.mark.parametrize("order", [1, -1])
def test_repeated_rows_keep_the_first_in_the_order_of_all_columns(order: int) -> None:
    table = [("a", "x", "2"), ("a", "x", "1"), ("a", "x", "1"), ("b", "x", "3")]
    sites: list[object] = ["s2", "s1", "s0", "s"]
    rows, findings = trusted(table[::order], site=sites[::order])
    assert rows.rows() == [("a", "x", "1", "s0"), ("b", "x", "3", "s")]
    assert findings.funnel["repeated rows"] == 2


@pytest.mark.parametrize("order", [1, -1])
def test_of_duplicates_the_smallest_guid_stays(order: int) -> None:
    frame = pl.DataFrame(
        {"artifact_guid": ["b", "a", "B", "c", "d"], "label": ["x"] * 5, "file_hash": ["1", "1", "1", None, None]}
    )[::order]
    findings = ReconciliationFindings()
    kept = drop_duplicates(frame, findings)
    assert sorted(kept["artifact_guid"]) == ["B", "c", "d"], "in byte order"
    assert findings.funnel["duplicates"] == 2
    assert findings.duplicates.to_pylist() == [
        {"file_hash": "1", "kept": "B", "artifact_guid": "a"},
        {"file_hash": "1", "kept": "B", "artifact_guid": "b"},
    ]


def test_hashes_that_tell_nothing_are_missing_and_counted() -> None:
    rows, findings = trusted(
        [("a", "x", ""), ("b", "y", "  "), ("c", "x", None), ("d", "x", "caf\ufffd"), ("e", "x", "1")]
    )
    assert rows["file_hash"].to_list() == [None, None, None, None, "1"]
    assert findings.funnel["conflicts"] == 0
    assert {name: count for name, count in findings.funnel.items() if name.startswith("without")} == {
        "without file_hash": 4,
        "without file_hash: file_hash is NULL": 1,
        "without file_hash: file_hash is empty": 2,
        "without file_hash: file_hash is not UTF-8": 1,
    }
    drop_duplicates(rows, findings)
    assert findings.funnel["duplicates"] == 0


@pytest.mark.parametrize("nothing", ["N/A", "nan", "None", "NULL", "-", "0", "00000000"])
def test_hashes_that_say_that_there_is_none_are_missing(nothing: str) -> None:
    rows, findings = trusted([("a", "x", nothing), ("b", "y", nothing), ("c", "x", "1")])
    assert rows["file_hash"].to_list() == [None, None, "1"]
    assert findings.funnel["without file_hash: file_hash says that there is none"] == 2


def test_spellings_of_one_hash_are_one_hash() -> None:
    spellings = [
        "ab12cd34ab12cd34",
        "AB12CD34AB12CD34",
        "0xab12cd34ab12cd34",
        "\\xAB12CD34AB12CD34",
        " ab12cd34ab12cd34 ",
    ]
    rows, findings = trusted([(f"g{i}", "x", spelling) for i, spelling in enumerate([*spellings, "Ab12cd34ab12cd34"])])
    assert drop_duplicates(rows, findings)["artifact_guid"].to_list() == ["g0", "g5"]
    assert findings.funnel["spellings of one file_hash"] == 4
    _, conflicts = trusted([("a", "x", spellings[0]), ("b", "y", spellings[1])])
    assert conflicts.funnel["conflicts"] == 2


def test_hashes_without_other_spellings_stay_as_they_are() -> None:
    rows, findings = trusted([("a", "x", "AB12CD34AB12CD34"), ("b", "x", "0xAB12CD34AB12CD35"), ("c", "x", None)])
    assert rows["file_hash"].to_list() == ["AB12CD34AB12CD34", "0xAB12CD34AB12CD35", None]
    assert "spellings of one file_hash" not in findings.funnel


def test_what_is_no_number_is_no_label() -> None:
    rows, findings = trusted([("a", 1.0, "1"), ("b", float("nan"), "2"), ("c", 2.5, "3")])
    assert rows["label"].to_list() == ["1.0", "2.5"]
    assert findings.funnel["refused: label is NULL"] == 1


def test_a_guid_that_is_not_utf8_is_refused() -> None:
    rows, findings = trusted([("caf\ufffd", "x", "1"), ("a", "x", "2")])
    assert rows["artifact_guid"].to_list() == ["a"]
    assert findings.funnel["refused: artifact_guid is not UTF-8"] == 1


def test_columns_are_found_whatever_their_case() -> None:
    table = pa.table({"Artifact_GUID": ["a"], "LABEL": ["x"], "file_hash": ["1"], "Site": ["s"]})
    assert trusted_rows(table, ReconciliationFindings()).columns == ["artifact_guid", "label", "file_hash", "Site"]
    with pytest.raises(ReconciliationError, match="expected artifact_guid, label"):
        trusted_rows(
            pa.table({"GUID": ["a"], "Guid": ["b"], "label": ["x"], "file_hash": ["1"]}), ReconciliationFindings()
        )


def test_columns_of_ones_own_keep_their_values() -> None:
    names = ["version", "path", "file", "key", "size", "etag", "n", "kept", "__reason", "bare", "entry"]
    rows, _ = trusted(
        [("b", "x", "1"), ("b", "x", "1"), ("", "x", "2")], **{name: ["own", "own", "bad"] for name in names}
    )
    assert rows.select(names).rows() == [("own",) * len(names)]


@pytest.mark.parametrize(
    ("label", "production", "reason"),
    [
        ("B6753A83-34D8", "b6753a83-34d8", "case"),
        ("a b", "ab", "blanks"),
        ("7", "007", "zeros in front"),
        ("{b6753a83-34d8}", "b6753a8334d8", "braces or hyphens"),
        ("{B6753A83}", "b6753a83", "case and braces or hyphens"),
        ("17.0", "17", 'a number\'s ".0"'),
        ("caf\u00e9-1", "cafe\u0301-1", "how accents are written"),
    ],
)
def test_guids_that_nearly_match_are_named_with_the_reason(label: str, production: str, reason: str) -> None:
    rows = pl.DataFrame({"artifact_guid": [label, "another"]})
    found = near_misses(rows, pl.Series(["elsewhere", production]))
    assert found.rows() == [(label, production, reason)]
