"""Every vendor known by name: what it lists, and its refusals in its own words, each with what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from pydantic import SecretStr

from isabella.config.api_keys import NO_KEY
from isabella.config.vendors import known_vendors
from isabella.gateway.refusals import adapt_refusal
from isabella.gateway.traffic import Outcome
from isabella.practice import PracticeVendors
from isabella.turns.events import ErrorCode
from isabella.turns.stream import classify_refusal, refusal_of, remedy_of
from isabella.vendors.client import KeyVerdict, ask_about_key, ask_vendor
from tests.support import llama_server
from tests.support.further_vendors import FURTHER, PROFILES

VENDORS = {vendor.name: vendor for vendor in known_vendors()}
NOW = 1_800_000_000.0
#: What a turn reports of each refusal; Letta itself reacts to prompts that are too long.
CODES = {
    "wrong_key": ErrorCode.KEY_REFUSED,
    "no_funds": ErrorCode.OUT_OF_FUNDS,
    "no_model": ErrorCode.MODEL_UNKNOWN,
    "too_fast": ErrorCode.RATE_LIMITED,
    "requests_used_up": ErrorCode.RATE_LIMITED,
    "tokens_used_up": ErrorCode.RATE_LIMITED,
    "broken": ErrorCode.VENDOR_FAILING,
    "bad_gateway": ErrorCode.VENDOR_FAILING,
    "overloaded": ErrorCode.VENDOR_FAILING,
}
#: Those that tell a turn what to do next.
WITH_REMEDY = ("wrong_key", "no_funds", "no_model")
#: The vendors whose own lists, or whose other routes, tell the window of a model.
TELL_WINDOWS = ("groq", "mistral", "openrouter", "together", "fireworks", "ollama", "lm-studio", "vllm")
#: The seconds to wait that the refusal of too many requests tells in its words, or in the headers that it quotes.
WAITS = {"openrouter": 600.0, "gemini": 11.665902715}
REFUSALS = [(name, reason) for name in FURTHER for reason in FURTHER[name].refusals if reason in CODES]


@pytest.fixture(scope="module")
def practice() -> Iterator[PracticeVendors]:
    """All practice vendors on one port."""
    with PracticeVendors(vendors=PROFILES) as running:
        yield running


def test_each_named_vendor_has_a_practice_vendor_or_a_real_server() -> None:
    """A new one in the catalog needs one, too, so that the tests ask it as they ask the others."""
    assert {*PROFILES, llama_server.VENDOR} == VENDORS.keys()


@pytest.mark.parametrize("name", PROFILES)
def test_a_practice_vendor_is_like_the_one_in_the_catalog(name: str) -> None:
    """In the path of its base URL, the prefix of its keys, and its default model."""
    vendor, profile = VENDORS[name], PROFILES[name]
    assert profile.title == vendor.title
    assert profile.path == f"/{name}{urlsplit(vendor.base_url).path}"
    assert profile.new_key().startswith(vendor.key_prefix or "")
    assert vendor.default_model is None or vendor.default_model in profile.models
    assert profile.key_optional == vendor.key_optional


@pytest.mark.parametrize("name", PROFILES)
def test_its_models_are_read_with_their_windows(practice: PracticeVendors, name: str) -> None:
    """From its list, or from where it tells them; models for something else are set aside."""
    profile, key = PROFILES[name], practice_key(practice, name)
    answer = anyio.run(ask_vendor, practice.base_url(name), key)
    assert answer.verdict is KeyVerdict.ACCEPTED
    windows = {model.id.removeprefix("models/"): model.window for model in profile.listed}
    unfit = {model.id.removeprefix("models/") for model in profile.listed if not model.chat}
    fit = windows.keys() - unfit
    assert answer.models.keys() == windows.keys()
    assert answer.unfit == unfit
    told = {id: answer.models[id] for id in fit}
    assert told == ({id: windows[id] for id in fit} if name in TELL_WINDOWS else dict.fromkeys(fit))


@pytest.mark.parametrize("name", PROFILES)
def test_a_wrong_key_is_refused_and_not_quoted(practice: PracticeVendors, name: str) -> None:
    """A server of one's own needs a key only if it has one; Ollama never does."""
    vendor, wrong = VENDORS[name], SecretStr(f"{PROFILES[name].new_key()[:-9]}wrong0000")
    url = practice.base_url(name)
    if vendor.key_optional:
        assert anyio.run(ask_vendor, url, wrong).takes_key
        if name == "ollama":
            return
        practice.accept(name, [PROFILES[name].new_key()])
    try:
        answer = anyio.run(ask_vendor, url, wrong)
        if vendor.key_route is not None:
            assert answer.takes_key
            answer = anyio.run(ask_about_key, f"{url}/{vendor.key_route}", wrong)
            assert anyio.run(ask_about_key, f"{url}/{vendor.key_route}", practice.key(name)).takes_key
        assert (answer.verdict, answer.takes_key) == (KeyVerdict.REFUSED, False)
        assert answer.said
        assert "wrong0000" not in answer.said
    finally:
        practice.accept(name, [] if vendor.key_optional else practice_keys(practice, name))


