"""Who may use the backend, what a client's mistakes are answered with, and the OpenAI format."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import TOKEN, Backend, backend

GROQ = "byok-groq/openai/gpt-oss-120b"


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with an agent that can be spoken to."""
    home: Path = tmp_path_factory.mktemp("home")
    with PracticeVendors() as vendors, backend(letta_server, home, vendors) as running:
        running.agent("model", GROQ)
        yield running


@pytest.fixture(autouse=True)
def without_faults(served: Backend) -> Iterator[None]:
    """No fault outlives its test."""
    yield
    served.vendors.clear()
    served.call(served.runtime.turns.deps.breaker.forgive, "byok-groq")


@pytest.fixture
def stranger(served: Backend) -> Iterator[httpx.Client]:
    """Somebody without a token."""
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_open_to_everybody(stranger: httpx.Client, path: str) -> None:
    """Whether the backend lives, anybody may ask."""
    assert stranger.get(path).status_code == 200


def test_metrics(served: Backend) -> None:
    """What happens in turns is counted."""
    served.say("model", "Say hello")
    text = served.client.get("/metrics").text
    assert f'isabella_turns_total{{handle="{GROQ}",reason="completed"}}' in text
    assert "isabella_first_token_seconds_bucket" in text


BAD: list[tuple[str, dict[str, object], int]] = [
    ("unknown agent", {"url": "/api/agents/no such agent/turns", "json": {"message": "Hello"}}, 404),
    ("empty message", {"json": {"message": ""}}, 422),
    ("blank message", {"json": {"message": " \n "}}, 422),
    ("huge message", {"json": {"message": "x" * 300_000}}, 422),
    ("no message", {"json": {}}, 422),
    ("no text", {"json": {"message": 5}}, 422),
    ("more than a message", {"json": {"message": "Hello", "role": "system"}}, 422),
    ("NUL", {"json": {"message": "a\0b"}}, 422),
    ("half a character", {"content": b'{"message": "\\ud800"}'}, 422),
    ("invalid UTF-8", {"content": b'{"message": "\xff\xfe"}'}, 400),
    ("no JSON", {"content": b"Hello"}, 422),
    ("an array", {"content": b"[]"}, 422),
    ("very deep", {"content": b"[" * 100_000}, 400),
]


@pytest.mark.parametrize(("case", "request_", "status"), BAD, ids=[case for case, _, _ in BAD])
def test_a_clients_mistake_is_never_a_500(
    served: Backend, case: str, request_: dict[str, object], status: int
) -> None:
    """Each mistake gets its status, a code, and a message that does not repeat what was sent."""
    given = {"url": "/api/agents/model/turns", "headers": {"Content-Type": "application/json"}, **request_}
    answer = served.client.post(**given)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"]
    assert len(answer.text) < 2000


def test_a_body_that_is_too_large_is_not_read(served: Backend) -> None:
    """A request that announces more than is ever read is refused before its body comes."""
    address = httpx.URL(served.url)
    head = f"POST /api/agents/model/turns HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


# --- the OpenAI format ------------------------------------------------------------------------------------------


@pytest.fixture
def official(served: Backend) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=TOKEN, timeout=60) as client:
        yield client


def test_agents_are_models(official: openai.OpenAI) -> None:
    """Each agent is a model of its name."""
    assert {"Isabella", "model"} <= {model.id for model in official.models.list()}
    assert official.models.retrieve("Isabella").owned_by == "isabella"


def test_completion(official: openai.OpenAI) -> None:
    """The agent answers the last message of the user, with its usage and the model that spoke."""
    answer = official.chat.completions.create(
        model="model",
        messages=[
            {"role": "system", "content": "You are somebody else."},
            {"role": "user", "content": "Say nothing"},
            {"role": "assistant", "content": "nothing"},
            {"role": "user", "content": [{"type": "text", "text": "Say good morning"}]},
        ],
        temperature=0.3,
    )
    assert answer.choices[0].message.content == "good morning"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.system_fingerprint == GROQ
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0


def test_completion_as_it_comes(official: openai.OpenAI) -> None:
    """A stream has the answer in pieces, the end, and the usage where that is asked for."""
    pieces = [
        *official.chat.completions.create(
            model="model",
            messages=[{"role": "user", "content": "Count to 5"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    ]
    text = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(text) == "1 2 3 4 5"
    assert len(text) > 3
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "stop"
    assert pieces[-1].usage is not None


def test_the_official_client_understands_refusals(served: Backend, official: openai.OpenAI) -> None:
    """Errors have OpenAI's form and statuses, so that the official client raises its own exceptions."""
    hello = [{"role": "user", "content": "Say hello"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        official.chat.completions.create(model="no such agent", messages=hello)  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.UnprocessableEntityError):
        official.chat.completions.create(model="model", messages=[{"role": "user", "content": ""}])
    with pytest.raises(openai.AuthenticationError):
        official.with_options(api_key="wrong").models.list()
    served.vendors.fault("groq", on="chat", status=401)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            official.with_options(max_retries=0).chat.completions.create(
                model="model",
                messages=hello,  # type: ignore[arg-type]
                stream=stream,
            )
        assert failed.value.code == "key_refused"


def test_a_repeated_request_is_not_said_twice(served: Backend, official: openai.OpenAI) -> None:
    """The official client repeats what was answered with 503; the agent has heard it once."""
    agent = served.agent("repeated", GROQ)
    served.vendors.fault("groq", on="chat", status=401, times=2)
    answer = official.with_options(max_retries=3).chat.completions.create(
        model=agent, messages=[{"role": "user", "content": "Say hello once"}]
    )
    assert answer.choices[0].message.content == "hello once"
    assert served.said_to(agent) == ["Say hello once"]


def test_a_broken_stream_is_an_error(served: Backend, official: openai.OpenAI) -> None:
    """Where the answer breaks off in the middle, the stream says so instead of just ending."""
    agent = served.agent("broken-off", GROQ)
    served.vendors.fault("groq", on="chat", truncated=True, times=1)
    stream = official.chat.completions.create(
        model=agent, messages=[{"role": "user", "content": "Count to 40"}], stream=True
    )
    with pytest.raises(openai.APIError, match="broke off"):
        for _ in stream:
            pass
