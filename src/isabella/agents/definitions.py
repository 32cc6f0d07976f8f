"""The agents that are wanted, read from `agents.toml`: the package's own, or the operator's."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError, FileAbsent
from isabella.system import files

#: What Letta takes as an agent's name (it answers others with a 500 or an unreadable 400).
NAME_PATTERN = r"^[\w'\-]([\w '\-]{0,98}[\w'\-])?$"
NAME = re.compile(NAME_PATTERN)

_ID = r"^[a-z][a-z0-9-]{0,49}$"
_LABEL = r"^[A-Za-z][A-Za-z0-9_-]{0,49}$"
_HANDLE = re.compile(r"[^\s/]+(/\S+)?")


@dataclass(frozen=True)
class BlockDefinition:
    """A memory block, as it begins.

    Attributes:
        label: its name.
        description: what the agent is told that it is for.
        value: what stands in it when it is made, and never again.
        limit: how many characters it may hold.
        shared: whether the agent that reflects on this one has the same block.
        read_only: whether the agent may not change it.
    """

    label: str
    description: str
    value: str = ""
    limit: int = 5000
    shared: bool = False
    read_only: bool = False


@dataclass(frozen=True)
class AgentDefinition:
    """An agent that is wanted.

    Attributes:
        id: how it is found again, whatever it is called by then.
        name: what it is called.
        description: what it is for, for people.
        persona: its system prompt. Letta renders the memory blocks below it.
        blocks: its memory blocks.
        tools: Letta's tools that it has.
        handles: the models that it prefers, in order.
        window: at most so many tokens of context; None for what the model has.
        reflects_on: the id of the agent whose shared blocks it has too, and tidies.
    """

    id: str
    name: str
    description: str
    persona: str
    blocks: tuple[BlockDefinition, ...] = ()
    tools: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    window: int | None = None
    reflects_on: str | None = None

    @property
    def shared_labels(self) -> tuple[str, ...]:
        """The labels of the blocks that it shares."""
        return tuple(block.label for block in self.blocks if block.shared)


class _Block(BaseModel):
    """One `[[agents.blocks]]`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    label: Annotated[str, Field(pattern=_LABEL)]
    description: Annotated[str, Field(min_length=1, max_length=2000)]
    value: str = ""
    limit: Annotated[int, Field(gt=0, le=100_000)] = 5000
    shared: bool = False
    read_only: bool = False

    @field_validator("value")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip("\n")


class _Agent(BaseModel):
    """One `[[agents]]`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    id: Annotated[str, Field(pattern=_ID)]
    name: str
    persona: Annotated[str, Field(min_length=1, max_length=100_000)]
    description: Annotated[str, Field(max_length=2000)] = ""
    blocks: list[_Block] = []
    tools: list[Annotated[str, Field(min_length=1)]] = []
    handles: list[str] = []
    window: Annotated[int, Field(ge=4096)] | None = None
    reflects_on: str | None = None

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("a name holds letters, digits, spaces, '-', '_' and apostrophes, 100 at most")
        return value

    @field_validator("handles")
    @classmethod
    def _are_handles(cls, value: list[str]) -> list[str]:
        for handle in value:
            if not _HANDLE.fullmatch(handle):
                raise ValueError(f"{handle!r} is no handle: PROVIDER/MODEL, or PROVIDER for its usual model")
        return value

    @field_validator("persona")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip()


def load_definitions(settings: Settings) -> tuple[AgentDefinition, ...]:
    """The agents of the operator's file where one is named, otherwise those that come with the package.

    Raises:
        ConfigurationError: the file cannot be read, or is malformed; the message names the line.
    """
    path = settings.agents_file
    if path is None:
        return parse(resources.files("isabella").joinpath("agents.toml").read_text("utf-8"), "agents.toml")
    try:
        text = files.read(path).text
    except FileAbsent as error:
        raise FileAbsent.of(path, error.reason, remedy="Correct ISABELLA_AGENTS_FILE, or unset it.") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> tuple[AgentDefinition, ...]:
    """Read definitions.

    Args:
        text: the TOML document.
        source: where it came from, for messages.

    Raises:
        ConfigurationError: it is malformed; the message names source and line.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = str(error).replace("at end of document", f"at line {len(text.splitlines()) or 1}, the last one")
        raise ConfigurationError(f"{source}: not valid TOML: {what}.") from None
    places = _Places(text)
    entries = document.pop("agents", [])
    if document:
        unknown = next(iter(document))
        raise ConfigurationError(
            f"{source}, line {places.key(unknown)}: unknown entry {unknown!r}.",
            remedy="The file holds [[agents]] tables only.",
        )
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError(
            f"{source}, line {places.key('agents')}: agents have to be tables.", remedy="Begin each with [[agents]]."
        )
    definitions = tuple(_definition(source, places, index, entry) for index, entry in enumerate(entries))
    _check_together(source, places, definitions)
    return definitions


