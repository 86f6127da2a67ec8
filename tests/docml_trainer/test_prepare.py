"""The whole preparation job, in real processes."""

import json
import os
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from docml_contract import names
from docml_trainer.preparation.documents import order_key
from tests.docml_trainer.jobfolder import JobFolder
from tests.docml_trainer.preparations import (
    ENCODER,
    Doc,
    documents,
    metadata_of,
    preparation,
    splits_of,
)

PLAIN = documents(120, labels=("invoice", "letter", "receipt"))
TWIN = replace(PLAIN[19], guid="twin-of-19", text=PLAIN[19].text + " ")
GROUPED = [replace(doc, group=f"customer-{index % 4}") if index < 12 else doc for index, doc in enumerate(PLAIN)]
DOCS = [
    *GROUPED,
    TWIN,
    Doc("empty-1", "letter", ""),
    *(Doc(f"odd-{i}", "ignored", "some text") for i in range(3)),
    Doc("lone", "rare", "one of a kind"),
]
KNOBS = {"ignored_labels": ("ignored",), "num_labels_threshold": 2, "own_hyperparameters": {"max_length": 18}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    job = preparation(tmp_path_factory.mktemp("whole"), DOCS, **KNOBS, baseline=True)
    finished = job.run()
    assert finished.returncode == 0, finished.stderr
    (facts,) = finished.events("facts")
    assert facts["documents"] == metadata_of(job)["documents"]
    assert finished.events("progress")[-1]["done"] == 122
    return job


def content(job: JobFolder) -> tuple[str, bytes, list[bytes]]:
    """What must be equal however the work was cut up."""
    data = [next((job.output / split).glob("*.arrow")).read_bytes() for split in names.SPLITS]
    return job.result().data_version, (job.output / names.SPLITS_TABLE).read_bytes(), data


def test_the_result_is_complete(whole: JobFolder) -> None:
    assert {entry.path.split("/")[0] for entry in whole.result().files} == {
        *names.SPLITS,
        names.LABEL2ID,
        names.ID2LABEL,
        names.SPLIT_METADATA,
        names.SPLITS_TABLE,
        names.BASELINE_TABLE,
        names.SUSPECTS_TABLE,
    }
    assert json.loads((whole.output / names.LABEL2ID).read_text()) == {"invoice": 0, "letter": 1, "receipt": 2}
    assert json.loads((whole.output / names.ID2LABEL).read_text()) == {"0": "invoice", "1": "letter", "2": "receipt"}
    found = metadata_of(whole)
    assert sum(found["documents"].values()) == 121
    assert found["dropped"]["ignored_label"] == {"ignored": 3}
    assert found["dropped"]["below_num_labels_threshold"] == {"rare": 1}
    assert found["dropped"]["returned_none"] == {"letter": 1}
    assert found["near_duplicates"] | {"threshold": 0.9, "documents": 2, "groups": 1} == found["near_duplicates"]
    lengths = found["models"]["toy"]
    assert lengths["token_lengths"]["max"] == 18
    assert sum(lengths["token_lengths"]["histogram"]["counts"]) == 121
    assert 0 < lengths["truncated_share"] < 1
    assert found["features"] == {"input_ids": "uint16[*]"}
    baseline = pq.read_table(whole.output / names.BASELINE_TABLE)
    assert dict(zip(*(baseline[name].to_pylist() for name in ("artifact_guid", "split")), strict=True)) == splits_of(
        whole
    )
    assert found["baseline"]["documents"] == found["documents"]["train"]
    assert 0 <= found["baseline"]["macro_f1"]["valid"] <= 1
    assert found["baseline"]["learning_curve"]["points"][0][0] == found["documents"]["train"]
    assert found["baseline"]["nearest_train"]["test"]["documents"] == found["documents"]["test"]
    suspects = pq.read_table(whole.output / names.SUSPECTS_TABLE)
    assert suspects.num_rows == 0  # the words say nothing of the label, and what says nothing doubts nothing
    assert found["baseline"]["suspects"]["none"].startswith(
        "the baseline is no better than chance: out of fold it labels "
    )


def test_a_comparison_has_the_baseline_as_well(tmp_path: Path) -> None:
    job = preparation(tmp_path, DOCS[:40], model_names=("one", "two"), baseline=True)
    assert job.run().returncode == 0
    assert pq.read_table(job.output / names.BASELINE_TABLE).num_rows == sum(metadata_of(job)["documents"].values())


def test_the_splits_are_data_sets_without_padding(whole: JobFolder) -> None:
    ids = {name: index for index, name in enumerate(("invoice", "letter", "receipt"))}
    by_guid = {doc.guid: doc for doc in DOCS}
    splits = splits_of(whole)
    for split in names.SPLITS:
        data = datasets.load_from_disk(str(whole.output / split))
        assert data.features == datasets.Features(
            {
                "input_ids": datasets.List(datasets.Value("uint16")),
                "labels": datasets.ClassLabel(names=list(ids)),
                "artifact_guid": datasets.Value("string"),
            }
        )
        assert {row["artifact_guid"] for row in data} == {guid for guid, of in splits.items() if of == split}
        for row in data:
            doc = by_guid[row["artifact_guid"]]
            assert row["labels"] == ids[doc.label]
            assert row["input_ids"] == [zlib.crc32(word.encode()) % 30_000 for word in doc.text.split()][:18]


def test_groups_and_near_duplicates_stay_together(whole: JobFolder) -> None:
    rows = pq.read_table(whole.output / names.SPLITS_TABLE).to_pylist()
    by_group: dict[str, set[str]] = {}
    for row in rows:
        for group in (row["group"], row["near_duplicate_group"]):
            if group:
                by_group.setdefault(group, set()).add(row["split"])
    assert set(by_group) == {"customer-0", "customer-1", "customer-2", "customer-3", PLAIN[19].guid}
    assert all(len(found) == 1 for found in by_group.values())


def test_a_re_run_in_another_order_with_another_number_of_processes_is_the_same(
    whole: JobFolder, tmp_path: Path
) -> None:
    again = preparation(tmp_path, DOCS[::-1], artifacts=whole.channel("artifacts"), **{**KNOBS, "processes": 1})
    assert again.run().returncode == 0
    assert content(again) == content(whole)


def test_four_shards_and_a_merge_are_the_same(whole: JobFolder, tmp_path: Path) -> None:
    hosts = [f"algo-{number}" for number in range(1, 5)]
    shards = tmp_path / "merge/processing/input/shards/shards"  # the channel holds the staged output of all hosts
    for number, host in enumerate(hosts):
        shard = preparation(
            tmp_path / host,
            DOCS,
            artifacts=whole.channel("artifacts"),
            phase="shard",
            **{**KNOBS, "processes": 1 + number % 2},
        )
        shard.write_hosts(host, hosts)
        finished = shard.run()
        assert finished.returncode == 0, finished.stderr
        (shard.output / "shards" / str(number)).rename(_made(shards) / str(number))
    merge = preparation(tmp_path / "merge", DOCS, artifacts=whole.channel("artifacts"), phase="merge", **KNOBS)
    finished = merge.run()
    assert finished.returncode == 0, finished.stderr
    assert content(merge) == content(whole)
    assert metadata_of(merge)["dropped"] == metadata_of(whole)["dropped"]

    next((shards / "2").glob("rows-*")).unlink()
    assert merge.run().returncode == 1
    assert "missing" in merge.failure


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_with_documents_added_nobody_moves(whole: JobFolder, tmp_path: Path) -> None:
    before = splits_of(whole)
    in_train = next(doc for doc in GROUPED if doc.group and before[doc.guid] == "train")
    elsewhere = next(doc for doc in PLAIN[12:] if before[doc.guid] == "test" and len(doc.text.split()) > 15)
    bridge = replace(elsewhere, guid="bridge", group=in_train.group)
    more = [*DOCS, *documents(60, labels=("invoice", "letter", "receipt"), start=500), bridge]
    later = preparation(tmp_path, more, previous_splits=whole.output / names.SPLITS_TABLE, **KNOBS)
    assert later.run().returncode == 0
    after = splits_of(later)
    assert {guid: after[guid] for guid in before} == before
    assert "bridge" not in after
    assert len(after) == len(before) + 60
    assert metadata_of(later)["dropped"]["joins_groups_in_different_splits"] == {bridge.label: 1}
    counts = metadata_of(later)["labels"]
    for label in ("invoice", "letter", "receipt"):
        of_label = [counts[split].get(label, 0) for split in names.SPLITS]
        assert of_label[0] >= sum(of_label) * 0.75


def test_a_cap_is_stratified(whole: JobFolder, tmp_path: Path) -> None:
    job = preparation(tmp_path, PLAIN, artifacts=whole.channel("artifacts"), max_artifacts=30, processes=1)
    assert job.run().returncode == 0
    found = metadata_of(job)
    assert found["dropped"]["over_max_artifacts"] == {"invoice": 30, "letter": 30, "receipt": 30}
    assert sum(found["documents"].values()) == 30


BAD = [
    Doc("bad-json", "letter", files={"raw_text.json": b'{"text": '}),
    Doc("bad-empty", "letter", files={"raw_text.json": b""}),
    Doc("bad-utf8", "invoice", files={"raw_text.json": b'{"text": "\xff\xfe"}'}),
]


def test_unreadable_files_are_counted_and_the_rest_encoded(tmp_path: Path) -> None:
    job = preparation(tmp_path, [*PLAIN[:27], *BAD], max_failed_share=0.1, near_duplicate_threshold=1.0)
    finished = job.run()
    assert finished.returncode == 0, finished.stderr
    found = metadata_of(job)
    assert found["dropped"]["failed"] == {"invoice": 1, "letter": 2}
    assert sum(found["documents"].values()) == 27
    assert {failure["artifact_guid"] for failure in found["failures"]} == {doc.guid for doc in BAD}
    assert found["near_duplicates"]["feature"] is None
    assert all(f"failed: artifact {doc.guid}" in finished.stdout for doc in BAD)


def test_beyond_max_failed_share_the_job_fails(tmp_path: Path) -> None:
    job = preparation(tmp_path, [*PLAIN[:27], *BAD], max_failed_share=0.05)
    assert job.run().returncode == 1
    assert job.failure.startswith("3 of 30 documents could not be encoded (10.00%, allowed by MAX_FAILED_SHARE: 5.00%)")
    assert "raw_text.json" in job.failure
    assert "user_defined_funcs.py, line 9, in encode_data" in job.failure
    assert not (job.output / names.OUTPUT).exists()


def test_a_wrong_encoder_ends_the_job_with_feature_and_artifact(tmp_path: Path) -> None:
    wrong = ENCODER.replace('"input_ids": ids[:length]', '"input_ids": ids[:length] if len(ids) > 5 else ["a"]')
    job = preparation(tmp_path, PLAIN[:40], functions=wrong)
    assert job.run().returncode == 1
    assert job.failure.startswith("user_defined_funcs.py: encode_data returned a wrong encoding for artifact doc-000")
    assert "feature 'input_ids': found text, expected int64[*]" in job.failure


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    source = ENCODER.replace("ids = [zlib", "ids = list(range(4000)) + [zlib")

    def peak(count: int) -> int:
        docs = documents(count)
        job = preparation(
            tmp_path / str(count), docs, functions=source, processes=1, own_hyperparameters={"max_length": 5000}
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "docml_trainer", "prepare"], env=job.environment(), stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss

    # 1,800 more documents of 4,000 int64 ids are 55 MiB, if they were held.
    assert peak(2_000) - peak(200) < 30 * 1024


def test_each_model_of_a_comparison_encodes_with_its_own_values(tmp_path: Path) -> None:
    job = preparation(
        tmp_path,
        PLAIN[:30],
        model_names=("short", "long"),
        own_hyperparameters={"max_length": 5},
        model_hyperparameters={"long": {"max_length": 9}},
    )
    finished = job.run()
    assert finished.returncode == 0, finished.stderr
    rows = datasets.load_from_disk(str(job.output / "train"))
    longest = {model: max(map(len, rows[f"{model}_input_ids"])) for model in ("short", "long")}
    assert longest == {"short": 5, "long": 9}


# Every document that is encoded is noted; one of them lasts until a file says that it may go on.
NOTED = ENCODER.replace("    text = json", "    note(instance)\n    text = json") + (
    """
import os
import time
from pathlib import Path

def note(instance):
    notes, guid = Path(os.environ["NOTES"]), instance["raw_text.json"].parent.parent.name
    with (notes / "encoded").open("a") as file:
        file.write(guid + "\\n")
    while guid == (notes / "lasting").read_text() and not (notes / "go").exists():
        time.sleep(0.02)
"""
)


def test_a_killed_preparation_takes_up_its_finished_parts(whole: JobFolder, tmp_path: Path) -> None:
    job = preparation(
        tmp_path / "job", DOCS, functions=NOTED, artifacts=whole.channel("artifacts"), **KNOBS, baseline=True
    )
    ordered = sorted(splits_of(whole).keys() | {"empty-1"}, key=order_key)
    (tmp_path / "lasting").write_text(ordered[-1])
    with subprocess.Popen(
        [sys.executable, "-m", "docml_trainer", "prepare"],
        env=job.environment(NOTES=str(tmp_path)),
        stdout=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while not list(job.folders.checkpoints.glob("report-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    (tmp_path / "encoded").unlink()
    (tmp_path / "go").touch()
    again = job.run(NOTES=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "61 of 122 documents were encoded by an earlier attempt" in again.stdout
    assert again.events("progress")[-1]["done"] == 122
    assert set((tmp_path / "encoded").read_text().split()) == set(ordered[61:])
    assert content(job) == content(whole)


def test_documents_of_which_too_many_failed_are_tried_again(tmp_path: Path) -> None:
    fails = NOTED.replace("    note(instance)", "    assert (Path(os.environ['NOTES']) / 'go').exists(), 'not yet'", 1)
    job = preparation(tmp_path / "job", PLAIN[:20], functions=fails, baseline=False)
    assert job.run(NOTES=str(tmp_path)).returncode == 1
    assert job.failure.startswith("20 of 20 documents could not be encoded")
    (tmp_path / "go").touch()
    again = job.run(NOTES=str(tmp_path))
    assert again.returncode == 0, again.stdout
    assert sum(metadata_of(job)["documents"].values()) == 20
