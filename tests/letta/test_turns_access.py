"""Who may use the backend, what a client's mistakes are answered with, and the OpenAI format."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import TOKEN, Backend, backend

GROQ, MISTRAL = "byok-groq/openai/gpt-oss-120b", "byok-mistral/mistral-medium-latest"


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
    assert {"Isabella", "model", "model:aside"} <= {model.id for model in official.models.list()}
    assert official.models.retrieve("Isabella").owned_by == "isabella"
    assert official.models.retrieve("model:aside").id == "model:aside"


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
    with pytest.raises(openai.BadRequestError):
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


def hello(role: str = "user", content: object = "Say hello") -> list[Any]:
    """The messages of a request."""
    return [{"role": role, "content": content}]


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": [*hello(), {"role": "assistant", "content": "hel"}]}),
    ("messages", {"messages": [*hello(), {"role": "tool", "tool_call_id": "c1", "content": "5"}]}),
    ("messages", {"messages": [{"role": "system", "content": "Be kind."}]}),
    ("messages", {"messages": hello(content=[{"type": "input_audio", "input_audio": {}}])}),
    ("n", {"messages": hello(), "n": 2}),
    ("tool_choice", {"messages": hello(), "tool_choice": "required"}),
    ("response_format", {"messages": hello(), "response_format": {"type": "yaml"}}),
    ("response_format", {"messages": hello(), "response_format": {"type": "json_schema", "json_schema": {}}}),
    (
        "response_format",
        {
            "messages": hello(),
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "number?"}}},
        },
    ),
]


@pytest.mark.parametrize(("param", "fields"), REFUSED)
def test_what_an_agent_cannot_do_is_refused(
    served: Backend, official: openai.OpenAI, param: str, fields: dict[str, Any]
) -> None:
    """The error says which part of the request it is about, and nothing reaches a vendor."""
    served.vendors.forget()
    with pytest.raises(openai.BadRequestError) as refused:
        official.chat.completions.create(model="model", **fields)
    assert refused.value.param == param
    assert not served.vendors.requests("groq")


FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "dog",
        "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_in_json(served: Backend, official: openai.OpenAI, stream: bool) -> None:
    """The agent is told the schema; the client gets the JSON in its answer, and nothing else."""
    agent = served.agent(f"json-{stream}", GROQ)
    given: Any = {"model": agent, "messages": hello(content='Say {"name": "Rex"}'), "response_format": FORMAT}
    if stream:
        pieces = official.chat.completions.create(**given, stream=True)
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    else:
        text = official.chat.completions.create(**given).choices[0].message.content or ""
    assert json.loads(text) == {"name": "Rex"}
    assert json.dumps(FORMAT["json_schema"]["schema"], separators=(",", ":")) in served.said_to(agent)[0]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_in_another_form(served: Backend, official: openai.OpenAI, stream: bool) -> None:
    """An answer that does not match is an error that the client does not repeat, because it is in the history."""
    agent = served.agent(f"no-json-{stream}", GROQ)
    with pytest.raises(openai.InternalServerError) as failed:
        official.chat.completions.create(
            model=agent, messages=hello(content='Say {"nom": "Rex"}'), response_format=FORMAT, stream=stream
        )
    assert (failed.value.status_code, failed.value.code) == (502, "format_not_met")
    assert len(served.said_to(agent)) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences(official: openai.OpenAI, stream: bool) -> None:
    """The text ends before the first of them."""
    given: Any = {"model": "model", "messages": hello(content="Count to 9"), "stop": ["9 ", " 5 6"]}
    if stream:
        pieces = list(official.chat.completions.create(**given, stream=True))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert pieces[-1].choices[0].finish_reason == "stop"
    else:
        text = official.chat.completions.create(**given).choices[0].message.content or ""
    assert text == "1 2 3 4"


@pytest.mark.parametrize("path", ["/v1//chat/completions", "/v1/chat/completions/", "//v1/chat//completions"])
def test_slashes_too_many(served: Backend, path: str) -> None:
    """Base URLs are put together in many ways."""
    answer = served.client.post(f"{served.url}{path}", json={"model": "model", "messages": hello()})
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    assert served.client.get(f"{served.url}//v1/models/model/").json()["id"] == "model"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/completions", 404, "POST /v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", 404, "leave one out"),
        ("GET", "/v1/responses/resp_1", 404, "/api/agents/NAME/messages"),
        ("POST", "/v1/embeddings", 404, "ask a vendor"),
        ("GET", "/v1/engines", 404, "POST /v1/responses"),
        ("POST", "/chat/completions", 404, "POST /v1/chat/completions"),
        ("GET", "/v1/chat/completions", 405, "takes POST"),
    ],
)
def test_other_paths_say_what_to_call(served: Backend, method: str, path: str, status: int, words: str) -> None:
    """In OpenAI's form, which clients show."""
    answer = served.client.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert words in error["message"]


