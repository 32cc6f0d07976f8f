"""Conversations without pause: an agent on each vendor has one turn after another while keys are rotated."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx

from bench.backend import TOKEN
from isabella.practice import NAMES

#: A model of each vendor.
HANDLES = {
    "cerebras": "cerebras/gpt-oss-120b",
    "groq": "byok-groq/openai/gpt-oss-120b",
    "mistral": "byok-mistral/mistral-medium-latest",
    "longcat": "longcat/LongCat-2.0",
}
#: An environment of Letta with an OpenAI key of its own: an invalid key, and a base URL at which nothing listens.
#: Letta sends the key to a vendor whose provider is missing (facts P7 and P8).
ENVIRONMENT_WITH_KEY = {
    "OPENAI_API_KEY": "sk-fake-base-key-of-the-bench",
    "OPENAI_API_BASE": "http://127.0.0.1:9/v1",
}
_MESSAGE = "Say good morning"

#: Runs a turn of the agent on a vendor; returns the failure or None, and whether another vendor answered.
Say = Callable[[str], Awaitable[tuple[str | None, bool]]]


@dataclass
class Outcome:
    """The outcome of the turns during some rotations.

    Attributes:
        turns: the number of turns.
        failed: the reason of each failed turn.
        elsewhere: the number of turns that another vendor answered.
        seconds: the duration of the rotations.
    """

    turns: int = 0
    failed: list[str] = field(default_factory=list)
    elsewhere: int = 0
    seconds: float = 0.0

    @property
    def told(self) -> str:
        """A summary as text."""
        elsewhere = f", {self.elsewhere} answered elsewhere" if self.elsewhere else ""
        first = f" ({self.failed[0]})" if self.failed else ""
        return f"{len(self.failed)} of {self.turns} turns{elsewhere}, {self.seconds:.0f} s{first}"


def defined(id: str, handles: Sequence[str]) -> str:
    """Return the definition of an agent, as a part of `agents.toml`."""
    entries = {"id": id, "name": id, "persona": "Talk.", "handles": handles}
    return "\n".join(["[[agents]]", *(f"{key} = {json.dumps(value)}" for key, value in entries.items()), ""])


def first_on(vendor: str) -> list[str]:
    """Return all handles, that of this vendor first."""
    return [HANDLES[vendor], *(handle for name, handle in HANDLES.items() if name != vendor)]


def write_agents(folder: Path, *further: str) -> dict[str, str]:
    """Define an agent on each vendor, and further ones; return the variables of a backend that has them."""
    file = folder / "agents.toml"
    file.write_text("\n".join([*(defined(name, first_on(name)) for name in NAMES), *further]))
    return {"ISABELLA_AGENTS_FILE": str(file), "ISABELLA_EMBEDDINGS": "off"}


async def agent_id(letta: httpx.AsyncClient, name: str) -> str:
    """Return the id of an agent at Letta."""
    (agent,) = (await letta.get("/v1/agents/", params={"name": name})).raise_for_status().json()
    return str(agent["id"])


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a backend."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, trust_env=False) as client:
        yield client


async def history(letta: httpx.AsyncClient, name: str) -> list[dict[str, Any]]:
    """Return the whole history of an agent at Letta, oldest first."""
    agent = await agent_id(letta, name)
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        query = {"limit": "200", "order": "asc", **({} if after is None else {"after": after})}
        rows = (await letta.get(f"/v1/agents/{agent}/messages", params=query)).raise_for_status().json()
        if not rows or rows[-1]["id"] == after:
            return found
        after = rows[-1]["id"]
        found += rows


def texts_of_user(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of the user's messages in a history."""
    return [str(row.get("content")) for row in rows if row["message_type"] == "user_message"]


def how_it_ended(end: Mapping[str, Any] | None, word: str, text: str, error: str) -> str:
    """Return in a word or two how a turn ended; empty if in neither an answer nor an event that says why.

    Args:
        end: its last event.
        word: the word that the user has sent, which the whole answer repeats.
        text: its answer.
        error: its error, as code and message.
    """
    if end is None:
        return ""
    if end["reason"] == "completed":
        return "completed" if word in text else ""
    known = "" if "stored" in end else ", not known whether stored"
    return f"{end['reason']}{known} ({error})" if error else ""


