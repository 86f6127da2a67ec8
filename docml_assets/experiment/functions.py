"""user_defined_funcs.py, read as text: what it defines, what is wrong with it, and what its functions depend on.

Nothing of it is executed here.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

from docml_assets.errors import Problem
from docml_assets.experiment.source import (
    Function,
    body_without_docstring,
    function_nodes,
    module_bindings,
    parse_module,
    plain_imports,
)

# The functions and their parameters, and whether an experiment can do without.
PARAMETERS = {
    "process_func": ("artifact", "directory"),
    "get_dataset_features": ("context",),
    "encode_data": ("instance", "context"),
    "encode_batch": ("instances", "context"),
    "load_model": ("model_name", "context"),
    "ordered_input_keys": ("model_name", "context"),
}
OPTIONAL = frozenset({"process_func", "encode_batch"})
RETURN_NOTHING = frozenset({"process_func"})
PADDING = "PADDING"
UNDECODED = ("Audio", "Video", "Pdf")  # features of `datasets` that hold files, which no model takes

_ENCODING = re.compile(r"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")  # as Python looks for it
# Run by the worker's Python: prints those of its arguments that it cannot find. Top-level names only, so nothing is imported.
_FIND = """
import importlib.util, json, sys
sys.path[:] = [entry for entry in sys.path if entry]
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))
"""


def check_functions(source: str, path: str, worker_python: str | None = None) -> list[Problem]:
    """All mistakes of the module that its text shows.

    worker_python: the interpreter that runs process_func (DOCML_WORKER_PYTHON; none: this one), asked for the modules that the
    file imports if it has a process_func.
    """
    try:
        module = parse_module(source)
    except (SyntaxError, ValueError) as error:
        return [_no_python(error, path)]
    bindings = module_bindings(module)
    problems = [*_encoding_problems(source, path)]
    for name in PARAMETERS:
        if name not in bindings:
            if name not in OPTIONAL and not (name == "encode_data" and "encode_batch" in bindings):
                problems.append(_missing(path, name))
            continue
        definition = bindings[name][-1]
        if isinstance(definition, Function):
            problems += [Problem(path, line, *rest) for line, *rest in _complaints(definition, PARAMETERS[name])]
    problems += _padding_problems(bindings.get(PADDING, []), path)
    problems += _import_problems(module, path, worker_python, needed="process_func" in defined_functions(source))
    return problems


def check_module(source: str, path: str, parameters: Mapping[str, tuple[str, ...]]) -> list[Problem]:
    """All mistakes of a module that has one or several of these functions, `parameters` by name, that its text shows."""
    try:
        bindings = module_bindings(parse_module(source))
    except (SyntaxError, ValueError) as error:
        return [_no_python(error, path)]
    defined = {name: bindings[name][-1] for name in parameters if name in bindings}
    if not defined:
        signatures = " or ".join(f"def {name}({', '.join(taken)})" for name, taken in parameters.items())
        return [Problem(path, 0, f"no {' and no '.join(parameters)}", signatures, "write one")]
    return [
        Problem(path, line, *rest)
        for name, definition in defined.items()
        if isinstance(definition, Function)
        for line, *rest in _complaints(definition, parameters[name])
    ]


def _no_python(error: SyntaxError | ValueError, path: str) -> Problem:
    line = getattr(error, "lineno", None) or 1
    said = getattr(error, "msg", None) or str(error)
    return Problem(path, line, f"what is not Python: {said}", "a module that Python can parse", "correct the line")


def _encoding_problems(source: str, path: str) -> Iterator[Problem]:
    """A line that says another encoding than the file has: the jobs would read other characters than stand there."""
    for number, line in enumerate(source.splitlines()[:2], start=1):
        said = _ENCODING.match(line)
        if said and said[1].lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig", "ascii", "us-ascii"):
            yield Problem(
                path, number, f"the encoding {said[1]}", "UTF-8, in which the file is read", "remove the line"
            )


def _missing(path: str, name: str) -> Problem:
    signature = f"def {name}({', '.join(PARAMETERS[name])})"
    return Problem(path, 0, f"no {name}", signature, "write it; `docml new` shows a working one")


def defined_functions(source: str, names: Iterable[str] = PARAMETERS) -> frozenset[str]:
    """Those of the functions that the module defines (or imports), the empty ones left out."""
    try:
        bindings = module_bindings(parse_module(source))
    except (SyntaxError, ValueError):
        return frozenset()
    found = {name: bindings[name][-1] for name in names if name in bindings}
    return frozenset(name for name, node in found.items() if not (isinstance(node, Function) and _is_empty(node)))


def _complaints(function: Function, parameters: tuple[str, ...]) -> Iterator[tuple[int, str, str, str]]:
    """(line, found, expected, remedy) of one function."""
    name, line = function.name, function.lineno
    signature = f"def {name}({', '.join(parameters)})"
    if isinstance(function, ast.AsyncFunctionDef):
        yield line, f"async def {name}", signature, "remove 'async': the platform calls it like any function"
    if not _takes(function.args, parameters):
        yield (
            line,
            f"def {name}({ast.unparse(function.args)})",
            signature,
            "give its parameters these names, in this order",
        )
    if _is_empty(function):
        remedy = "write it, or remove it if it is not needed" if name in OPTIONAL else "write it"
        yield line, f"{name} with an empty body", f"{signature} that does its work", remedy
        return
    nodes = [*function_nodes(function)]
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in nodes):
        yield line, f"{name} as a generator", f"{signature} that returns its result", "return instead of yield"
    elif name not in RETURN_NOTHING and not any(isinstance(node, ast.Return) and node.value for node in nodes):
        yield line, f"{name} that returns nothing", f"{signature} that returns its result", "add a return"
    if name == "get_dataset_features":
        yield from _undecoded_features(nodes)


def _undecoded_features(nodes: list[ast.AST]) -> Iterator[tuple[int, str, str, str]]:
    for node in nodes:
        called = node.func if isinstance(node, ast.Call) else None
        kind = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if isinstance(node, ast.Call) and kind in UNDECODED:
            expected = 'numbers, for example datasets.Array2D((None, 80), "float32"), or pictures: datasets.Image()'
            remedy = "decode the file in encode_data and return its numbers"
            yield node.lineno, f"the feature {ast.unparse(node)}", expected, remedy


def _takes(arguments: ast.arguments, expected: tuple[str, ...]) -> bool:
    """Whether the parameters begin with the expected ones; a leading '_' marks an unused one; further ones need defaults."""
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names = [name.lstrip("_") for name in positional[: len(expected)]]
    required = len(positional) - len(arguments.defaults)
    return (
        names == list(expected)
        and required <= len(expected)
        and all(default is not None for default in arguments.kw_defaults)
    )


def _is_empty(function: Function) -> bool:
    """Whether the body is `pass`, `...`, a docstring, `return` or `raise NotImplementedError` only."""
    return all(_does_nothing(statement) for statement in body_without_docstring(function))


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    if isinstance(statement, ast.Return):
        return statement.value is None
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _padding_problems(statements: list[ast.stmt], path: str) -> list[Problem]:
    if not statements:
        return []
    statement = statements[-1]
    try:
        value = (
            ast.literal_eval(statement.value)
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value
            else None
        )
    except ValueError:
        value = None
    if isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(number, int | float) for key, number in value.items()
    ):
        return []
    remedy = 'write for example PADDING = {"input_ids": 1}; features that it does not name are padded with 0'
    found = f"{' '.join(ast.unparse(statement).split())[:80]}"
    return [Problem(path, statement.lineno, found, "a literal mapping of feature names to numbers", remedy)]


def import_problems(source: str, path: str, worker_python: str | None, needs: Sequence[str]) -> list[Problem]:
    """The imports of a use case's module that cannot work, and what docml needs to call its functions; none where it is no Python."""
    try:
        module = parse_module(source)
    except (SyntaxError, ValueError):
        return []
    return _import_problems(module, path, worker_python, needed=True, others=needs)


