"""Clients that give up before the answer has begun, and repeat what they asked: the agent hears it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.server import idempotency
from tests.support.backend_server import TOKEN, Backend, backend, events_of
from tests.support.fault_proxy import Proxy

GROQ = "byok-groq/openai/gpt-oss-120b"
#: After so long a client gives up. Nothing depends on it: the vendor answers when the test lets it.
PATIENCE = 2.0
CHAT = "POST .*/chat/completions"
COUNT = "x-stainless-retry-count"


class Held(PracticeVendors):
    """Practice vendors of which one is behind a proxy, which lets its answers wait."""

    proxy: Proxy

    def base_url(self, vendor: str) -> str:
        """The base URL of a vendor."""
        real = super().base_url(vendor)
        return f"{self.proxy.url}{urlsplit(real).path}" if vendor == "groq" else real


@pytest.fixture(scope="module")
def vendors() -> Iterator[Held]:
    """The practice vendors."""
    with Held() as running, Proxy(PracticeVendors.base_url(running, "groq")) as running.proxy:
        yield running


@pytest.fixture(scope="module")
def served(letta_server: Letta, vendors: Held, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend that waits for its vendors longer than any client."""
    home: Path = tmp_path_factory.mktemp("home")
    with backend(letta_server, home, vendors, first_token_timeout=120.0, silence_timeout=120.0) as running:
        yield running


@pytest.fixture
def vendor(vendors: Held) -> Iterator[Proxy]:
    """The vendor, which does not answer until it is released."""
    vendors.proxy.hold(CHAT)
    yield vendors.proxy
    vendors.proxy.clear()


def official(served: Backend, retries: int, before: Callable[[str], None] = lambda count: None) -> openai.OpenAI:
    """The official client, as it comes but for its patience; `before` is told the count of each request."""

    def hook(request: httpx2.Request) -> None:
        before(request.headers[COUNT])

    return openai.OpenAI(
        base_url=f"{served.url}/v1",
        api_key=TOKEN,
        timeout=PATIENCE,
        max_retries=retries,
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [hook]}),
    )


def asked(client: openai.OpenAI, agent: str, message: str, *, stream: bool) -> str:
    """What the agent answers."""
    given: Any = {"model": agent, "messages": [{"role": "user", "content": message}]}
    if not stream:
        return client.chat.completions.create(**given).choices[0].message.content or ""
    pieces = client.chat.completions.create(**given, stream=True)
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def runs(served: Backend, agent: str) -> list[str]:
    """How Letta's runs of an agent stand."""
    rows = served.letta.get("/v1/runs/", params={"agent_id": served.id_of(agent), "limit": 50}).json()
    return sorted(row["status"] for row in rows)


def when_joined(served: Backend, patch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """Do something as soon as a retry hears a turn."""
    found: idempotency.RequestRegistry = served.runtime.requests
    join = found.join

    async def joined(request: idempotency.TurnRequest, *turn: Any) -> idempotency.SharedTurn:
        hearing = await join(request, *turn)
        if request.retry:
            then()
        return hearing

    patch.setattr(found, "join", joined)


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_joins_the_turn(
    served: Backend, vendor: Proxy, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The vendor answers when the client has come back: the answer is the client's, and the message is said once."""
    agent = served.agent(f"joined-{stream}", GROQ)
    when_joined(served, monkeypatch, vendor.release)
    with official(served, retries=4) as client:
        assert asked(client, agent, "Say good morning", stream=stream) == "good morning"
    assert served.said_to(agent) == ["Say good morning"]
    assert runs(served, agent) == ["completed"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_after_the_answer(served: Backend, vendor: Proxy, stream: bool) -> None:
    """The vendor answers while the client is away: its retry gets that answer, and the message is said once."""
    agent = served.agent(f"late-{stream}", GROQ)

    def before(count: str) -> None:
        if count == "1":
            vendor.release()
            for shared in [*served.runtime.requests._turns]:
                served.call(shared.finished.wait)

    with official(served, retries=4, before=before) as client:
        assert asked(client, agent, "Say good morning", stream=stream) == "good morning"
        assert asked(client, agent, "Say good night", stream=stream) == "good night"
    assert served.said_to(agent) == ["Say good morning", "Say good night"]
    assert runs(served, agent) == ["completed", "completed"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_while_the_turn_is_stopped(
    served: Backend, vendor: Proxy, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """A turn that was stopped before the retry has left nothing: the retry says the message, once."""
    agent = served.agent(f"stopped-{stream}", GROQ)
    monkeypatch.setattr(idempotency, "SECONDS_FOR_REPEAT", 0.0)

    def then() -> None:
        # Only the first turn is stopped, however slow this machine is.
        monkeypatch.setattr(idempotency, "SECONDS_FOR_REPEAT", 600.0)
        vendor.release()

    when_joined(served, monkeypatch, then)
    with official(served, retries=4) as client:
        assert asked(client, agent, "Say good morning", stream=stream) == "good morning"
    assert served.say(agent, "Say something else").end["reason"] == "completed"
    assert served.said_to(agent) == ["Say good morning", "Say something else"]
    assert runs(served, agent) == ["cancelled", "completed", "completed"]


def say_something_else(served: Backend, agent: str, vendor: Proxy) -> None:
    """Say it. It waits for the turn before it, which only a stop can end; only then the vendor answers, to both."""
    with served.client.stream("POST", f"/api/agents/{agent}/turns", json={"message": "Say something else"}) as said:
        happened = events_of(said.iter_lines())
        while next(happened).kind != "vendor":
            pass
        vendor.release()
        assert [*happened][-1].data["reason"] == "completed"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_a_client_that_gives_up(
    served: Backend, vendor: Proxy, monkeypatch: pytest.MonkeyPatch, stream: bool, counted: bool
) -> None:
    """The turn of a client that does not come back ends at Letta, and nothing of it is stored, not even later."""
    agent = served.agent(f"given-up-{stream}-{counted}", GROQ)
    if counted:
        monkeypatch.setattr(idempotency, "SECONDS_FOR_REPEAT", 0.0)
        with official(served, retries=0) as client, pytest.raises(openai.APITimeoutError):
            asked(client, agent, "Say good morning", stream=stream)
    else:
        body = {"model": agent, "messages": [{"role": "user", "content": "Say good morning"}], "stream": stream}
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{served.url}/v1/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {TOKEN}"},
                timeout=PATIENCE,
            )
    say_something_else(served, agent, vendor)
    assert served.said_to(agent) == ["Say something else"]
    assert runs(served, agent) == ["cancelled", "completed"]


def test_a_client_of_the_turns_themselves_that_gives_up(served: Backend, vendor: Proxy) -> None:
    """A client that closes its stream before the first token ends its turn; nothing of it is stored."""
    agent = served.agent("turns-given-up", GROQ)
    with served.client.stream("POST", f"/api/agents/{agent}/turns", json={"message": "Say good morning"}) as gone:
        happened = events_of(gone.iter_lines())
        while next(happened).kind != "vendor":
            pass
    say_something_else(served, agent, vendor)
    assert served.said_to(agent) == ["Say something else"]
    assert runs(served, agent) == ["cancelled", "completed"]
