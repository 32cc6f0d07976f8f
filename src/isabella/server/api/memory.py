"""The HTTP routes of memory: blocks, passages, history, and the search in them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from isabella.agents import memory
from isabella.agents.history import HistoryEntry as KeptEntry
from isabella.agents.memory import ArchivalPassage as KeptPassage
from isabella.errors import MemoryChanged
from isabella.server.api.agents import Name
from isabella.server.errors import ERRORS, ErrorBody, Problem, answer, answer_to
from isabella.server.runtime import Agents
from isabella.turns.service import SAYABLE

router = APIRouter(prefix="/api/agents/{name}", tags=["memory"], responses=ERRORS)

#: Characters that a block's text may have at most, well above every limit of Letta's.
_LONGEST = 1_000_000
#: Characters that a passage may have at most: Letta counts four bytes as a token, and takes 8192.
_LONGEST_PASSAGE = 32_768
Label = Annotated[str, Path(description="A memory block's label.", max_length=100)]
MessageId = Annotated[str | None, Query(pattern=r"^message-[0-9a-f-]{36}$")]
PassageId = Annotated[str, Path(pattern=r"^passage-[0-9a-f-]{36}$")]


class Block(BaseModel):
    """A memory block."""

    label: str
    value: str
    version: str = Field(description="Changes whenever the text does; the same as the ETag.")
    limit: int = Field(description="How many characters it may hold.")
    description: str
    read_only: bool = Field(description="Whether the agent itself may not change it.")


class Blocks(BaseModel):
    """The memory blocks of an agent."""

    blocks: list[Block]


class BlockEdit(BaseModel):
    """A new text for a memory block."""

    # Described as required: only who sends If-Match, which is the same thing, may leave it out.
    model_config = ConfigDict(json_schema_extra={"required": ["value", "version"]})

    value: str = Field(max_length=_LONGEST)
    version: str | SkipJsonSchema[None] = Field(
        default=None, max_length=100, description="The version that the editor saw; `*` for whatever there is."
    )


class Passage(BaseModel):
    """A passage of archival memory."""

    id: str
    text: str
    tags: list[str]
    created_at: str | None


class Passages(BaseModel):
    """A page of passages, oldest first; or what a search found, best first."""

    passages: list[Passage]
    after: str | None = Field(description="Ask with this for the next page; null where there is none.")


class NewPassage(BaseModel):
    """A passage to be written."""

    text: str = Field(max_length=_LONGEST_PASSAGE, pattern=SAYABLE)
    tags: list[Annotated[str, Field(max_length=200, pattern=SAYABLE)]] = Field(default_factory=list, max_length=50)


class Entry(BaseModel):
    """One thing that was said or done."""

    id: str = Field(description="Letta's id of the message; several entries of one message have the same.")
    at: str = Field(description="When; ISO 8601.")
    kind: Literal["user", "assistant", "reasoning", "tool_call", "tool_return", "summary", "event"]
    text: str
    tool: str | None = None
    failed: bool = False


class Messages(BaseModel):
    """A stretch of history, newest last."""

    messages: list[Entry]
    before: str | None = Field(description="Ask with this for what came before; null at the beginning.")


class Found(BaseModel):
    """What a search found."""

    passages: list[Passage] = Field(description="In archival memory, best first.")
    messages: list[Entry] = Field(description="In the conversation, newest first.")


@router.get("/blocks", summary="The memory blocks of an agent")
async def blocks(name: Name, agent_service: Agents) -> Blocks:
    """Show what an agent keeps in mind."""
    record = await agent_service.registry.find(name)
    return Blocks(blocks=[_block(block) for block in await agent_service.memory.blocks(record.id)])


@router.get("/blocks/{label}", summary="One memory block")
async def block(name: Name, label: Label, agent_service: Agents, response: Response) -> Block:
    """Show a block. Its ETag is the version to edit it with."""
    record = await agent_service.registry.find(name)
    found = await agent_service.memory.block(record.id, label)
    response.headers["ETag"] = f'"{found.version}"'
    return _block(found)


@router.put(
    "/blocks/{label}",
    summary="Edit a memory block",
    response_model=Block,
    responses={
        409: {"model": ErrorBody, "description": "The block was changed meanwhile; by `version`."},
        412: {"model": ErrorBody, "description": "The block was changed meanwhile; by `If-Match`."},
        428: {"model": ErrorBody, "description": "Neither If-Match nor `version` says which text was edited."},
    },
)
async def edit(
    name: Name,
    label: Label,
    wanted: BlockEdit,
    agent_service: Agents,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=200, include_in_schema=False)] = None,
) -> Block | JSONResponse:
    """Replace a block's text, if it is still the one that the editor saw, by `version` or by its ETag.

    A text above the block's limit is refused with 422 `memory_too_long`.
    """
    seen = if_match.strip().removeprefix("W/").strip('"') if if_match is not None else wanted.version
    if seen is None:
        problem = Problem(
            code="version_required",
            message="The edit does not say which text it was made from.",
            remedy="Send the block's ETag as If-Match, or its version as `version`.",
        )
        return answer(428, problem)
    record = await agent_service.registry.find(name)
    try:
        written = await agent_service.memory.write(record.id, label, wanted.value, seen=seen)
    except MemoryChanged as changed:
        return answer_to(changed, status=409 if if_match is None else 412)
    response.headers["ETag"] = f'"{written.version}"'
    return _block(written)


@router.get("/passages", summary="Archival memory, page by page")
async def passages(
    name: Name,
    agent_service: Agents,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(pattern=r"^passage-[0-9a-f-]{36}$")] = None,
) -> Passages:
    """List passages, oldest first."""
    record = await agent_service.registry.find(name)
    found = await agent_service.archive.passages(record.id, limit=limit, after=after)
    return Passages(
        passages=[_passage(passage) for passage in found], after=found[-1].id if len(found) >= limit else None
    )


@router.post("/passages", summary="Write a passage", status_code=201)
async def add(name: Name, wanted: NewPassage, agent_service: Agents) -> Passage:
    """Write a passage into archival memory."""
    record = await agent_service.registry.find(name)
    return _passage(await agent_service.archive.add(record.id, wanted.text, wanted.tags))


@router.delete("/passages/{passage_id}", summary="Delete a passage", status_code=204)
async def delete(name: Name, passage_id: PassageId, agent_service: Agents) -> None:
    """Delete a passage of this agent."""
    record = await agent_service.registry.find(name)
    await agent_service.archive.delete(record.id, passage_id)


@router.get("/messages", summary="The history, newest last")
async def messages(
    name: Name, agent_service: Agents, limit: Annotated[int, Query(ge=1, le=200)] = 50, before: MessageId = None
) -> Messages:
    """Show what was said and done: the newest messages, or those before one."""
    record = await agent_service.registry.find(name)
    page = await agent_service.history.page(record.id, limit=limit, before=before)
    return Messages(messages=[_entry(entry) for entry in page.entries], before=page.before)


@router.get("/search", summary="Search an agent's memory")
async def search(
    name: Name,
    agent_service: Agents,
    q: Annotated[str, Query(max_length=1000, pattern=SAYABLE, description="What to look for.")],
    where: Annotated[Literal["archive", "messages", "all"], Query(alias="in")] = "all",
    limit: Annotated[int, Query(ge=1, le=50)] = 10,
) -> Found:
    """Search archival memory, by meaning where the agent has vectors, and the conversation, by its words."""
    record = await agent_service.registry.find(name)
    in_archive = await agent_service.archive.search(record.id, q, limit=limit) if where != "messages" else []
    in_messages = await agent_service.history.search(record.id, q, limit=limit) if where != "archive" else []
    return Found(
        passages=[_passage(passage) for passage in in_archive], messages=[_entry(entry) for entry in in_messages]
    )


def _block(block: memory.MemoryBlock) -> Block:
    return Block(
        label=block.label,
        value=block.value,
        version=block.version,
        limit=block.limit,
        description=block.description,
        read_only=block.read_only,
    )


def _passage(passage: KeptPassage) -> Passage:
    return Passage(id=passage.id, text=passage.text, tags=list(passage.tags), created_at=passage.created_at)


def _entry(entry: KeptEntry) -> Entry:
    return Entry.model_validate(
        {
            "id": entry.id,
            "at": entry.at,
            "kind": entry.kind,
            "text": entry.text,
            "tool": entry.tool,
            "failed": entry.failed,
        }
    )
