"""Routes of conversations: list, search, begin, rename and archive."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from isabella.agents.conversations import LONGEST_NAME
from isabella.server.api.agents import RequestedAgent
from isabella.server.api.memory import HistoryItem
from isabella.server.api.turns import CONVERSATION_PATTERN
from isabella.server.errors import ERRORS
from isabella.server.runtime import Agents
from isabella.turns.service import MESSAGE_PATTERN

router = APIRouter(prefix="/api/agents/{name}/conversations", tags=["conversations"], responses=ERRORS)

Id = Annotated[str, Path(pattern=CONVERSATION_PATTERN, description="The id of a conversation, or `default`.")]
ConversationName = Annotated[str, Field(max_length=LONGEST_NAME, pattern=MESSAGE_PATTERN)]


class ConversationInfo(BaseModel):
    """A conversation of an agent."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="`default`, or the id in Letta.")
    name: str
    archived: bool
    at: str | None = Field(description="The time of the last message, or else of the creation; ISO 8601.")
    matches: list[HistoryItem] = Field(
        default_factory=list, description="Of a search: the newest messages that have all its words."
    )


class ConversationList(BaseModel):
    """The conversations of an agent: the default one, then the latest first."""

    several: bool = Field(description="Whether Letta and the agent's type allow more than the default one.")
    conversations: list[ConversationInfo]


class NewConversation(BaseModel):
    """A conversation to begin."""

    model_config = ConfigDict(extra="forbid")

    name: ConversationName | None = Field(None, description="Without it, the first message gives the name.")


class ConversationChange(BaseModel):
    """The changes of a conversation."""

    model_config = ConfigDict(extra="forbid")

    name: ConversationName | None = None
    archived: bool | None = None


@router.get("", summary="List or search conversations")
async def conversations(
    agent: RequestedAgent,
    agent_service: Agents,
    q: Annotated[
        str | None, Query(max_length=1000, pattern=MESSAGE_PATTERN, description="Words of names or messages.")
    ] = None,
) -> ConversationList:
    """List an agent's conversations, archived ones included; with `q`, those that have all its words."""
    service = agent_service.conversations
    several = await service.offered(agent.agent_type)
    if q is None:
        found = [ConversationInfo.model_validate(each) for each in await service.all(agent.id, agent.agent_type)]
        return ConversationList(several=several, conversations=found)
    results = await service.search(agent.id, agent.agent_type, q)
    return ConversationList(
        several=several,
        conversations=[
            ConversationInfo.model_validate(each.conversation).model_copy(
                update={"matches": [HistoryItem.model_validate(entry) for entry in each.messages]}
            )
            for each in results
        ],
    )


@router.post("", summary="Begin a conversation", status_code=201)
async def begin(agent: RequestedAgent, body: NewConversation, agent_service: Agents) -> ConversationInfo:
    """Begin a conversation over the agent's memory; 422 `conversation_refused` if it can have only one."""
    made = await agent_service.conversations.new(agent.id, agent.agent_type, body.name or "")
    return ConversationInfo.model_validate(made)


@router.patch("/{id}", summary="Rename or archive a conversation")
async def change(agent: RequestedAgent, id: Id, body: ConversationChange, agent_service: Agents) -> ConversationInfo:
    """Give a conversation another name, archive it, or take it out of the archive. The default one stays as it is."""
    service = agent_service.conversations
    if body.name is not None:
        await service.rename(agent.id, agent.agent_type, id, body.name)
    if body.archived is not None:
        await service.archive(agent.id, agent.agent_type, id, archived=body.archived)
    return ConversationInfo.model_validate(await service.get(agent.id, agent.agent_type, id))
