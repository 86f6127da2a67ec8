import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docml_assets.reconcile.findings import NothingLeft, ReconciliationError, TooManyFailures
from docml_assets.reconcile.reconciliation import TABLE_COLUMNS
from docml_contract.base import ProcessFuncBroken, digest
from resources.store import Store
from tests.docml_assets.reconcile.scene import BASE, PROCESS, Scene, build, document, guids, label_database
from tests.resources.store.test_objects import HOSTILE
from tests.servers.postgres import PostgresServer
from tests.servers.s3 import S3Server

WORDS = {"FILES_ON_RESEARCH": "raw_text.json, words.txt"}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Six artifacts, two labels."""
    made = build(tmp_path, [(guid, "ab"[i % 2], f"h{i}", i) for i, guid in enumerate(guids(6))])
    for guid in guids(6):
        made.artifact(guid)
    return made


def test_labels_and_files_come_together(scene: Scene) -> None:
    result = scene.run()
    assert result.table.column_names == TABLE_COLUMNS
    assert result.table["artifact_guid"].to_pylist() == sorted(guids(6))
    row = result.table.to_pylist()[0]
    assert row["key"].startswith(f"{BASE}/{row['artifact_guid']}/")
    assert scene.store.get(row["key"]) == document(row["artifact_guid"])
    assert row["origin"] == "prod"
    assert row["size"] == len(document(row["artifact_guid"]))
    assert row["etag"] == row["source_etag"], "in folders both are the content's sha256"
    assert result.label_rows.column_names == ["artifact_guid", "label", "file_hash", "site"]
    assert result.label_rows.num_rows == 6
    assert result.funnel["copied"] == result.funnel["artifacts"] == 6
    assert result.bytes_copied == sum(result.table["size"].to_pylist())
    columns = (result.table[name].to_pylist() for name in ("artifact_guid", "label", "file", "source_etag"))
    assert result.data_version == digest(["reconciled", sorted(map(list, zip(*columns, strict=True)))])
    assert ("files copied", 6, 6) in scene.progress


def test_symbolic_links_in_production_are_refused_and_counted(scene: Scene, tmp_path: Path) -> None:
    assert scene.production.local_path is not None
    (tmp_path / "secret").write_text("CANARY")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "raw_text.json").write_bytes(document("outside"))
    first, second, *others = sorted(guids(6))
    stolen = scene.production.local_path / first / "raw_text.json"
    stolen.unlink()
    stolen.symlink_to(tmp_path / "secret")
    folder = scene.production.local_path / second
    (folder / "raw_text.json").unlink()
    folder.rmdir()
    folder.symlink_to(outside, target_is_directory=True)
    result = scene.run()
    assert result.table["artifact_guid"].to_pylist() == others
    assert result.funnel["production files refused"] == 2
    assert {(row["name"], row["reason"]) for row in result.findings.refused.to_pylist()} == {
        (repr(f"{first}/raw_text.json"), "a symbolic link"),
        (repr(second), "a symbolic link"),
    }
    assert not any(b"CANARY" in data or b"outside" in data for data in scene.state().values())


def test_again_there_is_nothing_to_do(scene: Scene) -> None:
    first = scene.run(functions=PROCESS, **WORDS)
    before = _stats(scene.store)
    second = scene.run(2, functions=PROCESS, **WORDS)
    assert second.table == first.table
    assert second.data_version == first.data_version
    assert (second.funnel["copied"], second.funnel["reused"], second.funnel["processed"]) == (0, 6, 0)
    assert _stats(scene.store) == before


def test_what_a_killed_command_left_is_removed_even_if_nothing_is_left_to_process(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scene.run(functions=PROCESS, **WORDS)
    held = (
        "from docml_assets.reconcile.process import scratch_folder as s\nwith s() as f: print(f, flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", held],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
    )
    with child:
        assert child.stdout is not None
        left = Path(child.stdout.readline().strip())
        scene.run(2, functions=PROCESS, **WORDS)
        assert left.is_dir(), "its owner lives"
        child.kill()
    scene.run(3, functions=PROCESS, **WORDS)
    assert not left.exists()


def _stats(store: Store) -> dict[str, tuple[int, int]]:
    assert store.local_path is not None
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (store.local_path / BASE).rglob("*")
        if path.is_file()
    }


def test_a_changed_file_is_a_new_version_beside_the_old(scene: Scene) -> None:
    guid = guids(6)[0]
    first = scene.run()
    scene.artifact(guid, raw_text__json=b'{"text": "rewritten"}')
    second = scene.run(2)
    changed = {row["key"] for row in second.table.to_pylist()} - {row["key"] for row in first.table.to_pylist()}
    assert [scene.store.get(key) for key in changed] == [b'{"text": "rewritten"}']
    assert (second.funnel["copied"], second.funnel["reused"]) == (1, 5)
    assert second.data_version != first.data_version
    for row in first.table.to_pylist():
        assert scene.store.get(row["key"]) == document(row["artifact_guid"])


def test_overwrite_makes_new_versions_for_its_run_and_resumes(scene: Scene) -> None:
    first = scene.run(functions=PROCESS, **WORDS)
    again = scene.run(2, functions=PROCESS, OVERWRITE="true", **WORDS)
    assert (again.funnel["copied"], again.funnel["processed"]) == (6, 6)
    assert not set(again.table["key"].to_pylist()) & set(first.table["key"].to_pylist())
    resumed = scene.run(2, functions=PROCESS, OVERWRITE="true", **WORDS)
    assert (resumed.funnel["copied"], resumed.funnel["processed"]) == (0, 0)
    assert resumed.table == again.table


def test_process_func_adds_files_and_its_source_is_part_of_the_version(scene: Scene) -> None:
    first = scene.run(functions=PROCESS, **WORDS)
    rows = {(row["artifact_guid"], row["file"]): row for row in first.table.to_pylist()}
    guid = guids(6)[1]
    made = rows[guid, "words.txt"]
    assert made["origin"] == "process_func"
    assert scene.store.get(made["key"]) == b"b:the text of"
    assert made["source_etag"] == made["key"].split("/")[-2]
    comment = scene.run(2, functions=PROCESS.replace("import json", "import json  # a comment"), **WORDS)
    assert comment.funnel["processed"] == 0
    changed = scene.run(3, functions=PROCESS.replace("[:3]", "[:2]"), **WORDS)
    assert changed.funnel["processed"] == 6
    assert scene.store.get(made["key"]) == b"b:the text of", "what an earlier run holds is never changed"
    assert changed.data_version != first.data_version


def test_a_failing_artifact_is_tried_twice_and_the_rest_goes_on(scene: Scene) -> None:
    bad = sorted(guids(6))[2]
    calls = scene.folder / "calls"
    source = (
        "def process_func(artifact, directory):\n"
        f"    with open({str(calls)!r}, 'a') as out: out.write(artifact['artifact_guid'] + '\\n')\n"
        f"    if artifact['artifact_guid'] == {bad!r}: raise ValueError('unreadable page')\n"
        "    (directory / 'words.txt').write_text('x')\n"
    )
    with pytest.raises(TooManyFailures) as caught:
        scene.run(functions=source, **WORDS)
    said = str(caught.value)
    assert "1 of 6 artifacts" in said
    assert f"{bad}: ValueError: unreadable page" in said
    assert "line 3, in process_func" in said
    assert sorted(calls.read_text().split()) == sorted([*guids(6), bad])
    report = json.loads(scene.store.get("EXP-1/run_1/reconciliation/failures.jsonl"))
    assert (report["artifact_guid"], report["reason"]) == (bad, "ValueError: unreadable page")
    assert "Traceback" in report["traceback"]

    allowed = scene.run(functions=source, MAX_FAILED_SHARE="0.2", **WORDS)
    assert allowed.funnel["failed"] == 1
    assert allowed.funnel["artifacts"] == 5
    assert bad not in allowed.table["artifact_guid"].to_pylist()
    assert bad not in allowed.label_rows["artifact_guid"].to_pylist()
    assert allowed.problems["failures"]["artifact_guid"].to_pylist() == [bad]
    assert sorted(calls.read_text().split()) == sorted([*guids(6), bad, bad, bad]), (
        "the others were not processed again"
    )


def test_a_second_try_may_succeed(scene: Scene) -> None:
    source = (
        "import pathlib\n"
        "def process_func(artifact, directory):\n"
        f"    mark = pathlib.Path({str(scene.folder)!r}) / ('tried-' + artifact['artifact_guid'])\n"
        "    if not mark.exists():\n        mark.touch()\n        raise OSError('flaky')\n"
        "    (directory / 'words.txt').write_text('x')\n"
    )
    assert scene.run(functions=source, **WORDS).funnel["failed"] == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("(directory / 'raw_text.json').write_text('mine')", "changed or removed 'raw_text.json'"),
        ("(directory / 'raw_text.json').unlink()", "changed or removed 'raw_text.json'"),
        ("(directory / 'sub').mkdir()", "'sub', which is not a plain file"),
        ("(directory / 'link').symlink_to('/etc/hostname')", "'link', which is not a plain file"),
        ("(directory / 'long').open('w').truncate(2**40)", "'long', which is 1099511627776 bytes long and holds"),
        ("(directory / 'a\\nb').write_text('x')", "control or invisible"),
        ("(directory / '.processed-0').write_text('x')", "the platform's"),
        ("pass; (directory / 'other.txt').write_text('x')", "process_func did not write it"),
    ],
)
def test_what_process_func_must_not_leave(scene: Scene, body: str, said: str) -> None:
    with pytest.raises(TooManyFailures, match=said):
        scene.run(functions=f"def process_func(artifact, directory):\n    {body}\n", **WORDS)


def test_a_broken_module_stops_the_step_at_once(scene: Scene) -> None:
    with pytest.raises(ProcessFuncBroken, match="no_such_module"):
        scene.run(
            functions="import no_such_module\ndef process_func(artifact, directory):\n    no_such_module.x()\n", **WORDS
        )


def test_missing_files_are_fetched_and_made_again(scene: Scene) -> None:
    first = scene.run(functions=PROCESS, **WORDS)
    keys = first.table["key"].to_pylist()
    before = scene.state()
    scene.store.delete([keys[0], keys[3]])
    assert keys[0].endswith("raw_text.json")
    assert keys[3].endswith("words.txt")
    again = scene.run(functions=PROCESS, **WORDS)
    assert again.table == first.table
    assert scene.state() == before
    assert (again.funnel["copied"], again.funnel["processed"]) == (1, 1)


def test_files_that_nothing_gives_are_an_error_that_lists_them(scene: Scene) -> None:
    lacking = guids(6)[4]
    for guid in guids(6):
        if guid != lacking:
            scene.artifact(guid, page_01__png=b"png")
    files = {"FILES_FROM_PROD": "raw_text.json, page_01.png"}
    with pytest.raises(
        TooManyFailures,
        match=rf"{lacking} page_01\.png: not in production(\n.*)*stand in FILES_OPTIONAL: page_01\.png\?",
    ):
        scene.run(**files)
    assert scene.run(**files, MAX_FAILED_SHARE="0.5").funnel["artifacts"] == 5
    with pytest.raises(TooManyFailures, match=r"words\.txt: nothing makes it: there is no process_func"):
        scene.run(**WORDS)


def test_nothing_left(tmp_path: Path) -> None:
    scene = build(tmp_path, [("a", "x", "h", 0)])
    with pytest.raises(NothingLeft, match="labels without files: 1"):
        scene.run()


def test_nothing_joined_gives_examples_and_reasons(tmp_path: Path) -> None:
    scene = build(
        tmp_path, [("ABC-1", "x", "h1", 0), ("ABC-2", "x", "h2", 0), ("007", "x", "h3", 0), ("a ", "x", "h4", 0)]
    )
    for guid in ("abc-1", "abc-2", "7"):
        scene.artifact(guid)
    with pytest.raises(NothingLeft) as caught:
        scene.run()
    said = str(caught.value)
    assert "2 artifact_guid differ from production's in case only: the label's 'ABC-1', in production 'abc-1'" in said
    assert (
        "1 artifact_guid differ from production's in zeros in front only: the label's '007', in production '7'" in said
    )
    assert "labels are refused, such as 'a ': unsafe artifact_guid: white space at an end" in said
    scene = build(tmp_path / "other", [("one", "x", "h", 0)])
    scene.artifact("two")
    with pytest.raises(NothingLeft, match="a label's artifact_guid is 'one', a folder in production 'two'"):
        scene.run()
    scene = build(tmp_path / "wrong name", [("one", "x", "h", 0)])
    scene.production.put("one/text.json", b"{}")
    with pytest.raises(NothingLeft, match="no <artifact_guid>/<file> of FILES_FROM_PROD, neither for 'one' nor"):
        scene.run()


def test_near_misses_are_said_where_others_match(scene: Scene) -> None:
    scene.labels = label_database(
        scene.folder / "labels.db", [(guids(6)[0], "a", "h", 0), (guids(6)[1].upper(), "b", "i", 0)]
    )
    result = scene.run()
    assert result.funnel["labels without files that nearly match"] == 1
    assert result.problems["near_misses"].to_pylist() == [
        {"artifact_guid": guids(6)[1].upper(), "in_production": guids(6)[1], "reason": "case"}
    ]
    assert any("differ from production's in case only" in line for line in scene.said)


def test_the_rows_own_version_reaches_process_func(scene: Scene) -> None:
    scene.query = (
        "SELECT artifact_guid, label, file_hash, site AS version, 'p' AS path, 'f' AS file, 'k' AS key FROM labels"
    )
    source = (
        "def process_func(artifact, directory):\n"
        "    (directory / 'words.txt').write_text(' '.join(str(artifact[n]) for n in ('version', 'path', 'file', 'key')))\n"
    )
    result = scene.run(functions=source, SPLIT_BY="Version", **WORDS)
    assert result.label_rows["version"].to_pylist() == [row["site"] for row in _sites(scene)]
    row = next(row for row in result.table.to_pylist() if row["file"] == "words.txt")
    site = next(other["site"] for other in _sites(scene) if other["artifact_guid"] == row["artifact_guid"])
    assert scene.store.get(row["key"]).decode() == f"{site} p f k"
    scene.query = "SELECT * FROM labels"
    with pytest.raises(ReconciliationError, match="SPLIT_BY = batch, but LABELS_QUERY yields artifact_guid, label"):
        scene.run(2, SPLIT_BY="batch")


def _sites(scene: Scene) -> list[dict[str, Any]]:
    return scene.labels.fetch("SELECT artifact_guid, site FROM labels ORDER BY artifact_guid").to_pylist()


PAGES = {"FILES_FROM_PROD": "raw_text.json, page_*.png"}


def test_patterns_take_as_many_files_as_there_are(scene: Scene) -> None:
    pages = {guid: i % 3 + 1 for i, guid in enumerate(guids(6))}
    for guid, count in pages.items():
        scene.artifact(guid, **{f"page_{n}__png": f"{guid} {n}".encode() for n in range(count)}, notes__txt=b"")
    plain = scene.run()
    first = scene.run(**PAGES)
    found = [(row["artifact_guid"], row["file"]) for row in first.table.to_pylist() if row["file"] != "raw_text.json"]
    assert found == [(guid, f"page_{n}.png") for guid in sorted(pages) for n in range(pages[guid])]
    assert {row["origin"] for row in first.table.to_pylist()} == {"prod"}

    more = guids(6)[2]
    scene.artifact(more, page_10__png=b"one more")
    second = scene.run(2, **PAGES)
    changed = set(second.table["key"].to_pylist()) - set(first.table["key"].to_pylist())
    assert {key.split("/")[3] for key in changed} == {more}, "a new version of this document only"
    assert (second.funnel["copied"], second.funnel["reused"]) == (5, second.table.num_rows - 5)
    assert scene.run(3).table == plain.table, "versions of artifacts without patterns stay as they are"


def test_a_pattern_that_matches_nothing_is_a_missing_file_unless_it_is_optional(scene: Scene) -> None:
    lacking = guids(6)[3]
    for guid in guids(6):
        if guid != lacking:
            scene.artifact(guid, page_1__png=b"")
    with pytest.raises(TooManyFailures, match=rf"{lacking} page_\*\.png: not in production"):
        scene.run(**PAGES)
    result = scene.run(FILES_OPTIONAL="page_*.png", **PAGES)
    assert result.funnel["artifacts"] == 6
    assert result.table.num_rows == 11


def test_process_func_may_make_files_by_pattern(scene: Scene) -> None:
    source = (
        "def process_func(artifact, directory):\n"
        "    for n in range(artifact['site'] if artifact['site'] < 3 else 0):\n"
        "        (directory / f'crop_{n}.txt').write_text('x')\n"
        "    (directory / 'pages.txt').write_text(' '.join(sorted(p.name for p in directory.glob('page_*'))))\n"
    )
    for guid in guids(6):
        scene.artifact(guid, page_1__png=b"", page_2__png=b"")
    files = {**PAGES, "FILES_ON_RESEARCH": "raw_text.json, page_*.png, pages.txt, crop_*.txt"}
    with pytest.raises(TooManyFailures, match=r"4 of 6 .*\n.* crop_\*\.txt: process_func did not write it"):
        scene.run(functions=source, **files)
    result = scene.run(functions=source, FILES_OPTIONAL="crop_*", **files)
    rows = result.table.to_pylist()
    made = [row["file"] for row in rows if row["origin"] == "process_func"]
    assert sorted(made) == sorted(["pages.txt"] * 6 + ["crop_0.txt"] * 2 + ["crop_1.txt"])
    assert scene.store.get(next(row["key"] for row in rows if row["file"] == "pages.txt")) == b"page_1.png page_2.png"
    again = scene.run(2, functions=source, FILES_OPTIONAL="crop_*", **files)
    assert (again.funnel["processed"], again.table) == (0, result.table)


def test_a_file_that_vanishes_or_changes_while_it_is_copied(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    vanishing, changing = sorted(guids(6))[:2]
    original = Store.copy_many

    def copy_many(self: Store, other: Store, pairs: Any, **options: Any) -> Any:
        if not scene.production.exists("touched"):
            scene.production.put("touched", b"")
            scene.production.delete([f"{vanishing}/raw_text.json"])
            scene.artifact(changing, raw_text__json=b'{"text": "newer"}')
        return original(self, other, pairs, **options)

    monkeypatch.setattr(Store, "copy_many", copy_many)
    result = scene.run()
    assert vanishing not in result.table["artifact_guid"].to_pylist()
    assert result.funnel["labels without files"] == 1
    row = next(row for row in result.table.to_pylist() if row["artifact_guid"] == changing)
    assert scene.store.get(row["key"]) == b'{"text": "newer"}'
    # The version that was planned first does not hold the newer content under the older version's name.
    assert len(list(scene.store.list(f"{BASE}/{changing}"))) == 1
    monkeypatch.undo()
    assert scene.run(2).data_version == result.data_version


def test_hostile_names_from_both_sides(tmp_path: Path) -> None:
    hostile = [
        name
        for name in HOSTILE
        if name is None or (isinstance(name, str) and not any(0xD800 <= ord(c) < 0xE000 for c in name))
    ]
    labels = [None, "", "x" * 10_000, b"\xff\xfe"]
    rows = [(name, "a", f"h{i}", 0) for i, name in enumerate(hostile)]
    rows += [(f"label-{i}", label, f"l{i}", 0) for i, label in enumerate(labels)]
    scene = build(tmp_path, [("good", "a", "g", 0), *rows])
    scene.artifact("good")
    assert scene.production.local_path is not None
    for name in hostile:
        if name and "/" not in name and "\0" not in name and name not in (".", "..") and len(name.encode()) < 256:
            (scene.production.local_path / name).mkdir(exist_ok=True)
            (scene.production.local_path / name / "raw_text.json").write_bytes(b"{}")
    result = scene.run()
    assert result.table["artifact_guid"].to_pylist() == ["good"]
    assert result.funnel["refused"] == len(hostile) + len(labels)
    assert result.funnel["production files refused"] > 80
    assert {key.split("/")[0] for key in scene.state()} == {"good"}
    assert not (tmp_path / "target").exists()


@pytest.fixture
def s3_scene(tmp_path: Path, s3_server: S3Server, postgres_server: PostgresServer) -> Callable[[int], Scene]:
    """Production in one bucket, research in another, labels in PostgreSQL."""

    def make(count: int) -> Scene:
        rows = [(guid, "ab"[i % 2], f"h{i}", i) for i, guid in enumerate(guids(count))]
        url = s3_server.new_url()
        scene = build(
            tmp_path,
            rows,
            production=url.replace("s3://tests", s3_server.bucket("production")),
            store=url,
            environment=s3_server.environment,
        )
        (tmp_path / "local").mkdir()
        for guid in guids(count):
            (tmp_path / "local" / guid).mkdir()
            (tmp_path / "local" / guid / "raw_text.json").write_bytes(document(guid))
        scene.production.upload(tmp_path / "local", "")
        return scene

    return make


def test_on_s3_and_postgres(s3_scene: Callable[[int], Scene], postgres_server: PostgresServer) -> None:
    scene = s3_scene(40)
    values = ",".join(f"('{guid}', '{'ab'[i % 2]}', 'h{i}', {i})" for i, guid in enumerate(guids(40)))
    postgres_server.execute(
        "DROP TABLE IF EXISTS labels",
        "CREATE TABLE labels (artifact_guid text, label text, file_hash text, site int)",
        f"INSERT INTO labels VALUES {values}",
    )
    from resources.labels import LabelSource

    by_sqlite = scene.run(functions=PROCESS, **WORDS)
    scene.labels = LabelSource(postgres_server.url, {})
    by_postgres = scene.run(2, functions=PROCESS, **WORDS)
    assert by_postgres.table == by_sqlite.table
    assert by_postgres.funnel["copied"] == 0
    assert by_postgres.table.num_rows == 80
    for row in by_postgres.table.to_pylist()[:4]:
        assert scene.store.head(row["key"]).etag == row["etag"]  # type: ignore[union-attr]


def test_kill_9_at_any_moment_then_run_again(
    s3_scene: Callable[[int], Scene], s3_server: S3Server, tmp_path: Path
) -> None:
    scene = s3_scene(300)
    (tmp_path / "undisturbed").mkdir()
    undisturbed = build(
        tmp_path / "undisturbed",
        [(guid, "ab"[i % 2], f"h{i}", i) for i, guid in enumerate(guids(300))],
        production=scene.production.url,
        store=s3_server.new_url(),
        environment=s3_server.environment,
    )
    expected = undisturbed.run(functions=PROCESS, **WORDS)

    moments = [("files copied", 0.0), ("files copied", 0.1), ("files copied", 0.5), ("artifacts processed", 0.1)]
    for stage, moment in moments:
        before = _modified(s3_server, scene)
        _run_and_kill(scene, stage, moment)
        after = _modified(s3_server, scene)
        assert {key: when for key, when in after.items() if key in before} == before, "nothing is written twice"
    before = _modified(s3_server, scene)
    assert 300 < len(before) < 900, "the last run was killed on its way"
    final = scene.run(functions=PROCESS, **WORDS)
    after = _modified(s3_server, scene)
    assert {key: when for key, when in after.items() if key in before} == before
    assert final.table.drop(["etag"]) == expected.table.drop(["etag"])
    assert final.data_version == expected.data_version
    assert scene.state() == undisturbed.state()


def _modified(server: S3Server, scene: Scene) -> dict[str, Any]:
    pages = (
        server.client()
        .get_paginator("list_objects_v2")
        .paginate(Bucket="tests", Prefix=scene.store.url.split("/")[3] + "/")
    )
    return {
        entry["Key"]: (entry["LastModified"], entry["ETag"]) for page in pages for entry in page.get("Contents", [])
    }


def _run_and_kill(scene: Scene, stage: str, moment: float) -> None:
    """Start the step in a process of its own; kill -9 once this share of `stage` is done, or a later stage begins."""
    arguments = {
        "folder": str(scene.folder),
        "production": scene.production.url,
        "store": scene.store.url,
        "environment": scene.environment,
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.docml_assets.reconcile.scene", json.dumps(arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    for line in child.stdout:
        said, done, total = line.rsplit(" ", 2)
        if said == "artifacts processed" and said != stage:
            break
        if said == stage and int(done) >= moment * int(total):
            break
    child.kill()
    child.wait()
    child.stdout.close()
