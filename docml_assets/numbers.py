"""How numbers and settings are written, wherever people read them: on the terminal, in the UI, on the report page."""

import json
from typing import Any


def number(value: float | None, digits: int = 3) -> str:
    """With thousands separated; an en dash for what is not known."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def counted(count: int, noun: str) -> str:
    """`1 label`, `2,300 labels`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def share(value: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def signed(value: float) -> str:
    """With a true minus sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def score(value: float, interval: tuple[float, float] | None) -> str:
    """A score with its 95 % interval: `0.812 (0.744 to 0.861)`."""
    return number(value) if interval is None else f"{number(value)} ({number(interval[0])} to {number(interval[1])})"


def p_value(value: float) -> str:
    """Three decimals, or `<0.001`."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """In its two largest units: `4.2 s`, `45 s`, `3 min 20 s`, `10 min`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, less, lesser in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // less
            return f"{whole // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    return f"{whole} s"


def size(count: float) -> str:
    """Bytes as people read them: `120 B`, `3 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def setting(value: Any) -> str:
    """As settings.ini would have it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or "none"
    return str(value)