#: One pixel.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def picture(text: str, url: str = PIXEL) -> list[Any]:
    """A message with an image."""
    return hello(content=[{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}])


def test_images(served: Backend, official: openai.OpenAI) -> None:
    """A model that sees gets them, also in later turns; a vendor whose models do not is skipped."""
    agent = served.agent("sees", GROQ, MISTRAL)
    answer = official.chat.completions.create(model=agent, messages=picture("Say what is here"))
    assert answer.choices[0].message.content == "what is here\n[image/png, 70 bytes]"
    assert answer.system_fingerprint == MISTRAL
    part: Any = [{"type": "input_text", "text": "Say more"}, {"type": "input_image", "image_url": PIXEL}]
    response = official.responses.create(model=agent, input=[{"role": "user", "content": part}])
    assert response.output_text == "more\n[image/png, 70 bytes]"


@pytest.mark.parametrize(
    ("agent", "url", "words"),
    [
        ("model", PIXEL, "No model of model"),
        ("model", "http://127.0.0.1:9/a.png", "must be in the request"),
        ("model", "data:image/svg+xml;base64,PHN2Zz4=", "image/png"),
        ("model", "data:image/png;base64," + "A" * (8 * 1024 * 1024 + 4), "8 MiB"),
    ],
)
def test_images_that_cannot_be_seen(
    served: Backend, official: openai.OpenAI, agent: str, url: str, words: str
) -> None:
    """The error says why, and nothing reaches a vendor."""
    served.vendors.forget()
    with pytest.raises(openai.BadRequestError, match=words):
        official.chat.completions.create(model=agent, messages=picture("What is this?", url))
    assert not served.vendors.requests("groq")


# --- the Responses API ------------------------------------------------------------------------------------------


def test_responses(served: Backend, official: openai.OpenAI) -> None:
    """A response has the text and the usage, and the next one may name it."""
    agent = served.agent("responds", GROQ)
    first = official.responses.create(model=agent, input="Say good morning", instructions="Be somebody else.")
    assert (first.output_text, first.status) == ("good morning", "completed")
    assert first.usage is not None
    assert first.usage.total_tokens > 0
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Say good night"}]}]
    second = official.responses.create(model=agent, input=items, previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == ("good night", first.id)
    assert served.said_to(agent) == ["Say good morning", "Say good night"]
    with pytest.raises(openai.BadRequestError) as other:
        official.responses.create(model="model", input="Say hello", previous_response_id=first.id)
    assert other.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError) as tool:
        official.responses.create(
            model=agent, input=[{"type": "function_call_output", "call_id": "c1", "output": "5"}]
        )
    assert tool.value.param == "input"


def test_a_streamed_response(official: openai.OpenAI) -> None:
    """The events come in OpenAI's order, and the last one has the whole response."""
    events: list[Any] = list(official.responses.create(model="model", input="Count to 5", stream=True))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == events[-1].response.output_text == "1 2 3 4 5"


def test_a_response_in_json(official: openai.OpenAI) -> None:
    """The Responses API has its own place for the format."""
    format: Any = {"format": {"type": "json_schema", "name": "dog", **FORMAT["json_schema"]}}
    answer = official.responses.create(model="model", input='Say {"name": "Rex"}', text=format)
    assert json.loads(answer.output_text) == {"name": "Rex"}


