import os
from pathlib import Path

import pytest

from docml_contract.untrusted_files import Misdeed, UntrustedFolder, find_misdeeds, open_made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("CANARY")
    made = tmp_path / "made"
    (made / "below").mkdir(parents=True)
    (made / "below/file").write_text("own")
    (made / "file").write_text("own")
    return made


def test_plain_files_are_read(folder: Path) -> None:
    (folder / ".draft").mkdir()
    (folder / ".draft/file").touch()
    (folder / "link").symlink_to(folder / "file")
    (folder / "linked").symlink_to(folder.parent / "secret")
    with UntrustedFolder(folder) as opened:
        assert opened.names() == [".draft", "below", "file", "link", "linked"]
        assert {path: status.st_size for path, status in opened.plain_files()} == {"below/file": 3, "file": 3}
        for path in ("file", "below/file"):
            with opened.open(path) as stream:
                assert stream.read() == b"own"


def test_nothing_is_followed_nor_waited_for(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "secret/file")
    (folder / "linked").symlink_to(folder.parent / "secret")
    os.mkfifo(folder / "pipe")
    with UntrustedFolder(folder) as opened:
        for path in ("link", "linked/file", "pipe", "below", "nowhere"):
            with pytest.raises(OSError):  # noqa: PT011
                opened.open(path)
        with pytest.raises(Misdeed, match="'pipe', which is not a plain file"):
            open_made(opened, "pipe")
    with pytest.raises(OSError):  # noqa: PT011
        UntrustedFolder(folder / "linked")


def test_another_folder_in_its_place_is_not_seen(folder: Path) -> None:
    with UntrustedFolder(folder) as opened:
        folder.rename(folder.with_name("aside"))
        folder.symlink_to(folder.parent / "secret")
        with opened.open("file") as stream:
            assert stream.read() == b"own"
        assert list(find_misdeeds(opened, {})) == [
            "process_func left 'below', which is not a plain file; an artifact is a flat folder of files"
        ]
