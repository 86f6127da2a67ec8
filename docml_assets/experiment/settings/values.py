"""How the text of a setting becomes a value: how it may be written, and the types that the key table is made of.

Each type accepts both the text of settings.ini and the value itself, so that a model's dump can be read back.
"""

import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Field, StringConstraints

from docml_contract.file_names import is_pattern, pattern_refusal, refusal
from docml_contract.names import MODEL_NAME

Slip = tuple[str, str, str]  # what is wrong, what is expected, the remedy

_QUOTED = re.compile(r"""(?<![\w\\])("(?:[^"\\\n]|\\.)*"|'[^'\n]*')""")
_SQL_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|--[^\n]*|/\*.*?(?:\*/|\Z)""", re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s)(?:[#;]|//(?=\s))")
_SQL_COMMENT = re.compile(r"(?:^|\s)[#;](?=\s+\S)")
_TYPOGRAPHIC = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u2039\u203a`\u00b4"
_ITEM = re.compile(r"""[^\S\n]*(?:"((?:[^"\n]|"")*)"|'((?:[^'\n]|'')*)'|([^,\n]*))[^\S\n]*(?:,|\n|$)""")
_FILE_NAME = re.compile(r"\S+\.\w+")


def find_slip(text: str, keys: Collection[str], *, sql: bool = False) -> Slip | None:
    """What is wrong with how a value is written, whatever it means. What stands in quotes is taken as it is.

    keys: the names that begin a line of their own and so do not belong in a value. sql: the value is a query.
    """
    bare = (_SQL_QUOTED if sql else _QUOTED).sub(lambda match: "x" * len(match[0]), text)
    strange = next((character for character in bare if _is_strange(character)), None)
    if strange:
        name = unicodedata.name(strange, "a control character").lower()
        return f"the character U+{ord(strange):04X} ({name})", "plain blanks", _QUOTE_IT.format("delete it")
    if (_SQL_COMMENT if sql else _COMMENT).search(bare):
        return "a comment after the value", "comments on lines of their own", _QUOTE_IT.format("move it above the key")
    if text.startswith("="):
        return "a second '='", "one '=' between key and value", _QUOTE_IT.format("remove it")
    if re.search(r"\\$", bare, re.MULTILINE):
        return (
            "a backslash at a line's end",
            "a value that goes on over indented lines",
            "remove it: indentation is enough",
        )
    if swallowed := _beginning_with(frozenset(keys), sql).search(bare):
        return (
            f"{swallowed[1]} inside of it",
            "one key per line, not indented",
            _QUOTE_IT.format("give it a line of its own"),
        )
    if (set(bare) if sql else {*text[:1], *text[-1:]}) & set(_TYPOGRAPHIC):
        return "typographic quotes", "straight quotes, \" or '", "type them anew"
    if text.startswith(('"""', "'''")) or bare.count('"') % 2 or (not sql and text[:1] == "'" == bare[:1]):
        return "a quote without its end", "quotes around all of the value", "add or remove it; \" may stand between '…'"
    return None


@cache
def _beginning_with(keys: frozenset[str], sql: bool) -> re.Pattern[str]:
    """An entry of one of the keys; of a query, at a line's start only."""
    names = "|".join(map(re.escape, sorted(keys, key=len, reverse=True)))
    return re.compile(rf"{'^' if sql else '(?:^|[^A-Za-z0-9_])'}({names})\s*=(?!=)", re.MULTILINE)


_QUOTE_IT = "{}, or put the value in quotes if it belongs to it"


def _is_strange(character: str) -> bool:
    """Whether it is a character that nobody sees, or a blank that is none."""
    kind = unicodedata.category(character)
    return (kind in ("Cc", "Cf", "Zl", "Zp") and character not in "\t\n") or (kind == "Zs" and character != " ")


def means_nothing(text: str) -> bool:
    """Whether a text is what other formats write for `none`."""
    return text.lower() in _NOTHING


def is_quoted(text: str) -> bool:
    """Whether one pair of quotes stands around all of it; inside, a doubled quote stands for one."""
    quote = text[:1]
    return (
        len(text) > 1 and quote in ("'", '"') and text[-1] == quote and quote not in text[1:-1].replace(quote * 2, "")
    )


