"""The practice vendors over real HTTP: each true to its vendor in addresses, lists, refusals, headers and streams."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from isabella.errors import PracticeError
from isabella.practice import NAMES, PracticeVendors
from tests.support.practice_models import MODELS

PATHS = {
    "cerebras": "/cerebras/v1",
    "groq": "/groq/openai/v1",
    "mistral": "/mistral/v1",
    "longcat": "/longcat/openai/v1",
}
WRONG_KEY = {
    "cerebras": (
        401,
        {"message": "Wrong API Key", "type": "invalid_request_error", "param": "api_key", "code": "wrong_api_key"},
    ),
    "groq": (
        401,
        {"error": {"message": "Invalid API Key", "type": "invalid_request_error", "code": "invalid_api_key"}},
    ),
    "mistral": (401, {"detail": "Unauthorized"}),
    "longcat": (
        401,
        {
            "error": {
                "message": "Invalid API key provided.",
                "type": "authentication_error",
                "code": "invalid_api_key",
            }
        },
    ),
}


pytestmark = pytest.mark.usefixtures("without_faults")


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def get(vendors: PracticeVendors, vendor: str, path: str, key: str | None = None) -> httpx2.Response:
    """Ask with a key of ours, or with one that is on the list."""
    key = vendors.key(vendor).get_secret_value() if key is None else key
    return httpx2.get(vendors.base_url(vendor) + path, headers=bearer(key), timeout=10)


def chat(vendors: PracticeVendors, vendor: str, text: str = "Hello", **fields: Any) -> httpx2.Response:
    """Say something to a vendor's first model."""
    body = {"model": MODELS[vendor], "messages": [{"role": "user", "content": text}]} | fields
    key = vendors.key(vendor).get_secret_value()
    return httpx2.post(vendors.base_url(vendor) + "/chat/completions", headers=bearer(key), json=body, timeout=10)


def events(response: httpx2.Response) -> list[Any]:
    """The events of a stream that ended as it should."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("vendor", NAMES)
def test_base_urls_end_as_the_vendors_do(vendors: PracticeVendors, vendor: str) -> None:
    """Each vendor's path after the host is its own, on the loopback address."""
    assert vendors.base_url(vendor) == f"http://127.0.0.1:{vendors.port}{PATHS[vendor]}"


@pytest.mark.parametrize("vendor", NAMES)
def test_model_list_names_a_model_to_start_with(vendors: PracticeVendors, vendor: str) -> None:
    """The list has OpenAI's shape, and a single model can be asked for, slash in its id or not."""
    listed = get(vendors, vendor, "/models").json()
    assert listed["object"] == "list"
    assert MODELS[vendor] in [item["id"] for item in listed["data"]]
    assert get(vendors, vendor, f"/models/{MODELS[vendor]}").json()["id"] == MODELS[vendor]


def test_model_items_have_the_vendors_fields(vendors: PracticeVendors) -> None:
    """Windows and capabilities stand where each vendor puts them; LongCat sends little else than ids."""
    items = {vendor: get(vendors, vendor, "/models").json()["data"] for vendor in NAMES}
    assert set(items["cerebras"][0]) == {"id", "object", "created", "owned_by"}
    assert {"active", "context_window", "max_completion_tokens"} <= set(items["groq"][0])
    by_id = {item["id"]: item for item in items["mistral"]}
    assert by_id["mistral-medium-latest"]["capabilities"]["function_calling"] is True
    assert by_id["mistral-embed"]["capabilities"]["completion_chat"] is False
    assert by_id["mistral-medium-latest"]["deprecation"] is None
    assert by_id["mistral-medium-latest"]["max_context_length"] == 262_144
    assert by_id["magistral-medium-latest"]["deprecation"] is not None
    assert by_id["magistral-medium-latest"]["deprecation_replacement_model"] == "mistral-medium-latest"
    assert [item["id"] for item in items["longcat"]] == ["LongCat-2.0"]
    assert set(items["longcat"][0]) == {"id", "object", "owned_by"}


def test_cerebras_tells_windows_in_the_format_of_openrouter(vendors: PracticeVendors) -> None:
    """With `?format=openrouter` the list, and an entry of it, has the window; other vendors pass over the query."""
    listed = get(vendors, "cerebras", "/models?format=openrouter").json()["data"]
    assert {item["id"]: item["context_length"] for item in listed}["cerebras/gpt-oss-120b"] == 131_072
    one = get(vendors, "cerebras", "/models/gpt-oss-120b?format=openrouter").json()
    assert one["max_output_length"] == 40_960
    assert get(vendors, "groq", "/models?format=openrouter").json() == get(vendors, "groq", "/models").json()


def test_longcat_is_particular_about_the_case_of_its_model(vendors: PracticeVendors) -> None:
    """`longcat-2.0` is another model to it, which it does not have."""
    assert chat(vendors, "longcat", model="longcat-2.0").status_code == 400


