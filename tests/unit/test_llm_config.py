"""One module writes agents' `llm_config`; how it merges what an owner has set with what binds the agent."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import isabella
from isabella.agents.metadata import KEY
from isabella.agents.registry import AgentRegistry, BindingResult
from isabella.letta.agents import AgentRow
from isabella.letta.llm_config import Binding

SOURCE = Path(isabella.__file__).parent
ONLY = SOURCE / "letta" / "llm_config.py"
#: What Letta takes an `llm_config` by, whole or in parts.
FIELDS = {"llm_config", "model_settings", "context_window_limit", "parallel_tool_calls"}
HERE = Binding("cerebras", "gpt-oss-120b", "http://c/v1", 65_536)


def writes(tree: ast.AST) -> Iterator[int]:
    """Lines at which a field of that name is put into something that may be sent: a dict, a call, an assignment."""
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=keys):
                yield from (key.lineno for key in keys if isinstance(key, ast.Constant) and key.value in FIELDS)
            case ast.keyword(arg=name) if name in FIELDS:
                yield node.lineno
            case ast.Subscript(slice=ast.Constant(value=name), ctx=ast.Store()) if name in FIELDS:
                yield node.lineno


def calls(tree: ast.AST) -> Iterator[int]:
    """Lines at which the fields of a binding are asked for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "as_llm_config":
            yield node.lineno


def test_only_one_module_writes_an_llm_config() -> None:
    """Whoever else wrote one would reset what the agent's owner has set (M25)."""
    found = {
        f"{path.relative_to(SOURCE)}:{line}"
        for path in SOURCE.rglob("*.py")
        if path != ONLY
        for tree in [ast.parse(path.read_text("utf-8"))]
        for line in [*writes(tree), *calls(tree)]
    }
    assert found == set()
    assert [*writes(ast.parse(ONLY.read_text("utf-8")))]


class Letta:
    """An agent in a Letta that takes what it is sent."""

    def __init__(self, config: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        self.row: dict[str, Any] = {
            "id": "a",
            "llm_config": config,
            "metadata": metadata,
            "agent_type": "letta_v1_agent",
        }

        self.agents = self.providers = self

    async def get(self, _agent_id: str) -> AgentRow:
        """The agent as it is."""
        return AgentRow.model_validate(self.row)

    async def update(self, _agent_id: str, fields: dict[str, Any]) -> None:
        """Change it."""
        self.row |= fields

    async def find(self, _provider: str) -> None:
        """No provider moves here."""


def bind(letta: Letta, binding: Binding, *, answer_tokens: int = 0, **options: Any) -> BindingResult:
    """Bind the agent."""
    client: Any = letta

    async def bound() -> BindingResult:
        return await AgentRegistry(client, answer_tokens=answer_tokens).bind("a", binding, **options)

    return anyio.run(bound)


def test_what_a_binding_does_not_name_stays_but_for_what_describes_another_model() -> None:
    """Settings of the owner, and those that we have never heard of, come along; another model's name does not."""
    letta = Letta({"model": "old", "temperature": 0.15, "unheard_of": [1], "display_name": "Old", "tier": "free"})
    bind(letta, HERE)
    assert letta.row["llm_config"] == {**HERE.as_llm_config(), "temperature": 0.15, "unheard_of": [1]}
    letta.row["llm_config"]["display_name"] = "Mine"
    bind(letta, HERE)
    assert letta.row["llm_config"]["display_name"] == "Mine"


@pytest.mark.parametrize(
    ("max_tokens", "window", "then"),
    [(None, 8192, None), (777, 8192, 777), (8191, 8192, 8191), (8192, 8192, 4096), (100_000, 8192, 4096)],
)
def test_a_limit_that_does_not_fit_is_lowered(max_tokens: int | None, window: int, then: int | None) -> None:
    """Only a limit that leaves no room at all for what is read."""
    letta = Letta({"model": "old", "max_tokens": max_tokens})
    bound = bind(letta, Binding("p", "m", "http://p/v1", window))
    assert letta.row["llm_config"]["max_tokens"] == then
    assert bool(bound.notes) is (then != max_tokens)


def test_an_agent_without_a_limit_gets_one_that_its_window_allows() -> None:
    """It follows the window and the setting; a limit that its owner sets meanwhile is the owner's."""
    letta = Letta({"model": "old", "max_tokens": None})

    def limit(window: int, answer_tokens: int) -> object:
        binding = Binding("p", "m", "http://p/v1", window)
        assert bind(letta, binding, answer_tokens=answer_tokens).notes == ()
        return letta.row["llm_config"]["max_tokens"]

    assert limit(4096, 8192) == 1024
    assert limit(200_000, 8192) == 8192
    assert limit(200_000, 500) == 500
    assert limit(200_000, 0) is None
    assert limit(8192, 8192) == 2048
    letta.row["llm_config"]["max_tokens"] = 3000
    assert limit(200_000, 8192) == 3000
    assert limit(4096, 100) == 3000


def test_a_lowered_limit_comes_back_and_other_metadata_stays() -> None:
    """What its owner wanted is noted with the agent, beside what else is noted there at the same moment."""
    letta = Letta({"model": "old", "max_tokens": 100_000}, {"owner": "x"})
    small, large = Binding("p", "m", "http://p/v1", 8192), Binding("p", "l", "http://p/v1", 200_000)
    bind(letta, small, changes={"metadata": {"owner": "x", "new": 1}})
    assert letta.row["metadata"] == {"owner": "x", "new": 1, KEY: {"max_tokens": {"wanted": 100_000, "to": 4096}}}
    bind(letta, Binding("p", "s", "http://p/v1", 4096))
    assert letta.row["llm_config"]["max_tokens"] == 2048
    bind(letta, large)
    assert letta.row["llm_config"]["max_tokens"] == 100_000
    assert letta.row["metadata"][KEY] == {}


def test_the_settings_of_a_file_come_before_those_that_letta_made_up() -> None:
    """An import binds with what the file says."""
    letta = Letta({"model": "m", "enable_reasoner": False, "temperature": 1.0})
    bind(letta, HERE, settings={"enable_reasoner": True, "model_endpoint": "http://evil/v1"})
    assert letta.row["llm_config"] == {**HERE.as_llm_config(), "enable_reasoner": True, "temperature": 1.0}
