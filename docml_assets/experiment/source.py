"""A module's text as a graph: which statement binds which name, and which names each uses."""

import ast
import hashlib
from collections.abc import Iterator, Sequence

from docml_contract.base import canonical_json

Function = ast.FunctionDef | ast.AsyncFunctionDef
_Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
# Code that reaches names by text: what it depends on cannot be told, so it depends on the whole module.
_REFLECTION = frozenset({"globals", "locals", "vars", "eval", "exec", "compile", "__import__", "modules"})


# Code beyond this was not written by hand, and what looks into it would need more stack than there is.
MAX_DEPTH = 120


def parse_module(source: str) -> ast.Module:
    """The module's syntax tree. SyntaxError if the text is no Python, or nests deeper than MAX_DEPTH."""
    try:
        module = ast.parse(source)
    except (RecursionError, MemoryError):  # the parser's own limits
        raise SyntaxError(f"expressions nested more than {MAX_DEPTH} deep") from None
    level: list[ast.AST] = [module]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            line = next((node.lineno for node in level if isinstance(node, ast.expr | ast.stmt)), None)
            raise SyntaxError(f"expressions nested more than {MAX_DEPTH} deep", (None, line, None, None))
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return module


def functions_digest(source: str, names: Sequence[str]) -> str:
    """sha256 over these functions and everything at module level that they use, transitively.

    Counts: code, decorators, defaults, constants, imports, statements that run at import. Does not count: comments, formatting,
    docstrings, the order of definitions, what else the module holds. Functions that are not defined are left out. SyntaxError if
    the source is no Python.
    """
    try:
        return _digest_of(_without_docstrings(ast.parse(source)), names)
    except (RecursionError, MemoryError):  # of a run that was claimed before such code was refused
        return hashlib.sha256(source.encode()).hexdigest()


def _digest_of(module: ast.Module, names: Sequence[str]) -> str:
    bindings = module_bindings(module)
    effects = [statement for statement in module.body if _has_effect(statement, bindings)]
    reached = _reachable([*names, *(name for statement in effects for name in _names_used(statement))], bindings)
    if reached is None or _registers_classes(module):
        return hashlib.sha256(canonical_source(module).encode()).hexdigest()
    content = {
        "functions": sorted(name for name in names if name in bindings),
        "definitions": {
            name: [canonical_source(statement) for statement in bindings[name]] for name in sorted(reached)
        },
        "effects": [canonical_source(statement) for statement in effects],
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _reachable(start: Sequence[str], bindings: dict[str, list[ast.stmt]]) -> set[str] | None:
    """Names bound at module level that `start` uses, transitively; None if reflection hides it."""
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name in _REFLECTION and name not in bindings:
            return None
        if name in reached or name not in bindings:
            continue
        reached.add(name)
        for statement in bindings[name]:
            waiting += _names_used(statement)
    return reached


def _names_used(statement: ast.AST) -> Iterator[str]:
    """Every name in a statement, and every attribute that reflects; locals count too, which errs on the safe side."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in ("modules", "__dict__"):
            yield "modules"


def _has_effect(statement: ast.stmt, bindings: dict[str, list[ast.stmt]]) -> bool:
    """Whether a module-level statement may do more than bind its names.

    That is a call for its effect, `import *`, and whatever runs the module's own code at import: a decorator or a call of one of its
    functions may register something that no name shows.
    """
    if _is_main_guard(statement):
        return False
    for node in module_nodes(statement):
        if isinstance(node, ast.Expr) or (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"):
            return True
        decorators = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
        called = [node.func] if isinstance(node, ast.Call) else decorators
        if any(_is_own(name, bindings) for call in called for name in _names_used(call)):
            return True
    return False


def _is_own(name: str, bindings: dict[str, list[ast.stmt]]) -> bool:
    """Whether the module defines the name itself instead of importing it."""
    return any(not isinstance(statement, ast.Import | ast.ImportFrom) for statement in bindings.get(name, []))


def _registers_classes(module: ast.Module) -> bool:
    """Whether defining a class may run the module's own code."""
    return any(
        (isinstance(node, Function) and node.name == "__init_subclass__")
        or (isinstance(node, ast.ClassDef) and any(keyword.arg == "metaclass" for keyword in node.keywords))
        for node in ast.walk(module)
    )


def _is_main_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def module_bindings(module: ast.Module) -> dict[str, list[ast.stmt]]:
    """Names bound (or changed in place) at module level -> the statements that do it, whole, in order."""
    bindings: dict[str, list[ast.stmt]] = {}
    for statement in module.body:
        if not _is_main_guard(statement):
            for name in _bound(statement):
                bindings.setdefault(name, []).append(statement)
    return bindings


def _bound(statement: ast.stmt) -> list[str]:
    names: dict[str, None] = {}
    for node in module_nodes(statement):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names[node.name] = None
            case ast.Import() | ast.ImportFrom():
                names.update(dict.fromkeys((alias.asname or alias.name).partition(".")[0] for alias in node.names))
            case ast.Name(ctx=ast.Store()):
                names[node.id] = None
            case ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()):
                root: ast.expr = node
                while isinstance(root, ast.Attribute | ast.Subscript):
                    root = root.value
                if isinstance(root, ast.Name):
                    names[root.id] = None
    return list(names)


