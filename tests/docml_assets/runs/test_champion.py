"""The champion's history: compared on test documents of both, put only if absent, taken back by an entry of its own."""

from pathlib import Path

import pytest

from docml_assets.report.comparison import PreviousRun, compare_runs, read_run
from docml_assets.report.predictions import GUID
from docml_assets.runs.champion import (
    ChampionError,
    compare_with_champion,
    promote,
    read_champion,
    read_history,
    rollback,
)
from docml_contract.base import UnreadableDocument
from docml_contract.names import PREDICTIONS, REPORT_HTML, REPORT_JSON, RunPlace
from resources.store import Store
from resources.store.manifests import publish_bytes
from tests.docml_assets.report.samples import predictions_table, report

EXPERIMENT = "EXP-a"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), environment={})


def finish(store: Store, run: int, accuracy: dict[str, float], first: int = 0) -> None:
    """A finished run on 200 test documents, of which the first `first` are other ones."""
    table = predictions_table(200, tuple(accuracy), accuracy=tuple(accuracy.values()))
    if first:
        guids = [f"other-{index}" if index < first else guid for index, guid in enumerate(table[GUID].to_pylist())]
        table = table.set_column(table.column_names.index(GUID), GUID, [guids])
    files = report(table, experiment=EXPERIMENT, run=run)
    publish_bytes(
        store,
        RunPlace(EXPERIMENT, run).inference,
        {REPORT_JSON: files.report_json, REPORT_HTML: files.html, PREDICTIONS: files.predictions_parquet},
        asset="inference_report",
        experiment=EXPERIMENT,
        run=run,
        cache_key="0" * 64,
        data_version=files.data_version,
        inputs={},
        code_version="1",
    )


def test_a_damaged_entry_is_named_and_the_remedy_works(store: Store) -> None:
    finish(store, 1, {"good": 0.9})
    finish(store, 2, {"alike": 0.9})
    for run, model in ((1, "good"), (2, "alike")):
        promote(store, EXPERIMENT, run, model, by="ann", force="because")
    rollback(store, EXPERIMENT, by="ann")
    first = f"{EXPERIMENT}/champion/000001.json"
    store.put(first, store.get(first)[:40])
    with pytest.raises(UnreadableDocument, match=r"000001\.json: .*or remove it, and look at docml champion EXP-a"):
        read_champion(store, EXPERIMENT)
    store.delete([first])
    assert (read_champion(store, EXPERIMENT).run, read_champion(store, EXPERIMENT).model) == (1, "good")
    again, _ = promote(store, EXPERIMENT, 2, "alike", by="ann", force="because")
    assert again.sequence == 4
    assert read_champion(store, EXPERIMENT).run == 2


def test_a_worse_model_is_refused_unless_forced_and_a_rollback_goes_back(store: Store) -> None:
    finish(store, 1, {"good": 0.9})
    finish(store, 2, {"bad": 0.5, "alike": 0.9})
    with pytest.raises(ChampionError, match="has no champion: promote a model with docml promote EXP-a RUN"):
        read_champion(store, EXPERIMENT)
    first, said = promote(store, EXPERIMENT, 1, "good", by="ann", force=None)
    assert (first.sequence, said) == (1, "there was no champion")
    with pytest.raises(
        ChampionError,
        match=r"run 2 bad is shown to be worse than run 1 good on 200 test documents of both: macro-F1 −0\.",
    ):
        promote(store, EXPERIMENT, 2, "bad", by="ann", force=None)
    assert read_champion(store, EXPERIMENT).run == 1
    forced, _ = promote(store, EXPERIMENT, 2, "bad", by="bob", force="a test")
    assert (forced.reason, forced.against_run, forced.against_model, forced.documents) == ("a test", 1, "good", 200)
    assert read_champion(store, EXPERIMENT).model == "bad"
    back = rollback(store, EXPERIMENT, by="ann")
    assert (back.sequence, back.run, back.model, back.rollback) == (3, 1, "good", True)
    assert read_champion(store, EXPERIMENT).model == "good"
    with pytest.raises(ChampionError, match="has no earlier champion"):
        rollback(store, EXPERIMENT, by="ann")
    third, said = promote(store, EXPERIMENT, 2, "alike", by="ann", force=None)
    assert "run 2 alike is" in said
    assert "worse than run 1 good" not in said or "not shown to be worse" in said
    assert [entry.model for entry in read_history(store, EXPERIMENT)] == ["good", "bad", "good", "alike"]
    with pytest.raises(ChampionError, match="is the champion of EXP-a already"):
        promote(store, EXPERIMENT, 2, "alike", by="ann", force=None)
    assert third.sequence == 4


