"""Text that others wrote does nothing on a terminal, in a log or on a page."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docml_contract.plain_text import is_invisible, plain, plain_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Rechnung über 3 €\n\tzwei", "Rechnung über 3 €\n\tzwei"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("fdp.\u202ecod", "fdp.\\u202ecod"),
        ("in\u200bvoice", "in\\u200bvoice"),
        ("a\rb\r\nc", "a\\x0db\nc"),
        ("half \ud800", "half \\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_acts_or_hides_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(shown) == shown, "what is plain stays"


@given(st.text())
def test_whatever_comes_nothing_invisible_is_left(text: str) -> None:
    assert not any(is_invisible(character) for character in plain(text) if character not in "\n\t")
    assert "\n" not in plain_line(text)
    plain(text).encode()


def test_it_takes_time_in_proportion() -> None:
    started = time.process_time()
    assert len(plain("\x1b" * 1_000_000)) == 4_000_000
    assert time.process_time() - started < 5