def test_longcat_reasons_unless_it_is_switched_off(vendors: PracticeVendors) -> None:
    """Its answers and its streams have `reasoning_content`; `thinking` switches it off."""
    message = chat(vendors, "longcat").json()["choices"][0]["message"]
    assert message["reasoning_content"]
    deltas = [event["choices"][0]["delta"] for event in events(chat(vendors, "longcat", stream=True))]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    off = chat(vendors, "longcat", thinking={"type": "disabled"}).json()
    assert "reasoning_content" not in off["choices"][0]["message"]
    assert "completion_tokens_details" not in off["usage"]


@pytest.mark.parametrize("vendor", NAMES)
def test_wrong_key_is_refused_in_the_vendors_words(vendors: PracticeVendors, vendor: str) -> None:
    """Status and body are the vendor's, for the list as for a chat."""
    response = get(vendors, vendor, "/models", key="never-on-any-list")
    assert (response.status_code, response.json()) == WRONG_KEY[vendor]


@pytest.mark.parametrize(("vendor", "status"), [("cerebras", 403), ("groq", 401), ("mistral", 401), ("longcat", 401)])
def test_no_header_at_all(vendors: PracticeVendors, vendor: str, status: int) -> None:
    """Cerebras answers 403 where the others answer 401."""
    response = httpx2.get(vendors.base_url(vendor) + "/models")
    assert response.status_code == status
    if vendor == "cerebras":
        assert response.json() == {"detail": "Not authenticated"}
    assert [request.key_sha256 for request in vendors.requests(vendor)] == [None]


def test_longcat_without_openai_in_the_path(vendors: PracticeVendors) -> None:
    """`/v1/models` is 404 there: only the form under `/openai` answers."""
    address = f"http://127.0.0.1:{vendors.port}/longcat/v1/models"
    response = httpx2.get(address, headers=bearer(vendors.key("longcat").get_secret_value()))
    assert response.status_code == 404


@pytest.mark.parametrize(("vendor", "status"), [("cerebras", 404), ("groq", 404), ("mistral", 400), ("longcat", 400)])
def test_unknown_model(vendors: PracticeVendors, vendor: str, status: int) -> None:
    """Refused with the vendor's status; the name it was asked for is quoted and escaped."""
    response = chat(vendors, vendor, model='no"such')
    assert response.status_code == status
    assert 'no"such' in json.dumps(response.json(), ensure_ascii=False).replace("\\", "")


@pytest.mark.parametrize("vendor", NAMES)
def test_completion_in_one_piece(vendors: PracticeVendors, vendor: str) -> None:
    """An OpenAI completion with text, end reason and usage."""
    found = chat(vendors, vendor).json()
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["choices"][0]["message"]["content"].startswith("Hello!")
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