def _definition(source: str, places: _Places, index: int, entry: dict[str, Any]) -> AgentDefinition:
    try:
        agent = _Agent.model_validate(entry)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        what = problem["msg"].removeprefix("Value error, ")
        loc = problem["loc"]
        where = ".".join(str(part) for part in loc if not isinstance(part, int))
        raise ConfigurationError(f"{source}, line {places.of(index, loc)}: {where}: {what}.") from None
    return AgentDefinition(
        id=agent.id,
        name=agent.name,
        description=agent.description,
        persona=agent.persona,
        blocks=tuple(BlockDefinition(**block.model_dump()) for block in agent.blocks),
        tools=tuple(agent.tools),
        handles=tuple(agent.handles),
        window=agent.window,
        reflects_on=agent.reflects_on,
    )


def _check_together(source: str, places: _Places, definitions: tuple[AgentDefinition, ...]) -> None:
    """What no agent can be wrong about alone: names, shared blocks, who reflects on whom."""
    by_id: dict[str, AgentDefinition] = {}
    names: set[str] = set()
    for index, agent in enumerate(definitions):
        problem = _problem(agent, by_id, names, {other.id: other for other in definitions})
        if problem is not None:
            raise ConfigurationError(f"{source}, line {places.of(index, ())}: {problem}.")
        by_id[agent.id] = agent
        names.add(agent.name.casefold())


def _problem(
    agent: AgentDefinition, before: dict[str, AgentDefinition], names: set[str], all_by_id: dict[str, AgentDefinition]
) -> str | None:
    labels = [block.label for block in agent.blocks]
    if agent.id in before:
        return f"two agents have the id {agent.id!r}"
    if agent.name.casefold() in names:
        return f"two agents have the name {agent.name!r}"
    if len(labels) != len(set(labels)):
        return f"{agent.name!r} has two blocks of the same label"
    for block in agent.blocks:
        if len(block.value) > block.limit:
            return f"the block {block.label!r} of {agent.name!r} begins with more characters than its limit allows"
    if agent.reflects_on is None:
        return None
    other = all_by_id.get(agent.reflects_on)
    if other is None or other is agent:
        return f"{agent.name!r} reflects on {agent.reflects_on!r}, which is no other agent of this file"
    if other.reflects_on is not None:
        return f"{agent.name!r} reflects on {other.name!r}, which reflects itself"
    if not other.shared_labels:
        return f"{agent.name!r} reflects on {other.name!r}, which shares no block"
    if set(labels) & set(other.shared_labels):
        return f"{agent.name!r} has a block of the same label as one that {other.name!r} shares with it"
    return None


class _Places:
    """Where in the text things stand, by line."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._agents = [n for n, line in self._tables("agents")]

    def key(self, name: str, first: int = 1, last: int | None = None) -> int:
        """The line, in a stretch of lines, where a key or table of this name begins; the first line without one."""
        pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(name)}\b")
        last = len(self._lines) if last is None else last
        return next((n for n in range(first, last + 1) if pattern.match(self._lines[n - 1])), first)

    def of(self, agent: int, loc: tuple[int | str, ...]) -> int:
        """The line of a field of an agent, or of one of its blocks."""
        if agent >= len(self._agents):
            return self.key("agents")
        first = self._agents[agent]
        last = self._agents[agent + 1] - 1 if agent + 1 < len(self._agents) else len(self._lines)
        if loc and loc[0] == "blocks" and len(loc) > 1 and isinstance(loc[1], int):
            blocks = [n for n, _ in self._tables("agents.blocks") if first <= n <= last]
            if loc[1] < len(blocks):
                end = blocks[loc[1] + 1] - 1 if loc[1] + 1 < len(blocks) else last
                return self.key(str(loc[2]), blocks[loc[1]], end) if len(loc) > 2 else blocks[loc[1]]
        return self.key(str(loc[0]), first, last) if loc else first

    def _tables(self, name: str) -> Iterator[tuple[int, str]]:
        header = re.compile(rf"\s*\[\[\s*{re.escape(name)}\s*\]\]")
        return ((n, line) for n, line in enumerate(self._lines, 1) if header.match(line))
