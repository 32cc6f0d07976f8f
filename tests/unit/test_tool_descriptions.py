"""Shorter descriptions of Letta's own tools, and of no others."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from isabella.gateway import adapting
from isabella.gateway.adapting import with_short_descriptions

LONG = "A long description. " * 20


@pytest.fixture(autouse=True)
def _known_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {
        "replaces": hashlib.sha256(LONG.encode()).hexdigest()[:16],
        "description": "Look it up.",
        "parameters": {"query": "What for."},
    }
    monkeypatch.setattr(adapting, "_descriptions", lambda: {"look": short})


def tool(name: str = "look", description: str = LONG, **properties: Any) -> dict[str, Any]:
    """A tool as Letta sends it."""
    properties = properties or {"query": {"type": "string", "description": "A long one."}}
    parameters = {"type": "object", "properties": properties, "required": ["query"]}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters, "strict": False},
    }


def test_only_descriptions_change() -> None:
    """Name, types, required parameters and everything else stay."""
    short = with_short_descriptions([tool()])
    assert short == [tool(description="Look it up.", query={"type": "string", "description": "What for."})]


@pytest.mark.parametrize(
    "other",
    [
        tool(name="another"),
        tool(description=LONG + "Changed by its owner."),
        tool(query={"type": "string"}, limit={"type": "integer"}),
        {"type": "function", "function": {"name": "look"}},
        {"type": "custom", "custom": {}},
        "no tool",
    ],
)
def test_a_tool_that_is_not_lettas_own_stays(other: object) -> None:
    """Another name, other words, other parameters, or another shape."""
    assert with_short_descriptions([other]) == [other]


@pytest.mark.parametrize("tools", [None, "none", {}, []])
def test_what_is_no_list_of_tools_stays(tools: object) -> None:
    """A malformed request is for the vendor to refuse."""
    assert with_short_descriptions(tools) == tools