@pytest.mark.parametrize(("name", "reason"), REFUSALS)
def test_a_turn_says_why_it_was_refused_and_what_to_do(name: str, reason: str) -> None:
    """The same by the gateway and without it, however the vendor words it."""
    shape = FURTHER[name].refusals[reason]
    body = filled(name, reason)
    direct = classify_refusal(
        "llm_error", f"Bad request to OpenAI-compatible endpoint: Error code: {shape.status} - {body}"
    )
    assert (direct.code, direct.status) == (CODES[reason], shape.status)
    assert "Bad request to" not in direct.message
    adapted = adapt_refusal(shape.status, {}, json.dumps(body).encode(), VENDORS[name].quirks, now=NOW)
    words, wait = adapted.words, adapted.retry_after
    outcome = Outcome(1, NOW, name, None, None, "refused", words, status=shape.status, retry_after=wait)
    seen = refusal_of(outcome, direct)
    assert (seen.code, seen.status) == (CODES[reason], shape.status)
    assert adapted.words
    assert (remedy_of(seen.code) is not None) == (reason in WITH_REMEDY)
    if reason == "too_fast":
        assert adapted.retry_after == WAITS.get(name)
        assert direct.retry_after == (WAITS[name] if name == "gemini" else None)


@pytest.mark.parametrize("name", FURTHER)
def test_a_prompt_that_is_too_long_is_one_for_letta(name: str) -> None:
    """With the window, where the vendor tells it."""
    shape = FURTHER[name].refusals["too_long"]
    body = json.dumps(filled(name, "too_long")).encode()
    refusal = adapt_refusal(shape.status, {}, body, VENDORS[name].quirks, now=NOW)
    assert refusal.status == 400
    assert json.loads(refusal.body)["error"]["code"] == "context_length_exceeded"
    assert refusal.window == (None if name == "ollama" else 4096)


def filled(name: str, reason: str) -> Any:
    """The body of a refusal."""
    values = {
        "model": "no-such-model",
        "path": "/",
        "detail": "Invalid request.",
        "request_id": "req_1",
        "key_end": "0000",
    }
    figures = {"limit": 9, "used": 9, "requested": 1, "prompt": 5000, "window": 4096, "excess": 904, "least": 4097}
    return json.loads(FURTHER[name].refusals[reason].filled(**values, **figures, wait="1.5s", retry_after="0"))


def practice_keys(practice: PracticeVendors, name: str) -> list[str]:
    """The keys that it accepts."""
    return [practice.key(name).get_secret_value()]


def practice_key(practice: PracticeVendors, name: str) -> SecretStr:
    """Its key, or the one that Letta stores for a server that needs none."""
    return SecretStr(NO_KEY) if VENDORS[name].key_optional else practice.key(name)
