"""Agents as files (`.af`): taken out of Letta without any key in them, and brought in bound to what works here.

Letta's own export leaves archival memory out. This one adds the passages, below a key of Isabella's own. Every field
that may hold a secret is left out, and what this process knows as a secret is masked wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from isabella.agents import llm_config, marks
from isabella.agents.archive import Archive, Passage
from isabella.agents.definitions import NAME
from isabella.agents.embedding import Vectors
from isabella.agents.models import Models
from isabella.agents.pointing import point
from isabella.agents.residents import Resident, Residents
from isabella.agents.wire import translated
from isabella.connection import Connection
from isabella.errors import AgentExists, AgentFileRefused, IsabellaError, LettaBroken, LettaRefused
from isabella.redaction import redact

#: Fields of an exported agent that may hold secrets, or that mean nothing elsewhere, and what stands in their place.
_LEFT_OUT: Mapping[str, Any] = {
    "secrets": None,
    "tool_exec_environment_variables": {},
    # Its address has a secret of this backend in it, and vectors are made anew where the agent is brought in.
    "embedding_config": None,
    "embedding": None,
}
_OURS = "isabella"
_VERSION = 1
_NOT_AN_AGENT_FILE = "Export one with `isabella agents export`, or from Letta in its format with `agents`."


@dataclass(frozen=True)
class Brought:
    """An agent that was brought in.

    Attributes:
        id: Letta's id of it.
        name: what it is called.
        handle: the model that it is bound to.
        passages: how many passages its archival memory has.
        notes: what is to be known about it, one sentence each.
    """

    id: str
    name: str
    handle: str
    passages: int
    notes: tuple[str, ...] = ()


async def export_agent(residents: Residents, resident: Resident, secrets: Iterable[str] = ()) -> str:
    """An agent as a file: its prompt, tools, blocks, the messages in its context, and its archival memory.

    Args:
        residents: its Letta.
        resident: which.
        secrets: texts that must not be in the file, whatever put them there.

    Raises:
        AgentFileRefused: a secret would have been in the file.
        LettaError: Letta cannot export it.
    """
    document = await residents.wire.get(f"/v1/agents/{resident.id}/export")
    passages = await Archive(residents.wire).every(resident.id)
    for agent in document.get("agents", []):
        agent.update({name: value for name, value in _LEFT_OUT.items() if name in agent})
        agent["metadata"] = _without_marks(agent.get("metadata"))
        agent["tags"] = _without_definition(agent.get("tags"))
    # What reaches an MCP server (tokens, headers, environments) stays here; its tools would have to be attached anew.
    document["mcp_servers"] = []
    document[_OURS] = {
        "version": _VERSION,
        "passages": [
            {"text": passage.text, "tags": list(passage.tags), "created_at": passage.created_at}
            for passage in passages
        ],
    }
    # Somebody may have told an agent a key: what this process knows as a secret is masked wherever it stands.
    text = redact(json.dumps(document, ensure_ascii=False, indent=2))
    if any(secret in text for secret in secrets):
        raise AgentFileRefused("The file would have held a key, and was not written.")
    return text


async def import_agent(
    residents: Residents,
    models: Models,
    text: str | bytes,
    *,
    name: str | None = None,
    with_tools: bool = False,
    vectors: Vectors | None = None,
) -> Brought:
    """Bring an agent in from a file, bound to its own model where that works here, otherwise to one that does.

    Args:
        residents: the Letta to bring it into.
        models: what works here.
        text: the file.
        name: what to call it; by default as the file does.
        vectors: how its archival memory is to be searched; decided at the backend's next start where None.
        with_tools: also take tools that Letta does not have, which are programs that run on Letta's machine.

    Raises:
        AgentFileRefused: it is no agent file, or holds programs that were not asked for.
        AgentExists: there is an agent of that name.
        ModelUnknown: no vendor has a key.
        LettaError: Letta refuses or fails; nothing of the agent stays behind.
    """
    document = _document(text)
    agent = document["agents"][0]
    name = _name(agent, name)
    if any(other.name.casefold() == name.casefold() for other in await residents.all()):
        raise AgentExists(f"There is an agent {name!r} already.", remedy="Give the new one another name.")
    await _check_tools(residents, document, with_tools=with_tools)
    passages = _passages(document.pop(_OURS, None))
    config = agent.get("llm_config")
    settings: dict[str, Any] = config if isinstance(config, dict) else {}
    handle = settings.get("handle")
    binding = await models.choose([handle] if isinstance(handle, str) else [])
    agent.update({field: value for field, value in _LEFT_OUT.items() if field in agent})
    kind = agent.get("agent_type")
    binding = binding.suited(kind if isinstance(kind, str) else None)
    agent |= {
        "name": name,
        **llm_config.imported(settings, binding),
        "tags": [*_without_definition(agent.get("tags")), marks.OURS, marks.IMPORTED],
        "metadata": _without_marks(agent.get("metadata")),
    }
    document["mcp_servers"] = []
    try:
        with translated():
            answer = await residents.wire.client.agents.import_file(
                file=("agent.af", json.dumps(document).encode(), "application/json"),
                name=name,
                append_copy_suffix=False,
                override_existing_tools=False,
            )
    except LettaBroken as broken:
        await _remove_half(residents, name)
        raise AgentFileRefused(f"Letta failed on the file: {broken.what}", remedy=_NOT_AN_AGENT_FILE) from None
    except LettaRefused as refused:
        await _remove_half(residents, name)
        why = refused.detail.partition("For further information")[0].replace("\n", " ").strip()
        raise AgentFileRefused(f"Letta cannot read the file: {why}", remedy=_NOT_AN_AGENT_FILE) from None
    id = answer.agent_ids[0]
    try:
        # Letta sets the reasoning of a new agent as it thinks fit; the file comes first.
        bound = await residents.fit(id, await residents.bind(id, binding, settings=settings))
        await point(residents, await residents.get(id), vectors)
        archive = Archive(residents.wire)
        for passage in passages:
            if not passage.text.strip():
                # Letta itself takes empty ones; they say nothing.
                continue
            await archive.add(id, passage.text, passage.tags, created_at=passage.created_at)
    except IsabellaError:
        # Half an agent would look like a whole one that has forgotten.
        await residents.delete(id)
        raise
    return Brought(id, name, binding.handle, len(passages), bound.notes)


def own_secrets(models: Models, connection: Connection) -> list[str]:
    """What must not stand in any file: the vendors' keys, and what opens Letta and its database."""
    found = [provider.key for provider in models.providers]
    found += [connection.password, connection.master_key, connection.database_url]
    return [secret.get_secret_value() for secret in found if secret is not None]


