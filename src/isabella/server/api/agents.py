"""Routes of agents: listing, switching models, and agent files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from isabella.agents.agent_file import LARGEST_FILE, too_large
from isabella.agents.definitions import NAME_PATTERN
from isabella.agents.embeddings import SearchMethod
from isabella.agents.exports.importing import import_file as import_exported
from isabella.agents.import_export import configured_secrets, export_agent
from isabella.agents.lifecycle import (
    NewAgent,
    create_agent,
    delete_agent,
    duplicate_agent,
    losses_of,
    rename_agent,
    templates,
)
from isabella.agents.prompt_budget import read_prompt
from isabella.agents.registry import AgentRecord
from isabella.agents.repair import find_broken, problems_of
from isabella.agents.service import AgentService
from isabella.server.agent_download import MEDIA_TYPE, download_agent
from isabella.server.errors import ERRORS
from isabella.server.runtime import Agents, CurrentRuntime
from isabella.system.redaction import redact

#: Text without NUL, which Postgres does not store.
TEXT_PATTERN = r"^[^\x00]*$"

router = APIRouter(prefix="/api", tags=["agents"], responses=ERRORS)

Name = Annotated[str, Path(description="The agent's name, the id of its definition, or its id in Letta.")]


async def _requested_agent(name: Name, agent_service: Agents) -> AgentRecord:
    return await agent_service.registry.find(name)


RequestedAgent = Annotated[AgentRecord, Depends(_requested_agent)]


class AgentModel(BaseModel):
    """The model of an agent."""

    handle: str = Field(description="`provider/model`.")
    provider: str | None
    model: str | None
    window: int = Field(description="The context window in tokens.")


class Agent(BaseModel):
    """An agent in Letta."""

    id: str = Field(description="The id in Letta.")
    name: str
    description: str
    ours: bool = Field(description="Whether Isabella manages the agent.")
    definition: str | None = Field(description="The id of its definition in the agents file.")
    reflects_on: str | None = Field(description="The id of the agent on whose conversations it reflects.")
    model: AgentModel
    handles: list[str] = Field(description="The models that its definition prefers, in order.")
    blocks: list[str] = Field(description="The labels of its memory blocks.")
    tools: list[str]
    archive: Literal["mistral", "local", "text"] = Field(description="How its archival memory is searched.")
    problem: str | None = Field(description="Why it cannot answer; `isabella agents repair` repairs it.")


class FailedDefinition(BaseModel):
    """A definition whose agent could not be created or updated at the last start."""

    definition: str
    name: str
    reason: str
    remedy: str | None


class AgentList(BaseModel):
    """The agents in Letta, those that Isabella manages first."""

    agents: list[Agent]
    missing: list[FailedDefinition] = Field(
        description="Definitions whose agent could not be created or updated at the last start."
    )


class SwitchResult(Agent):
    """An agent after it was switched."""

    notes: list[str] = Field(description="Limits of the new model, one sentence each.")


class Handles(BaseModel):
    """The models that are available now."""

    handles: list[str]


Handle = Annotated[
    str,
    Field(max_length=300, pattern=r"^[^\s/\x00]+(/[^\s\x00]+)?$", examples=["byok-mistral/mistral-medium-latest"]),
]
NewName = Annotated[str, Field(max_length=100, pattern=NAME_PATTERN)]


class SwitchRequest(BaseModel):
    """The model to switch an agent to."""

    handle: Handle


class Template(BaseModel):
    """A definition that agents can be created after."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    description: str
    persona: str = Field(description="The system prompt.")
    handles: list[str] = Field(description="The models that it prefers, in order.")
    tools: list[str]


class Templates(BaseModel):
    """The definitions that agents can be created after."""

    definitions: list[Template]


class NewAgentRequest(BaseModel):
    """An agent to create. It has its own memory, and is not changed with its definition later."""

    name: NewName
    definition: str | None = Field(
        default=None, max_length=50, pattern=r"^[a-z][a-z0-9-]*$", description="By default the first one."
    )
    handle: Handle | None = Field(
        default=None, description="Its model; by default the first of the definition that is available."
    )
    description: str | None = Field(default=None, max_length=2000, pattern=TEXT_PATTERN)
    persona: str | None = Field(
        default=None,
        max_length=100_000,
        pattern=TEXT_PATTERN,
        description="The system prompt; by default the definition's.",
    )


class NameRequest(BaseModel):
    """A name for an agent."""

    name: NewName


class CountedRows(BaseModel):
    """A number of rows, counted up to a limit."""

    number: int
    more: bool = Field(description="Whether there are more than `number`.")


class AgentLosses(BaseModel):
    """The losses when an agent is deleted."""

    model_config = ConfigDict(from_attributes=True)

    messages: CountedRows = Field(description="Messages of the user and of the agent.")
    passages: CountedRows = Field(description="Passages of archival memory.")
    blocks: list[str] = Field(description="The labels of the blocks that no other agent has.")
    shared: dict[str, list[str]] = Field(
        description="The labels of the blocks that stay, with the names of the agents that have them."
    )
    defined: bool = Field(description="Whether the agents file defines it, so that the next start creates it again.")


