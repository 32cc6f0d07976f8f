"""Routes of agents: listing, switching models, and agent files."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from isabella.agents.agent_file import LARGEST_FILE
from isabella.agents.embeddings import SearchMethod
from isabella.agents.import_export import configured_secrets, export_agent, import_agent
from isabella.agents.registry import AgentRecord
from isabella.agents.repair import available_bindings, diagnose, find_broken
from isabella.agents.service import AgentService
from isabella.errors import AgentFileRefused
from isabella.server.errors import ERRORS
from isabella.server.runtime import Agents

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


class SwitchRequest(BaseModel):
    """The model to switch an agent to."""

    handle: str = Field(
        max_length=300, pattern=r"^[^\s/\x00]+(/[^\s\x00]+)?$", examples=["byok-mistral/mistral-medium-latest"]
    )


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
    responses={200: {"content": {"application/json": {}}, "description": "An `.af` file, without keys."}},
)
async def export(agent: RequestedAgent, agent_service: Agents) -> Response:
    """Export an agent: prompt, tools, memory blocks, the messages in its context, and archival memory."""
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
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
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
    """Import an `.af` file, sent as the body, bound to an available model.

    By default only memory and conversation tools are imported. `left_out` names everything that is not imported.
    """
    imported = await import_agent(
        agent_service.registry,
        agent_service.models,
        await _body(request),
        name=name,
        with_tools=tools,
        vectors=agent_service.vectors,
    )
    return ImportResult.model_validate(imported, from_attributes=True)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FILE:
            raise AgentFileRefused(f"The file is larger than {LARGEST_FILE // 1024 // 1024} MB.")
    return bytes(body)


async def _problems(agent_service: AgentService, agents: list[AgentRecord]) -> dict[str, str]:
    available = await available_bindings(agent_service.registry, agent_service.models, ask=False)
    diagnoses = {agent.id: diagnose(agent.llm, available) for agent in agents}
    return {id: diagnosis.why for id, diagnosis in diagnoses.items() if diagnosis is not None}


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
            "handles": list(definition.handles) if definition else [],
            "blocks": sorted(agent.blocks),
            "tools": sorted(agent.tools),
            "archive": search_method.source.value if search_method else "text",
            "problem": problem,
        }
    )
