"""The HTTP routes of agents: who there is, on which model, and agents as files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from isabella.agents.agent_file import LARGEST_FILE
from isabella.agents.definitions import NAME_PATTERN
from isabella.agents.embeddings import SearchMethod
from isabella.agents.import_export import configured_secrets, export_agent, import_agent
from isabella.agents.reconcile import EnsureResult
from isabella.agents.registry import AgentRecord
from isabella.agents.repair import available_bindings, diagnose, find_broken
from isabella.agents.service import AgentService
from isabella.errors import AgentFileRefused
from isabella.server.errors import ERRORS
from isabella.server.runtime import Agents

router = APIRouter(prefix="/api", tags=["agents"], responses=ERRORS)

NewName = Annotated[
    str | None, Query(pattern=NAME_PATTERN, description="What to call it; by default as the file does.")
]
WithTools = Annotated[bool, Query(description="Also take tools that Letta lacks: programs on Letta's machine.")]
Name = Annotated[str, Path(description="An agent's name, the id of its definition, or Letta's id of it.")]


class Model(BaseModel):
    """What an agent speaks through."""

    handle: str = Field(description="`provider/model`.")
    provider: str | None
    model: str | None
    window: int = Field(description="Its context window in tokens.")


class Agent(BaseModel):
    """An agent in Letta."""

    id: str = Field(description="Letta's id of it.")
    name: str
    description: str
    ours: bool = Field(description="Whether Isabella keeps it, or has taken it in.")
    definition: str | None = Field(description="The id of its definition in the agents' file.")
    reflects_on: str | None = Field(description="The id of the agent whose memory it tidies.")
    model: Model
    handles: list[str] = Field(description="The models that its definition prefers, in order.")
    blocks: list[str] = Field(description="The labels of its memory blocks.")
    tools: list[str]
    archive: Literal["mistral", "local", "text"] = Field(description="How its archival memory is searched.")
    problem: str | None = Field(description="Why it cannot work as it is; `isabella agents repair` mends it.")


class Missing(BaseModel):
    """A definition that could not be brought in line at the last start."""

    definition: str
    name: str
    reason: str
    remedy: str | None


class AgentList(BaseModel):
    """The agents in Letta, those that Isabella keeps first."""

    agents: list[Agent]
    missing: list[Missing] = Field(description="Definitions whose agent could not be made or brought in line.")


class Switched(Agent):
    """An agent after it was switched."""

    notes: list[str] = Field(description="What is to be known about it, one sentence each.")


class Handles(BaseModel):
    """The models that would work now."""

    handles: list[str]


class Switch(BaseModel):
    """Which model an agent is to speak through."""

    handle: str = Field(
        max_length=300, pattern=r"^[^\s/\x00]+(/[^\s\x00]+)?$", examples=["byok-mistral/mistral-medium-latest"]
    )


class Imported(BaseModel):
    """An agent that was brought in."""

    id: str
    name: str
    handle: str
    passages: int = Field(description="How many passages of archival memory came with it.")
    notes: list[str] = Field(description="What is to be known about it, one sentence each.")
    left_out: list[str] = Field(description="What the file holds and was not brought in, for people.")


class BrokenAgent(BaseModel):
    """An agent that cannot work as it is."""

    id: str
    name: str
    ours: bool
    fault: str
    why: str
    before: str
    after: str | None = Field(description="What it would be bound to.")
    problem: str | None


class BrokenAgents(BaseModel):
    """Every agent that cannot work as it is."""

    agents: list[BrokenAgent]


@router.get("/agents", summary="The agents in Letta")
async def agents(agent_service: Agents) -> AgentList:
    """List every agent, with what it speaks through and what is wrong with it."""
    registry = sorted(await agent_service.registry.all(), key=lambda one: not one.ours)
    problems = await _problems(agent_service, registry)
    return AgentList(
        agents=[_agent(record, problems.get(record.id)) for record in registry],
        missing=[_missing(ensured) for ensured in agent_service.ensured if ensured.reason is not None],
    )


@router.get("/models", summary="The models that would work now")
async def models(agent_service: Agents) -> Handles:
    """List the handles of every vendor that takes its key, each vendor's usual model first."""
    return Handles(handles=await agent_service.models.handles())