def module_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a module-level statement that run at import; a function, class or lambda is one node."""
    return _scope_nodes([statement])


def function_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function's own body; a nested function, class or lambda is one node."""
    return _scope_nodes(function.body)


def _scope_nodes(statements: Sequence[ast.AST]) -> Iterator[ast.AST]:
    waiting = [*statements]
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, _Scope):
            waiting[:0] = ast.iter_child_nodes(node)


def body_without_docstring(function: Function) -> list[ast.stmt]:
    """The statements that do something."""
    return function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body


def _without_docstrings(module: ast.Module) -> ast.Module:
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]
    return module


def plain_imports(module: ast.Module) -> Iterator[tuple[str, int]]:
    """(module, line) of the imports that run whenever the module is imported; relative ones begin with a dot.

    Those inside `try` (they have another way) and under TYPE_CHECKING are left out.
    """
    for statement in module.body:
        guarded = isinstance(statement, ast.Try) or (
            isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
        )
        if guarded or _is_main_guard(statement) or isinstance(statement, Function | ast.ClassDef):
            continue
        for node in module_nodes(statement):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield "." * node.level + (node.module or ""), node.lineno


_QUOTES = ("'", '"', '"""', "'''")
_Unparser: type = ast._Unparser  # type: ignore[attr-defined]


def canonical_source(node: ast.AST) -> str:
    """The source of a node, as `ast.unparse` of Python 3.11 writes it."""
    return str(_CanonicalUnparser().visit(node))


class _CanonicalUnparser(_Unparser):
    """Writes f-strings and the strings in their expressions itself, everything else as `ast` does."""

    def __init__(self, *, in_expression: bool = False) -> None:
        super().__init__()
        self._in_expression = in_expression

    def _write_constant(self, value: object) -> None:
        if self._in_expression and isinstance(value, str):
            self._write_str_avoiding_backslashes(value)
        else:
            super()._write_constant(value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self.write("f")
        parts = [(self._part(value), isinstance(value, ast.Constant)) for value in node.values]
        if self._in_expression:
            self._write_str_avoiding_backslashes("".join(text for text, _ in parts))
            return
        texts, quotes = [], list(_QUOTES)
        for text, is_constant in parts:
            written, possible = self._str_literal_helper(
                text, quote_types=quotes, escape_special_whitespace=is_constant
            )
            if set(possible).isdisjoint(quotes):
                # No kind of quote suits every part.
                texts, quotes = [repr('"' + text)[2:-1] for text, _ in parts], ["'''"]
                break
            texts.append(written)
            quotes = possible
        self.write(f"{quotes[0]}{''.join(texts)}{quotes[0]}")

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        self.write(self._part(node))

    def _part(self, node: ast.expr) -> str:
        """The text of a part of an f-string, between its quotes."""
        match node:
            case ast.Constant():
                return str(node.value).replace("{", "{{").replace("}", "}}")
            case ast.FormattedValue():
                return "".join(self._replacement_field(node))
            case ast.JoinedStr():
                return "".join(map(self._part, node.values))
        raise TypeError(f"part of an f-string: found {ast.dump(node)}, expected a constant or a value")

    def _replacement_field(self, node: ast.FormattedValue) -> Iterator[str]:
        inner = _CanonicalUnparser(in_expression=True)
        inner.set_precedence(ast._Precedence.TEST.next(), node.value)  # type: ignore[attr-defined]
        text = inner.visit(node.value)
        yield "{ " if text.startswith("{") else "{"
        yield text
        if node.conversion != -1:
            yield f"!{chr(node.conversion)}"
        if node.format_spec is not None:
            yield ":" + self._part(node.format_spec)
        yield "}"
