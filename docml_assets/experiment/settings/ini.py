"""The INI dialect of settings.ini, with line numbers.

`[section]`, then `key = value`; further lines that are indented continue the value, joined by newlines. Lines whose first
character other than a space is `#` or `;` are comments. A blank line ends a value. How a value may be written, values.py says.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from docml_assets.errors import Problem, nearest, shown
from resources.aws import is_reference

# How values are read. 1: as they stand, so that quotes belong to them, and comments behind them too: how the runs of that time go on.
# 2: quotes are understood, and slips of the pen are refused. 3: hyperparameters by the names that other libraries have for them are, too.
# 4: so are switches where numbers are meant, quoted keys, keys of one model outside its section, and other formats' words for nothing.
DIALECT = 4
# Of the whole text, and of what is too long for any value: whoever reads a folder, a sensor's tick too, must be done soon.
MAX_CHARACTERS = 250_000
MAX_KEYS = 500
_SECTION = re.compile(r"\[([^\[\]]*)\]")
_SECRET_KEY = re.compile(r"passw(or)?d|secret|api[_-]?key|access[_-]?key|auth[_-]?token", re.IGNORECASE)
_SECRET_VALUES = (
    (re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]+://[^\s/:@]*:[^\s/@]+@"), "a URL that holds a password"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), "what looks like an AWS access key"),
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"), "what looks like a Hugging Face token"),
    (re.compile(r"\bgh[opsu]_[A-Za-z0-9]{36,}\b"), "what looks like a GitHub token"),
    (re.compile(r"\bwandb_v\d_\w{20,}"), "what looks like a wandb key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
)


@dataclass(frozen=True)
class Entry:
    """One `key = value` and where it stands (1-based line of the key)."""

    key: str
    value: str
    line: int


@dataclass
class Ini:
    """What a file says: entries by section and key, the sections' lines, and the mistakes of form."""

    path: str
    dialect: int = DIALECT
    entries: dict[str, dict[str, Entry]] = field(default_factory=dict)
    section_lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    headers: frozenset[str] = frozenset()  # the lines that begin with a bracket
    keys: int = 0  # read so far

    def section(self, name: str) -> dict[str, Entry]:
        """The entries of a section by key; empty if there is no such section."""
        return self.entries.get(name, {})

    def all_entries(self) -> Iterator[tuple[str, Entry]]:
        """(section, entry) in the order of the file."""
        for section, entries in self.entries.items():
            for entry in entries.values():
                yield section, entry

    def line(self, section: str, key: str) -> int:
        """Where a key stands; else where its section begins; else the first line."""
        entry = self.section(section).get(key)
        return entry.line if entry else self.section_lines.get(section, 1)

    def complain(self, line: int, found: str, expected: str, remedy: str) -> None:
        """Note a problem of this file."""
        self.problems.append(Problem(self.path, line, found, expected, remedy))


def parse_ini(text: str, path: str, sections: tuple[str, ...], dialect: int = DIALECT) -> Ini:
    """Read `text`; `path` names the file in problems, `sections` are the ones allowed, all but the first also for one model
    (`[tunable.minilm]`). Raises nothing."""
    ini = Ini(path, dialect)
    current: dict[str, Entry] | None = None  # of the section that is being read
    last: str | None = None  # the key whose value may go on
    going_on: list[tuple[dict[str, Entry], str, list[str]]] = []  # the values that do, and by which lines
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_CHARACTERS:
        ini.complain(
            1, f"{len(text):,} characters", f"at most {MAX_CHARACTERS:,}", "keep data and long lists in the database"
        )
        text = ""
    lines = text.splitlines() if dialect == 1 else re.split(r"\r\n|\r|\n", text)
    ini.headers = frozenset(line.strip() for line in lines if line.strip().startswith("["))
    for number, raw in enumerate(lines, start=1):
        stripped = raw.strip()
        if stripped.startswith(("#", ";")):
            continue
        if not stripped:
            last = None
        elif raw[0].isspace() and current is not None and last is not None:
            if not going_on or going_on[-1][0] is not current or going_on[-1][1] != last:
                going_on.append((current, last, [current[last].value]))
            going_on[-1][2].append(stripped)
        elif stripped.startswith("[") and "=" not in stripped:
            current, last = _open_section(ini, stripped, number, sections), None
        else:
            last = _read_entry(ini, current, stripped, number)
    for entries, key, parts in going_on:
        entries[key] = replace(entries[key], value="\n".join(parts).strip())
    return ini


def _open_section(ini: Ini, stripped: str, line: int, sections: tuple[str, ...]) -> dict[str, Entry]:
    """The entries of a section that begins here; those of an unknown or repeated one are read and dropped."""
    match = _SECTION.fullmatch(stripped)
    known = ", ".join(f"[{name}]" for name in sections)
    if match is None:
        ini.complain(line, shown(stripped), f"a section such as {known}", "write its name between one pair of brackets")
        meant = next((name for name in sections if stripped.startswith(f"[{name}]")), None)
        return _open_meant(ini, meant, line)
    name = match[1].strip()
    base, dot, model = name.partition(".")
    if name not in sections and not (dot and model and base in sections[1:]):
        guess = nearest(base, sections)
        remedy = f"did you mean [{guess}{dot}{model}]?" if guess else "remove the section"
        ini.complain(line, f"the section [{shown(name)}]", known, remedy)
        return _open_meant(ini, None if dot else guess, line)
    if name in ini.section_lines:
        first = ini.section_lines[name]
        ini.complain(line, f"[{name}] again (first on line {first})", "each section once", "join the two sections")
        return ini.entries[name]
    ini.section_lines[name] = line
    return ini.entries.setdefault(name, {})


def _open_meant(ini: Ini, name: str | None, line: int) -> dict[str, Entry]:
    """The entries of the section that a wrong line means, so that what stands below it is not missed too."""
    if name is None or ini.dialect == 1 or f"[{name}]" in ini.headers:
        return {}
    ini.section_lines.setdefault(name, line)
    return ini.entries.setdefault(name, {})


def _read_entry(ini: Ini, current: dict[str, Entry] | None, stripped: str, line: int) -> str | None:
    """Add an entry to the section; returns its key if the value may go on below."""
    key, separator, value = stripped.partition("=")
    key = key.strip()
    if not separator or not key:
        ini.complain(
            line, shown(stripped), "KEY = value", "write a key and '='; indent the line if it continues a value"
        )
        return None
    if current is None:
        ini.complain(line, f"{shown(key)} before any section", "a section first", "put [settings] above it")
        return None
    if key in current:
        first = current[key].line
        ini.complain(line, f"{shown(key)} again (first on line {first})", "each key once", "remove one of the two")
        return None
    ini.keys += 1
    if ini.keys > MAX_KEYS:
        if ini.keys == MAX_KEYS + 1:
            ini.complain(line, f"more than {MAX_KEYS} keys", f"at most {MAX_KEYS}", "remove what is not a setting")
        return None
    current[key] = Entry(key, value.strip(), line)
    return key


def looks_secret(key: str, value: str) -> str | None:
    """Why the value looks like a secret (without repeating it), or None."""
    for pattern, reason in _SECRET_VALUES:
        if pattern.search(value):
            return reason
    if _SECRET_KEY.search(key) and value.strip() and not is_reference(value):
        return "what its name calls a secret"
    return None