def unquoted(text: str) -> str:
    """What stands between the quotes around a text; a text without them as it is."""
    return text[1:-1].replace(text[0] * 2, text[0]) if is_quoted(text) else text


def split_items(text: str) -> list[tuple[str, bool]]:
    """The items of a list, between commas or on lines of their own, each with whether it was quoted; ValueError says what is wrong."""
    if text.startswith("[") and text.find("]") == len(text) - 1:
        raise ValueError("a list in brackets, where commas between the items are enough")
    items = []
    for match in _ITEM.finditer(text):
        double, single, bare = match.groups()
        if bare is None:
            items.append((double.replace('""', '"') if single is None else single.replace("''", "'"), True))
        elif bare.strip():
            _check_item(bare.strip())
            items.append((bare.strip(), False))
    return items


def _check_item(item: str) -> None:
    """Raise ValueError if it is not an item that can stand without quotes."""
    if item[0] in "\"'" or '"' in item or item.count("'") > 1:
        raise ValueError(f"quotes that are not around an item: {item}")
    if item[0] in _TYPOGRAPHIC or item[-1] in _TYPOGRAPHIC:
        raise ValueError(f"typographic quotes: {item}")
    if ";" in item or "\t" in item:
        raise ValueError("a semicolon or a tab, where commas stand between the items")


_NEARLY_A_NUMBER = re.compile(
    r"""[+-]?\.\d+\S* | [+-]?\d+\.(e[+-]?\d+)? | [+-]?0\d+(\.\d*)? | \+\d\S* | [+-]?\d+(_\d+)+ | 0x[0-9a-f]+
    | [+-]?\d[\d.]*(e[+-]?\d+)?(\s*[,;]\s*[+-]?\d[\d.]*(e[+-]?\d+)?)+ | [+-]?\d[\d.]*\s*%
    | [+-]?\d{2,}e\+?\d+ | [+-]?(nan|inf(inity)?)""",
    re.IGNORECASE | re.VERBOSE,
)
_NEARLY_A_WORD = {
    "yes": "true",
    "on": "true",
    "no": "false",
    "off": "false",
    "None": "null",
    "NULL": "null",
    "Null": "null",
}
_ESCAPED = re.compile(r"[\w:.-]\\[bfnrtu]\w|^\"[A-Za-z]:\\[^\\]")


_ALMOST = re.compile(r"[(\u2212\u2013+-]\s*\d.*|\d[\d.]*\s*([#;|].*|/\s*\d[\d.]*|,)|\d[\d.]*(\s+\d[\d.]*)+", re.DOTALL)
_NOTHING = frozenset({"~", "nil", "null", "n/a", "<none>", "undefined"})


def find_constant_slip(text: str, *, strict: bool = True) -> Slip | None:
    """What is wrong with a hyperparameter that would otherwise be read as a text, or as another one than people see."""
    if not text:
        return "nothing behind the '='", "a value", 'write "" for an empty text, or null'
    if strict and text != "null" and text.lower() in _NOTHING:
        return "what other formats write for nothing", "null, or a value", "write null, or the text in quotes"
    if text in _NEARLY_A_WORD or text.lower() in ("yes", "no", "on", "off"):
        word = _NEARLY_A_WORD.get(text) or _NEARLY_A_WORD[text.lower()]
        return (
            "a word that would be read as a text",
            "true, false, null, a number or a text",
            f"write {word}, or the text in quotes",
        )
    if isinstance(number := _json(text), int | float) and abs(number) > sys.float_info.max:
        return (
            "a number larger than any that a float can hold",
            f"a number up to {sys.float_info.max:.0e}",
            "write a smaller one, or put a text in quotes",
        )
    almost = strict and isinstance(number, _Broken) and _ALMOST.fullmatch(text)
    if almost or _NEARLY_A_NUMBER.fullmatch(text):
        return (
            "what is nearly a number",
            "a number such as 2, 0.5 or 1e-4, a list such as [1, 2], or a text",
            "write it so, or put a text in quotes",
        )
    if strict and text.startswith('"') and not is_quoted(text) and isinstance(_json(text), _Broken):
        return "quotes that are not around all of it", "a text", "put quotes around all of it, or none"
    if text.startswith('"') and (_ESCAPED.search(text) or isinstance(_json(text), _Broken)):
        return (
            "backslashes in double quotes, where JSON gives them a meaning",
            "a text",
            "write it without quotes, or double every backslash",
        )
    if text[0] in "[{" and isinstance(_json(text), _Broken):
        return (
            "a list or mapping that is not JSON",
            'JSON, for example [1, 2] or ["a", "b"]',
            "correct it, or put a text in quotes",
        )
    return None