def test_a_response_that_breaks_off(served: Backend, official: openai.OpenAI) -> None:
    """The last event says that the response failed, and has what had arrived."""
    agent = served.agent("breaks", GROQ)
    served.vendors.fault("groq", on="chat", truncated=True, times=1)
    *_, last = official.responses.create(model=agent, input="Count to 40", stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "broke off" in last.response.error.message
    assert last.response.output_text.startswith("1 2")


# --- requests that are no conversation --------------------------------------------------------------------------


def task(order: str, answer: str = "hello") -> list[Any]:
    """The messages of a request of Open WebUI's own, with the body of its prompt left out."""
    history = f"### Chat History:\n<chat_history>\nUSER: Say hello\nASSISTANT: {answer}\n</chat_history>"
    return hello(content=f"### Task:\n{order}\n### Output:\nJSON\n{history}")


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
TITLE = {"type": "object", "properties": {"language": {"type": "string"}, "title": {"type": "string"}}}
#: What chat programs send around one message. Recorded from Open WebUI 0.12.4, which asks for the title while the
#: answer is still to come, and from LibreChat's package @librechat/agents 3.2.21 with its two forms of titles. The
#: third form, with a forced tool, is that of older ones.
RECORDED: dict[str, list[dict[str, Any]]] = {
    "Open WebUI": [
        {"messages": task("Generate a concise title", answer=""), "stream": False, "max_tokens": 1000},
        {"messages": hello(), "stream": True, "tools": [WEATHER]},
        {"messages": task("Predict 3-5 useful messages"), "stream": False},
        {"messages": task("Generate 1-3 broad tags"), "stream": False},
    ],
    "LibreChat": [
        {
            "messages": [{"role": "system", "content": "You are kind."}, *hello()],
            "stream": True,
            "user": "u1",
            "stream_options": {"include_usage": True},
        },
        {
            "messages": hello(
                content="Provide a concise, 5-word-or-less title for the conversation, …\n\nConversation:\nSay hello"
            ),
            "stream": False,
        },
        {
            "messages": hello(
                content="Analyze this conversation and provide:\n1. The detected language …\n\nSay hello"
            ),
            "tools": [{"type": "function", "function": {"name": "extract", "parameters": TITLE}}],
            "tool_choice": {"type": "function", "function": {"name": "extract"}},
        },
        {
            "messages": hello(
                content="Analyze this conversation and provide:\n1. The detected language …\n\nSay hello"
            ),
            "response_format": {"type": "json_schema", "json_schema": {"name": "extract", "schema": TITLE}},
            "stream": True,
        },
    ],
}


@pytest.mark.parametrize("program", RECORDED)
def test_a_chat_program_leaves_one_turn(served: Backend, program: str) -> None:
    """Titles, tags and follow-ups are answered, and only the conversation is in the history."""
    agent = served.agent(f"programs-{program}".lower().replace(" ", "-"), GROQ)
    for body in RECORDED[program]:
        answer = served.client.post("/v1/chat/completions", json={"model": agent, **body})
        assert answer.status_code == 200, answer.text
        assert ("data: [DONE]" in answer.text) == bool(body.get("stream"))
    assert served.said_to(agent) == ["Say hello"]
    assert [kind for kind, _ in served.history(agent)].count("assistant_message") == 1


#: What n8n 2.40.7 sends to the Responses API, its default: an agent with a tool, and one with the memory of n8n.
N8N: list[dict[str, Any]] = [
    {"tools": [{**WEATHER["function"], "type": "function", "strict": False}]},
    {"input": [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "hello"}]},
]


def test_n8n_leaves_one_turn_for_each_message(served: Backend) -> None:
    """Its earlier messages are not sent to the agent, and its tools have no effect."""
    agent = served.agent("programs-n8n", GROQ)
    for fields in N8N:
        items = [*fields.get("input", []), {"role": "user", "content": "Say hello"}]
        body = {**fields, "input": [{"type": "message", **item} for item in items], "stream": False, "text": {}}
        answer = served.client.post("/v1/responses", json={"model": agent, **body})
        assert answer.status_code == 200, answer.text
        assert answer.json()["output"][0]["content"][0]["text"] == "hello"
    assert served.said_to(agent) == ["Say hello", "Say hello"]


def test_documents_are_conversation(served: Backend, official: openai.OpenAI) -> None:
    """Open WebUI puts documents before a message under a heading like that of its own requests."""
    agent = served.agent("documents", GROQ)
    text = "### Task:\nRespond to the user query …\n<context>\n<chat_history> of Rome\n</context>\n\nSay hello"
    official.chat.completions.create(model=agent, messages=hello(content=text))
    assert served.said_to(agent) == [text]


def test_an_aside(served: Backend, official: openai.OpenAI) -> None:
    """The model without the agent: what it gets is the request itself, and the history stays as it is."""
    agent = served.agent("asides", GROQ)
    served.vendors.forget()
    answer = official.chat.completions.create(
        model=f"{agent}:aside",
        messages=[{"role": "system", "content": "Be short."}, *hello()],
        extra_body={"metadata": {"a": "b"}, "store": True},
    )
    assert answer.choices[0].message.content == "hello"
    assert (answer.model, answer.system_fingerprint) == (f"{agent}:aside", GROQ)
    (request,) = served.vendors.requests("groq")
    assert request.accepted
    response = official.responses.create(model=f"{agent}:aside", input="Say good night", instructions="Be short.")
    assert response.output_text == "good night"
    events: list[Any] = list(official.responses.create(model=f"{agent}:aside", input="Say good night", stream=True))
    assert events[-1].response.output_text == "good night"
    assert served.said_to(agent) == []


def test_an_aside_goes_to_the_next_vendor(served: Backend, official: openai.OpenAI) -> None:
    """As a turn does; if none answers, the error has the vendor's words, and a status that clients understand."""
    agent = served.agent("asides-elsewhere", GROQ, "byok-mistral")
    served.vendors.fault("groq", on="chat", status=429, retry_after=30.0)
    ask: Any = {"model": f"{agent}:aside", "messages": hello()}
    answer = official.chat.completions.create(**ask)
    assert str(answer.system_fingerprint).startswith("byok-mistral/")
    served.vendors.fault("mistral", on="chat", status=429)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="byok-mistral/"):
            official.with_options(max_retries=0).chat.completions.create(**ask, stream=stream)
