"""Model lists in the formats of vendors and local servers, as their documentation and SDKs show them."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from pytest_httpserver import HTTPServer

from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_vendor
from isabella.vendors.model_lists import ListedModel, llama_cpp_window, ollama_loaded, ollama_model, parse_models

OPENROUTER = {
    "id": "openai/gpt-oss-120b",
    "canonical_slug": "openai/gpt-oss-120b",
    "created": 1754414231,
    "context_length": 131072,
    "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
    "pricing": {"prompt": "0.00000005", "completion": "0.00000025", "request": "0", "image": "0"},
    "top_provider": {"context_length": 131000, "max_completion_tokens": 32768, "is_moderated": False},
    "supported_parameters": ["max_tokens", "temperature", "tools", "tool_choice"],
    "expiration_date": "2027-02-01",
}
LM_STUDIO = {
    "id": "qwen2-vl-7b-instruct",
    "object": "model",
    "type": "vlm",
    "publisher": "mlx-community",
    "arch": "qwen2_vl",
    "quantization": "4bit",
    "state": "loaded",
    "max_context_length": 32768,
    "loaded_context_length": 4096,
    "capabilities": ["tool_use"],
}
VLLM = {
    "id": "Qwen/Qwen3-8B",
    "object": "model",
    "created": 1762300000,
    "owned_by": "vllm",
    "root": "Qwen/Qwen3-8B",
    "parent": None,
    "max_model_len": 40960,
    "permission": [{"id": "modelperm-1", "object": "model_permission", "allow_sampling": True}],
}
LLAMA_CPP = {
    "id": "/models/SmolLM2-135M-Instruct.Q4_1.gguf",
    "object": "model",
    "created": 1795736619,
    "owned_by": "llamacpp",
    "meta": {"vocab_type": 2, "n_vocab": 49152, "n_ctx": 2048, "n_ctx_train": 8192, "n_embd": 576},
}


def one(item: Any) -> ListedModel:
    """The only model of a list."""
    models = parse_models({"object": "list", "data": [item]})
    assert models is not None
    (model,) = models.values()
    return model


@pytest.mark.parametrize(
    ("item", "window", "max_output", "prices", "tools"),
    [
        (OPENROUTER, 131000, 32768, (0.05, 0.25), True),
        (LM_STUDIO, 4096, None, (None, None), True),
        ({**LM_STUDIO, "loaded_context_length": None, "capabilities": []}, 32768, None, (None, None), False),
        (VLLM, 40960, None, (None, None), None),
        (LLAMA_CPP, 2048, None, (None, None), None),
        (
            {"id": "m", "context_window": 131072, "max_completion_tokens": 65536, "active": True},
            131072,
            65536,
            (None, None),
            None,
        ),
        (
            {"id": "m", "type": "chat", "context_length": 262144, "pricing": {"input": 0.15, "output": 0.6}},
            262144,
            None,
            (0.15, 0.6),
            None,
        ),
        (
            {"id": "m", "supports_chat": True, "supports_tools": False, "context_length": 1048576},
            1048576,
            None,
            (None, None),
            False,
        ),
        (
            {"id": "m", "context_length": 131072, "max_output_length": 40960, "supported_features": ["tools"]},
            131072,
            40960,
            (None, None),
            True,
        ),
    ],
)
def test_every_format_tells_the_same_facts(
    item: Any, window: int | None, max_output: int | None, prices: tuple[Any, Any], tools: bool | None
) -> None:
    """Windows in force come before the largest ones; prices are for a million tokens."""
    model = one(item)
    assert (model.window, model.max_output, (model.input_price, model.output_price), model.tools) == (
        window,
        max_output,
        prices,
        tools,
    )
    assert model.converses


@pytest.mark.parametrize(
    ("fields", "end", "deprecated", "replacement"),
    [
        (
            {"deprecation": "2027-01-31T12:00:00Z", "deprecation_replacement_model": "mistral-medium-latest"},
            date(2027, 1, 31),
            False,
            "mistral-medium-latest",
        ),
        ({"deprecation": None, "deprecation_replacement_model": None}, None, False, None),
        ({"shutdown_date": "2026-12-11"}, date(2026, 12, 11), False, None),
        ({"expiration_date": None}, None, False, None),
        ({"deprecated": True}, None, True, None),
        ({"deprecation": "soon"}, None, False, None),
        ({"deprecation_date": 1798761600}, date(2027, 1, 1), False, None),
    ],
)
def test_ends_of_life_are_read(
    fields: dict[str, Any], end: date | None, deprecated: bool, replacement: str | None
) -> None:
    """A date, a time, or only the fact; what cannot be read says nothing."""
    model = one({"id": "m", **fields})
    assert (model.end, model.deprecated, model.replacement) == (end, deprecated, replacement)
    assert model.ending is (end is not None or deprecated)


@pytest.mark.parametrize(
    "item",
    [
        {"id": "text-embedding-3-large", "owned_by": "system"},
        {"id": "whisper-large-v3"},
        {"id": "gpt-4o-mini-tts"},
        {"id": "dall-e-3"},
        {"id": "models/imagen-4.0-generate-001"},
        {"id": "m", "type": "embeddings"},
        {"id": "m", "type": "image"},
        {"id": "m", "supports_chat": False},
        {"id": "m", "capabilities": {"completion_chat": False}},
        {"id": "m", "architecture": {"output_modalities": ["image"]}},
    ],
)
def test_models_for_something_else_are_recognised(item: Any) -> None:
    """By the list where it tells, otherwise by the id."""
    assert not one(item).converses


@pytest.mark.parametrize(
    "id", ["gpt-6-luna", "grok-4.6", "deepseek-v4-flash", "gemini-flash-latest", "qwen2.5-vl", "llama3.2:latest"]
)
def test_chat_models_are_not_mistaken(id: str) -> None:
    """An id without such a word is one for conversations."""
    assert one({"id": id}).converses


def test_gemini_s_prefix_is_taken_off_and_together_s_bare_list_is_read() -> None:
    """Ids are those that a request may carry."""
    assert [*(parse_models({"data": [{"id": "models/gemini-flash-latest"}]}) or ())] == ["gemini-flash-latest"]
    assert [*(parse_models([{"id": "a", "type": "chat"}]) or ())] == ["a"]
    assert parse_models({"models": []}) is None
    assert parse_models({"data": [{"name": "m"}]}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["meta", "n_ctx", "pricing", "prompt", "capabilities", "type", "architecture"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["deprecation", "created", "owned_by", "meta", "pricing", "type"]), JSON))
def test_no_field_makes_a_list_unreadable(fields: dict[str, Any]) -> None:
    """A field of another type than expected says nothing."""
    model = one({**fields, "id": "m"})
    assert model.window is None or model.window > 0


def test_the_routes_of_local_servers_are_read() -> None:
    """The window in force of llama.cpp and Ollama, and what an Ollama model can do."""
    assert llama_cpp_window({"default_generation_settings": {"n_ctx": 2048}, "total_slots": 4}) == 2048
    assert llama_cpp_window(None) is None
    shown = {
        "parameters": 'num_ctx                        8192\nstop                           "<|eot_id|>"',
        "capabilities": ["completion", "tools"],
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
    }
    assert ollama_model("a:b", shown) == ListedModel("a:b", window=8192, tools=True)
    assert ollama_model("a:b", {"model_info": {"llama.context_length": 131072}}).window is None
    assert not ollama_model("a:b", {"capabilities": ["embedding"]}).converses
    assert ollama_loaded({"models": [{"name": "a:b", "context_length": 4096}, {"name": "c:d"}]}) == {"a:b": 4096}
    assert ollama_loaded({"models": None}) == {}


def ask(httpserver: HTTPServer) -> VendorAnswer:
    """Ask the server for its models."""
    return anyio.run(ask_vendor, httpserver.url_for("/v1"), SecretStr("sk-canary-model-lists"))


def test_ollama_is_asked_for_what_its_list_leaves_out(httpserver: HTTPServer) -> None:
    """The window of a loaded model, else its parameter; without either it is not known."""
    names = ["llama3.2:latest", "qwen3:8b", "gemma3:4b", "nomic-embed-text:latest"]
    data = [{"id": name, "object": "model", "created": 1, "owned_by": "library"} for name in names]
    httpserver.expect_request("/v1/models").respond_with_json({"object": "list", "data": data})
    httpserver.expect_request("/api/ps").respond_with_json({"models": [{"name": names[0], "context_length": 16384}]})
    for name, shown in {
        names[0]: {"capabilities": ["completion", "tools"], "parameters": "num_ctx 4096"},
        names[1]: {"capabilities": ["completion", "tools"], "parameters": "num_ctx 32768"},
        names[2]: {"capabilities": ["completion", "vision"]},
        names[3]: {"capabilities": ["embedding"]},
    }.items():
        body = json.dumps({"model": name}, separators=(",", ":"))
        httpserver.expect_request("/api/show", method="POST", data=body).respond_with_json(shown)
    answer = ask(httpserver)
    assert dict(answer.models) == {names[0]: 16384, names[1]: 32768, names[2]: None, names[3]: None}
    assert answer.unfit == {names[3]}
    assert [answer.listed[name].tools for name in names[:3]] == [True, True, False]


def test_lm_studio_and_llama_cpp_are_asked(httpserver: HTTPServer) -> None:
    """Both by the owner that their lists name."""
    data: list[dict[str, Any]] = [{"id": LM_STUDIO["id"], "object": "model", "owned_by": "organization_owner"}]
    httpserver.expect_request("/v1/models").respond_with_json({"data": data})
    httpserver.expect_request("/api/v0/models").respond_with_json({"object": "list", "data": [LM_STUDIO]})
    assert dict(ask(httpserver).models) == {LM_STUDIO["id"]: 4096}
    httpserver.clear()
    data = [{"id": "m.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}]
    httpserver.expect_request("/v1/models").respond_with_json({"data": data})
    httpserver.expect_request("/props").respond_with_json({"default_generation_settings": {"n_ctx": 2048}})
    assert dict(ask(httpserver).models) == {"m.gguf": 2048}


def test_a_server_that_does_not_answer_elsewhere_keeps_its_list(httpserver: HTTPServer) -> None:
    """A failure, or a page, changes nothing."""
    httpserver.expect_request("/v1/models").respond_with_json({"data": [{"id": "a:b", "owned_by": "library"}]})
    httpserver.expect_request("/api/ps").respond_with_data("<html>", status=200)
    answer = ask(httpserver)
    assert (answer.verdict, dict(answer.models)) == (KeyVerdict.ACCEPTED, {"a:b": None})
    # Nothing else is asked of a vendor whose list is complete, or that is not one of these servers.
    httpserver.clear()
    httpserver.expect_request("/v1/models").respond_with_json({"data": [VLLM, {"id": "b"}]})
    ask(httpserver)
    assert [request.path for request, _ in httpserver.log] == ["/v1/models"]
