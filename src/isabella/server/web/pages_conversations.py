"""The conversations of an agent beside the chat: list, search, begin, rename and archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.agents.conversations import ConversationRecord
from isabella.agents.registry import AgentRecord
from isabella.letta.conversations import DEFAULT
from isabella.server import ROOT
from isabella.server.runtime import Runtime
from isabella.server.web.conversations import ChatAddress, address_of
from isabella.server.web.rendering import Page, Renderer

_LONGEST_QUERY = 1000


@dataclass(frozen=True)
class ListedConversations:
    """The conversations of an agent, as the chat page lists them."""

    several: bool  #: whether the agent can have more than the default one
    current: ConversationRecord  #: the one that the page shows
    all: Sequence[ConversationRecord]

    @property
    def kept(self) -> list[ConversationRecord]:
        """Those that are not archived."""
        return [each for each in self.all if not each.archived]

    @property
    def archived(self) -> list[ConversationRecord]:
        """Those that are archived."""
        return [each for each in self.all if each.archived]


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes."""
    page = _Page(runtime, renderer)
    below = "/chat/{address}/conversations"
    return [
        Route(below, page.search),
        Route(f"{below}/new", page.new, methods=["POST"]),
        Route(f"{below}/rename", page.rename, methods=["POST"]),
        Route(f"{below}/archive", page.archive, methods=["POST"]),
    ]


async def list_conversations(runtime: Runtime, agent: AgentRecord, address: ChatAddress) -> ListedConversations:
    """Return the conversations of an agent; raise `ConversationUnknown` if the address is that of none."""
    service, id = runtime.agents.conversations, address.conversation or DEFAULT
    known = await service.all(agent.id, agent.agent_type)
    current = next((each for each in known if each.id == id), None)
    if current is None or current.id != DEFAULT:
        # It raises if turns cannot run there.
        current = await service.get(agent.id, agent.agent_type, id)
    return ListedConversations(len(known) > 1 or await service.offered(agent.agent_type), current, known)


class _Page(Page):
    parts_template = "conversations_parts.html"

    async def search(self, request: Request) -> Response:
        """Return the list; with words, the conversations whose name or messages have all of them."""
        address = address_of(request)
        agent = await self._runtime.agents.registry.get(address.agent_id)
        query = request.query_params.get("q", "")[:_LONGEST_QUERY].strip()
        if not query:
            listed = await list_conversations(self._runtime, agent, address)
            return self._fragment("refreshed", agent=agent, conversations=listed, address=str(address))
        found = await self._runtime.agents.conversations.search(agent.id, agent.agent_type, query)
        return self._fragment("found_list", agent=agent, found=found, query=query)

    async def new(self, request: Request) -> Response:
        await self._form(request)
        agent = await self._runtime.agents.registry.get(address_of(request).agent_id)
        made = await self._runtime.agents.conversations.new(agent.id, agent.agent_type)
        return _go_to(ChatAddress(agent.id, made.id))

    async def rename(self, request: Request) -> Response:
        fields, address = await self._form(request), address_of(request)
        agent = await self._runtime.agents.registry.get(address.agent_id)
        service, id = self._runtime.agents.conversations, address.conversation or DEFAULT
        await service.rename(agent.id, agent.agent_type, id, fields.get("name", ""))
        return await self._changed(agent, address)

    async def archive(self, request: Request) -> Response:
        fields, address = await self._form(request), address_of(request)
        agent = await self._runtime.agents.registry.get(address.agent_id)
        service, id = self._runtime.agents.conversations, address.conversation or DEFAULT
        await service.archive(agent.id, agent.agent_type, id, archived=fields.get("archived") == "true")
        return await self._changed(agent, address)

    async def _changed(self, agent: AgentRecord, address: ChatAddress) -> Response:
        """Return the heading of the changed conversation, and the list beside it."""
        listed = await list_conversations(self._runtime, agent, address)
        return self._fragment("changed", agent=agent, conversations=listed, address=str(address))


def _go_to(address: ChatAddress) -> Response:
    return Response(status_code=204, headers={"HX-Redirect": f"{ROOT}/chat/{address}"})
