"""Letta's REST API is known in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src/isabella"
PATH = re.compile(r"/v1/(agents|providers|blocks|tools|archives|runs|messages|models|health)")


def _texts(module: Path) -> Iterator[tuple[int, str]]:
    """Every text in a module, those of docstrings left out: where it stands, and the text."""
    tree = ast.parse(module.read_text("utf-8"))
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def test_paths_of_lettas_api_are_written_in_its_package_only() -> None:
    """No module outside of `letta` has a path of Letta's REST API in a string or an f-string."""
    found = [
        f"{module.relative_to(SOURCE)}:{line}: {text}"
        for module in sorted(SOURCE.rglob("*.py"))
        if module.relative_to(SOURCE).parts[0] != "letta"
        for line, text in _texts(module)
        if PATH.search(text)
    ]
    assert found == []


def test_nothing_else_speaks_http_with_letta() -> None:
    """The official SDK, and the HTTP library it is made with, are not imported anywhere."""
    imports = re.compile(r"^\s*(import|from) (letta_client|httpx)\b(?!2)", re.MULTILINE)
    assert [str(module) for module in SOURCE.rglob("*.py") if imports.search(module.read_text("utf-8"))] == []