async def _remove_half(residents: Residents, name: str) -> None:
    """Remove what an import that failed may have made; there was no agent of this name before it."""
    for resident in await residents.all():
        if resident.name == name and marks.IMPORTED in resident.tags:
            await residents.delete(resident.id)


def _document(text: str | bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise AgentFileRefused("The file is no JSON, so it is no agent file.", remedy=_NOT_AN_AGENT_FILE) from None
    agents = document.get("agents") if isinstance(document, dict) else None
    if not isinstance(agents, list) or not agents or not all(isinstance(agent, dict) for agent in agents):
        raise AgentFileRefused("The file holds no agent.", remedy=_NOT_AN_AGENT_FILE)
    if len(agents) > 1:
        raise AgentFileRefused(f"The file holds {len(agents)} agents; one can be brought in at a time.")
    return cast(dict[str, Any], document)


def _name(agent: Mapping[str, Any], given: str | None) -> str:
    name = given if given is not None else agent.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise AgentFileRefused(
            "An agent's name holds letters, digits, spaces, '-', '_' and apostrophes, 100 at most.",
            remedy="Give it such a name.",
        )
    return name


async def _check_tools(residents: Residents, document: Mapping[str, Any], *, with_tools: bool) -> None:
    """Refuse programs that would run on Letta's machine, unless they were asked for."""
    tools = document.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise AgentFileRefused("The file's tools are no list.", remedy=_NOT_AN_AGENT_FILE)
    there = {tool["name"] for tool in await residents.wire.every("/v1/tools/")}
    news = sorted(str(tool.get("name")) for tool in tools if tool.get("name") not in there)
    if news and not with_tools:
        raise AgentFileRefused(
            f"The file brings tools of its own, which are programs: {redact(', '.join(news))[:200]}.",
            remedy="Read them first; then bring the agent in together with its tools.",
        )


def _passages(ours: Any) -> list[Passage]:
    if ours is None:
        return []
    found = ours.get("passages") if isinstance(ours, dict) else None
    if not isinstance(found, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in found):
        raise AgentFileRefused("The file's archival memory is malformed.", remedy=_NOT_AN_AGENT_FILE)
    passages = []
    for entry in found:
        tags, at = entry.get("tags") or [], entry.get("created_at")
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise AgentFileRefused("The file's archival memory has malformed tags.", remedy=_NOT_AN_AGENT_FILE)
        passages.append(Passage("", entry["text"], tuple(tags), at if isinstance(at, str) else None))
    return passages


def _without_marks(metadata: Any) -> dict[str, Any]:
    return {key: value for key, value in (metadata or {}).items() if key != marks.KEY} if metadata else {}


def _without_definition(tags: Any) -> list[str]:
    """Tags without Isabella's own: a second agent with the mark of a definition would be taken for the first."""
    return [tag for tag in tags or [] if isinstance(tag, str) and not tag.startswith("isabella")]
