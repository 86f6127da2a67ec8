"""Units from reconciliation to the report: documents of the models, answers about their artifacts."""

import json

import pytest

from docml_assets.report.schema import Report, read_report
from docml_assets.steps.deployment import read_deployment, read_use_case
from docml_assets.steps.documents import documents_of
from docml_assets.steps.prediction import predict_documents
from docml_assets.steps.reconciliation import label_counts, read_counts, read_units
from docml_assets.steps.work import Work
from docml_assets.tables import read_parquet
from docml_contract import names
from docml_contract.base import UseCaseError
from docml_contract.units import mean
from tests.docml_assets.steps.test_inference import whole
from tests.docml_assets.world import LABELS, FakeJobs, World, said_of_unit

PAGES = {"files_from_prod": "raw_text.json, page_*.txt", "model_input_files": "page_*.txt"}
FIRST_PAGE = """
def combine(predictions):
    return predictions.sort_values(["artifact_guid", "unit"]).groupby("artifact_guid", as_index=False).first()
"""


def paged(world: World, number: int = 1, text: str = "", **settings: str) -> Work:
    """A claimed run whose documents have 1 to 4 pages; `text` is its own use case."""
    if number == 1:
        for index in range(24):
            world.add_pages(f"doc-{index:02d}", index % 4 + 1)
    folder = world.write_experiment(use_case="./use_case.py" if text else "pages", **PAGES, **settings)
    (folder / "use_case.py").write_text(text)
    return world.work(world.claim(number), FakeJobs(world.store))


def tables(work: Work) -> tuple[list[dict[str, object]], list[dict[str, object]], Report]:
    """predictions.parquet, unit_predictions.parquet and the report."""
    read = (
        read_parquet(work.store.get(f"{work.place.inference}/{name}")).to_pylist()
        for name in (names.PREDICTIONS, names.UNIT_PREDICTIONS)
    )
    documents, units = read
    return documents, units, read_report(work.store, work.place)


def test_pages_are_documents_and_the_report_is_about_artifacts(world: World) -> None:
    work = paged(world, auto_accept_precision="0.6")
    made = whole(work)
    assert made is not None
    units = read_units(work)
    assert units is not None
    assert units.num_rows == 60
    jobs = work.jobs
    assert isinstance(jobs, FakeJobs)
    sent = read_parquet(jobs.files[0][names.ARTIFACTS_TABLE]).to_pylist()
    assert len(sent) == 60
    assert sent[1]["artifact_guid"] == "doc-01/page_01"
    assert sent[1]["path"].startswith("doc-01/")
    assert sent[1]["path"].endswith("/page_01.txt")
    documents, pages, report = tables(work)
    assert {row["artifact_guid"] for row in pages} == {row["artifact_guid"] for row in documents}
    assert len(documents) == report.num_test == 6
    right = 0
    for row in documents:
        said = [
            said_of_unit(str(row["artifact_guid"]), str(p["unit"]))
            for p in pages
            if p["artifact_guid"] == row["artifact_guid"]
        ]
        answer = mean(said)
        assert row["small_probabilities"] == pytest.approx(answer, abs=1e-6)
        assert row["small_prediction"] == LABELS[answer.index(max(answer))]
        right += row["small_prediction"] == row["label"]
    assert report.models["small"].accuracy == right / 6
    assert report.units is not None
    assert (report.units.num_test, report.units.combine) == (len(pages), None)
    assert report.units.models["small"].accuracy == pytest.approx(
        sum(row["small_prediction"] == row["label"] for row in pages) / len(pages)
    )
    assert report.policy["small"].policy.test.documents == 6
    html = work.store.get(f"{work.place.inference}/report.html").decode()
    assert f"The models read {len(pages)} units of these documents" in html
    label_counts(work)
    assert sum(read_counts(work).values()) == 24
    deployment = read_deployment(work, "small")
    assert names.USE_CASE_CODE in {entry.path for entry in deployment.files}
    code = read_use_case(work, "small")
    assert code is not None
    assert (code.name, code.units, code.functions) == ("pages", True, ())


def test_combine_decides_and_a_report_of_another_one_is_not_taken(world: World) -> None:
    whole(paged(world))
    work = paged(world, 2, FIRST_PAGE)
    whole(work)
    documents, pages, report = tables(work)
    first = {row["artifact_guid"]: row["small_probabilities"] for row in reversed(pages)}
    assert [row["small_probabilities"] for row in documents] == [
        pytest.approx(first[row["artifact_guid"]], abs=1e-6) for row in documents
    ]
    assert report.units is not None
    assert report.units.combine is not None
    only = frozenset({"reconciliation"})
    again = world.work(paged(world, 3, FIRST_PAGE + "# a comment\n").place and world.claim(3), performed=only)
    taken = whole(again)
    assert taken is not None
    assert taken.reused_from == 2
    other = paged(world, 4, FIRST_PAGE.replace("first()", "last()"))
    assert whole(world.work(world.claim(4), performed=only)) is None, other.describe()