def _import_problems(
    module: ast.Module, path: str, worker_python: str | None, *, needed: bool, others: Sequence[str] = ()
) -> list[Problem]:
    """Relative imports, and modules that the worker's Python lacks (asked only if there is a function that it runs).

    others: modules that it must have besides those that the file imports.
    """
    problems = []
    lines: dict[str, int] = dict.fromkeys(others, 0)
    for name, line in plain_imports(module):
        if name.startswith("."):
            remedy = "put the code into this file, or install it as a package into the image"
            problems.append(Problem(path, line, f"the relative import {name}", "modules that are installed", remedy))
        else:
            lines[name.partition(".")[0]] = lines.get(name.partition(".")[0]) or line
    if not needed or not lines:
        return problems
    python = worker_python or sys.executable
    try:
        answer = subprocess.run(
            [python, "-c", _FIND, *lines], capture_output=True, text=True, timeout=60, check=True, cwd="/"
        )
        missing = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError) as error:
        remedy = f"set DOCML_WORKER_PYTHON to a Python that has the modules of {PurePath(path).name}"
        return [*problems, Problem(path, 0, f"that {python} does not run: {error}", "a Python interpreter", remedy)]
    remedy = "install it for DOCML_WORKER_PYTHON, or import it inside the functions that jobs call"
    return problems + [
        Problem(
            path, lines[name], f"import {name}, which {python} lacks", "modules that the worker's Python has", remedy
        )
        for name in missing
    ]
