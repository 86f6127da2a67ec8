"""Numbers as people read them."""

import pytest

from docml_assets.numbers import duration, number, p_value, score, setting, share, signed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.23, "0.2 s"),
        (45.2, "45 s"),
        (200, "3 min 20 s"),
        (600, "10 min"),
        (3599.6, "1 h"),
        (7500, "2 h 5 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert (number(None), number(1234.5, 1), number(-0.5)) == ("–", "1,234.5", "\N{MINUS SIGN}0.500")
    assert (p_value(0.0004), p_value(0.04)) == ("<0.001", "0.040")
    assert (signed(-0.1234), signed(0.5)) == ("\N{MINUS SIGN}0.123", "+0.500")
    assert (share(0.1234), score(0.8, (0.7, 0.9)), score(0.8, None)) == ("12.3 %", "0.800 (0.700 to 0.900)", "0.800")


def test_settings_are_written_as_settings_ini_has_them() -> None:
    assert [setting(value) for value in (None, True, [1, "a"], [], 0.5)] == ["none", "true", "1, a", "none", "0.5"]
