"""The spelling is that of `ast.unparse` in Python 3.11, on whichever version the tests run."""

import ast
import sys
from pathlib import Path

import pytest

from docml_assets.experiment.source import canonical_source, functions_digest, module_bindings, plain_imports

MODULE = '''
"""About."""
import json
import zlib as z
from functools import cache

BUCKETS = 4
GAIN = 2
TABLE = {}
TABLE["a"] = BUCKETS


def encode_data(instance, context):
    """Doc."""
    return Helper(json.loads(instance["a"])).words


class Helper:
    """Doc."""

    def __init__(self, text):
        self.words = [z.crc32(word) % BUCKETS for word in words(text)]


@cache
def words(text, sep=" "):
    return text.split(sep)


def load_model(model_name, context):
    return GAIN
'''


def digest(source: str, *names: str) -> str:
    return functions_digest(source, names or ("encode_data",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("GAIN = 2", "GAIN = 3"),
        ("return GAIN", "return GAIN + 1"),
        ("BUCKETS = 4", "BUCKETS = 4  # four"),
        ('"""Doc."""', '"""Another doc."""'),
        ('"""About."""', ""),
        ('instance["a"]', "instance['a']"),
        ("return text.split(sep)", "return (\n        text.split(sep)\n    )"),
        ("def load_model", "def more():\n    return 1\n\n\ndef load_model"),
    ],
)
def test_what_does_not_count(old: str, new: str) -> None:
    assert digest(MODULE) == digest(MODULE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("BUCKETS = 4", "BUCKETS = 5"),
        ('instance["a"]', 'instance["b"]'),
        ("return text.split(sep)", "return text.split(sep)[1:]"),
        ('sep=" "', 'sep="-"'),
        ("@cache\n", ""),
        ("import zlib as z", "import zlib2 as z"),
        ("GAIN = 2", "GAIN = 2\njson.loads = str"),
        ("GAIN = 2", "GAIN = 2\nprint()"),
        ("GAIN = 2", "GAIN = 2\nfrom somewhere import *"),
    ],
)
def test_what_counts(old: str, new: str) -> None:
    assert old in MODULE
    assert digest(MODULE) != digest(MODULE.replace(old, new))


def test_order_of_definitions_does_not_count() -> None:
    one = "A = 1\n\n\ndef f():\n    return A\n"
    two = "def f():\n    return A\n\n\nA = 1\n"
    assert digest(one, "f") == digest(two, "f")


def test_the_names_asked_for_count() -> None:
    assert digest(MODULE, "encode_data") != digest(MODULE, "load_model")
    assert digest(MODULE, "encode_data", "encode_batch") == digest(MODULE, "encode_data")


def test_a_change_of_an_item_counts_where_the_mapping_is_used() -> None:
    source = "def f():\n    return TABLE\nTABLE = {}\nTABLE['a'] = 1\n"
    assert digest(source, "f") != digest(source.replace("= 1", "= 2"), "f")


def test_a_registry_makes_the_registered_functions_count() -> None:
    source = """
ENCODERS = {}
def register(function):
    ENCODERS[function.__name__] = function
    return function
@register
def first(text):
    return 1
def encode_data(instance, context):
    return ENCODERS["first"](instance)
"""
    assert digest(source) != digest(source.replace("return 1", "return 2"))
    called = source.replace("@register\n", "").replace("def encode_data", "done = register(first)\ndef encode_data")
    assert digest(called) != digest(called.replace("return 1", "return 2"))


@pytest.mark.parametrize("reach", ["globals()['g']()", "eval('g()')", "sys.modules[__name__].g()"])
def test_reflection_makes_the_whole_module_count(reach: str) -> None:
    source = f"import sys\ndef encode_data(instance, context):\n    return {reach}\ndef g():\n    return 1\n"
    assert digest(source) != digest(source.replace("return 1", "return 2"))


def test_code_run_by_defining_classes_makes_the_whole_module_count() -> None:
    source = """
class Base:
    def __init_subclass__(cls):
        KINDS.append(cls)
KINDS = []
class One(Base):
    size = 1
def encode_data(instance, context):
    return KINDS
"""
    assert digest(source) != digest(source.replace("size = 1", "size = 2"))


def test_main_guard_does_not_count() -> None:
    assert digest(MODULE) == digest(MODULE + "\nif __name__ == '__main__':\n    print(GAIN)\n")


def test_bindings_of_compound_statements() -> None:
    module = ast.parse(
        "try:\n    import a\nexcept ImportError:\n    a = None\nif a:\n    def f():\n        b = 1\nfor c in a: pass\n"
    )
    assert module_bindings(module).keys() == {"a", "f", "c"}


def test_imports_that_always_run() -> None:
    module = ast.parse(
        "import a.b, c\nfrom d.e import f\nfrom . import g\nfrom .h import i\n"
        "try:\n    import j\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import k\nif x:\n    import l\ndef m():\n    import n\n"
    )
    assert [name for name, _ in plain_imports(module)] == ["a.b", "c", "d.e", ".", ".h", "l"]


def test_digests_do_not_depend_on_the_version_of_python() -> None:
    """Stored by Python 3.11, before others were supported: a run prepared there is not prepared again after an upgrade."""
    source = """
SEPARATOR = ", "

def encode_data(instance, context):
    raise ValueError(f"{instance['guid']}: {SEPARATOR.join(f'{key}={context[key]!r}' for key in context)}\\n")
"""
    assert digest(source) == "1f98b9d2131fafcf68d9e1970f5899dbb6c5317114acc75b92e245adacf1aa9a"
    assert (
        digest("class A:\n    def __init_subclass__(cls): pass\n" + source)
        == "cdaff72131088b9a802101bceb14efad88e7a8c88ec95dc050bd93607f1f466f"
    )


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
