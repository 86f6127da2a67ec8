"""[hyperparameters] and [tunable]: constants, and the ranges that a tuning searches.

A key may stand in both: a training takes the constant, a tuning searches the range instead. `encode_data` sees constants only,
since the documents are encoded once for all trials.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from docml_assets.experiment.problems import nearest, shown
from docml_assets.experiment.settings.ini import Entry, Ini
from docml_contract.base import canonical_json
from docml_contract.hyperparameters import (
    KNOWN,
    TUNING_OBJECTIVE,
    Choice,
    Interval,
    SearchRange,
    TrainingHyperparameters,
    encode,
    parse_scalar,
)

# SageMaker's limits
MAX_HYPERPARAMETERS = 100
MAX_TUNED = 30
MAX_CHOICES = 30
MAX_KEY = 256
MAX_VALUE = 2500
MAX_TUNED_VALUE = 256

_INTERVAL = re.compile(r"(?P<low>\S+)\s*->\s*(?P<high>\S+)(?:\s+(?P<scale>\S+))?")
_INTEGER = re.compile(r"[+-]?\d+")
_WORDS = {"true": True, "false": False}


def parse_constant(text: str) -> Any:
    """JSON if it is JSON (without infinities), True and False in any case, else the text itself."""
    value = _WORDS.get(text.lower(), parse_scalar(text))
    try:
        canonical_json(value)
    except ValueError:  # 1e999 is JSON and infinite
        return text
    return value


def read_hyperparameters(ini: Ini) -> dict[str, Any]:
    """The constants: the platform's own, with defaults, and the experimenter's. Complains in `ini`."""
    values: dict[str, Any] = TrainingHyperparameters().model_dump()
    for entry in ini.section("hyperparameters").values():
        if not _is_good_key(ini, entry, "hyperparameters"):
            continue
        value = parse_constant(entry.value)
        if entry.key in KNOWN:
            _take_known(ini, entry, value, values)
        elif len(encode({entry.key: value})[entry.key]) > MAX_VALUE:
            ini.complain(
                entry.line,
                f"{entry.key} of {len(entry.value)} characters",
                f"at most {MAX_VALUE}, SageMaker's limit",
                "keep long values in user_defined_funcs.py",
            )
        else:
            values[entry.key] = value
    total = len(values.keys() | ini.section("tunable").keys())
    if total > MAX_HYPERPARAMETERS:
        ini.complain(
            ini.section_lines.get("hyperparameters", 1),
            f"{total} hyperparameters (the platform's {len(KNOWN)} count)",
            f"at most {MAX_HYPERPARAMETERS}, SageMaker's limit",
            "move some to user_defined_funcs.py",
        )
    return values


def _take_known(ini: Ini, entry: Entry, value: Any, values: dict[str, Any]) -> None:
    complaint = complaint_about(entry.key, value)
    if complaint:
        ini.complain(
            entry.line, f"{entry.key} = {shown(entry.value)}", complaint, f"{meaning(entry.key)}; {default(entry.key)}"
        )
    else:
        values[entry.key] = _typed(entry.key, value)


def _typed(key: str, value: Any) -> Any:
    """The value as the training loop will read it; ValidationError if it will not."""
    value = None if value == "none" and key != "class_weights" else value
    return getattr(TrainingHyperparameters.model_validate({key: value}), key)


def complaint_about(key: str, value: Any) -> str | None:
    """What was expected of one of the platform's own hyperparameters, or None if the value is right."""
    try:
        _typed(key, value)
    except ValidationError as error:
        return error.errors()[0]["msg"].replace("Input should be", "").strip()
    return None


def meaning(key: str) -> str:
    return f"{key} is {TrainingHyperparameters.model_fields[key].description}"


def default(key: str) -> str:
    value = TrainingHyperparameters.model_fields[key].default
    return f"its default is {'none' if value is None else value}"


def _is_good_key(ini: Ini, entry: Entry, section: str) -> bool:
    """Complain of a key that SageMaker or a typo makes impossible."""
    if entry.key.startswith("_") or len(entry.key) > MAX_KEY or re.search(r"\s", entry.key):
        ini.complain(
            entry.line,
            f"the key {shown(entry.key)}",
            f"at most {MAX_KEY} characters without spaces, not beginning with '_' (as {TUNING_OBJECTIVE} does)",
            "rename it",
        )
        return False
    guess = None if entry.key in KNOWN else nearest(entry.key, KNOWN, cutoff=0.9)
    if guess:
        ini.complain(
            entry.line,
            f"{entry.key} in [{section}]",
            f"{guess}, or a name that is not so close to it",
            f"did you mean {guess}? Otherwise rename your own key, so that nobody mistakes it",
        )
    return guess is None


