"""[hyperparameters] and [tunable]: constants, and the ranges that a tuning searches.

A key may stand in both: a training takes the constant, a tuning searches the range instead. `encode_data` sees constants only,
since the documents are encoded once for all trials.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from docml_assets.errors import nearest, shown
from docml_assets.experiment.settings.ini import Entry, Ini
from docml_assets.experiment.settings.keys import Keys
from docml_assets.experiment.settings.values import find_constant_slip, split_items, unquoted
from docml_contract.base import canonical_json
from docml_contract.hyperparameters import (
    KNOWN,
    LATER,
    TUNING_OBJECTIVE,
    Choice,
    Interval,
    SearchRange,
    TrainingHyperparameters,
    encode,
    parse_scalar,
)

HYPERPARAMETERS, TUNABLE = "hyperparameters", "tunable"
SETTINGS_KEYS = frozenset(name.upper() for name in Keys.model_fields)
# SageMaker's limits
MAX_HYPERPARAMETERS = 100
MAX_TUNED = 30
MAX_CHOICES = 30
MAX_KEY = 256
MAX_VALUE = 2500
MAX_TUNED_VALUE = 256

_INTERVAL = re.compile(r"(?P<low>\S+)\s*->\s*(?P<high>\S+)(?:\s+(?P<scale>\S+))?")
# What people write for an interval, and what would be one text.
_NO_INTERVAL = re.compile(r"[\d.]\S*\s*(\u2192|=>|\.\.+|\bto\b|[-\u2013:])\s*[\d.]\S*(\s+log)?")
_INTEGER = re.compile(r"[+-]?\d+")
_WORDS = {"true": True, "false": False}
# What other libraries call the training loop's own: as a key of the experimenter's it would change nothing, without a word.
_ELSEWHERE = {
    "lr": "learning_rate",
    "head_lr": "head_learning_rate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "batch_size": "train_batch_size",
    "per_device_train_batch_size": "train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "accumulation_steps": "gradient_accumulation_steps",
    "warmup_steps": "warmup_ratio",
    "lr_scheduler_type": "lr_scheduler",
    "gradient_clipping": "max_grad_norm",
    "label_smoothing_factor": "label_smoothing",
    "fp16": "mixed_precision",
    "bf16": "mixed_precision",
    "patience": "early_stopping_patience",
    "random_seed": "seed",
    "random_state": "seed",
}
MAX_LENGTH = "max_length"  # the experimenter's key that the platform reads, too


def parse_constant(text: str) -> Any:
    """JSON if it is JSON (without infinities), True and False in any case, else the text itself."""
    value = _WORDS.get(text.lower(), parse_scalar(text))
    try:
        canonical_json(value)
    except ValueError:  # 1e999 is JSON and infinite
        return text
    return value


def read_hyperparameters(ini: Ini) -> dict[str, Any]:
    """The constants of [hyperparameters]: the platform's own, with defaults, and the experimenter's. Complains in `ini`."""
    values = {**TrainingHyperparameters().model_dump(exclude=set(LATER)), **read_constants(ini, HYPERPARAMETERS)}
    total = len(values.keys() | ini.section(TUNABLE).keys())
    if total > MAX_HYPERPARAMETERS:
        ini.complain(
            ini.section_lines.get(HYPERPARAMETERS, 1),
            f"{total} hyperparameters (the platform's {len(KNOWN)} count)",
            f"at most {MAX_HYPERPARAMETERS}, SageMaker's limit",
            "move some to user_defined_funcs.py",
        )
    return values


def read_constants(ini: Ini, section: str) -> dict[str, Any]:
    """The constants that a section names. Complains in `ini`."""
    values: dict[str, Any] = {}
    for entry in ini.section(section).values():
        if not _is_good_key(ini, entry, section) or _is_too_long(ini, entry, MAX_VALUE) or _has_slip(ini, entry):
            continue
        value = parse_constant(
            unquoted(entry.value) if entry.value.startswith("'") and ini.dialect > 1 else entry.value
        )
        if entry.key in KNOWN:
            _take_known(ini, entry, value, values)
        elif entry.key == MAX_LENGTH and ini.dialect > 2 and not _is_length(value):
            expected = "a whole number from 1, or null: how many tokens of a document are read"
            _complain_of_length(ini, entry, expected, "512")
        elif not _is_too_long(ini, Entry(entry.key, encode({entry.key: value})[entry.key], entry.line), MAX_VALUE):
            values[entry.key] = value
    return values


def _is_too_long(ini: Ini, entry: Entry, most: int) -> bool:
    """Complain of a value that is longer than SageMaker takes, before anything looks into it."""
    if len(entry.value) > most:
        ini.complain(
            entry.line,
            f"{entry.key} of {len(entry.value)} characters",
            f"at most {most}, SageMaker's limit",
            "keep long values in user_defined_funcs.py",
        )
    return len(entry.value) > most


def _is_length(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _complain_of_length(ini: Ini, entry: Entry, expected: str, example: str) -> None:
    ini.complain(
        entry.line, f"{MAX_LENGTH} = {shown(entry.value)}", expected, f"write for example {MAX_LENGTH} = {example}"
    )


def _has_slip(ini: Ini, entry: Entry) -> bool:
    """Complain of the experimenter's own value if it is not written as what it seems to be."""
    unknown = ini.dialect > 1 and entry.key not in KNOWN
    slip = find_constant_slip(entry.value, strict=ini.dialect > 3) if unknown else None
    if slip:
        ini.complain(entry.line, f"{entry.key} = {shown(entry.value)} ({slip[0]})", slip[1], slip[2])
    return slip is not None


