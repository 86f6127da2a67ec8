"""docs/permissions.md says what the policies of deploy/ say; SECURITY.md names tests that are there."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "make_permissions.py"))["render"]
    assert (ROOT / "docs" / "permissions.md").read_text(encoding="utf-8") == render(), (
        "run: python docs/make_permissions.py"
    )


def test_every_test_that_security_md_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 15
    assert not [path for path in named if not (ROOT / path).exists()]
