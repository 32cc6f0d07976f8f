"""Asides: requests to an agent's model that are not conversations, such as the title of a chat.

They go straight to the vendor. The agent, its memory and its history have no part in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2 as httpx
from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.responses import StreamingResponse

from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.service import AgentService
from isabella.errors import ModelUnknown
from isabella.gateway.adapting import adapt_request
from isabella.gateway.answers import ReasoningMemory
from isabella.gateway.process import starts_here
from isabella.gateway.refusals import error_of, words_of
from isabella.providers.desired import Desired
from isabella.server.api.openai.errors import VendorRefused
from isabella.server.api.openai.messages import ChatMessage
from isabella.system.redaction import redact
from isabella.system.urls import client_options
from isabella.turns.agent_cache import AgentRef

#: Behind an agent's name, the model of the agent without the agent.
SUFFIX = ":aside"

#: The fields of a request that are passed on. Vendors refuse those that they do not know.
_FIELDS_TEXT = """
messages stream stream_options temperature top_p max_tokens max_completion_tokens stop seed n presence_penalty
frequency_penalty tools tool_choice parallel_tool_calls response_format reasoning_effort
"""
_FIELDS = frozenset(_FIELDS_TEXT.split())
#: Statuses of a vendor after which the next one is asked.
_ELSEWHERE = frozenset({401, 402, 403, 404, 408, 409, 413, 429})
_SECONDS = 120.0
_CONNECT_SECONDS = 10.0
_LARGEST = 16 * 1024 * 1024
_WORDS = 300

#: How programs begin requests for titles, tags, follow-ups, search queries and the like (docs/clients.md). Such a
#: message is the only one of its request; the second expression must be somewhere in it.
_TASKS = tuple(
    (re.compile(begin), re.compile(inside))
    for begin, inside in (
        # Open WebUI. Documents come with "### Task:", too, and with the user's message: that is conversation.
        (r"\s*### Task:\s*\n(?!Respond to the user)", r"<chat_history>|### Messages Being Compacted:"),
        (r"Create a concise, 3-5 word (?:title with an emoji|phrase) as a (?:title|header)", r""),
        (r"Your task is to reflect the speaker's likely facial expression", r""),
        (r"You have been provided with a set of responses from various models", r""),
        # LibreChat
        (r"Provide a concise, 5-word-or-less title for the conversation", r""),
        (r"Please generate a concise, 5-word-or-less title for the conversation", r""),
        (r"Analyze this conversation and provide:\s+1\. The detected language", r""),
    )
)


#: Open WebUI's request for the tools to call, which has its own system message.
_TOOLS = re.compile(r"\s*Available Tools: .*Your task is to choose and return the correct tool", re.DOTALL)


def is_task(messages: Sequence[ChatMessage]) -> bool:
    """Return whether a request is one that a chat program makes by itself."""
    said = [message for message in messages if message.role not in ("system", "developer")]
    if len(said) != 1 or said[0].role != "user":
        return False
    notes, text = "\n".join(message.text for message in messages if message not in said), said[0].text
    if _TOOLS.match(notes) and text.startswith(("Query:", "History:")):
        return True
    return any(begin.match(text) and inside.search(text) for begin, inside in _TASKS)


def agent_of(model: str) -> str:
    """Return the agent's name in the id of a model."""
    return model.removesuffix(SUFFIX)


async def respond(agents: AgentService, agent_ref: AgentRef, body: Mapping[str, Any]) -> Response:
    """Return the response to a chat request, as the vendor answers it.

    Raises:
        VendorRefused: no vendor of the agent answers.
    """
    if not body.get("stream"):
        return JSONResponse(await complete(agents, agent_ref, body))
    async with AsyncExitStack() as stack:
        response, _ = await stack.enter_async_context(_answer(agents, agent_ref, body))
        return StreamingResponse(_passed_on(response, stack.pop_all()), media_type="text/event-stream")


