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
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx2 as httpx
import structlog
from pydantic import SecretStr

from isabella.config.gateway_address import SERVICE
from isabella.gateway.adapting import adapt_request
from isabella.gateway.answers import AnswerReader, ReasoningMemory, with_numbered_calls
from isabella.gateway.keys import Admission, KeyKind, KeyRing, NotAdmitted
from isabella.gateway.limits import RateLimits, parse_limits
from isabella.gateway.quotes import without_quotes
from isabella.gateway.refusals import adapt_refusal, error_body, json_body, refuses_key, refuses_tools, words_of
from isabella.gateway.traffic import Call, Traffic
from isabella.providers.desired import Desired
from isabella.system import tracing
from isabella.system.http_server import Headers, admit
from isabella.system.redaction import mask, redact
from isabella.system.urls import AS_SENT_HEADER, GATEWAY_PATH, client_options

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

log = structlog.get_logger()

#: The header that carries the control token.
TOKEN_HEADER = "x-isabella-gateway-token"  # noqa: S105

_LARGEST_REFUSAL = 256 * 1024
_REFUSAL_SECONDS = 5.0
#: No vendor takes so long between two parts of an answer. A client gives up earlier.
_SILENCE_SECONDS = 900.0
_CONNECT_SECONDS = 10.0
_AGENT = re.compile(r"AGENT_ID: (agent-[0-9a-f-]{36})")
_FORWARDED = ("content-type", "retry-after", "retry-after-ms", "x-request-id")
_TOOL_FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
_LIMIT_HEADER = "x-ratelimit-"
#: The compressed forms of an answer that can be read, although none is asked for.
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_LONGEST_NUMBER = 20
#: Characters that a server may take for the end of a path or of a segment.
_SPECIAL = frozenset("\\?#")
_MIB = 1024 * 1024
_MOST_TRACES = 10_000


@dataclass(frozen=True)
class GatewayLimits:
    """The limits of a request to the gateway.

    Attributes:
        head_seconds: the time for its head, from the connection or the first byte after an answer.
        body_seconds: the time for its body.
        largest: the size of its body in bytes.
    """

    head_seconds: float = 30.0
    body_seconds: float = 30.0
    largest: int = 32 * _MIB


class _Disconnected(Exception):
    """The client has closed the connection, or it must be closed."""


