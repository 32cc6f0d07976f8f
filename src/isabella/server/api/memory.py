"""Routes of memory: blocks, passages of archival memory, message history, and search."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from isabella.agents.block_history import Author
from isabella.agents.conversations import usable
from isabella.agents.history import HistoryEntry
from isabella.agents.registry import AgentRecord
from isabella.agents.service import AgentService
from isabella.errors import MemoryChanged
from isabella.letta.conversations import DEFAULT
from isabella.server.api.agents import RequestedAgent
from isabella.server.api.turns import CONVERSATION, CONVERSATION_PATTERN
from isabella.server.errors import ERRORS, ErrorBody, Problem, answer, answer_to
from isabella.server.runtime import Agents
from isabella.turns.service import MESSAGE_PATTERN

router = APIRouter(prefix="/api/agents/{name}", tags=["memory"], responses=ERRORS)

#: The maximum length of a block, well above every limit in Letta.
_LONGEST = 1_000_000
#: The maximum length of a passage: Letta counts four bytes as a token, and accepts 8192 tokens.
_LONGEST_PASSAGE = 32_768
_PASSAGE_ID = r"^passage-[0-9a-f-]{36}$"
Label = Annotated[str, Path(description="The label of a memory block.", max_length=100)]
MessageId = Annotated[str | None, Query(pattern=r"^message-[0-9a-f-]{36}$")]
ConversationId = Annotated[str | None, Query(pattern=CONVERSATION_PATTERN, description=CONVERSATION)]
PassageId = Annotated[str, Path(pattern=_PASSAGE_ID)]


class Block(BaseModel):
    """A memory block."""

    model_config = ConfigDict(from_attributes=True)

    label: str
    value: str
    version: str = Field(description="Changes with the text; the same as the ETag.")
    limit: int = Field(description="The maximum length in characters.")
    description: str
    read_only: bool = Field(description="Whether the agent itself is not allowed to change it.")


class Blocks(BaseModel):
    """The memory blocks of an agent."""

    blocks: list[Block]


class BlockVersionItem(BaseModel):
    """A text that a block had."""

    model_config = ConfigDict(from_attributes=True)

    number: int = Field(description="Counted from 1 for each block; the first ones may have been dropped.")
    at: str = Field(description="When it was noted; ISO 8601.")
    author: Author = Field(
        description="`first`: it was there when the record began. `unknown`: written past Isabella, or while it did "
        "not run."
    )
    agent: str = Field(description="The name of the agent that wrote it.")
    message: str = Field(description="The id of the user's message in whose turn it was written, if known.")
    restored: int | None = Field(description="The number of the version that it restores.")
    version: str = Field(description="As the `version` of a block with this text.")
    value: str


class BlockVersions(BaseModel):
    """The history of a block, newest first."""

    versions: list[BlockVersionItem]
    complete: bool = Field(description="Whether every version since the record began is kept.")
    days: int = Field(description="How long versions are kept; 0 if none are recorded.")
    before: int | None = Field(description="The `before` of the next older page; null on the last page.")


class Restoration(BaseModel):
    """A version of a block to restore."""

    number: int = Field(ge=1, le=2**31 - 1)
    version: str = Field(max_length=100, description="The present version of the block; `*` overwrites any version.")


class BlockEdit(BaseModel):
    """A new text for a memory block."""

    # Described as required, because the alternative, If-Match, is not in the description.
    model_config = ConfigDict(json_schema_extra={"required": ["value", "version"]})

    value: str = Field(max_length=_LONGEST)
    version: str | SkipJsonSchema[None] = Field(
        default=None, max_length=100, description="The version that was edited; `*` overwrites any version."
    )


class Passage(BaseModel):
    """A passage of archival memory."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    text: str
    tags: list[str]
    created_at: str | None
    near: bool = Field(default=True, description="False in results of a search that are far from the query.")


class Passages(BaseModel):
    """A page of passages, oldest first."""

    passages: list[Passage]
    after: str | None = Field(description="The `after` of the next page; null on the last page.")


class NewPassage(BaseModel):
    """A passage to add."""

    text: str = Field(max_length=_LONGEST_PASSAGE, pattern=MESSAGE_PATTERN)
    tags: list[Annotated[str, Field(max_length=200, pattern=MESSAGE_PATTERN)]] = Field(
        default_factory=list, max_length=50
    )


class HistoryItem(BaseModel):
    """A message, or a part of one, in the history."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="The message's id in Letta; all parts of a message have the same id.")
    at: str = Field(description="ISO 8601.")
    kind: Literal["user", "assistant", "reasoning", "tool_call", "tool_return", "summary", "event"]
    text: str
    tool: str | None = None
    failed: bool = False


class Messages(BaseModel):
    """A page of the history, newest last."""

    messages: list[HistoryItem]
    before: str | None = Field(description="The `before` of the next older page; null at the beginning.")


class SearchResults(BaseModel):
    """The results of a search in memory."""

    passages: list[Passage] = Field(description="From archival memory, best first.")
    messages: list[HistoryItem] = Field(description="From the conversation, newest first.")


@router.get("/blocks", summary="List memory blocks")
async def blocks(agent: RequestedAgent, agent_service: Agents) -> Blocks:
    """List an agent's memory blocks, which are always in its context."""
    return Blocks.model_validate({"blocks": await agent_service.memory.blocks(agent.id)})


