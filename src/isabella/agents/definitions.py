"""The definitions of agents, read from the agents file: the package's own `agents.toml`, or the operator's."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, StrictBool, TypeAdapter, ValidationError

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError, FileAbsent
from isabella.system import files

#: The names that Letta accepts for agents. It answers others with a 500 or an unreadable 400.
NAME_PATTERN = r"^[\w'\-]([\w '\-]{0,98}[\w'\-])?$"
NAME = re.compile(NAME_PATTERN)

_CORRECT = "Correct it there; docs/agents.md describes the file."
_HANDLE = re.compile(r"[^\s/]+(/\S+)?")


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name holds letters, digits, spaces, '-', '_' and apostrophes, 100 at most")
    return value


def _handle(value: str) -> str:
    if not _HANDLE.fullmatch(value):
        raise ValueError(f"{value!r} is not a handle: write PROVIDER/MODEL, or PROVIDER for its default model")
    return value


_CONFIG = ConfigDict(extra="forbid", hide_input_in_errors=True)


@dataclass(frozen=True)
class BlockDefinition:
    """A memory block: one `[[agents.blocks]]`."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    label: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,49}$")]
    description: Annotated[str, Field(min_length=1, max_length=2000)]  # its purpose, for the agent
    value: Annotated[str, AfterValidator(lambda value: value.strip("\n"))] = ""  # its text when it is created
    limit: Annotated[int, Field(gt=0, le=100_000, strict=True)] = 5000  # the number of characters that it may hold
    shared: StrictBool = False  # whether the agent that reflects on this one has the same block
    read_only: StrictBool = False  # whether the agent may not change it


@dataclass(frozen=True)
class AgentDefinition:
    """An agent: one `[[agents]]`."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    #: identifies its agent in Letta, whatever its name is
    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,49}$")]
    name: Annotated[str, AfterValidator(_name)]
    description: Annotated[str, Field(max_length=2000)]  # its purpose, for people; optional in the file
    #: its system prompt. Letta renders the memory blocks below it.
    persona: Annotated[str, Field(min_length=1, max_length=100_000), AfterValidator(str.strip)]
    blocks: tuple[BlockDefinition, ...] = ()
    tools: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # the names of its tools in Letta
    handles: tuple[Annotated[str, AfterValidator(_handle)], ...] = ()  # the models that it prefers, in order
    #: the largest context window in tokens; None for the model's own
    window: Annotated[int, Field(ge=4096, strict=True)] | None = None
    reflects_on: str | None = None  # the id of the agent whose shared blocks it has too, and tidies

    @property
    def shared_labels(self) -> tuple[str, ...]:
        """The labels of the blocks that it shares."""
        return tuple(block.label for block in self.blocks if block.shared)


_DEFINITION = TypeAdapter(AgentDefinition)


def load_definitions(settings: Settings) -> tuple[AgentDefinition, ...]:
    """Return the definitions of the operator's file if the settings name one, otherwise those of the package."""
    path = settings.agents_file
    if path is None:
        return parse(resources.files("isabella").joinpath("agents.toml").read_text("utf-8"), "agents.toml")
    try:
        text = files.read(path).text
    except FileAbsent as error:
        remedy = "Correct ISABELLA_AGENTS_FILE, or unset it."
        raise files.unreadable(path, error.reason, remedy=remedy, kind=FileAbsent) from None
    return parse(text, str(path))


def parse(text: str, source: str) -> tuple[AgentDefinition, ...]:
    """Return the definitions in a TOML document. A `ConfigurationError` names the source and the line."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = str(error).replace("at end of document", f"at line {len(text.splitlines()) or 1}, the last one")
        raise ConfigurationError(f"{source}: not valid TOML: {what}.", remedy=_CORRECT) from None
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
            f"{source}, line {places.key('agents')}: agents must be tables.", remedy="Begin each with [[agents]]."
        )
    definitions = tuple(_definition(source, places, index, entry) for index, entry in enumerate(entries))
    _check_together(source, places, definitions)
    return definitions


def _definition(source: str, places: _Places, index: int, entry: dict[str, Any]) -> AgentDefinition:
    try:
        return _DEFINITION.validate_python({"description": "", **entry})
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        what = problem["msg"].removeprefix("Value error, ")
        loc = problem["loc"]
        where = ".".join(str(part) for part in loc if not isinstance(part, int))
        what = f"{source}, line {places.of(index, loc)}: {where}: {what}."
        raise ConfigurationError(what, remedy=_CORRECT) from None


def _check_together(source: str, places: _Places, definitions: tuple[AgentDefinition, ...]) -> None:
    """Check what concerns several agents: ids and names, shared blocks, and reflection."""
    for index, agent in enumerate(definitions):
        problem = _problem(agent, definitions[:index], {other.id: other for other in definitions})
        if problem is not None:
            raise ConfigurationError(f"{source}, line {places.of(index, ())}: {problem}.", remedy=_CORRECT)


def _problem(
    agent: AgentDefinition, before: tuple[AgentDefinition, ...], by_id: dict[str, AgentDefinition]
) -> str | None:
    labels = [block.label for block in agent.blocks]
    if any(other.id == agent.id for other in before):
        return f"two agents have the id {agent.id!r}"
    if any(other.name.casefold() == agent.name.casefold() for other in before):
        return f"two agents have the name {agent.name!r}"
    if len(labels) != len(set(labels)):
        return f"{agent.name!r} has two blocks of the same label"
    for block in agent.blocks:
        if len(block.value) > block.limit:
            return f"the block {block.label!r} of {agent.name!r} begins with more characters than its limit allows"
    if agent.reflects_on is None:
        return None
    other = by_id.get(agent.reflects_on)
    if other is None or other is agent:
        return f"{agent.name!r} reflects on {agent.reflects_on!r}, which is not another agent of this file"
    if other.reflects_on is not None:
        return f"{agent.name!r} reflects on {other.name!r}, which reflects itself"
    if not other.shared_labels:
        return f"{agent.name!r} reflects on {other.name!r}, which shares no block"
    if set(labels) & set(other.shared_labels):
        return f"{agent.name!r} has a block of the same label as one that {other.name!r} shares with it"
    return None


class _Places:
    """The lines of tables and keys in a TOML document."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def key(self, name: str, first: int = 1, last: int | None = None) -> int:
        """Return the line, from `first` to `last`, where a key or table begins; `first` if there is none."""
        pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(name)}\b")
        last = len(self._lines) if last is None else last
        return next((n for n in range(first, last + 1) if pattern.match(self._lines[n - 1])), first)

    def of(self, agent: int, loc: tuple[int | str, ...]) -> int:
        """Return the line of a field of an agent, or of one of its blocks."""
        first, last = self._table("agents", agent, 1, len(self._lines))
        if len(loc) > 1 and loc[0] == "blocks" and isinstance(loc[1], int):
            first, last = self._table("blocks", loc[1], first, last)
            loc = loc[2:]
        return self.key(str(loc[0]), first, last) if loc else first

    def _table(self, name: str, index: int, first: int, last: int) -> tuple[int, int]:
        """Return the first and last line of a table in a list of tables; of the list itself if it is inline."""
        header = re.compile(rf"\s*\[\[\s*(agents\.)?{name}\s*\]\]")
        begins = [n for n in range(first, last + 1) if header.match(self._lines[n - 1])]
        if index >= len(begins):
            return self.key(name, first, last), last
        return begins[index], [*begins, last + 1][index + 1] - 1