class Gateway:
    """The gateway as an ASGI application.

    Args:
        keys: decides about the key of a request.
        traffic: receives what the requests show of the vendors.
        token: the control token.
        limits: the limits of a request.

    Attributes:
        reasoning: the reasoning of earlier answers, for vendors that require it back.
        without_tools: providers and models that refused a request because of its tools.
        traces: the W3C `traceparent` of the turn that is under way, by Letta's id of the agent.
    """

    def __init__(
        self, keys: KeyRing, traffic: Traffic, token: SecretStr, limits: GatewayLimits | None = None
    ) -> None:
        self.keys = keys
        self.traffic = traffic
        self._limits = limits or GatewayLimits()
        self._token = token.get_secret_value().encode()
        self._clients: dict[str, httpx.AsyncClient] = {}
        self.reasoning = ReasoningMemory()
        self.without_tools: set[tuple[str, str | None]] = set()
        self.traces: dict[str, str] = {}

    async def close(self) -> None:
        """Close the connections to the vendors."""
        for client in self._clients.values():
            await client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        try:
            await self._answer(scope, receive, send)
        except _Disconnected:
            # uvicorn closes a connection on which an answer is missing or incomplete.
            return
        except NotAdmitted as refused:
            await _refuse(send, refused.status, refused.code, str(refused), close=refused.close)
        except Exception as error:  # noqa: BLE001 - uvicorn would log the message, which may quote the request
            log.error("request failed", error=type(error).__name__, at=_where(error))
            await _refuse(send, 500, "internal_error", f"Isabella's gateway failed ({type(error).__name__}).")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1").partition("?")[0]
        if path.startswith(GATEWAY_PATH):
            await self._forward(path.removeprefix(GATEWAY_PATH), scope, receive, send)
        elif path.startswith("/control/"):
            await self._control(scope, send)
        else:
            raise NotAdmitted(404, "not_found", f"Isabella's gateway has no path {path}.")

    # --- a request to a vendor ----------------------------------------------------------------------------------

    async def _forward(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, rest = path.partition("/v1/")
        provider, bearer = unquote(name), _bearer(scope)
        try:
            admission = await self.keys.admit(provider, bearer, scope["client"], scope["server"])
        except NotAdmitted as refused:
            if refused.foreign:
                self._stopped(provider, KeyKind.FOREIGN, bearer, answered=False)
            raise
        admit(scope)
        if not _is_plain(rest):
            raise NotAdmitted(404, "not_found", "Isabella's gateway does not forward this path.")
        if scope["method"] not in ("GET", "POST"):
            raise NotAdmitted(405, "method_not_allowed", "Isabella's gateway forwards GET and POST.")
        body = await _read_body(receive, self._limits) if scope["method"] == "POST" else None
        if scope["method"] == "GET" and admission.kind is KeyKind.STALE and _header(scope, AS_SENT_HEADER):
            # Isabella asks about the key that Letta holds.
            admission = replace(admission, key=SecretStr(bearer))
        elif admission.kind is not KeyKind.CONFIGURED:
            replaced = admission.key.get_secret_value() != bearer
            self._stopped(provider, admission.kind, bearer, answered=True, replaced=replaced)
        exchange = _Exchange(self, admission, scope, rest, body, send)
        call, method = exchange.call, scope["method"]
        parent = self.traces.get(call.agent or "") or _header(scope, "traceparent").decode("latin-1") or None
        with tracing.span(
            f"gateway {method}",
            tracing.SpanKind.SERVER,
            parent=parent,
            method=method,
            isabella_provider=call.provider,
            isabella_agent=call.agent,
            model=call.model,
        ):
            await self._run(exchange, receive)

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
            exchange.break_off()
            raise NotAdmitted(503, "turn_over", "The turn is over, so Isabella's gateway ended the request.")
        if task.exception() is not None:
            exchange.break_off()
        task.result()

    def client(self, desired: Desired) -> httpx.AsyncClient:
        """Return the client of a vendor, whose connections are used again."""
        client = self._clients.get(desired.upstream)
        if client is None:
            client = self._clients[desired.upstream] = httpx.AsyncClient(
                timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=20.0),
                # No cookie of one request belongs to another one.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                **client_options(desired.upstream),
            )
        return client

    def _stopped(self, provider: str, kind: KeyKind, bearer: str, *, answered: bool, replaced: bool = True) -> None:
        masked = mask(bearer) if bearer else "no key"
        self.traffic.add_stopped(provider, kind.value, masked, answered=answered, replaced=replaced)
        event = "key stopped" if replaced else "former key sent"
        log.warning(event, provider=provider, kind=kind.value, key=masked, answered=answered)

    # --- control ------------------------------------------------------------------------------------------------

    async def _control(self, scope: Scope, send: Send) -> None:
        path, method = scope["path"].removeprefix("/control/"), scope["method"]
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        if path == "health":
            await _respond(send, 200, *json_body({"status": "ok", "service": SERVICE}))
        elif not hmac.compare_digest(_header(scope, TOKEN_HEADER), self._token):
            raise NotAdmitted(401, "unauthorized", f"The control token is missing or wrong ({TOKEN_HEADER}).")
        elif (path, method) == ("traffic", "GET"):
            admit(scope)
            after = query.get("after", "0")
            if "refresh" in query:
                await self.keys.refresh()
            number = int(after) if after.isdecimal() and len(after) < _LONGEST_NUMBER else 0
            document = self.traffic.as_json(number, query.get("agent"))
            document["providers"] = {
                one.name: {"upstream": one.upstream, "key": one.masked_key, "problem": one.problem}
                for one in self.keys.providers
            }
            await _respond(send, 200, *json_body(document))
        elif path == "traces" and query.get("agent"):
            if method == "PUT" and len(self.traces) < _MOST_TRACES:
                self.traces[query["agent"]] = query.get("traceparent", "")
            elif method == "DELETE":
                self.traces.pop(query["agent"], None)
            await _respond(send, 200, *json_body({}))
        elif (path, method) == ("calls", "DELETE") and query.get("agent"):
            await _respond(send, 200, *json_body({"ended": self.traffic.end(query["agent"])}))
        else:
            raise NotAdmitted(
                404, "not_found", "There are GET traffic, DELETE calls?agent=ID, PUT and DELETE traces."
            )


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
        self._cut = False
        self._body = body
        self._document = _parse(body)
        self._adapted: dict[str, Any] | None = None
        self._quirks = admission.desired.vendor.quirks
        model = None if self._document is None else self._document.get("model")
        self.call = Call(self._desired.name, _agent_of(self._document), model if isinstance(model, str) else None)
        # Servers that count their tool calls use the same ids for every agent.
        self._conversation = f"{self.call.provider}/{self.call.agent}"

    async def run(self) -> None:
        """Send the request, and pass the answer on as it comes."""
        host = httpx.URL(self._desired.upstream).host
        with tracing.span(
            f"vendor {self._scope['method']}",
            tracing.SpanKind.CLIENT,
            method=self._scope["method"],
            isabella_provider=self.call.provider,
            model=self.call.model,
            server_address=host,
        ) as span:
            await self._ask(span)

    async def _ask(self, span: tracing.NoSpan) -> None:
        began = time.monotonic()
        try:
            async with self._gateway.client(self._desired).stream(
                self._scope["method"],
                self._url(),
                content=self._content(),
                headers=self._request_headers(),
            ) as response:
                span.set(status_code=response.status_code)
                if response.is_error:
                    await self._refused(response)
                elif (problem := _problem(response)) is not None:
                    await self._unusable(response, problem)
                else:
                    await self._accepted(response, began)
        except httpx.RequestError as error:
            await self._failed(error)

    def break_off(self) -> None:
        """Break off an answer that has begun.

        Raises:
            _Disconnected: it had begun.
        """
        if self._started:
            raise _Disconnected

    def _url(self) -> str:
        query = self._scope["query_string"].decode("latin-1")
        return f"{self._desired.upstream}/{self._rest}" + (f"?{query}" if query else "")

    def _content(self) -> bytes | None:
        if self._document is None or self._rest != "chat/completions":
            return self._body
        document = self._document
        if (self.call.provider, self.call.model) in self._gateway.without_tools:
            document = {name: value for name, value in document.items() if name not in _TOOL_FIELDS}
        self._adapted = adapt_request(document, self._quirks, self._gateway.reasoning, provider=self._conversation)
        # ASCII, because half a surrogate pair has no other form.
        return json.dumps(self._adapted, separators=(",", ":")).encode()

    def _request_headers(self) -> Headers:
        headers = [
            (b"authorization", b"Bearer " + self._key.get_secret_value().encode("latin-1")),
            (b"accept", _header(self._scope, "accept") or b"*/*"),
            # An answer that is passed on as it comes, and read on the way, must not be compressed.
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"isabella"),
            *((name.encode(), value.encode()) for name, value in tracing.headers().items()),
        ]
        return headers if self._body is None else [*headers, (b"content-type", b"application/json")]

    async def _accepted(self, response: httpx.Response, began: float) -> None:
        reader = AnswerReader(keep_reasoning=self._quirks.reasoning_required)
        content = _content_of(response)
        first = True
        async for chunk in with_numbered_calls(content) if self._quirks.unnumbered_calls else content:
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
                self._note_cut(reader)
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        if first:
            await self._start(response.status_code, _encoded(_kept_headers(response)))
        self._finish(reader, response)
        await self._send({"type": "http.response.body", "body": b""})

    def _finish(self, reader: AnswerReader, response: httpx.Response) -> None:
        reader.close()
        self._remember(reader)
        self._note_cut(reader)
        if reader.error is not None:
            self._gateway.traffic.add_outcome(
                self.call, "broken", self._scrubbed(words_of(reader.error)), status=response.status_code
            )
        self._gateway.traffic.used(
            self._desired.name, reader.prompt_tokens or 0, reader.completion_tokens or 0, self._limits(response)
        )

    def _remember(self, reader: AnswerReader) -> None:
        if self._adapted is not None and reader.spoken is not None:
            self._gateway.reasoning.remember(self._conversation, self._adapted, reader.spoken)

    def _note_cut(self, reader: AnswerReader) -> None:
        """Note that the answer reached its limit of tokens. Letta does not pass that on."""
        if reader.finish_reason == "length" and not self._cut:
            self._cut = True
            self._gateway.traffic.add_outcome(self.call, "cut", "the answer reached the limit of tokens")

    def _limits(self, response: httpx.Response) -> RateLimits:
        return parse_limits(response.headers, now=time.time(), request_period=self._quirks.request_limit_period)

    async def _refused(self, response: httpx.Response) -> None:
        body = await _start_of(response)
        refusal = adapt_refusal(response.status_code, _kept_headers(response), body, self._quirks, now=time.time())
        if (self._adapted or {}).get("tools") and refuses_tools(refusal.words):
            self._gateway.without_tools.add((self.call.provider, self.call.model))
        if refuses_key(response.status_code, refusal.words):
            self._gateway.keys.refused()
        self._gateway.traffic.add_outcome(
            self.call,
            "refused",
            self._scrubbed(refusal.words) or f"{_kind_of(response)} without an error message",
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

    async def _unusable(self, response: httpx.Response, problem: str) -> None:
        """Answer for a vendor whose answer is neither an answer nor a refusal."""
        self._gateway.traffic.add_outcome(self.call, "broken", problem, status=response.status_code)
        at = f"{self._desired.vendor.title} at {self._desired.upstream}"
        raise NotAdmitted(502, "vendor_answer_unusable", f"{at} answered with {problem}.")

    async def _failed(self, error: httpx.RequestError) -> None:
        """Answer for a vendor that did not answer, or whose answer broke off."""
        what = _words_of(error)
        if self._started:
            self._gateway.traffic.add_outcome(self.call, "broken", f"the answer broke off: {what}")
            raise _Disconnected from None
        self._gateway.traffic.add_outcome(self.call, "unreachable", what)
        status = 504 if isinstance(error, httpx.TimeoutException) else 502
        at = f"{self._desired.vendor.title} at {self._desired.upstream}"
        raise NotAdmitted(status, "vendor_unreachable", f"{at} does not answer: {what}.") from None

    def _scrubbed(self, words: str) -> str:
        """Return the vendor's words without keys, and without the parts of the request that they quote."""
        malformed = {"prompt": (self._body or b"").decode("utf-8", "replace")}
        return redact(without_quotes(words, malformed if self._document is None else self._document))

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


def _is_plain(path: str) -> bool:
    """Return whether this is a path below a vendor's base URL that no server understands as another one."""
    segments = unquote(path).split("/")
    return all(
        segment not in ("", ".", "..")
        and segment.isascii()
        and segment.isprintable()
        and not _SPECIAL.intersection(segment)
        for segment in segments
    )


async def _read_body(receive: Receive, limits: GatewayLimits) -> bytes:
    """Return the body of a request.

    Raises:
        _Disconnected: the client has gone.
        NotAdmitted: it is too large, or does not come.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Disconnected
                body += message.get("body", b"")
                if len(body) > limits.largest:
                    # Not 413, which Letta takes for a context that is too long (fact G3).
                    raise NotAdmitted(
                        400, "request_too_large", f"The request has more than {limits.largest // _MIB} MiB."
                    )
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise NotAdmitted(
            408, "request_timeout", f"The request did not come within {limits.body_seconds:g} s.", close=True
        ) from None


def _parse(body: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object in a body; None for anything else, which the vendor must refuse."""
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


def _kind_of(response: httpx.Response) -> str:
    is_page = response.headers.get("content-type", "").lower().startswith("text/html")
    return "a web page" if is_page else "an answer"


def _problem(response: httpx.Response) -> str | None:
    """Return why a response is not the vendor's answer, as a noun phrase; None if it is."""
    encoding = response.headers.get("content-encoding", "").lower()
    if response.has_redirect_location:
        return f"a redirect ({response.status_code}), which is not followed: correct the base URL"
    if not response.is_success:
        return f"the status {response.status_code}"
    if _kind_of(response) == "a web page":
        return "a web page, as a proxy or a wrong base URL does"
    return None if encoding in _ENCODINGS else "a compressed answer, for which it was not asked"


def _content_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Return the decoded content as it comes."""
    return response.aiter_bytes() if "content-encoding" in response.headers else response.aiter_raw()


async def _start_of(response: httpx.Response) -> bytes:
    """Return the start of a refusal, as far as it comes in time and can be decoded."""
    body = bytearray()
    with suppress(httpx.RequestError, TimeoutError):
        async with asyncio.timeout(_REFUSAL_SECONDS):
            async for chunk in _content_of(response):
                body += chunk
                if len(body) > _LARGEST_REFUSAL:
                    break
    return bytes(body)


def _words_of(error: httpx.RequestError) -> str:
    """Describe a failure, without the bytes of an answer, which the text of a protocol error may quote."""
    match error:
        case httpx.TimeoutException():
            return "nothing came in time"
        case httpx.RemoteProtocolError():
            return "the connection was closed, or what came is not HTTP"
        case httpx.DecodingError():
            return "the compressed answer is damaged"
        case _:
            return redact(str(error)) or type(error).__name__


def _where(error: BaseException) -> str:
    """Return the place in the source at which an error was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.name}:{frame.lineno}"


async def _respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, status: int, code: str, message: str, *, close: bool = False) -> None:
    """Answer with an error of the gateway itself, in OpenAI's shape."""
    body, headers = error_body(code, message)
    await _respond(send, status, body, [*headers, (b"connection", b"close")] if close else headers)