@router.get("/blocks/{label}", summary="Show a memory block")
async def block(agent: RequestedAgent, label: Label, agent_service: Agents, response: Response) -> Block:
    """Show a block. Its ETag is the version that an edit refers to."""
    found = await agent_service.memory.block(agent.id, label)
    response.headers["ETag"] = f'"{found.version}"'
    return Block.model_validate(found)


@router.put(
    "/blocks/{label}",
    summary="Edit a memory block",
    response_model=Block,
    responses={
        409: {"model": ErrorBody, "description": "The block has changed since `version`."},
        412: {"model": ErrorBody, "description": "The block has changed since `If-Match`."},
        428: {"model": ErrorBody, "description": "The request has neither If-Match nor `version`."},
    },
)
async def edit(
    agent: RequestedAgent,
    label: Label,
    body: BlockEdit,
    agent_service: Agents,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=200, include_in_schema=False)] = None,
) -> Block | JSONResponse:
    """Replace a block's text, unless it has changed since the edited version, given by `version` or its ETag.

    A text above the block's limit is refused with 422 `memory_too_long`.
    """
    version = if_match.strip().removeprefix("W/").strip('"') if if_match is not None else body.version
    if version is None:
        problem = Problem(
            code="version_required",
            message="The request does not say which version was edited.",
            remedy="Send the block's ETag as If-Match, or its version as `version`.",
        )
        return answer(428, problem)
    try:
        written = await agent_service.memory.write(agent.id, label, body.value, seen=version)
    except MemoryChanged as changed:
        return answer_to(changed, status=409 if if_match is None else 412)
    response.headers["ETag"] = f'"{written.version}"'
    return Block.model_validate(written)


@router.get("/blocks/{label}/history", summary="Show the history of a memory block")
async def block_history(
    agent: RequestedAgent,
    label: Label,
    agent_service: Agents,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> BlockVersions:
    """Show which texts a block had, since when, and who wrote each, newest first.

    Letta records no history; this one begins with the first start of a backend that records it.
    """
    _, versions = await agent_service.memory.versions(agent.id, label)
    older = [version for version in versions if before is None or version.number < before]
    page = older[::-1][:limit]
    days = agent_service.settings.block_history_days
    return BlockVersions.model_validate(
        {
            "versions": page,
            "complete": bool(versions) and versions[0].number == 1,
            "days": days,
            "before": page[-1].number if len(older) > len(page) else None,
        }
    )


@router.post("/blocks/{label}/restore", summary="Restore a version of a memory block")
async def restore(agent: RequestedAgent, label: Label, body: Restoration, agent_service: Agents) -> Block:
    """Give a block the text of one of its versions again, unless it has changed since `version`.

    The present text stays in the history.
    """
    restored = await agent_service.memory.restore(agent.id, label, body.number, seen=body.version)
    return Block.model_validate(restored)


@router.get("/passages", summary="List passages")
async def passages(
    agent: RequestedAgent,
    agent_service: Agents,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(pattern=_PASSAGE_ID)] = None,
) -> Passages:
    """List passages of archival memory, oldest first."""
    found = await agent_service.archive.passages(agent.id, limit=limit, after=after)
    return Passages.model_validate({"passages": found, "after": found[-1].id if len(found) >= limit else None})


@router.post("/passages", summary="Add a passage", status_code=201)
async def add(agent: RequestedAgent, body: NewPassage, agent_service: Agents) -> Passage:
    """Add a passage to archival memory."""
    return Passage.model_validate(await agent_service.archive.add(agent.id, body.text, body.tags))


@router.delete("/passages/{passage_id}", summary="Delete a passage", status_code=204)
async def delete(agent: RequestedAgent, passage_id: PassageId, agent_service: Agents) -> None:
    """Delete a passage of this agent."""
    await agent_service.archive.delete(agent.id, passage_id)


@router.get("/messages", summary="List messages, newest last")
async def messages(
    agent: RequestedAgent,
    agent_service: Agents,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: MessageId = None,
    conversation: ConversationId = None,
) -> Messages:
    """List the newest messages of a conversation, or those before a message."""
    within = await _within(agent, agent_service, conversation)
    page = await agent_service.history.page(agent.id, limit=limit, before=before, conversation=within)
    return Messages.model_validate({"messages": page.entries, "before": page.before})


@router.get("/search", summary="Search an agent's memory")
async def search(
    agent: RequestedAgent,
    agent_service: Agents,
    q: Annotated[str, Query(max_length=1000, pattern=MESSAGE_PATTERN, description="The search text.")],
    where: Annotated[Literal["archive", "messages", "all"], Query(alias="in")] = "all",
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
    conversation: ConversationId = None,
) -> SearchResults:
    """Search archival memory, by meaning if the agent has embeddings, and a conversation, by words.

    `GET /api/agents/{name}/conversations?q=…` searches all conversations.
    """
    within = await _within(agent, agent_service, conversation)
    passages = await agent_service.archive.search(agent.id, q, limit=limit) if where != "messages" else []
    messages: list[HistoryEntry] = []
    if where != "archive":
        messages = await agent_service.history.search(agent.id, q, limit=limit, conversation=within)
    return SearchResults.model_validate({"passages": passages, "messages": messages})


async def _within(agent: AgentRecord, agent_service: AgentService, conversation: str | None) -> str | None:
    """Return the id of one of an agent's conversations; None for the default one. Raise `ConversationUnknown`."""
    if conversation is None or conversation == DEFAULT:
        return None
    return (await usable(agent_service.letta, agent.id, agent.agent_type, conversation)).id
