"""The gateway as an ASGI application: one request of Letta is one request to the vendor.

    /isabella-gateway/NAME/v1/…   the vendor of provider NAME
    /control/…                    for Isabella's other processes, with the control token

Written for ASGI itself: the path of every token leads through here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx2 as httpx
import structlog
from pydantic import SecretStr

from isabella.config.gateway_address import SERVICE
from isabella.gateway.adapting import adapt_request
from isabella.gateway.answers import AnswerReader, ReasoningMemory
from isabella.gateway.keys import Admission, KeyKind, KeyRing, NotAdmitted
from isabella.gateway.limits import RateLimits, parse_limits
from isabella.gateway.refusals import adapt_refusal, words_of
from isabella.gateway.traffic import Call, Traffic
from isabella.providers.desired import Desired
from isabella.system.redaction import mask, redact
from isabella.system.urls import GATEWAY_PATH, client_options

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

log = structlog.get_logger()

#: The header that carries the control token.
TOKEN_HEADER = "x-isabella-gateway-token"  # noqa: S105

_LARGEST_REQUEST = 32 * 1024 * 1024
_LARGEST_REFUSAL = 256 * 1024
_BODY_SECONDS = 30.0
#: No vendor takes so long between two parts of an answer. Whoever waits for it gives up earlier.
_SILENCE_SECONDS = 900.0
_CONNECT_SECONDS = 10.0
_AGENT = re.compile(r"AGENT_ID: (agent-[0-9a-f-]{36})")
_FORWARDED = ("content-type", "retry-after", "x-request-id")
_LIMIT_HEADER = "x-ratelimit-"
_JSON = (b"content-type", b"application/json")
#: Letta's clients try a refused request twice more unless this header says no, so a failover begins 10 s late.
_NO_RETRY = (b"x-should-retry", b"false")


class _Disconnected(Exception):
    """The client has closed the connection."""


class _Unreadable(Exception):
    """The request cannot be read: status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Gateway:
    """The gateway as an ASGI application.

    Args:
        keys: decides about the key of a request.
        traffic: receives what the requests show of the vendors.
        token: the control token.

    Attributes:
        reasoning: the reasoning of earlier answers, for vendors that require it back.
    """

    def __init__(self, keys: KeyRing, traffic: Traffic, token: SecretStr) -> None:
        self.keys = keys
        self.traffic = traffic
        self._token = token.get_secret_value().encode()
        self._clients: dict[str, httpx.AsyncClient] = {}
        self.reasoning = ReasoningMemory()

    async def close(self) -> None:
        """Close the connections to the vendors."""
        for client in self._clients.values():
            await client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        with suppress(_Disconnected):
            if path.startswith(GATEWAY_PATH):
                await self._forward(scope, receive, send)
            elif path.startswith("/control/"):
                await self._control(scope, send)
            else:
                await _refuse(send, 404, "not_found", f"Isabella's gateway has no path {path}.")

    # --- a request to a vendor ----------------------------------------------------------------------------------

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, rest = scope["raw_path"].decode("latin-1").partition("?")[0][len(GATEWAY_PATH) :].partition("/v1/")
        provider, bearer = unquote(name), _bearer(scope)
        try:
            admission = await self.keys.admit(provider, bearer, scope["client"], scope["server"])
            if ".." in rest or not rest:
                raise NotAdmitted(404, "not_found", "Isabella's gateway does not forward this path.")
            body = await _read_body(scope, receive) if scope["method"] == "POST" else None
        except NotAdmitted as refused:
            if refused.foreign:
                self._stopped(provider, KeyKind.FOREIGN, bearer, answered=False)
            await _refuse(send, refused.status, refused.code, str(refused))
            return
        except _Unreadable as error:
            await _refuse(send, error.status, error.code, str(error), close=True)
            return
        if admission.kind is not KeyKind.CONFIGURED:
            self._stopped(provider, admission.kind, bearer, answered=True)
        await self._run(_Exchange(self, admission, scope, rest, body, send), receive)

    async def _run(self, exchange: _Exchange, receive: Receive) -> None:
        """Run an exchange until it is complete, the client disconnects, or its turn is over."""
        task = asyncio.create_task(exchange.run())
        gone = asyncio.create_task(_until_disconnected(receive))
        exchange.call.task = task
        self.traffic.calls.add(exchange.call)
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.traffic.calls.discard(exchange.call)
            gone.cancel()
            disconnected = not task.done()
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            message = "the client disconnected" if disconnected else "the turn is over"
            self.traffic.add_outcome(exchange.call, "ended", message)
            await exchange.abort()
        else:
            task.result()

    def client(self, desired: Desired) -> httpx.AsyncClient:
        """Return the client of a vendor, whose connections are used again."""
        client = self._clients.get(desired.upstream)
        if client is None:
            client = self._clients[desired.upstream] = httpx.AsyncClient(
                timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=20.0),
                **client_options(desired.upstream),
            )
        return client

    def _stopped(self, provider: str, kind: KeyKind, bearer: str, *, answered: bool) -> None:
        masked = mask(bearer) if bearer else "no key"
        self.traffic.add_stopped(provider, kind.value, masked, answered=answered)
        log.warning("key stopped", provider=provider, kind=kind.value, key=masked, answered=answered)

    # --- control ------------------------------------------------------------------------------------------------

    async def _control(self, scope: Scope, send: Send) -> None:
        path, method = scope["path"].removeprefix("/control/"), scope["method"]
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        if path == "health":
            await _answer(send, 200, {"status": "ok", "service": SERVICE})
        elif not hmac.compare_digest(_header(scope, TOKEN_HEADER), self._token):
            await _refuse(send, 401, "unauthorized", f"The control token is missing or wrong ({TOKEN_HEADER}).")
        elif (path, method) == ("traffic", "GET"):
            after = query.get("after", "0")
            if "refresh" in query:
                await self.keys.refresh()
            document = self.traffic.as_json(int(after) if after.isdecimal() else 0)
            document["providers"] = {
                one.name: {"upstream": one.upstream, "key": one.masked_key, "problem": one.problem}
                for one in self.keys.providers
            }
            await _answer(send, 200, document)
        elif (path, method) == ("calls", "DELETE") and query.get("agent"):
            await _answer(send, 200, {"ended": self.traffic.end(query["agent"])})
        else:
            await _refuse(send, 404, "not_found", "There are GET traffic and DELETE calls?agent=ID.")