def _take_known(ini: Ini, entry: Entry, value: Any, values: dict[str, Any]) -> None:
    complaint = complaint_about(entry.key, value)
    if ini.dialect > 3 and isinstance(value, bool) and bool not in _types_of(entry.key):
        complaint = "a number or a word, not a switch"
    if complaint:
        ini.complain(
            entry.line, f"{entry.key} = {shown(entry.value)}", complaint, f"{meaning(entry.key)}; {default(entry.key)}"
        )
    else:
        values[entry.key] = _typed(entry.key, value)


def _types_of(key: str) -> tuple[Any, ...]:
    """The types that one of the platform's own hyperparameters may have."""
    annotation = TrainingHyperparameters.model_fields[key].annotation
    return get_args(annotation) or (annotation,)


def _typed(key: str, value: Any) -> Any:
    """The value as the training loop will read it; ValidationError if it will not."""
    if isinstance(value, str) and value.lower() == "none" and key != "class_weights":
        value = None
    return getattr(TrainingHyperparameters.model_validate({key: value}), key)


def complaint_about(key: str, value: Any) -> str | None:
    """What was expected of one of the platform's own hyperparameters, or None if the value is right."""
    try:
        _typed(key, value)
    except ValidationError as error:
        return " or ".join(each["msg"].replace("Input should be", "").strip() for each in error.errors())
    return None


def meaning(key: str) -> str:
    """A sentence that says what the hyperparameter is."""
    return f"{key} is {TrainingHyperparameters.model_fields[key].description}"


def default(key: str) -> str:
    """A sentence that says what its default is."""
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
    if ini.dialect > 1 and entry.key.upper() in SETTINGS_KEYS:
        ini.complain(
            entry.line,
            f"{entry.key} in [{section}]",
            f"{entry.key.upper()} in [settings], or a name that is none of its keys",
            "move it up into [settings]",
        )
        return False
    if ini.dialect > 3 and (wrong := _misplaced(entry.key)):
        ini.complain(entry.line, f"the key {shown(entry.key)} in [{section}]", *wrong)
        return False
    guess = None if entry.key in KNOWN else nearest(entry.key, KNOWN, cutoff=0.9)
    if ini.dialect > 2:
        guess = _ELSEWHERE.get(entry.key.lower(), guess)
    if guess:
        ini.complain(
            entry.line,
            f"{entry.key} in [{section}]",
            f"{guess}, or a name that is not so close to it",
            f"did you mean {guess}? Otherwise rename your own key, so that nobody mistakes it",
        )
    return guess is None


