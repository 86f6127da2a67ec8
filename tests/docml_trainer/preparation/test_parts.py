"""Finished parts of an encoding: taken up by the same work alone, and only where they are whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from docml_trainer.preparation import parts
from docml_trainer.preparation.parts import KeptParts, Part, cut, identify
from tests.docml_trainer.preparations import ENCODER, documents, preparation

IDENTITY = "1" * 64


def finish(folder: Path, start: int, end: int, failed: int = 0) -> Part:
    """A finished part of these documents."""
    part = Part(range(start, end), folder, folder, IDENTITY)
    part.draft.write_bytes(b"rows" * 100)
    part.finish({"tally": {"failed": {"letter": failed} if failed else {}}})
    return part


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Part], object]] = {
    "rows flipped": lambda part: flip(part.rows),
    "rows cut": lambda part: part.rows.write_bytes(part.rows.read_bytes()[:-1]),
    "rows gone": lambda part: part.rows.unlink(),
    "report flipped": lambda part: flip(part.report),
    "report empty": lambda part: part.report.write_bytes(b""),
    "of other documents": lambda part: [
        shutil.move(path, path.with_name(path.name.replace("000000004", "000000005")))
        for path in (part.rows, part.report)
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_said_and_encoded_again(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = KeptParts(tmp_path, tmp_path, tmp_path / "earlier", IDENTITY)
    damaged, whole = finish(tmp_path, 0, 4), finish(tmp_path, 6, 8)
    assert kept.find(range(10)) == [damaged, whole]
    DAMAGE[damage](damaged)
    assert kept.find(range(10)) == [whole]
    assert "of an earlier attempt is not taken: " in capsys.readouterr().out
    left = [position for part in cut(range(10), [whole], 2, kept) for position in part.positions]
    assert left == [*range(6), 8, 9]


def test_other_work_takes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(tmp_path, 0, 4)
    assert KeptParts(tmp_path, tmp_path, tmp_path, "2" * 64).find(range(4)) == []
    assert "other functions, settings, documents or libraries made it" in capsys.readouterr().out


def test_what_an_earlier_machine_left_is_taken_and_nothing_twice(tmp_path: Path) -> None:
    folder, earlier = tmp_path / "folder", tmp_path / "earlier"
    folder.mkdir()
    earlier.mkdir()
    mine, theirs = finish(folder, 0, 4), finish(earlier, 4, 6)
    finish(earlier, 3, 5)  # cut otherwise, with another number of processes
    finish(earlier, 6, 12)  # goes beyond this host's share
    kept = KeptParts(tmp_path, folder, earlier, IDENTITY)
    assert [part.rows for part in kept.find(range(10))] == [mine.rows, theirs.rows]
    assert {part.kept for part in cut(range(10), [mine, theirs], 2, kept)} == {folder}


def test_after_too_many_failures_only_parts_without_any_are_taken(tmp_path: Path) -> None:
    kept = KeptParts(tmp_path, tmp_path, tmp_path, IDENTITY)
    whole, lacking = finish(tmp_path, 0, 4), finish(tmp_path, 4, 8, failed=1)
    assert kept.find(range(8)) == [whole, lacking]
    kept.note_too_many_failed()
    assert kept.find(range(8)) == [whole]


@pytest.mark.parametrize(("documents", "processes", "count"), [(0, 2, 0), (1, 4, 1), (10, 3, 3), (5000, 2, 20)])
def test_documents_are_cut_into_parts(tmp_path: Path, documents: int, processes: int, count: int) -> None:
    made = cut(range(documents), [], processes, KeptParts(tmp_path, tmp_path, tmp_path, IDENTITY))
    assert len(made) == count
    assert [position for part in made for position in part.positions] == list(range(documents))
    assert all(len(part.positions) <= parts.PART for part in made)


def test_the_identity_is_that_of_spec_functions_documents_and_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = documents(4)
    same = [preparation(tmp_path / name, docs, processes=count).folders for name, count in (("a", 1), ("b", 2))]
    others = [
        preparation(tmp_path / "functions", docs, functions=ENCODER + "\n").folders,
        preparation(tmp_path / "documents", docs[:3]).folders,
        preparation(tmp_path / "settings", docs, own_hyperparameters={"max_length": 5}).folders,
    ]
    (identity,) = {identify(folders) for folders in same}
    assert len({identity, *map(identify, others)}) == 4
    (tmp_path / "tokenizer-2.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert identify(same[0]) != identity
