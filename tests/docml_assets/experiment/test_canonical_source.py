"""The spelling is that of `ast.unparse` in Python 3.11, on whichever version the tests run."""

import ast
import sys
from pathlib import Path

import pytest

from docml_assets.experiment.canonical_source import canonical_source

# Lines in pairs: a source, and how it is written.
SPELLINGS = r"""
f'{a["k"]}'
f"{a['k']}"
f"{', '.join(a)}\n"
f"{', '.join(a)}\n"
f"{a}: {b!r:>{width}.2f}"
f'{a}: {b!r:>{width}.2f}'
f"it's {a}" 'so' "said"
f"it's {a}sosaid"
f"{'a' if b else f'{c}'}"
f"{('a' if b else f'{c}')}"
f"{ {1: 2}[a] } {{}} {(lambda: 1)()}"
f'{ {1: 2}[a]} {{}} {(lambda: 1)()}'
f"{a['k']} 'b' \"c\""
f'''{a['k']} 'b' "c"'''
f"{a=} {b:{c}}{1_000}"
f'a={a!r} {b:{c}}{1000}'
x = "a\n" + "it's" + b"\0"  # no f-string
x = 'a\n' + "it's" + b'\x00'
"""


def test_spelling() -> None:
    lines = SPELLINGS.strip().splitlines()
    assert [canonical_source(ast.parse(source)) for source in lines[::2]] == lines[1::2]


@pytest.mark.parametrize("value", ["\n", "\\n", "\\", "\u200b", "'\"", "'''\"\"\""])
def test_strings_in_expressions_that_only_newer_versions_read(value: str) -> None:
    """f"{a("\\n")}" is Python since 3.12: what matters is that different sources are written differently, and equal ones equally."""
    written = {
        text: canonical_source(
            ast.JoinedStr(
                [ast.FormattedValue(ast.Call(ast.Name("a"), [ast.Constant(text)], []), -1), ast.Constant("b")]
            )
        )
        for text in (value, f"{value} ", f"\\{value}", value.encode("unicode_escape").decode() + "#")
    }
    assert len(set(written.values())) == 4
    assert all(text.startswith("f") and text.endswith(("'", '"')) for text in written.values())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="compares with ast.unparse of Python 3.11")
def test_all_syntax_is_written_as_ast_writes_it() -> None:
    files = [
        Path(ast.__file__).with_name(f"{name}.py") for name in ("ast", "dataclasses", "inspect", "typing", "traceback")
    ]
    for file in files:
        module = ast.parse(file.read_bytes())
        assert canonical_source(module) == ast.unparse(module), file
