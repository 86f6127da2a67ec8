"""Predictions as a step: tables are whole, only what is new goes through a job, and what was staged goes afterwards."""

import pyarrow as pa
import pytest

from docml_assets.runs.garbage import find_garbage
from docml_assets.steps.documents import NoDocuments, documents_in, documents_of
from docml_assets.steps.prediction import predict_documents, run_prediction
from docml_assets.steps.work import Work
from docml_assets.tables import parquet_bytes, read_parquet
from docml_contract import names
from docml_contract.base import IncompleteArtifact
from tests.docml_assets.steps.test_inference import whole
from tests.docml_assets.world import FakeJobs, Notes, World

QUERY = "SELECT artifact_guid FROM labels WHERE artifact_guid < 'doc-03'"


@pytest.fixture
def work(world: World) -> Work:
    """A finished run, whose PREDICT_QUERY names three documents."""
    world.write_experiment(predict_query=QUERY)
    work = world.work(world.claim(1), FakeJobs(world.store))
    whole(work)
    return work


def asked(work: Work) -> list[set[str]]:
    """The documents of every prediction job."""
    jobs = work.jobs
    assert isinstance(jobs, FakeJobs)
    return [
        set(read_parquet(files[names.ARTIFACTS_TABLE])["artifact_guid"].to_pylist())
        for spec, files in zip(jobs.specs, jobs.files, strict=True)
        if spec.step == "prediction"
    ]


def change(world: World, guid: str, text: str) -> None:
    (world.root / "production" / guid / "raw_text.json").write_text(text)


def test_only_new_and_changed_documents_are_computed_and_the_table_is_whole(world: World, work: Work) -> None:
    first = predict_documents(work, "small", documents_of(work, QUERY))
    assert asked(work) == [{"doc-00", "doc-01", "doc-02"}]
    assert predict_documents(work, "small", documents_of(work, QUERY)).jobs == ()
    change(world, "doc-01", '{"text": "another text"}')
    more = predict_documents(work, "small", documents_of(work, QUERY.replace("03", "05")))
    assert asked(work)[1:] == [{"doc-01", "doc-03", "doc-04"}]
    assert more.known == 2
    assert more.table["artifact_guid"].to_pylist() == [f"doc-{number:02d}" for number in range(5)]
    assert first.table.num_rows == 3
    again = predict_documents(work, "small", documents_of(work, QUERY.replace("03", "02")))
    assert (again.jobs, again.known, again.table.num_rows) == ((), 2, 2)
    assert len(asked(work)) == 2


def test_a_document_without_an_answer_is_tried_again_in_the_next_set(world: World, work: Work) -> None:
    first = predict_documents(work, "small", documents_of(work, QUERY))
    failed = [
        {**row, "error": "a moment's trouble"} if row["artifact_guid"] == "doc-01" else row
        for row in first.table.to_pylist()
    ]
    work.store.delete([f"{first.folder}/{names.MANIFEST}"])
    work.publish(
        names.CLASSIFIED_DOCUMENTS,
        first.folder,
        {
            names.PREDICTIONS: parquet_bytes(pa.Table.from_pylist(failed, schema=first.table.schema)),
            names.DOCUMENTS: work.store.get(f"{first.folder}/{names.DOCUMENTS}"),
        },
        cache_key=first.manifest.cache_key,
        data_version=first.manifest.data_version,
        inputs=first.manifest.inputs,
    )
    more = predict_documents(work, "small", documents_of(work, QUERY.replace("03", "04")))
    assert asked(work)[-1] == {"doc-01", "doc-03"}
    assert more.table["error"].null_count == 4


def test_what_a_job_needed_goes_and_what_it_left_is_garbage(world: World, work: Work) -> None:
    done = predict_documents(work, "small", documents_of(work, QUERY))
    assert {stored.key.removeprefix(f"{done.folder}/") for stored in work.store.list(done.folder)} == {
        "predictions.parquet",
        "documents.parquet",
        "MANIFEST.json",
    }
    work.store.put(f"{done.folder}/{names.FINISHED_PARTS}/part-0-000000000.parquet", b"a part")
    begun = work.place.prediction("0" * 16)
    work.store.put(f"{begun}/{names.STAGED_DOCUMENTS}/doc-01/raw_text.json", b"{}")
    unfinished = work.place.prediction("1" * 16)
    work.store.put(f"{unfinished}/{names.STAGED_DOCUMENTS}/new/raw_text.json", b"{}")
    found = {item.prefix for item in find_garbage(work.store, "EXP-1")[0] if "/predictions/" in item.prefix}
    assert found == {f"{done.folder}/{names.FINISHED_PARTS}", begun}


def test_a_document_that_a_job_lost_is_an_error_and_no_table(
    work: Work, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeJobs, "lost", "doc-01", raising=False)
    with pytest.raises(IncompleteArtifact, match="handed over 2 rows for 2 of 3 documents"):
        run_prediction(work, None, None)


def test_it_does_nothing_and_says_so_unless_asked(world: World) -> None:
    world.write_experiment()
    work = world.work(world.claim(1))
    whole(work)
    assert run_prediction(work, None, None) is None
    assert isinstance(work.reporter, Notes)
    assert "nothing is classified: the run has no PREDICT_QUERY" in work.reporter.said[-1]
    outcome = run_prediction(work, QUERY, None)
    assert outcome is not None
    assert (outcome.asset, outcome.how) == (names.CLASSIFIED_DOCUMENTS, "made")


def test_a_query_that_yields_no_name_for_a_document_is_an_error(work: Work) -> None:
    with pytest.raises(NoDocuments, match=r"1 rows whose artifact_guid is NULL; expected .* IS NOT NULL"):
        documents_of(work, f"{QUERY} UNION ALL SELECT NULL")


def test_rows_of_one_document_that_differ_are_an_error(work: Work) -> None:
    page = "SELECT 'doc-01' AS artifact_guid, {} AS page"
    same = " UNION ALL ".join([page.format(1)] * 2)
    assert len(documents_of(work, same)) == 1
    with pytest.raises(NoDocuments, match="two rows of the document doc-01 that differ in page; expected one row"):
        documents_of(work, f"{same} UNION ALL {page.format(2)}")


def test_documents_of_a_folder_are_known_by_their_content(world: World, work: Work) -> None:
    predict_documents(work, "small", documents_of(work, QUERY))
    same = predict_documents(work, "small", documents_in(work, world.deployment.production))
    assert same.known == 3
    assert same.table.num_rows == 24


def test_what_is_hidden_is_no_document(world: World, work: Work) -> None:
    for folder in (".ipynb_checkpoints", ".git"):
        hidden = world.root / "production" / folder / "raw_text.json"
        hidden.parent.mkdir()
        hidden.write_text("{}")
    documents = documents_in(work, world.deployment.production)
    assert (len(documents), documents.errors, documents.notes) == (24, {}, ())