class _Exchange:
    """One request to a vendor and its answer."""

    def __init__(
        self, gateway: Gateway, admission: Admission, scope: Scope, rest: str, body: bytes | None, send: Send
    ) -> None:
        self._gateway = gateway
        self._desired = admission.desired
        self._key = admission.key
        self._scope = scope
        self._rest = rest
        self._send = send
        self._started = False
        self._body = body
        self._document = _parse(body)
        self._adapted: dict[str, Any] | None = None
        self._quirks = admission.desired.vendor.quirks
        # Servers that count their tool calls use the same ids for every agent.
        self._conversation = f"{self._desired.name}/{_agent_of(self._document)}"
        model = None if self._document is None else self._document.get("model")
        self.call = Call(
            self._desired.name,
            _agent_of(self._document),
            model if isinstance(model, str) else None,
        )

    async def run(self) -> None:
        """Send the request, and pass the answer on as it comes."""
        began = time.monotonic()
        try:
            async with self._gateway.client(self._desired).stream(
                self._scope["method"],
                self._url(),
                content=self._content(),
                headers=self._request_headers(),
            ) as response:
                if response.is_error:
                    await self._refused(response)
                else:
                    await self._accepted(response, began)
        except httpx.RequestError as error:
            await self._failed(error)

    async def abort(self) -> None:
        """Answer a request that was given up; an answer that has begun is broken off."""
        if self._started:
            raise _Disconnected
        await _refuse(self._send, 503, "turn_over", "The turn is over, so Isabella's gateway ended the request.")

    def _url(self) -> str:
        query = self._scope["query_string"].decode("latin-1")
        return f"{self._desired.upstream}/{self._rest}" + (f"?{query}" if query else "")

    def _content(self) -> bytes | None:
        if self._document is None or self._rest != "chat/completions":
            return self._body
        self._adapted = adapt_request(
            self._document, self._quirks, self._gateway.reasoning, provider=self._conversation
        )
        # ASCII, because half a surrogate pair has no other form.
        return json.dumps(self._adapted, separators=(",", ":")).encode()

    def _request_headers(self) -> dict[str, str]:
        headers = {
            "authorization": f"Bearer {self._key.get_secret_value()}",
            "accept": _header(self._scope, "accept").decode("latin-1") or "*/*",
            # An answer that is passed on as it comes, and read on the way, must not be compressed.
            "accept-encoding": "identity",
            "user-agent": "isabella",
        }
        if self._body is not None:
            headers["content-type"] = "application/json"
        return headers

    async def _accepted(self, response: httpx.Response, began: float) -> None:
        reader = AnswerReader(keep_reasoning=self._quirks.reasoning_required)
        first = True
        async for chunk in response.aiter_raw():
            if first:
                first = False
                if self._body is not None:
                    # A vendor lists its models for a key without funds, too: only a POST shows that it answers.
                    self._gateway.traffic.accepted(self._desired.name, (time.monotonic() - began) * 1000)
                await self._start(response.status_code, _encoded(_kept_headers(response)))
            reader.feed(chunk)
            if reader.finish_reason is not None:
                # Before the end is sent: Letta's next step may follow at once.
                self._remember(reader)
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        if first:
            await self._start(response.status_code, _encoded(_kept_headers(response)))
        self._finish(reader, response)
        await self._send({"type": "http.response.body", "body": b""})

    def _finish(self, reader: AnswerReader, response: httpx.Response) -> None:
        reader.close()
        self._remember(reader)
        if reader.error is not None:
            self._gateway.traffic.add_outcome(
                self.call, "broken", redact(words_of(reader.error)), status=response.status_code
            )
        self._gateway.traffic.used(
            self._desired.name, reader.prompt_tokens or 0, reader.completion_tokens or 0, self._limits(response)
        )

    def _remember(self, reader: AnswerReader) -> None:
        if self._adapted is not None and reader.spoken is not None:
            self._gateway.reasoning.remember(self._conversation, self._adapted, reader.spoken)

    def _limits(self, response: httpx.Response) -> RateLimits:
        return parse_limits(response.headers, now=time.time(), request_period=self._quirks.request_limit_period)

    async def _refused(self, response: httpx.Response) -> None:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > _LARGEST_REFUSAL:
                break
        refusal = adapt_refusal(
            response.status_code, _kept_headers(response), bytes(body), self._quirks, now=time.time()
        )
        self._gateway.traffic.add_outcome(
            self.call,
            "refused",
            redact(refusal.words),
            status=response.status_code,
            retry_after=refusal.retry_after,
            window=refusal.window,
            never_fits=refusal.never_fits,
        )
        self._gateway.traffic.used(self._desired.name, 0, 0, self._limits(response))
        headers = [
            *_encoded(refusal.headers),
            (b"content-length", str(len(refusal.body)).encode()),
        ]
        await self._start(refusal.status, headers)
        await self._send({"type": "http.response.body", "body": refusal.body})

    async def _failed(self, error: httpx.RequestError) -> None:
        """Answer for a vendor that did not answer, or whose answer broke off."""
        title, what = self._desired.vendor.title, redact(str(error)) or type(error).__name__
        if self._started:
            self._gateway.traffic.add_outcome(self.call, "broken", f"the answer broke off: {what}")
            raise _Disconnected from None
        self._gateway.traffic.add_outcome(self.call, "unreachable", what)
        silent = isinstance(error, httpx.TimeoutException)
        status = 504 if silent else 502
        await _refuse(
            self._send, status, "vendor_unreachable", f"{title} at {self._desired.upstream} does not answer: {what}"
        )

    async def _start(self, status: int, headers: Headers) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