class _Broken:
    """What is no JSON."""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _Broken()


def check_names(names: Sequence[str]) -> None:
    """ValueError if a name is several file names."""
    for name in names:
        parts = re.split(r"[,\s]+", name.strip())
        if len(parts) > 1 and all(map(_FILE_NAME.fullmatch, parts)):
            raise ValueError(f"several names in one, {name}: commas stand between them, and quotes around each")


_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _flag(value: Any) -> Any:
    if isinstance(value, str):
        if value.strip().lower() not in _FLAGS:
            raise ValueError("neither true nor false")
        return _FLAGS[value.strip().lower()]
    return value


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


def _auto(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def _list(value: Any) -> Any:
    """Comma-separated, also over several lines; a trailing comma is allowed; `none` alone is the empty list."""
    if not isinstance(value, str):
        return value
    items = tuple(item.strip() for item in re.split(r"[,\n]", value))
    items = tuple(item for item in items if item)
    return () if [item.lower() for item in items] == ["none"] else items


def _distinct(value: Any) -> Any:
    items = _list(value)
    if isinstance(items, tuple | list):
        repeated = sorted(item for item, count in Counter(items).items() if count > 1)
        if repeated:
            raise ValueError(f"{', '.join(map(str, repeated))} more than once")
    return items


def _file_name(value: str) -> str:
    """A name of one file, or a pattern."""
    reason = refusal(value)
    if not reason and is_pattern(value):
        reason = pattern_refusal(value)
    if reason:
        raise ValueError(reason)
    return value


def _distinct_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} more than once")
    return dict(pairs)


def _metric_definitions(value: Any) -> Any:
    """`{"name": "regex"}`, or SageMaker's own `[{"Name": …, "Regex": …}]`, as pairs."""
    if isinstance(value, str):
        if value.strip().lower() in ("", "none"):
            return ()
        try:
            value = json.loads(value, object_pairs_hook=_distinct_pairs)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON: {error}") from error
    if isinstance(value, dict):
        return tuple(value.items())
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        if any(set(item) != {"Name", "Regex"} for item in value):
            raise ValueError("an item without exactly Name and Regex")
        return tuple((item["Name"], item["Regex"]) for item in value)
    return value


def any_case(*words: str) -> BeforeValidator:
    """Accept the words in any case."""
    folded = {word.lower(): word for word in words}
    return BeforeValidator(lambda value: folded.get(value.strip().lower(), value) if isinstance(value, str) else value)


Flag = Annotated[bool, BeforeValidator(_flag)]
OrNone = BeforeValidator(_none)  # for Annotated[… | None, OrNone]
OrAuto = BeforeValidator(_auto)  # None stands for auto

FileNames = Annotated[tuple[Annotated[str, AfterValidator(_file_name)], ...], BeforeValidator(_distinct)]
ModelName = Annotated[str, StringConstraints(pattern=f"^{MODEL_NAME.pattern}$")]
ModelNames = Annotated[tuple[ModelName, ...], BeforeValidator(_distinct)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Seeds = Annotated[tuple[Seed, ...], AfterValidator(_distinct), BeforeValidator(_list)]
Labels = Annotated[tuple[str, ...], BeforeValidator(_distinct)]
Share = Annotated[float, AllowInfNan(False)]
Shares = Annotated[tuple[Share, Share, Share], BeforeValidator(_list)]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]
MetricDefinitions = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_metric_definitions)]