class PromptPartItem(BaseModel):
    """A part of a prompt."""

    model_config = ConfigDict(from_attributes=True)

    kind: Literal["persona", "block", "blocks", "metadata", "tool", "message"] = Field(
        description="`blocks` is the text around the blocks."
    )
    name: str = Field(description="The label of a block, the name of a tool, or the role of a message.")
    tokens: int = Field(description="At four characters each.")
    text: str
    id: str = Field(description="The id of a message in Letta.")
    at: str = Field(description="The time of a message; ISO 8601.")


class AgentPrompt(BaseModel):
    """The prompt of an agent's next message, without that message."""

    tokens: int
    window: int = Field(description="The context window in tokens.")
    parts: list[PromptPartItem]


class ImportResult(BaseModel):
    """An imported agent."""

    id: str
    name: str
    handle: str
    passages: int = Field(description="The number of imported passages of archival memory.")
    notes: list[str] = Field(description="Changes made on import, one sentence each.")
    left_out: list[str] = Field(description="Contents of the file that were not imported, for people.")


class BrokenAgent(BaseModel):
    """An agent that cannot answer."""

    id: str
    name: str
    ours: bool
    fault: str
    why: str
    before: str
    after: str | None = Field(description="The model that a repair would bind it to.")
    problem: str | None


class BrokenAgents(BaseModel):
    """All agents that cannot answer."""

    agents: list[BrokenAgent]


@router.get("/agents", summary="List agents")
async def agents(agent_service: Agents) -> AgentList:
    """List every agent, with its model and its problem, if any."""
    found = sorted(await agent_service.registry.all(), key=lambda agent: not agent.managed)
    problems = await _problems(agent_service, found)
    return AgentList(
        agents=[_agent(agent, problems.get(agent.id)) for agent in found],
        missing=[
            FailedDefinition.model_validate(result, from_attributes=True)
            for result in agent_service.ensured
            if result.reason is not None
        ],
    )


@router.get("/models", summary="List available models")
async def models(agent_service: Agents) -> Handles:
    """List the handles of every vendor that accepts its key, each vendor's default model first."""
    return Handles(handles=await agent_service.models.handles())


@router.get("/repairs", summary="List broken agents")
async def repairs(agent_service: Agents) -> BrokenAgents:
    """Find agents, managed by Isabella or not, that cannot answer. Changes nothing."""
    found = await find_broken(agent_service.registry, agent_service.models)
    return BrokenAgents.model_validate({"agents": [repair.as_json() for repair in found]})


@router.get("/agents/{name}", summary="Show an agent")
async def agent(agent: RequestedAgent, agent_service: Agents) -> Agent:
    """Show an agent, with its model and its problem, if any."""
    return _agent(agent, (await _problems(agent_service, [agent])).get(agent.id))


@router.get("/definitions", summary="List definitions")
async def definitions(agent_service: Agents) -> Templates:
    """List the definitions of the agents file that new agents can be created after."""
    return Templates.model_validate({"definitions": templates(agent_service.definitions)})


@router.post("/agents", summary="Create an agent", status_code=201)
async def create(body: NewAgentRequest, agent_service: Agents) -> Agent:
    """Create an agent from a definition, with its own memory.

    A name that is taken is refused with 409 `agent_exists`, a handle that is not available with 409 `model_unknown`.
    """
    return _agent(await create_agent(agent_service, NewAgent(**body.model_dump())), None)


@router.patch("/agents/{name}", summary="Rename an agent")
async def rename(agent: RequestedAgent, body: NameRequest, agent_service: Agents, runtime: CurrentRuntime) -> Agent:
    """Rename an agent. Its id does not change."""
    renamed = await rename_agent(agent_service.registry, agent, body.name)
    runtime.turns.deps.agent_cache.forget(agent.id)
    return _agent(renamed, (await _problems(agent_service, [renamed])).get(renamed.id))


@router.post("/agents/{name}/duplicate", summary="Duplicate an agent", status_code=201)
async def duplicate(agent: RequestedAgent, body: NameRequest, agent_service: Agents) -> ImportResult:
    """Create an agent like this one: prompt, tools, memory blocks, the messages in its context, and archival memory.

    The copy has its own blocks, shared ones included. Older messages are not copied.
    """
    copied = await duplicate_agent(agent_service, agent, body.name)
    return ImportResult.model_validate(copied, from_attributes=True)


@router.get("/agents/{name}/losses", summary="Show what deleting an agent would lose")
async def losses(agent: RequestedAgent, agent_service: Agents) -> AgentLosses:
    """Show what is lost when an agent is deleted. Changes nothing."""
    return AgentLosses.model_validate(await losses_of(agent_service.registry, agent), from_attributes=True)