def test_two_models_of_one_run_are_compared(store: Store) -> None:
    finish(store, 1, {"good": 0.9, "bad": 0.4})
    promote(store, EXPERIMENT, 1, "bad", by="ann", force=None)
    entry, said = promote(store, EXPERIMENT, 1, "good", by="ann", force=None)
    assert "run 1 good is shown to be better than run 1 bad" in said
    assert entry.comparison is not None


def test_only_test_documents_of_both_count(store: Store) -> None:
    """Documents that only one of them was tested on may be what the other was trained on."""
    finish(store, 1, {"good": 0.9})
    finish(store, 2, {"other": 0.9}, first=150)
    finish(store, 3, {"foreign": 0.99}, first=200)
    promote(store, EXPERIMENT, 1, "good", by="ann", force=None)
    _, verdict = compare_with_champion(store, EXPERIMENT, 2, "other")
    assert verdict.documents == 50
    with pytest.raises(ChampionError, match="share no test document"):
        promote(store, EXPERIMENT, 3, "foreign", by="ann", force=None)


def test_a_champion_gains_nothing_from_documents_that_it_was_trained_on(store: Store) -> None:
    """Three quarters of the challenger's test documents are in the champion's train split, which it knows by heart."""
    finish(store, 1, {"champion": 0.6})
    finish(store, 2, {"challenger": 0.6}, first=150)
    challenger = read_run(store, RunPlace(EXPERIMENT, 2))
    table = challenger.predictions
    truth, said = table["label"].to_pylist(), table["challenger_prediction"].to_pylist()
    by_heart = [
        right if guid.startswith("other-") else own
        for guid, right, own in zip(table[GUID].to_pylist(), truth, said, strict=True)
    ]
    knows = table.select([GUID, "label"]).append_column("champion_prediction", [by_heart])
    knows = knows.append_column("champion_probability", table["challenger_probability"])
    naive = compare_runs(challenger, PreviousRun(EXPERIMENT, 1, knows, challenger.labels))
    assert naive.comparison.pairs[0].verdict == "run 1 champion"  # had it been asked about all of them
    promote(store, EXPERIMENT, 1, "champion", by="ann", force=None)
    _, verdict = compare_with_champion(store, EXPERIMENT, 2, "challenger")
    assert (verdict.documents, verdict.worse) == (50, False)
    assert promote(store, EXPERIMENT, 2, "challenger", by="ann", force=None)[0].run == 2


def test_of_two_at_once_one_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(store, 1, {"good": 0.9, "bad": 0.4})
    first, _ = promote(store, EXPERIMENT, 1, "bad", by="ann", force=None)
    monkeypatch.setattr("docml_assets.runs.champion.read_history", lambda store, experiment: [])
    with pytest.raises(ChampionError, match="somebody else changed the champion of EXP-a just now"):
        promote(store, EXPERIMENT, 1, "good", by="bob", force=None)
    monkeypatch.undo()
    assert read_history(store, EXPERIMENT) == [first]


class Killed(BaseException):
    """kill -9."""


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_promotion_that_was_killed_is_there_once_or_not_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    finish(store, 1, {"good": 0.9})

    def put_and_die(self: Store, key: str, data: bytes) -> bool:
        if done:
            put(self, key, data)
        raise Killed

    put = Store.put_if_absent
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", put_and_die)
        with pytest.raises(Killed):
            promote(store, EXPERIMENT, 1, "good", by="ann", force=None)
    if done:
        with pytest.raises(ChampionError, match="is the champion of EXP-a already"):
            promote(store, EXPERIMENT, 1, "good", by="ann", force=None)
    else:
        promote(store, EXPERIMENT, 1, "good", by="ann", force=None)
    assert [(entry.sequence, entry.run) for entry in read_history(store, EXPERIMENT)] == [(1, 1)]