# --- requests -------------------------------------------------------------------------------------------------------


def _bearer(scope: Scope) -> str:
    kind, _, key = _header(scope, "authorization").decode("latin-1").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _header(scope: Scope, name: str) -> bytes:
    wanted = name.encode()
    return next((value for key, value in scope["headers"] if key == wanted), b"")


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the body of a request.

    Raises:
        _Disconnected: the client has gone.
        _Unreadable: it is too large, or does not come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Disconnected
                body += message.get("body", b"")
                if len(body) > _LARGEST_REQUEST:
                    # Not 413, which Letta takes for a context that is too long (fact G3).
                    raise _Unreadable(400, "request_too_large", "The request has more than 32 MiB.")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise _Unreadable(408, "request_timeout", f"The request did not come within {_BODY_SECONDS:g} s.") from None


def _parse(body: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object in a body; None for anything else, which the vendor has to refuse."""
    try:
        document = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _agent_of(document: Mapping[str, Any] | None) -> str | None:
    """Return Letta's id of the agent. Letta puts it at the end of every system prompt."""
    messages = (document or {}).get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    content = first.get("content") if isinstance(first, dict) else None
    found = _AGENT.findall(content) if isinstance(content, str) else []
    return found[-1] if found else None


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- answers --------------------------------------------------------------------------------------------------------


def _kept_headers(response: httpx.Response) -> dict[str, str]:
    """Return the headers of the vendor that Letta gets. Cookies and the like are none of its business."""
    return {
        name: value
        for name, value in response.headers.items()
        if name in _FORWARDED or name.startswith(_LIMIT_HEADER)
    }


def _encoded(headers: Mapping[str, str]) -> Headers:
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]


async def _answer(send: Send, status: int, document: object, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    body = json.dumps(document).encode()
    own = [_JSON, (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, status: int, code: str, message: str, *, close: bool = False) -> None:
    """Answer with an error of the gateway itself, in OpenAI's shape."""
    error = {"message": message, "type": SERVICE, "param": None, "code": code}
    headers = [_NO_RETRY, *([(b"connection", b"close")] if close else [])]
    await _answer(send, status, {"error": error}, headers)
