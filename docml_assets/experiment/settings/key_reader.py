"""Section [settings]: texts of entries -> values of the key table, or problems that say what the table expects; and what else it says of keys."""

import re
from collections.abc import Collection
from typing import Any, get_origin

from pydantic import ValidationError

from docml_assets.errors import nearest, shown
from docml_assets.experiment.settings.ini import Ini
from docml_assets.experiment.settings.keys import Keys
from docml_assets.experiment.settings.values import check_names, is_quoted, means_nothing, split_items, unquoted
from docml_contract.file_names import is_pattern

QUERIES = ("labels_query", "predict_query")
ABSENT = object()  # stands for a value that says: as if the key were not there
_FILES = frozenset({"files_from_prod", "files_optional", "files_on_research", "model_input_files"})
# Keys that `none` leaves at their default, beside those whose value may be none.
_NONE_IS_ABSENT = frozenset(
    {"files_on_research", "encoded_data_dir", "num_labels_threshold", "wandb_project", "use_case", "split"}
    | {"objective_metric_name"}
    | {"reconciliation_processes", "preparation_processes"}
)
# Stand in for required keys that are wrong, so that the rules between the others can still be checked.
_PLACEHOLDERS: dict[str, Any] = {
    "model_names": ("model",),
    "labels_query": "SELECT artifact_guid, label, file_hash FROM labels",
    "files_from_prod": ("file",),
    "model_input_files": ("file",),
}


def read_keys(ini: Ini, slips: frozenset[str]) -> tuple[Keys | None, frozenset[str]]:
    """The [settings] keys and the names of those that are wrong; wrong ones have their defaults or placeholders.

    slips: those that are wrong already.
    """
    raw: dict[str, Any] = {}
    bad = set(slips & Keys.model_fields.keys())
    meant: set[str | None] = {
        name.upper() for name in slips
    }  # keys that an unknown one stands for: not missing, but misspelt
    for entry in ini.section("settings").values():
        name = entry.key.lower()
        if not (entry.key.isupper() and name in Keys.model_fields):
            meant.add(_unknown_key(ini, entry.key, entry.line))
        elif ini.dialect == 1:
            raw[name] = entry.value
        else:
            try:
                value = read_value(name, entry.value)
                if (
                    ini.dialect > 3
                    and means_nothing(entry.value)
                    and get_origin(Keys.model_fields[name].annotation) is not tuple
                ):
                    raise ValueError("what other formats write for nothing: write none, or leave the key out")
            except ValueError as error:
                bad.add(name)
                meant.add(entry.key)
                _complain_of_value(ini, name, entry.value, f" ({error})")
            else:
                raw |= {} if value is ABSENT else {name: value}
    try:
        return Keys.model_validate({**{k: v for k, v in _PLACEHOLDERS.items() if k in bad}, **raw}), frozenset(bad)
    except ValidationError as error:
        bad |= _complain_of_values(ini, error, meant)
    rest = {name: value for name, value in raw.items() if name not in bad}
    try:
        return Keys.model_validate({**{k: v for k, v in _PLACEHOLDERS.items() if k in bad}, **rest}), frozenset(bad)
    except ValidationError:
        return None, frozenset(bad)


def _unknown_key(ini: Ini, key: str, line: int) -> str | None:
    """Complain of it; returns the key that was probably meant."""
    known = [name.upper() for name in Keys.model_fields]
    guess = nearest(key, known)
    if key.upper() in known:
        remedy = f"keys of [settings] are upper-case: write {key.upper()}"
    elif guess:
        remedy = f"did you mean {guess}?"
    else:
        remedy = "remove it; the experiment's own values belong in [hyperparameters]"
    ini.complain(line, f"the unknown key {shown(key)}", "a key of docs/settings.md", remedy)
    return guess


def _complain_of_value(ini: Ini, name: str, value: str, reason: str) -> None:
    """Of one wrong key, with what the table says of it."""
    key, extra = name.upper(), extra_of(name)
    found = f"{key} = {shown(value) or 'nothing'}{reason}"
    expected = f"{extra['expected']} ({Keys.model_fields[name].description})"
    ini.complain(ini.line("settings", key), found, expected, f"write {key} = {extra['example']}")


def _complain_of_values(ini: Ini, error: ValidationError, meant: Collection[str | None]) -> set[str]:
    """One problem for each wrong key; returns their names."""
    bad: set[str] = set()
    for detail in error.errors():
        name = str(detail["loc"][0])
        if detail["type"] == "default_factory_not_called" or name in bad:
            continue
        bad.add(name)
        entry = ini.section("settings").get(name.upper())
        if detail["type"] != "missing" or entry:
            _complain_of_value(ini, name, entry.value if entry else detail["input"], _reason(detail))
        elif name.upper() not in meant:
            key, extra = name.upper(), extra_of(name)
            expected = f"{extra['expected']} ({Keys.model_fields[name].description})"
            ini.complain(ini.line("settings", key), f"no {key}", expected, f"write {key} = {extra['example']}")
    return bad


def _reason(detail: Any) -> str:
    """Our own validators' reason; pydantic's own texts repeat what `expected` says."""
    reason = detail.get("ctx", {}).get("error") if detail["type"] == "value_error" else None
    return f" ({reason})" if reason else ""


_THOUSANDS = re.compile(r"\d{1,3}(\.000)+")


def read_value(name: str, text: str) -> Any:
    """What a key's text says, without quotes: a text, a tuple of texts for a list, or ABSENT. ValueError says what is wrong with it."""
    none = text.lower() == "none"
    if none and name in _NONE_IS_ABSENT:
        return ABSENT
    field = Keys.model_fields[name]
    if get_origin(field.annotation) is tuple and name != "metric_definitions":
        items = [] if none and not field.is_required() else split_items(text)
        if name in _FILES:
            check_names([item for item, _ in items])
        elif any(is_pattern(item) for item, quoted in items if not quoted):
            raise ValueError(
                "a pattern, which only FILES_… and MODEL_INPUT_FILES take; a name with * ? [ stands in quotes"
            )
        return tuple(item for item, _ in items)
    if field.annotation in (int, int | None) and _THOUSANDS.fullmatch(text):
        raise ValueError("a point as a thousands separator; whole numbers are written in digits alone")
    if name not in (*QUERIES, "metric_definitions") and not is_quoted(text) and is_pattern(text):
        raise ValueError("a pattern, which only FILES_… and MODEL_INPUT_FILES take; a name with * ? [ stands in quotes")
    return unquoted(text)


def operational_keys() -> frozenset[str]:
    """The attributes that do not freeze with a run."""
    return frozenset(name for name in Keys.model_fields if extra_of(name)["operational"])


def extra_of(name: str) -> dict[str, Any]:
    """A key's `expected`, `example`, `operational` and `shown`."""
    extra = Keys.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return dict(extra)
