"""Python source in one spelling, the same on every version of Python: what digests of functions are made from.

`ast.unparse` drops comments and formatting, but its spelling of f-strings changed with Python 3.12. A run that was prepared on an older
machine would then look changed on a newer one. This is the spelling of 3.11, from whose `ast` module the methods come.
"""

import ast
from collections.abc import Iterator

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