@pytest.mark.parametrize("vendor", NAMES)
def test_stream_adds_up_to_the_completion(vendors: PracticeVendors, vendor: str) -> None:
    """The pieces joined are the text; the usage comes at the end when it is asked for."""
    whole = chat(vendors, vendor).json()["choices"][0]["message"]["content"]
    response = chat(vendors, vendor, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response)
    deltas = [event["choices"][0]["delta"] for event in found if event["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert text == whole
    assert len(deltas) > 5
    assert found[-1]["usage"]["completion_tokens"] > 0
    if vendor in ("cerebras", "groq"):
        assert "".join(delta.get("reasoning", "") for delta in deltas)


def test_reasoning_is_a_part_of_the_content_at_mistral(vendors: PracticeVendors) -> None:
    """Magistral models send thinking parts; other Mistral models send none."""
    content = chat(vendors, "mistral", model="magistral-medium-latest").json()["choices"][0]["message"]["content"]
    assert [part["type"] for part in content] == ["thinking", "text"]


def test_usage_comes_only_when_asked_for(vendors: PracticeVendors) -> None:
    """Without `stream_options` OpenAI-like vendors send no usage; Groq keeps it in a field of its own."""
    assert all("usage" not in event for event in events(chat(vendors, "cerebras", stream=True)))
    assert events(chat(vendors, "groq", stream=True))[-1]["x_groq"]["usage"]["total_tokens"] > 0


def test_tool_call_arguments_come_in_pieces(vendors: PracticeVendors) -> None:
    """The pieces of the arguments joined are JSON; the end reason is `tool_calls`."""
    tool = {
        "type": "function",
        "function": {"name": "archival_memory_insert", "parameters": {"properties": {"content": {"type": "string"}}}},
    }
    found = events(chat(vendors, "cerebras", "Remember that my dog is called Rex.", tools=[tool], stream=True))
    calls = [call for event in found for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "archival_memory_insert"
    assert len(calls) > 2
    arguments = json.loads("".join(call["function"]["arguments"] for call in calls))
    assert arguments == {"content": "My dog is called Rex."}
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_headers(vendors: PracticeVendors) -> None:
    """Every answer has a request id; rate-limit headers come where the vendor sends them, on successes too."""
    for vendor in NAMES:
        assert chat(vendors, vendor).headers["x-request-id"].startswith("req_")
    cerebras = chat(vendors, "cerebras").headers
    assert int(cerebras["x-ratelimit-remaining-requests-day"]) < int(cerebras["x-ratelimit-limit-requests-day"])
    assert "x-ratelimit-reset-tokens" in chat(vendors, "groq").headers
    assert "x-ratelimit-remaining-req-minute" in chat(vendors, "mistral").headers
    assert not [name for name in chat(vendors, "longcat").headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":1}', b'{"model":"gpt-oss-120b"}', b"\xff\xfe"])
def test_bad_bodies_are_the_clients_mistake(vendors: PracticeVendors, body: bytes) -> None:
    """Whatever is sent as a body, the answer is a refusal and never a server error."""
    key = vendors.key("cerebras").get_secret_value()
    address = vendors.base_url("cerebras") + "/chat/completions"
    response = httpx2.post(address, headers=bearer(key), content=body)
    assert response.status_code in (400, 404)
    assert response.json()["type"] in ("invalid_request_error", "not_found_error")


def test_keys_are_changed_while_running(vendors: PracticeVendors) -> None:
    """A key is accepted from the moment that it is on the list, and refused from the moment that it is not."""
    old = vendors.key("groq").get_secret_value()
    new = vendors.rotate("groq", keep_old=True).get_secret_value()
    assert [get(vendors, "groq", "/models", key=key).status_code for key in (old, new)] == [200, 200]
    vendors.accept("groq", [new])
    assert [get(vendors, "groq", "/models", key=key).status_code for key in (old, new)] == [401, 200]
    assert vendors.key("groq").get_secret_value() == new
    vendors.accept("groq", [])
    assert get(vendors, "groq", "/models", key=new).status_code == 401
    with pytest.raises(PracticeError, match="No key"):
        vendors.key("groq")
    vendors.accept("groq", [vendors.rotate("groq")])


def test_log_tells_keys_apart_without_holding_them(vendors: PracticeVendors) -> None:
    """A request says which key it came with to those who know the key, and to nobody else."""
    key = vendors.key("cerebras").get_secret_value()
    foreign = "gsk_canary-0000000000000001"
    chat(vendors, "cerebras", stream=True)
    get(vendors, "cerebras", "/models", key=foreign)
    conversation, listing = vendors.requests("cerebras")
    assert (conversation.method, conversation.path, conversation.status) == (
        "POST",
        "/cerebras/v1/chat/completions",
        200,
    )
    assert (conversation.model, conversation.stream, conversation.accepted) == ("gpt-oss-120b", True, True)
    assert conversation.carries(key)
    assert not conversation.carries(foreign)
    assert (listing.status, listing.accepted, listing.carries(foreign)) == (401, False, True)
    assert listing.key_masked == "gsk_…0001"
    assert key not in repr((conversation, listing))
    assert foreign not in repr((conversation, listing))
    assert vendors.requests("cerebras", after=conversation.number) == [listing]
    vendors.forget()
    assert vendors.requests("cerebras") == []


def test_embeddings_are_near_for_similar_texts(vendors: PracticeVendors) -> None:
    """1024 numbers of length 1, the same each time; a text about the same thing is nearer than another."""
    key = vendors.key("mistral").get_secret_value()
    texts = ["The user's dog is called Rex.", "What is the name of the dog?", "Quarterly tax returns are due in May."]
    body: dict[str, Any] = {"model": "mistral-embed", "input": texts}
    address = vendors.base_url("mistral") + "/embeddings"
    found = httpx2.post(address, headers=bearer(key), json=body).json()
    rex, dog, tax = (entry["embedding"] for entry in found["data"])
    assert len(rex) == 1024
    assert sum(value * value for value in rex) == pytest.approx(1.0)

    def nearness(one: list[float], other: list[float]) -> float:
        return sum(left * right for left, right in zip(one, other, strict=True))

    assert nearness(rex, dog) > nearness(rex, tax) + 0.1
    assert httpx2.post(address, headers=bearer(key), json=body).json()["data"] == found["data"]
    as_base64 = httpx2.post(address, headers=bearer(key), json=body | {"encoding_format": "base64"}).json()
    assert isinstance(as_base64["data"][0]["embedding"], str)


def test_only_mistral_embeds(vendors: PracticeVendors) -> None:
    """The address answers 404 elsewhere, and the embedding model does not chat."""
    for vendor in ("cerebras", "groq", "longcat"):
        key = vendors.key(vendor).get_secret_value()
        body = {"model": "mistral-embed", "input": "x"}
        assert (
            httpx2.post(vendors.base_url(vendor) + "/embeddings", headers=bearer(key), json=body).status_code == 404
        )
    assert chat(vendors, "mistral", model="mistral-embed").status_code == 400


def test_port_that_is_taken(vendors: PracticeVendors) -> None:
    """Another program on the port is said plainly."""
    with pytest.raises(PracticeError, match=f"Port {vendors.port} is taken"), PracticeVendors(port=vendors.port):
        pass