def read_tunable(ini: Ini) -> dict[str, SearchRange]:
    """The search space. Complains in `ini`."""
    ranges: dict[str, SearchRange] = {}
    for entry in ini.section("tunable").values():
        if not _is_good_key(ini, entry, "tunable"):
            continue
        found = _interval(ini, entry) if "->" in entry.value else _choice(ini, entry)
        if found and _values_fit(ini, entry, found):
            ranges[entry.key] = found
    if len(ranges) > MAX_TUNED:
        ini.complain(
            ini.section_lines["tunable"],
            f"{len(ranges)} tunable hyperparameters",
            f"at most {MAX_TUNED}, SageMaker's limit",
            "move some to [hyperparameters]",
        )
    return ranges


def _interval(ini: Ini, entry: Entry) -> Interval | None:
    match = _INTERVAL.fullmatch(entry.value)
    expected = "LOW -> HIGH with LOW below HIGH, or LOW -> HIGH log"
    remedy = f"write for example {entry.key} = 1e-6 -> 1e-4 log"
    found = f"{entry.key} = {shown(entry.value)}"
    numbers = [_number(match["low"]), _number(match["high"])] if match else [None]
    if match is None or None in numbers or (match["scale"] or "log").lower() != "log":
        ini.complain(entry.line, found, expected, remedy)
        return None
    low, high = (float(number) for number in numbers if number is not None)
    log = match["scale"] is not None
    if low >= high:
        ini.complain(entry.line, found, expected, remedy)
        return None
    if log and low <= 0:
        ini.complain(entry.line, found, "a low end above 0, as logarithms need", "raise it or drop 'log'")
        return None
    integer = all(_INTEGER.fullmatch(match[end]) for end in ("low", "high"))
    return Interval(low=low, high=high, integer=integer, log=log)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _choice(ini: Ini, entry: Entry) -> Choice | None:
    words = [word.strip() for word in re.split(r"[,\n]", entry.value)]
    values = tuple(parse_constant(word) for word in words if word)
    found = f"{entry.key} = {shown(entry.value) or 'nothing'}"
    if not values:
        ini.complain(entry.line, found, "LOW -> HIGH, or values between commas", f"write {entry.key} = 8, 16, 32")
    elif len(values) > MAX_CHOICES:
        ini.complain(entry.line, f"{len(values)} values", f"at most {MAX_CHOICES}, SageMaker's limit", "search fewer")
    elif len({json.dumps(value) for value in values}) < len(values):
        ini.complain(entry.line, found, "each value once", "remove the repeated one")
    elif not all(isinstance(value, str | int | float | bool) for value in values):
        ini.complain(entry.line, found, "numbers, words, true or false", "search over plain values")
    elif any(len(word) > MAX_TUNED_VALUE for word in words):
        ini.complain(entry.line, found, f"at most {MAX_TUNED_VALUE} characters a value", "use shorter values")
    else:
        return Choice(values=values)
    return None


def _values_fit(ini: Ini, entry: Entry, found: SearchRange) -> bool:
    """Whether the training loop would take every value (of an interval: both ends, and whole numbers where it counts)."""
    if entry.key not in KNOWN:
        return True
    values: tuple[Any, ...]
    if isinstance(found, Choice):
        values = found.values
    elif found.integer:
        values = (int(found.low), int(found.high))
    else:
        # What lies between the ends is no whole number: offer the training loop such a value too.
        values = (found.low, found.high, found.low + (found.high - found.low) / 3.1)
    for value in values:
        complaint = complaint_about(entry.key, value)
        if complaint:
            ini.complain(
                entry.line,
                f"{entry.key} = {shown(entry.value)}, which holds {shown(value)}",
                complaint,
                meaning(entry.key),
            )
            return False
    return True


def combinations(ranges: Mapping[str, SearchRange]) -> int:
    """How many trials a grid over choices has."""
    total = 1
    for found in ranges.values():
        total *= len(found.values) if isinstance(found, Choice) else 1
    return total