@router.get("/repairs", summary="The agents that cannot work")
async def repairs(agent_service: Agents) -> BrokenAgents:
    """Find agents, Isabella's or not, that cannot work as they are. Nothing is changed."""
    found = await find_broken(agent_service.registry, agent_service.models)
    return BrokenAgents(agents=[BrokenAgent.model_validate(repair.as_json()) for repair in found])


@router.get("/agents/{name}", summary="One agent")
async def agent(name: Name, agent_service: Agents) -> Agent:
    """Show an agent."""
    record = await agent_service.registry.find(name)
    return _agent(record, (await _problems(agent_service, [record])).get(record.id))


@router.post("/agents/{name}/switch", summary="Switch an agent to another model")
async def switch(name: Name, wanted: Switch, agent_service: Agents) -> Switched:
    """Bind an agent to a handle, from its next message on. Memory and history stay.

    `notes` say what the vendor does not take: a limit that its window does not allow, or tool calls of other vendors.

    A handle that would not work now is refused with 409 `model_unknown`; `details.handles` lists those that would.
    """
    record = await agent_service.registry.find(name)
    async with agent_service.memory.hold(record.id):
        bound = await agent_service.registry.switch(record, wanted.handle, agent_service.models)
    switched = _agent(await agent_service.registry.get(record.id), None)
    return Switched(**switched.model_dump(), notes=list(bound.notes))


@router.get(
    "/agents/{name}/export",
    summary="An agent as a file",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}, "description": "An `.af` file, with no key in it."}},
)
async def export(name: Name, agent_service: Agents) -> Response:
    """Export an agent: its prompt, tools, memory blocks, the messages in its context, and its archival memory."""
    record = await agent_service.registry.find(name)
    text = await export_agent(
        agent_service.registry, record, configured_secrets(agent_service.models, agent_service.connection)
    )
    ascii_name = record.name.encode("ascii", "ignore").decode().replace('"', "").strip() or "agent"
    return Response(
        text,
        media_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{ascii_name}.af"'},
    )


@router.post(
    "/agents/import",
    summary="Bring an agent in from a file",
    status_code=201,
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    },
)
async def bring_in(
    request: Request,
    agent_service: Agents,
    name: Annotated[
        str | None, Query(max_length=100, description="What to call it; by default as the file does.")
    ] = None,
    tools: Annotated[
        bool | None,
        Query(
            description="Tools that are not for memory or conversation, and can fetch addresses or run programs on "
            "Letta's machine: true takes them along, false leaves them out, and otherwise they are refused."
        ),
    ] = None,
) -> Imported:
    """Import an `.af` file, the whole of it as the body, bound to a model that works here.

    Only memory and conversation tools come along unasked. What else is not brought in is named in `left_out`.
    """
    brought = await import_agent(
        agent_service.registry,
        agent_service.models,
        await _body(request),
        name=name,
        with_tools=tools,
        vectors=agent_service.vectors,
    )
    return Imported(
        id=brought.id,
        name=brought.name,
        handle=brought.handle,
        passages=brought.passages,
        notes=list(brought.notes),
        left_out=list(brought.left_out),
    )


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FILE:
            raise AgentFileRefused(f"The file is larger than {LARGEST_FILE // 1024 // 1024} MB.")
    return bytes(body)


async def _problems(agent_service: AgentService, registry: list[AgentRecord]) -> dict[str, str]:
    available = await available_bindings(agent_service.registry, agent_service.models, ask=False)
    found = {record.id: diagnose(record.llm, available) for record in registry}
    return {id: finding.why for id, finding in found.items() if finding is not None}


def _agent(record: AgentRecord, problem: str | None) -> Agent:
    llm, definition = record.llm, record.definition
    choice = SearchMethod.of_mark(record.own_metadata.embedding)
    details: dict[str, Any] = {
        "id": record.id,
        "name": record.name,
        "description": record.description,
        "ours": record.ours,
        "definition": definition.id if definition else None,
        "reflects_on": definition.reflects_on if definition else None,
        "model": Model(
            handle=record.handle,
            provider=llm.provider if llm else None,
            model=llm.model if llm else None,
            window=llm.window if llm else 0,
        ),
        "handles": list(definition.handles) if definition else [],
        "blocks": sorted(record.blocks),
        "tools": sorted(record.tools),
        "archive": choice.source.value if choice else "text",
        "problem": problem,
    }
    return Agent(**details)


def _missing(ensured: EnsureResult) -> Missing:
    return Missing(
        definition=ensured.definition, name=ensured.name, reason=ensured.reason or "", remedy=ensured.remedy
    )