async def events(backend: httpx.AsyncClient, agent: str) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Run a turn through Isabella; yield its events as they come. A refused request is an event `refused`."""
    kind = ""
    async with backend.stream("POST", f"/api/agents/{agent}/turns", json={"message": _MESSAGE}) as response:
        if response.is_error:
            yield "refused", {"status": response.status_code}
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                yield kind, json.loads(line[6:])


async def through(backend: httpx.AsyncClient, agent: str, *, refuses: bool = False) -> tuple[str | None, bool]:
    """Run a turn through Isabella; return the failure or None, and whether another vendor was asked.

    A failover is a failure, too, unless a vendor `refuses` its key.
    """
    happened = [event async for event in events(backend, agent)]
    refusals = [
        f"{said['handle']} {said['code']} ({said['message']})" for kind, said in happened if kind == "failover"
    ]
    ends = [said["reason"] for kind, said in happened if kind == "end"]
    if ends != ["completed"]:
        told = [f"{said.get('code', said.get('status'))}" for kind, said in happened if kind in ("error", "refused")]
        return ", ".join([*refusals, *told, *ends]) or "no end", bool(refusals)
    return ", ".join(refusals) if refusals and not refuses else None, bool(refusals)


async def directly(letta: httpx.AsyncClient, agent_id: str) -> str | None:
    """Run a turn on Letta directly; return the failure or None."""
    body = {"messages": [{"role": "user", "content": _MESSAGE}], "stream_tokens": True}
    answered = False
    async with letta.stream("POST", f"/v1/agents/{agent_id}/messages/stream", json=body) as response:
        async for line in response.aiter_lines():
            if '"error_message"' in line:
                return str(json.loads(line.removeprefix("data: "))["error_type"])
            answered = answered or '"assistant_message"' in line
    return None if answered else f"status {response.status_code}, and no answer"


async def first_token(letta: httpx.AsyncClient, agent_id: str) -> float:
    """Run a turn on Letta directly; return the seconds to the first token. Raises `RuntimeError` if none came."""
    body = {"messages": [{"role": "user", "content": _MESSAGE}], "stream_tokens": True}
    began, first = time.perf_counter(), 0.0
    async with letta.stream("POST", f"/v1/agents/{agent_id}/messages/stream", json=body) as response:
        async for line in response.aiter_lines():
            if not first and ('"reasoning_message"' in line or '"assistant_message"' in line):
                first = time.perf_counter() - began
            if '"error_message"' in line:
                raise RuntimeError(line[:200])
    if not first:
        raise RuntimeError(f"status {response.status_code}, and no answer")
    return first


async def run_turns(say: Say, rotate: Callable[[int], Awaitable[None]], rotations: int) -> Outcome:
    """Rotate keys one after another while an agent on each vendor has turns without pause.

    The first rotation waits until each agent has completed a turn; each has another turn after the last rotation.

    Args:
        say: runs one turn.
        rotate: performs one rotation.
        rotations: the number of rotations.
    """
    outcome = Outcome()
    rotated = anyio.Event()
    ended = {vendor: anyio.Event() for vendor in NAMES}

    async def turn(vendor: str) -> None:
        try:
            failed, elsewhere = await say(vendor)
        except httpx.TransportError as error:
            failed, elsewhere = f"{type(error).__name__}: {error}", False
        outcome.turns += 1
        outcome.elsewhere += elsewhere
        if failed is not None:
            outcome.failed.append(f"{vendor}: {failed}")
        ended[vendor].set()
        ended[vendor] = anyio.Event()

    async def conversation(vendor: str) -> None:
        while not rotated.is_set():
            await turn(vendor)
        await turn(vendor)

    async with anyio.create_task_group() as tasks:
        for vendor in NAMES:
            tasks.start_soon(conversation, vendor)
        for end in [*ended.values()]:
            await end.wait()
        began = time.monotonic()
        for number in range(rotations):
            await rotate(number)
        outcome.seconds = time.monotonic() - began
        rotated.set()
    return outcome