def test_a_combine_that_fails_leaves_no_report(world: World) -> None:
    work = paged(world, text="def combine(predictions):\n    raise ValueError('which page?')\n    return predictions\n")
    with pytest.raises(UseCaseError, match=r"combine of the use case \./use_case\.py: ValueError: which page\?"):
        whole(work)
    assert list(work.store.list(work.place.inference)) == []


def test_merging_labels_changes_counts_splits_and_report_and_without_it_the_data_are_the_same(world: World) -> None:
    world.write_experiment()
    before = whole(world.work(world.claim(1)))
    assert before is not None
    versions = json.loads(world.store.get("EXP-1/run_1/reconciliation/MANIFEST.json"))["data_version"]
    for guid in ("doc-24", "doc-25"):
        world.add_document(guid, " Invoice", customer=guid)
    folder = world.write_experiment(use_case="./use_case.py", split_by="customer")
    (folder / "use_case.py").write_text(
        "def labels(table):\n    table['label'] = table.label.str.strip().str.lower()\n    return table\n"
    )
    work = world.work(world.claim(2))
    whole(work)
    label_counts(work)
    assert read_counts(work) == {"invoice": 14, "letter": 12}
    assert (
        json.loads(world.store.get("EXP-1/run_2/reconciliation/findings.json"))["funnel"]
        | {
            "use case: rows in": 26,
            "use case: rows out": 26,
            "use case: artifacts relabelled": 2,
        }
        == json.loads(world.store.get("EXP-1/run_2/reconciliation/findings.json"))["funnel"]
    )
    assert set(read_report(work.store, work.place).labels) == {"invoice", "letter"}
    assert "use_case.py (sha256" in work.store.get("EXP-1/run_2/inference/report.html").decode()
    world.write_experiment(
        labels_query="SELECT artifact_guid, label, file_hash, customer FROM labels WHERE label = lower(label)"
    )
    without = world.work(world.claim(3))
    whole(without)
    assert json.loads(world.store.get("EXP-1/run_3/reconciliation/MANIFEST.json"))["data_version"] == versions


def test_documents_without_labels_are_answered_and_their_units_beside_them(world: World) -> None:
    query = "SELECT artifact_guid, 3 AS most FROM labels WHERE artifact_guid < 'doc-05'"
    text = """
def files(artifact, names):
    return [name for name in names if not name.startswith("page") or int(name[5:7]) <= int(artifact.get("most", 3))]
"""
    work = paged(world, text=text + FIRST_PAGE, auto_accept_precision="0.6")
    whole(work)
    (world.root / "production/doc-02/page_01.txt").unlink()
    (world.root / "production/doc-04/page_01.txt").rename(world.root / "production/doc-04/page_07.txt")
    found = predict_documents(work, "small", documents_of(work, query))
    answers = {row["artifact_guid"]: row for row in found.table.to_pylist()}
    assert list(answers) == [f"doc-{number:02d}" for number in range(5)]
    units = read_parquet(work.store.get(f"{found.folder}/{names.UNIT_PREDICTIONS}")).to_pylist()
    assert [(row["artifact_guid"], row["unit"]) for row in units] == [
        *(("doc-00", "page_01"), ("doc-01", "page_01"), ("doc-01", "page_02")),
        *(("doc-02", "page_02"), ("doc-02", "page_03")),
        *(("doc-03", f"page_0{number}") for number in (1, 2, 3)),
    ]
    assert answers["doc-02"]["probabilities"] == pytest.approx(said_of_unit("doc-02", "page_02"), abs=1e-6)
    assert answers["doc-02"]["accepted"] is not None
    assert answers["doc-02"]["tokens"] == 14
    assert (
        answers["doc-04"]["error"]
        == "the document has no unit: none of its files fits a pattern of MODEL_INPUT_FILES = page_*.txt"
    )
    more = predict_documents(work, "small", documents_of(work, query.replace("05", "06")))
    assert more.known == 4
    again = read_parquet(work.store.get(f"{more.folder}/{names.UNIT_PREDICTIONS}")).to_pylist()
    assert [row for row in again if row["artifact_guid"] < "doc-04"] == units
    assert [row["unit"] for row in again if row["artifact_guid"] == "doc-05"] == ["page_01", "page_02"]
    assert "unit" not in more.table.column_names
