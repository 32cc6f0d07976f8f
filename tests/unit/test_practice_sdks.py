"""The vendors' own clients against the practice vendors: each answer is one of the types that the SDK knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import groq
import httpx2
import pytest
from cerebras.cloud import sdk as cerebras
from cerebras.cloud.sdk.types import model_list_response, model_retrieve_response
from cerebras.cloud.sdk.types.chat import chat_completion as cerebras_types
from groq.types import Model as GroqModel
from groq.types.chat import ChatCompletion as GroqCompletion
from groq.types.chat import ChatCompletionChunk as GroqChunk
from groq.types.shared import ErrorObject as GroqError
from mistralai.client import Mistral
from mistralai.client import models as mistral_types
from mistralai.client.errors import HTTPValidationError, SDKError
from mistralai.client.models.basemodelcard import BaseModelCard
from mistralai.client.utils.retries import RetryConfig
from pydantic import BaseModel

from isabella.practice import PracticeVendors

REMEMBER: list[Any] = [{"role": "user", "content": "Remember that I live in Bergen."}]
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "archival_memory_insert",
        "parameters": {"type": "object", "properties": {"content": {"type": "string"}}},
    },
}
#: Conversations whose answers have text, reasoning or a tool call, whole and cut off.
REQUESTS: list[dict[str, Any]] = [
    {"messages": HELLO},
    {"messages": REMEMBER, "tools": [TOOL]},
    {"messages": REMEMBER, "tools": [TOOL], "max_tokens": 3},
    {"messages": HELLO, "max_tokens": 1},
]


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """Practice vendors for all tests of the module, as strict as can be."""
    with PracticeVendors() as running:
        for vendor in ("cerebras", "groq", "mistral"):
            running.strict(vendor)
        yield running


@pytest.fixture(autouse=True)
def _without_faults(vendors: PracticeVendors) -> None:
    vendors.clear()


@pytest.fixture(scope="module")
def on_cerebras(vendors: PracticeVendors) -> Iterator[cerebras.Cerebras]:
    """The client of Cerebras; it refuses answers that are none of its types."""
    with cerebras.Cerebras(
        api_key=vendors.key("cerebras").get_secret_value(),
        base_url=vendors.base_url("cerebras").removesuffix("/v1"),
        max_retries=0,
        _strict_response_validation=True,
        warm_tcp_connection=False,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def on_groq(vendors: PracticeVendors) -> Iterator[groq.Groq]:
    """The client of Groq; it refuses answers that are none of its types."""
    with groq.Groq(
        api_key=vendors.key("groq").get_secret_value(),
        base_url=vendors.base_url("groq").removesuffix("/openai/v1"),
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def on_mistral(vendors: PracticeVendors) -> Iterator[Mistral]:
    """The client of Mistral; it always refuses answers that are none of its types."""
    with Mistral(
        api_key=vendors.key("mistral").get_secret_value(),
        server_url=vendors.base_url("mistral").removesuffix("/v1"),
        retry_config=RetryConfig("none", None, False),  # type: ignore[arg-type]
    ) as client:
        yield client


def post(vendors: PracticeVendors, vendor: str, **body: Any) -> httpx2.Response:
    """The bare answer to a chat request."""
    headers = {"Authorization": f"Bearer {vendors.key(vendor).get_secret_value()}"}
    return httpx2.post(f"{vendors.base_url(vendor)}/chat/completions", headers=headers, json=body, timeout=10)


def listed(vendors: PracticeVendors, vendor: str, query: str = "") -> list[dict[str, Any]]:
    """The bare entries of a model list."""
    headers = {"Authorization": f"Bearer {vendors.key(vendor).get_secret_value()}"}
    found = httpx2.get(f"{vendors.base_url(vendor)}/models{query}", headers=headers).json()["data"]
    return list(found)


def has_no_other_fields(model: type[BaseModel], *answers: object) -> None:
    """Nothing is in an answer that its type does not have, at any depth."""
    assert answers
    for answer in answers:
        model.model_validate(answer, extra="forbid")


def events(response: httpx2.Response) -> list[Any]:
    """The bare events of a stream."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("request_", REQUESTS)