@router.delete("/agents/{name}", summary="Delete an agent", status_code=204)
async def delete(agent: RequestedAgent, agent_service: Agents, runtime: CurrentRuntime) -> None:
    """Delete an agent with its messages, its archival memory, and the blocks that no other agent has.

    Waits for the turn in progress. Only an export made before can restore it.
    """
    async with agent_service.memory.hold(agent.id):
        await delete_agent(agent_service, agent)
    runtime.turns.deps.agent_cache.forget(agent.id)
    runtime.event_log.answers.forget(agent.id)


@router.get("/agents/{name}/prompt", summary="Show an agent's prompt")
async def prompt(agent: RequestedAgent, agent_service: Agents) -> AgentPrompt:
    """Show what an agent's model gets with the next message: system prompt, blocks, tools, and messages in context.

    Keys that were written into it are masked.
    """
    found = await read_prompt(agent_service.letta, agent.id)
    parts = [{**asdict(part), "tokens": part.tokens, "text": redact(part.text)} for part in found.parts if part.text]
    return AgentPrompt.model_validate({"tokens": found.budget.total, "window": found.window, "parts": parts})


@router.post("/agents/{name}/switch", summary="Switch an agent to another model")
async def switch(agent: RequestedAgent, body: SwitchRequest, agent_service: Agents) -> SwitchResult:
    """Bind an agent to a handle, from its next message on. Memory and history are kept.

    `notes` say what the vendor does not accept: a limit above its context window, or tool calls of other vendors.

    A handle that is not available is refused with 409 `model_unknown`; `details.handles` lists the available ones.
    """
    async with agent_service.memory.hold(agent.id):
        binding = await agent_service.registry.switch(agent, body.handle, agent_service.models)
    switched = _agent(await agent_service.registry.get(agent.id), None)
    return SwitchResult(**switched.model_dump(), notes=list(binding.notes))


@router.get(
    "/agents/{name}/export",
    summary="Export an agent",
    response_class=Response,
    responses={
        200: {
            "content": {"application/json": {}, MEDIA_TYPE: {}},
            "description": "An `.af` file, or a ZIP file with Markdown and JSON Lines. Neither holds a key.",
        }
    },
)
async def export(
    request: Request,
    agent: RequestedAgent,
    agent_service: Agents,
    runtime: CurrentRuntime,
    format: Annotated[
        Literal["agent-file", "markdown"],
        Query(
            description="`agent-file`: prompt, tools, memory blocks, archival memory, and messages in the context. "
            "`markdown`: everything, also the whole history of all conversations and the former texts of blocks."
        ),
    ] = "agent-file",
) -> Response:
    """Export an agent, as a file.

    With `markdown`, the agent's turns wait while it is read, and the answer begins when the file is complete.
    """
    if format == "markdown":
        return await download_agent(request, runtime, agent)
    secrets = configured_secrets(agent_service.models, agent_service.connection)
    text = await export_agent(agent_service.registry, agent, secrets)
    ascii_name = agent.name.encode("ascii", "ignore").decode().replace('"', "").strip() or "agent"
    return Response(
        text,
        media_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{ascii_name}.af"'},
    )


@router.post(
    "/agents/import",
    summary="Import an agent",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "object"}},
                MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def import_file(
    request: Request,
    agent_service: Agents,
    name: Annotated[
        str | None, Query(max_length=100, description="The name of the agent; by default that of the file.")
    ] = None,
    tools: Annotated[
        bool | None,
        Query(
            description="What to do with tools other than those for memory and conversation, which can fetch URLs or "
            "run programs on Letta's machine: true imports them, false skips them; by default the file is refused."
        ),
    ] = None,
) -> ImportResult:
    """Import an `.af` file, or the ZIP file of an export, sent as the body, bound to an available model.

    By default only memory and conversation tools are imported. `left_out` names everything that is not imported.
    """
    imported = await import_exported(agent_service, await _body(request), name=name, with_tools=tools)
    await agent_service.memory.observe(imported.id)
    return ImportResult.model_validate(imported, from_attributes=True)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FILE:
            raise too_large()
    return bytes(body)


async def _problems(agent_service: AgentService, agents: list[AgentRecord]) -> dict[str, str]:
    return await problems_of(agent_service.registry, agent_service.models, agents)


def _agent(agent: AgentRecord, problem: str | None) -> Agent:
    llm, definition = agent.llm, agent.definition
    search_method = SearchMethod.from_metadata(agent.own_metadata.embedding)
    return Agent.model_validate(
        {
            "id": agent.id,
            "name": agent.name,
            "description": agent.description,
            "ours": agent.managed,
            "definition": definition.id if definition else None,
            "reflects_on": definition.reflects_on if definition else None,
            "model": {
                "handle": agent.handle,
                "provider": llm.provider if llm else None,
                "model": llm.model if llm else None,
                "window": llm.window if llm else 0,
            },
            "handles": list(agent.handles),
            "blocks": sorted(agent.blocks),
            "tools": sorted(agent.tools),
            "archive": search_method.source.value if search_method else "text",
            "problem": problem,
        }
    )
