"""Print docs/messages.md: every sentence that docml says to people, by the module that says it, to be read for language.

`python docs/make_messages.py > docs/messages.md`; a test keeps it true.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("docml_assets", "resources", "trainer_image/docml_contract", "trainer_image/docml_trainer")
HEAD = """# What docml says

Made from the code by `python docs/make_messages.py > docs/messages.md`; a test keeps it true. Every text of at least four words that
the code holds besides docstrings: errors, help, labels, log lines, checks. `{…}` stands for a value.
"""
WORDS = re.compile(r"[^\W\d_]{2,}")
# Markup, code, patterns and lists of names.
NO_SENTENCE = re.compile(
    r"</?\w+[ >]|[{};]\s*$|\\[bpw.]|\(\?|^SELECT |^SET |^START |^\s*@media|--[a-z]+:|^import |^def |\w\|\w|\]\[|^[^.,:;…]{300,}$",
    re.MULTILINE,
)


def document() -> str:
    """The file."""
    parts = [HEAD]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            texts = list(dict.fromkeys(sentences(path.read_text(encoding="utf-8"))))
            if texts:
                parts.append(f"## {path.relative_to(ROOT).as_posix()}\n\n" + "".join(f"- {text}\n" for text in texts))
    return "\n".join(parts)


def sentences(source: str) -> Iterator[str]:
    """The texts of a module that people may read, in their order."""
    tree = ast.parse(source)
    skipped = {id(text) for node in ast.walk(tree) for text in silent(node)}
    for node in in_order(tree):
        if id(node) in skipped or not isinstance(node, ast.JoinedStr | ast.Constant):
            continue
        text = written(node)
        told = " ".join(text.split())
        if told.count(" ") >= 2 and len(WORDS.findall(told)) >= 4 and not NO_SENTENCE.search(text):
            yield told


def in_order(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, as they stand in the source."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from in_order(child)


def silent(node: ast.AST) -> Iterator[ast.AST]:
    """What nobody is told: docstrings (but those of commands, which are their help), and the parts of a text that is told whole."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
        first = node.body[0]
        is_help = isinstance(node, ast.FunctionDef) and any(
            "command" in ast.unparse(d) or "group" in ast.unparse(d) for d in node.decorator_list
        )
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and not is_help:
            yield first.value
    if isinstance(node, ast.JoinedStr):
        yield from (part for part in node.values if isinstance(part, ast.Constant))


def written(node: ast.AST) -> str:
    """A text as it stands in the source, with {…} for values; nothing for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{…}" for part in parts)


if __name__ == "__main__":
    print(document(), end="")