def test_cerebras_completes(
    vendors: PracticeVendors, on_cerebras: cerebras.Cerebras, request_: dict[str, Any]
) -> None:
    """Its SDK reads whole answers and streams, and they have no field that it does not know."""
    options: dict[str, Any] = {"model": "gpt-oss-120b", **request_}
    whole = on_cerebras.chat.completions.create(**options)
    assert isinstance(whole, cerebras_types.ChatCompletionResponse)
    stream = on_cerebras.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = [chunk for chunk in stream if isinstance(chunk, cerebras_types.ChatChunkResponse)]
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices or () if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    has_no_other_fields(cerebras_types.ChatCompletionResponse, post(vendors, "cerebras", **options).json())
    pieces = events(post(vendors, "cerebras", **options, stream=True))
    has_no_other_fields(cerebras_types.ChatChunkResponse, *pieces)


def test_cerebras_lists(vendors: PracticeVendors, on_cerebras: cerebras.Cerebras) -> None:
    """Its SDK reads the list and its entries in both formats."""
    plain = on_cerebras.models.list()
    assert isinstance(plain, model_list_response.ModelMetadataList)
    windows = on_cerebras.models.list(format="openrouter")
    assert isinstance(windows, model_list_response.OpenRouterModelsResponse)
    assert [model.id for model in windows.data] == [f"cerebras/{model.id}" for model in plain.data]
    one = on_cerebras.models.retrieve("gpt-oss-120b", format="openrouter")
    assert isinstance(one, model_retrieve_response.OpenRouterModel)
    assert one.context_length == 131_072
    assert isinstance(on_cerebras.models.retrieve("gpt-oss-120b"), model_retrieve_response.ModelMetadata)
    has_no_other_fields(model_retrieve_response.ModelMetadata, *listed(vendors, "cerebras"))
    has_no_other_fields(model_retrieve_response.OpenRouterModel, *listed(vendors, "cerebras", "?format=openrouter"))


def test_cerebras_refuses(vendors: PracticeVendors, on_cerebras: cerebras.Cerebras) -> None:
    """Its SDK sorts the refusals by their status, and finds the message."""
    options: dict[str, Any] = {"model": "gpt-oss-120b", "messages": HELLO}
    with pytest.raises(cerebras.NotFoundError, match="does not exist"):
        on_cerebras.chat.completions.create(model="no-such", messages=HELLO)
    with pytest.raises(cerebras.BadRequestError, match="unsupported"):
        on_cerebras.chat.completions.create(**options, presence_penalty=0.5)
    with pytest.raises(cerebras.AuthenticationError, match="Wrong API Key"):
        on_cerebras.copy(api_key="csk-wrong").chat.completions.create(**options)
    vendors.limit("cerebras", tokens=100)
    with pytest.raises(cerebras.RateLimitError, match="Tokens per minute limit exceeded"):
        on_cerebras.chat.completions.create(**options)


@pytest.mark.parametrize("request_", REQUESTS)
def test_groq_completes(vendors: PracticeVendors, on_groq: groq.Groq, request_: dict[str, Any]) -> None:
    """Its SDK reads whole answers and streams, and they have no field that it does not know."""
    options: dict[str, Any] = {"model": "openai/gpt-oss-120b", **request_}
    whole = on_groq.chat.completions.create(**options)
    assert isinstance(whole, GroqCompletion)
    chunks: list[GroqChunk] = list(on_groq.chat.completions.create(**options, stream=True))
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    told = chunks[-1].x_groq
    assert told is not None
    assert told.usage is not None
    assert whole.usage is not None
    assert told.usage.completion_tokens == whole.usage.completion_tokens
    has_no_other_fields(GroqCompletion, post(vendors, "groq", **options).json())
    has_no_other_fields(GroqChunk, *events(post(vendors, "groq", **options, stream=True)))


def test_groq_lists(vendors: PracticeVendors, on_groq: groq.Groq) -> None:
    """Its SDK reads the list and its entries. The windows in it are documented, and not in the SDK's types."""
    found = on_groq.models.list()
    assert found.data[0].id == on_groq.models.retrieve("openai/gpt-oss-120b").id
    for entry in listed(vendors, "groq"):
        assert {entry.pop(name) is None for name in ("active", "context_window", "max_completion_tokens")} == {False}
        has_no_other_fields(GroqModel, entry)


