"""Conversations of an agent: their names, their order, the archive, and prompts that follow the memory."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx2 as httpx
import pytest

from isabella.agents.conversations import AgentConversations, SystemPrompts, first_words, name_if_unnamed
from isabella.errors import ConversationRefused, ConversationUnknown
from isabella.letta.client import LettaClient
from isabella.letta.http import LettaHttp

AGENT, TYPE = "agent-1", "letta_v1_agent"


class Letta:
    """One agent with conversations. `overwrite` undoes so many of the next writes of its metadata."""

    def __init__(self, release: str = "0.16.8") -> None:
        self.release = release
        self.metadata: dict[str, Any] = {"theirs": 1}
        self.blocks = [{"id": "block-1", "label": "human", "value": ""}]
        self.rows: list[dict[str, Any]] = []
        self.first: dict[str, str] = {}
        self.compiled: list[str] = []
        self.asked: list[str] = []
        self.overwrite = 0

    def add(self, id: str, **fields: Any) -> None:
        """Add a conversation."""
        self.rows.append({"id": id, "agent_id": AGENT, "created_at": "2026-01-01T00:00:00Z", **fields})

    def client(self) -> LettaClient:
        """A client of it."""
        return LettaClient(LettaHttp("http://letta.test", transport=httpx.MockTransport(self._handle)))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        path, query = request.url.path, dict(request.url.params)
        body = json.loads(request.content) if request.content else {}
        self.asked.append(f"{request.method} {path}")
        status, answer = self._answer(request.method, path, query, body)
        return httpx.Response(status, json=answer)

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        match method, path.strip("/").split("/")[1:]:
            case "GET", ["health"]:
                return 200, {"status": "ok", "version": self.release}
            case "GET", ["agents", _]:
                return 200, {"id": AGENT, "metadata": self.metadata, "agent_type": TYPE}
            case "PATCH", ["agents", _]:
                if self.overwrite:
                    self.overwrite -= 1
                else:
                    self.metadata = body["metadata"]
                return 200, {}
            case "GET", ["agents", _, "core-memory", "blocks"]:
                return 200, self.blocks
            case "GET", ["agents", _, "messages"]:
                text = self.first.get(query["conversation_id"])
                row = {"id": "message-1", "message_type": "user_message", "content": text}
                return 200, [row] if text else []
            case "GET", ["conversations"]:
                return 200, self.rows
            case "POST", ["conversations"]:
                self.add(f"conv-{len(self.rows)}", **body)
                return 200, self.rows[-1]
            case method, ["conversations", id, *below]:
                row = next((row for row in self.rows if row["id"] == id), {})
                if not row:
                    return 404, {"detail": "not found"}
                if below == ["recompile"]:
                    self.compiled.append(id)
                row |= body if method == "PATCH" else {}
                return 200, row
        raise AssertionError(path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What is my dog called?", "What is my dog called?"),
        ("  Two\n\nlines ", "Two lines"),
        ("word " * 20, "word word word word word word word word word word word word …"),
        ("x" * 80, f"{'x' * 60} …"),
    ],
)
def test_first_words(text: str, name: str) -> None:
    """A message becomes a name: one line, cut between words."""
    assert first_words(text) == name


def test_names_and_order() -> None:
    """The default one first, then the latest; without a name, the first words of the first message, read once."""
    letta = Letta()
    letta.add("conv-a", summary="About pets", last_message_at="2026-02-01T00:00:00Z")
    letta.add("conv-b", last_message_at="2026-02-02T00:00:00Z")
    letta.add("conv-c", created_at="2026-02-03T00:00:00Z")
    letta.first["conv-b"] = "Good morning to all of you"
    letta.metadata["isabella"] = {"archived": ["conv-a"]}

    async def run() -> None:
        conversations = AgentConversations(letta.client())
        for _ in range(2):
            known = await conversations.all(AGENT, TYPE)
            assert [(each.id, each.name, each.archived) for each in known] == [
                ("default", "Default conversation", False),
                ("conv-c", "New conversation", False),
                ("conv-b", "Good morning to all of you", False),
                ("conv-a", "About pets", True),
            ]
        assert letta.asked.count(f"GET /v1/agents/{AGENT}/messages") == 1

    anyio.run(run)


@pytest.mark.parametrize(("release", "agent_type"), [("0.16.6", TYPE), ("0.16.8", "memgpt_v2_agent")])
def test_one_conversation_only(release: str, agent_type: str) -> None:
    """An older release, and an agent of an older type, have the default one."""
    letta = Letta(release)

    async def run() -> None:
        conversations = AgentConversations(letta.client())
        assert [each.id for each in await conversations.all(AGENT, agent_type)] == ["default"]
        with pytest.raises(ConversationRefused):
            await conversations.new(AGENT, agent_type)

    anyio.run(run)
    assert "POST /v1/conversations/" not in letta.asked


@pytest.mark.parametrize(("overwrite", "marked"), [(0, True), (2, True), (4, False)])
def test_the_archive_is_read_back(overwrite: int, marked: bool) -> None:
    """A mark that another writer of the metadata has overwritten is written again; the rest of it stays."""
    letta = Letta()
    letta.add("conv-a", summary="About pets")
    letta.overwrite = overwrite

    async def run() -> None:
        conversations = AgentConversations(letta.client())
        if not marked:
            with pytest.raises(ConversationRefused):
                await conversations.archive(AGENT, TYPE, "conv-a", archived=True)
            return
        assert (await conversations.archive(AGENT, TYPE, "conv-a", archived=True)).archived
        assert letta.metadata == {"theirs": 1, "isabella": {"archived": ["conv-a"]}}
        assert not (await conversations.archive(AGENT, TYPE, "conv-a", archived=False)).archived
        assert letta.metadata == {"theirs": 1, "isabella": {}}

    anyio.run(run)


def test_what_is_refused() -> None:
    """The default conversation, names of nothing, conversations of others, or with a model of their own."""
    letta = Letta()
    letta.add("conv-a", summary="About pets", model="groq/other")
    letta.add("conv-b", agent_id="agent-2")

    async def run() -> None:
        conversations = AgentConversations(letta.client())
        with pytest.raises(ConversationRefused):
            await conversations.rename(AGENT, TYPE, "default", "Other")
        with pytest.raises(ConversationRefused, match="between 1 and 200"):
            await conversations.rename(AGENT, TYPE, "conv-b", " \n ")
        with pytest.raises(ConversationRefused, match="groq/other"):
            await conversations.rename(AGENT, TYPE, "conv-a", "Other")
        for id in ("conv-b", "conv-z"):
            with pytest.raises(ConversationUnknown):
                await conversations.archive(AGENT, TYPE, id, archived=True)

    anyio.run(run)
    assert not [asked for asked in letta.asked if asked.startswith("PATCH")]


def test_a_name_that_was_given_meanwhile_stays() -> None:
    """The first message names a conversation only if nobody else has."""
    letta = Letta()
    letta.add("conv-a")
    letta.add("conv-b", summary="About pets")

    async def run() -> None:
        for id in ("conv-a", "conv-b"):
            await name_if_unnamed(letta.client(), id, "Good morning")

    anyio.run(run)
    assert [row["summary"] for row in letta.rows] == ["Good morning", "About pets"]


def test_a_prompt_is_compiled_when_the_memory_has_changed() -> None:
    """Once for each conversation, and again only after a change, so that vendors keep their cache."""
    letta = Letta()
    letta.add("conv-a")
    letta.add("conv-b")

    async def run() -> None:
        prompts, client = SystemPrompts(), letta.client()
        for id in ("conv-a", "conv-a", "conv-b"):
            await prompts.refresh(client, AGENT, id)
        assert letta.compiled == ["conv-a", "conv-b"]
        letta.blocks = [{"id": "block-1", "label": "human", "value": "Has a dog called Rex."}]
        for id in ("conv-a", "conv-a"):
            await prompts.refresh(client, AGENT, id)
        assert letta.compiled == ["conv-a", "conv-b", "conv-a"]
        with pytest.raises(ConversationUnknown):
            await prompts.refresh(client, AGENT, "conv-z")

    anyio.run(run)