async def complete(agents: AgentService, agent_ref: AgentRef, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion, with the agent's name as its model.

    Raises:
        VendorRefused: no vendor of the agent answers.
    """
    async with _answer(agents, agent_ref, body) as (response, handle):
        document = await _read(response)
    if document is None or not _is_completion(document):
        raise VendorRefused(f"The answer of {handle} is not a chat completion.", status=502, code="vendor_garbled")
    return document | {"model": f"{agent_ref.name}{SUFFIX}", "system_fingerprint": handle}


def _is_completion(document: Mapping[str, Any]) -> bool:
    choices = document.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and isinstance(first.get("message"), dict)


@asynccontextmanager
async def _answer(
    agents: AgentService, agent_ref: AgentRef, body: Mapping[str, Any]
) -> AsyncIterator[tuple[httpx.Response, str]]:
    """Yield the answer of the first of the agent's vendors that gives one, and its handle."""
    refused: VendorRefused | None = None
    for wanted in dict.fromkeys((agent_ref.handle, *agent_ref.handles)):
        try:
            desired, model = await _resolve(agents.models, wanted)
        except ModelUnknown as error:
            refused = refused or VendorRefused(error.what, status=503, code="no_vendor", remedy=error.remedy)
            continue
        handle = f"{desired.name}/{model}"
        through = desired.behind_gateway is not None and (
            starts_here(agents.settings) or desired.reached_at == desired.base_url
        )
        try:
            async with _request(desired, _document(body, model, desired, through), through) as response:
                if response.is_success:
                    yield response, handle
                    return
                refused = _refused(response.status_code, await _read(response), handle)
                if response.status_code < 500 and response.status_code not in _ELSEWHERE:
                    break
        except httpx.RequestError as error:
            reason = type(error).__name__
            refused = VendorRefused(f"{handle} does not answer ({reason}).", status=503, code="vendor_unreachable")
    raise refused or VendorRefused(f"{agent_ref.name} has no model.", status=503, code="no_vendor")


async def _resolve(models: ModelCatalog, handle: str) -> tuple[Desired, str]:
    """Return the provider and the model of a handle; raise `ModelUnknown` if there is no key for it."""
    name, _, model = handle.partition("/")
    model = model or (await models.binding(handle)).model
    desired = models.provider(name)
    if desired is None or desired.key is None or desired.problem is not None:
        raise ModelUnknown(
            f"The configuration has no key for {name}.", remedy="Switch the agent to a configured provider."
        )
    return desired, model


def _document(body: Mapping[str, Any], model: str, desired: Desired, through: bool) -> dict[str, Any]:
    document = {name: value for name, value in body.items() if name in _FIELDS and value is not None}
    document["model"] = model
    if through:
        return document
    return adapt_request(document, desired.vendor.quirks, ReasoningMemory(), provider=desired.name)


@asynccontextmanager
async def _request(desired: Desired, document: dict[str, Any], through: bool) -> AsyncIterator[httpx.Response]:
    base_url = desired.base_url if through else desired.upstream
    key = desired.key.get_secret_value() if desired.key else ""
    async with (
        httpx.AsyncClient(
            timeout=httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS), **client_options(base_url)
        ) as client,
        client.stream(
            "POST",
            f"{base_url}/chat/completions",
            # ASCII, because half a surrogate pair has no other form.
            content=json.dumps(document).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        ) as response,
    ):
        yield response


async def _read(response: httpx.Response) -> dict[str, Any] | None:
    """Return the JSON object in a response; None if it is none, or too large."""
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _LARGEST:
            return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _refused(status: int, document: dict[str, Any] | None, handle: str) -> VendorRefused:
    words = redact(words_of(error_of(document) or {}))[:_WORDS]
    elsewhere = status >= 500 or status in _ELSEWHERE
    return VendorRefused(
        f"{handle} refuses the request: {status} {words}".strip(),
        status=429 if status == 429 else 503 if elsewhere else 400,
        code="rate_limited" if status == 429 else "no_vendor" if elsewhere else "request_refused",
    )


async def _passed_on(response: httpx.Response, stack: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    async with stack:
        async for chunk in response.aiter_bytes():
            yield chunk