def test_groq_refuses(vendors: PracticeVendors, on_groq: groq.Groq) -> None:
    """Its SDK sorts the refusals by their status; the error in them is one of its types."""
    options: dict[str, Any] = {"model": "openai/gpt-oss-120b", "messages": HELLO}
    caught: list[groq.APIStatusError] = []

    def refused(kind: type[groq.APIStatusError], client: groq.Groq, **fields: Any) -> None:
        with pytest.raises(kind) as error:
            client.chat.completions.create(**options | fields)
        caught.append(error.value)

    refused(groq.AuthenticationError, on_groq.copy(api_key="gsk_wrong"))
    refused(groq.NotFoundError, on_groq, model="llama-3.3-70b-versatile")
    refused(groq.BadRequestError, on_groq, logprobs=True)
    vendors.fault("groq", window=5)
    refused(groq.BadRequestError, on_groq)
    vendors.clear()
    vendors.limit("groq", tokens=100)
    refused(groq.APIStatusError, on_groq, max_completion_tokens=1_000)
    assert caught[-1].status_code == 413
    on_groq.chat.completions.create(**options, max_completion_tokens=50)
    refused(groq.RateLimitError, on_groq, max_completion_tokens=50)
    assert int(caught[-1].response.headers["retry-after"]) > 0
    for error in caught:
        assert isinstance(error.body, dict)
        has_no_other_fields(GroqError, error.body["error"])


@pytest.mark.parametrize("model", ["mistral-medium-latest", "magistral-medium-latest"])
@pytest.mark.parametrize("request_", REQUESTS)
def test_mistral_completes(
    vendors: PracticeVendors, on_mistral: Mistral, request_: dict[str, Any], model: str
) -> None:
    """Its SDK reads whole answers and streams, and they have no field that it does not know."""
    options: dict[str, Any] = {"model": model, **request_}
    whole = on_mistral.chat.complete(**options)
    with on_mistral.chat.stream(**options) as stream:
        chunks = [event.data for event in stream]
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    has_no_other_fields(mistral_types.ChatCompletionResponse, post(vendors, "mistral", **options).json())
    has_no_other_fields(mistral_types.CompletionChunk, *events(post(vendors, "mistral", **options, stream=True)))


def test_mistral_lists(vendors: PracticeVendors, on_mistral: Mistral) -> None:
    """Its SDK reads the list and its entries, with the date and the successor of a model that goes."""
    found = on_mistral.models.list().data or []
    cards = {card.id: card for card in found if isinstance(card, BaseModelCard)}
    assert len(cards) == len(found)
    assert cards["mistral-medium-latest"].max_context_length == 262_144
    assert cards["mistral-medium-latest"].deprecation is None
    assert cards["magistral-medium-latest"].deprecation
    assert cards["magistral-medium-latest"].deprecation_replacement_model in cards
    assert on_mistral.models.retrieve(model_id="mistral-small-latest") == cards["mistral-small-latest"]
    has_no_other_fields(BaseModelCard, *listed(vendors, "mistral"))


def test_mistral_refuses(vendors: PracticeVendors, on_mistral: Mistral) -> None:
    """Its SDK reads the list of problems of a 422, and leaves other refusals as they are."""
    with pytest.raises(HTTPValidationError) as invalid:
        on_mistral.chat.complete(model="mistral-medium-latest", messages=[])
    assert invalid.value.data.detail is not None
    assert invalid.value.data.detail[0].msg == "messages: field required"
    foreign = post(vendors, "mistral", model="mistral-medium-latest", messages=HELLO, user="").json()
    has_no_other_fields(mistral_types.ValidationError, *foreign["detail"])
    with pytest.raises(SDKError) as unknown:
        on_mistral.chat.complete(model="no-such", messages=HELLO)
    assert unknown.value.status_code == 400
    vendors.limit("mistral", tokens=1)
    with pytest.raises(SDKError) as limited:
        on_mistral.chat.complete(model="mistral-medium-latest", messages=HELLO)
    assert limited.value.status_code == 429


def test_mistral_embeds(vendors: PracticeVendors, on_mistral: Mistral) -> None:
    """Its SDK reads the vectors."""
    found = on_mistral.embeddings.create(model="mistral-embed", inputs=["Rex is a dog."])
    vector = found.data[0].embedding
    assert vector is not None
    assert len(vector) == 1024
    headers = {"Authorization": f"Bearer {vendors.key('mistral').get_secret_value()}"}
    body = {"model": "mistral-embed", "input": ["Rex is a dog."]}
    answer = httpx2.post(f"{vendors.base_url('mistral')}/embeddings", headers=headers, json=body).json()
    has_no_other_fields(mistral_types.EmbeddingResponse, answer)