def _misplaced(key: str) -> tuple[str, str] | None:
    """What is expected and to be done, of a key in quotes, or with the name of a model or section before one of the platform's own."""
    if {*key} & {*"\"'`\u201c\u201d\u2018\u2019"}:
        return "a key without quotes", "remove them"
    before, dot, name = key.rpartition(".")
    if dot and name in (*KNOWN, MAX_LENGTH):
        where = f"[{HYPERPARAMETERS}]" if before in (HYPERPARAMETERS, TUNABLE) else f"[{HYPERPARAMETERS}.{before}]"
        return f"{name}, in {where}", f"write {name} in a section of its own, {where}"
    if name != MAX_LENGTH and re.sub(r"[-_]", "", key).lower() == "maxlength":
        return f"{MAX_LENGTH}, which the platform reads too", f"write {MAX_LENGTH}"
    return None


def read_ranges(ini: Ini, section: str = TUNABLE) -> dict[str, SearchRange]:
    """The search space that a section names. Complains in `ini`."""
    ranges: dict[str, SearchRange] = {}
    for entry in ini.section(section).values():
        if not _is_good_key(ini, entry, section) or _is_too_long(ini, entry, MAX_CHOICES * (MAX_TUNED_VALUE + 4)):
            continue
        found = _interval(ini, entry) if "->" in entry.value else _choice(ini, entry)
        if found and _values_fit(ini, entry, found):
            ranges[entry.key] = found
    if len(ranges) > MAX_TUNED:
        ini.complain(
            ini.section_lines[section],
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
    found = f"{entry.key} = {shown(entry.value) or 'nothing'}"
    try:
        words, values = _words(entry.value, ini.dialect)
    except ValueError as error:
        ini.complain(
            entry.line, f"{found} ({error})", "LOW -> HIGH, or values between commas", f"write {entry.key} = 8, 16, 32"
        )
        return None
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


def _words(text: str, dialect: int) -> tuple[list[str], tuple[Any, ...]]:
    """The values of a choice as they are written, and what they mean; ValueError if they are not written as they should be."""
    if dialect == 1:
        plain = [word.strip() for word in re.split(r"[,\n]", text)]
        return plain, tuple(parse_constant(word) for word in plain if word)
    items = split_items(text)
    for word, quoted in items:
        slip = None if quoted or len(word) > MAX_TUNED_VALUE else find_constant_slip(word, strict=dialect > 3)
        if slip:
            raise ValueError(f"{word}: {slip[0]}")
    if len(items) == 1 and len(items[0][0]) <= MAX_TUNED_VALUE and _NO_INTERVAL.fullmatch(items[0][0]):
        raise ValueError("an interval is written with ->")
    return [word for word, _ in items], tuple(word if quoted else parse_constant(word) for word, quoted in items)


def _values_fit(ini: Ini, entry: Entry, found: SearchRange) -> bool:
    """Whether the training loop would take every value (of an interval: both ends, and whole numbers where it counts)."""
    if entry.key == MAX_LENGTH and ini.dialect > 2:
        lengths = found.values if isinstance(found, Choice) else (int(found.low) if found.integer else None,)
        if not all(value is not None and _is_length(value) for value in lengths):
            _complain_of_length(ini, entry, "whole numbers from 1: how many tokens of a document are read", "256, 512")
            return False
    if entry.key not in KNOWN:
        return True
    values: tuple[Any, ...]
    if isinstance(found, Choice):
        values = found.values
    elif found.integer:
        values = (int(found.low), int(found.high))
    else:
        # What lies between the ends is not a whole number: offer the training loop such a value too.
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
