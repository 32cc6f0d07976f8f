"""One request at a practice vendor, and its answer or its fault.

Written for ASGI itself, without a framework: the benchmarks measure the time to the first token through this module.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any
from urllib.parse import parse_qs

from uvicorn.protocols.http.h11_impl import H11Protocol

from isabella.practice import assistant
from isabella.practice.limits import LimitDecision
from isabella.practice.prompt import read_prompt
from isabella.practice.refusals import Judgement, PracticeRefusal, ReceivedRequest
from isabella.practice.vendor import ActiveFaults, PracticeVendor, Progress, Route, VendorFault, fingerprint
from isabella.practice.wire import (
    END_OF_STREAM,
    Generation,
    ModelCompletion,
    PracticeModel,
    embeddings_answer,
    endless_tokens,
    to_json,
    tokens_of,
)
from isabella.system.http_server import Headers
from isabella.system.redaction import mask

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

_LARGEST_BODY = 64 * 1024 * 1024
#: Seconds that a client has to read the first part of an answer before its connection is reset.
_BEFORE_RESET = 0.5
#: Seconds between the tokens of an endless answer for which no other time is given; it lets the server do other work.
_ENDLESS_PACE = 0.001
_PROXY_PAGE = (
    b"<html>\r\n<head><title>%d %s</title></head>\r\n<body>\r\n<center><h1>%d %s</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)


class ClientDisconnected(Exception):
    """The connection can no longer be used: the client closed it, or sent too much."""


class Transports:
    """The open connections of a server by the client's address, so that faults can break them."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}

    def reset(self, scope: Scope) -> None:
        """Break a request's connection with a TCP reset."""
        transport = self._open.get(tuple(scope["client"]))
        if transport is None or transport.is_closing():
            return
        connection = transport.get_extra_info("socket")
        # With no time to linger, closing the socket sends a reset instead of an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def end(self, scope: Scope) -> None:
        """Close a request's connection after what has been written, without the end mark of the answer."""
        transport = self._open.get(tuple(scope["client"]))
        if transport is not None:
            transport.close()

    def is_open(self, scope: Scope) -> bool:
        """Whether the client of a request is still connected."""
        transport = self._open.get(tuple(scope["client"]))
        return transport is not None and not transport.is_closing()

    def abort_all(self) -> None:
        """Break all connections, so that the server does not wait for their answers."""
        for transport in list(self._open.values()):
            transport.abort()

    def protocol(self) -> type[asyncio.Protocol]:
        """Return an HTTP protocol for uvicorn that registers its connections here."""
        open_transports = self._open

        class RegisteredProtocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if self.client is not None:
                    open_transports[self.client] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                if self.client is not None:
                    open_transports.pop(self.client, None)
                super().connection_lost(exc)

        return RegisteredProtocol


class VendorExchange:
    """A request at a vendor, and its answer; `scope`, `receive` and `send` are those of ASGI."""

    def __init__(
        self, vendor: PracticeVendor, transports: Transports, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._vendor = vendor
        self._profile = vendor.profile
        self._transports = transports
        self._scope = scope
        self._receive = receive
        self._send = send
        self._at = time.time()
        self._progress = Progress()
        #: When the model has generated the latest token, in monotonic seconds; None before it has begun.
        self._generated: float | None = None
        self._request_id = f"req_{secrets.token_hex(13)}"
        self._key = _bearer(scope)
        self._key_sha256 = None if self._key is None else fingerprint(self._key)
        self._accepted = vendor.accepts(self._key_sha256)
        self._route, self._listed_model = self._find_route()
        self._admission: LimitDecision | None = None

    async def answer(self) -> None:
        """Read the request, and answer or refuse it, or fail it as the vendor's faults say.

        Raises:
            ClientDisconnected: the client did not wait for the answer.
        """
        request = self._understand(await read_body(self._receive))
        try:
            await self._answer(request)
        except ClientDisconnected:
            self._progress.end("disconnected")
            raise
        except BaseException:
            self._progress.end("broken")
            raise

    async def _answer(self, request: ReceivedRequest) -> None:
        faults = self._vendor.faults.take(self._route, accepted=self._accepted)
        fault = faults.fault
        # A fault of the network or a proxy comes before the vendor looks at the key.
        if fault is not None and fault.before_the_vendor:
            await self._fail_early(request, fault, faults)
            return
        accepted = None if self._key is None and not self._accepted else self._accepted
        judgement = Judgement(self._vendor, request, fault, accepted=accepted)
        refusal, self._admission = judgement.refusal, judgement.admission
        self._log(request, 200 if refusal is None else refusal.shape.status, fault)
        await self._pause(faults.latency)
        if refusal is not None:
            await self._refuse(refusal, fault)
        elif self._route == "other":
            await self._deliver(self._own_route(request.body), fault)
        elif request.model is None or self._route == "models":
            await self._deliver(self._models(), fault)
        elif self._route == "chat":
            await self._complete(request, request.model, faults)
        else:
            await self._deliver(embeddings_answer(request.model, request.body, id=self._request_id), fault)

    def _find_route(self) -> tuple[Route | None, str | None]:
        """Return the route of the request, and the model in its path."""
        prefix, method = self._profile.path + "/", self._scope["method"]
        path = self._scope["path"].rstrip("/").removeprefix(prefix)
        if self._own_path in {name.partition(" ")[2].partition(" ")[0] for name in self._profile.routes}:
            return "other", None
        if not self._scope["path"].startswith(prefix):
            return None, None
        if method in ("GET", "HEAD") and (path == "models" or path.startswith("models/")):
            return "models", path.removeprefix("models").removeprefix("/") or None
        if method == "POST" and path == "chat/completions":
            return "chat", None
        embeds = any(model.dimensions for model in self._profile.models.values())
        return ("embeddings" if method == "POST" and path == "embeddings" and embeds else None), None

    @property
    def _own_path(self) -> str:
        """The path below the vendor's name."""
        return str(self._scope["path"]).removeprefix(f"/{self._profile.name}")

    def _own_route(self, body: Mapping[str, Any]) -> object:
        """Return the answer of one of its other routes; an empty one if it does not know the model."""
        asked = f"{self._scope['method']} {self._own_path}"
        return self._profile.routes.get(f"{asked} {body.get('model')}") or self._profile.routes.get(asked, {})

    async def _fail_early(self, request: ReceivedRequest, fault: VendorFault, faults: ActiveFaults) -> None:
        self._log(request, fault.html or 0, fault)
        await self._pause(faults.latency)
        if fault.html is not None:
            phrase = http.client.responses.get(fault.html, "Error").encode()
            page = _PROXY_PAGE % (fault.html, phrase, fault.html, phrase)
            await self._respond(fault.html, page, content_type=b"text/html")
            return
        if fault.hang is not None:
            await self._pause(fault.hang)
        await self._break(reset=fault.reset is not None)

    async def _refuse(self, refusal: PracticeRefusal, fault: VendorFault | None) -> None:
        shape, values = refusal.shape, dict(refusal.values)
        retry_after = shape.retry_after if refusal.retry_after is None else refusal.retry_after
        body: bytes | None = None
        if fault is not None and fault.status == shape.status:
            retry_after = fault.retry_after if fault.retry_after is not None else retry_after
            body = None if fault.body is None else fault.body.encode()
        headers = self._headers()
        if retry_after is not None:
            headers.append((b"retry-after", f"{retry_after:g}".encode()))
        if body is None:
            problem = {"type": "value_error", "loc": ["body"], "msg": values["detail"], "input": None}
            values.setdefault("problems", [problem])
            values |= {"request_id": self._request_id, "retry_after": f"{retry_after or 0:g}"}
            body = shape.filled(**values, key_end=(self._key or "")[-4:])
        await self._respond(shape.status, body, headers)

    async def _complete(self, request: ReceivedRequest, model: PracticeModel, faults: ActiveFaults) -> None:
        identity = f"{model.id} at {self._profile.title} (a practice vendor)"
        prompt = read_prompt(request.body)
        stuck = assistant.stuck_reply(prompt) if faults.stuck else None
        reply = stuck or assistant.reply(prompt, identity=identity)
        reasons = model.reasons and self._profile.wants_reasoning(request.body)
        limit = model.max_output if request.output_limit is None else request.output_limit
        tokens = tokens_of(reply, reasons=reasons)
        if faults.endless:
            cleared = self._vendor.faults.cleared
            tokens = endless_tokens(reply, reasons=reasons)
            tokens = takewhile(lambda _: self._vendor.faults.cleared == cleared, tokens)
            limit = limit or model.window
        generation = Generation(tokens, limit)
        completion = ModelCompletion.of(
            self._profile, str(request.body["model"]), prompt_tokens=request.prompt_tokens, calls=len(reply.calls)
        )
        if request.body.get("stream"):
            options = request.body.get("stream_options")
            include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            await self._stream(completion.pieces(generation, include_usage=include_usage), generation, faults)
            return
        generated = []
        for token in generation:
            if faults.endless:
                await self._pace(faults)
            self._progress.generate(generation.tokens)
            generated.append(token)
        await self._deliver(completion.whole(generated, generation), faults.fault)

    async def _stream(self, pieces: Iterable[bytes], generation: Generation, faults: ActiveFaults) -> None:
        fault = faults.fault
        breaks = fault is not None and (fault.truncated or fault.reset == "midway")
        if fault is not None and fault.malformed:
            first, *_, last = pieces
            pieces = [first, b'data: {"id":"chatcmpl-broken","choices":[{"delta":{"content":"He\n\n', last]
        elif breaks:
            complete = list(pieces)
            pieces = complete[: max(1, len(complete) // 2)]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers + self._headers()})
        cleared = self._vendor.faults.cleared
        for index, piece in enumerate(pieces):
            if index and self._vendor.faults.cleared == cleared:
                await self._pace(faults)
            if not self._transports.is_open(self._scope):
                raise ClientDisconnected
            self._progress.generate(generation.tokens)
            if piece == END_OF_STREAM:
                # The client may leave with this piece: what it sees is noted before.
                self._progress.end("completed")
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if breaks:
            await self._break_midway(fault)
        else:
            await self._send({"type": "http.response.body", "body": b""})

    async def _pace(self, faults: ActiveFaults) -> None:
        """Wait until the model has the next token: it generates at its pace, however fast its tokens are sent."""
        seconds = faults.between or (_ENDLESS_PACE if faults.endless else 0.0)
        if seconds:
            now = time.monotonic()
            self._generated = (self._generated or now) + seconds
            # Other requests are served, too, if this answer is late and is not paused.
            await asyncio.sleep(0)
            await self._pause(self._generated - now)

    async def _deliver(self, answer: object, fault: VendorFault | None) -> None:
        """Send a JSON answer, whole or as the fault says."""
        body = to_json(answer)
        headers = self._headers()
        if not self._transports.is_open(self._scope):
            raise ClientDisconnected
        if fault is not None and fault.malformed:
            await self._respond(200, body[: len(body) // 2], headers)
        elif fault is not None and (fault.truncated or fault.reset == "midway"):
            announced = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": announced + headers})
            await self._send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await self._break_midway(fault)
        else:
            await self._respond(200, body, headers)

    async def _break_midway(self, fault: VendorFault | None) -> None:
        resets = fault is not None and fault.reset is not None
        if resets:
            # A reset discards what the client has not read yet; the pause lets it read the first half.
            await self._pause(_BEFORE_RESET)
        await self._break(reset=resets)

    async def _break(self, *, reset: bool) -> None:
        """Break the connection, with a reset or by an end without the end mark of the answer."""
        self._progress.end("broken")
        if reset:
            self._transports.reset(self._scope)
        else:
            self._transports.end(self._scope)
        await self._until_disconnected()

    async def _until_disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _respond(
        self, status: int, body: bytes, headers: Headers | None = None, *, content_type: bytes = b"application/json"
    ) -> None:
        self._progress.end("completed")
        await respond(self._send, status, body, headers, content_type=content_type)

    def _models(self) -> object:
        """Return the model list, or one entry; a vendor that knows the format of OpenRouter is asked for it."""
        wanted = parse_qs(self._scope["query_string"].decode("latin-1")).get("format", [""])[0]
        one = None if self._listed_model is None else self._profile.models[self._listed_model]
        listed = self._profile.listed if one is None else (one,)
        entries = [model.openrouter for model in listed if model.openrouter is not None]
        envelope: dict[str, object] = {}
        if wanted != "openrouter" or not entries:
            entries, envelope = [model.item for model in listed], {"object": "list"}
        if one is None and self._profile.bare_list:
            return entries
        return envelope | {"data": entries} if one is None else entries[0]

    def _understand(self, raw: bytes) -> ReceivedRequest:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        return ReceivedRequest(
            profile=self._profile,
            path=self._scope["path"],
            route=self._route,
            listed_model=self._listed_model,
            body=body if isinstance(body, dict) else {},
            length=len(raw),
            valid=isinstance(body, dict),
        )

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the client disconnects."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._until_disconnected()
        except TimeoutError:
            return
        raise ClientDisconnected

    def _headers(self) -> Headers:
        request_id = self._request_id.encode()
        headers = [(b"x-request-id", request_id)]
        if self._profile.correlation_header:
            headers.append((self._profile.correlation_header.encode(), request_id))
        if self._accepted and self._route in ("chat", "embeddings"):
            headers += [(name.encode(), value.encode()) for name, value in self._limit_headers().items()]
        return headers

    def _limit_headers(self) -> dict[str, str]:
        values = self._vendor.limits.told() if self._admission is None else self._admission.told
        told = {
            f"%{name}%": self._profile.told_duration(value) if name.endswith("_reset") else str(value)
            for name, value in values.items()
        }
        return {name: told.get(value, value) for name, value in self._profile.limit_headers.items()}

    def _log(self, request: ReceivedRequest, status: int, fault: VendorFault | None) -> None:
        model = request.body.get("model", self._listed_model)
        self._vendor.log.add(
            self._progress,
            at=self._at,
            method=self._scope["method"],
            path=self._scope["path"],
            status=status,
            accepted=self._accepted,
            key_masked=None if self._key is None else mask(self._key),
            key_sha256=self._key_sha256,
            model=model if isinstance(model, str) else None,
            stream=bool(request.body.get("stream")),
            fault=None if fault is None else fault.kind,
            strictness=request.objections[0].text if request.objections else None,
        )


def _bearer(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            if kind.lower() == "bearer" and key.strip():
                return str(key.strip())
    return None


async def read_body(receive: Receive) -> bytes:
    """Return the body of a request.

    Raises:
        ClientDisconnected: the client disconnected, or the body is too large.
    """
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or len(body) > _LARGEST_BODY:
            raise ClientDisconnected
        if not message.get("more_body", False):
            return bytes(body)


async def respond(
    send: Send, status: int, body: bytes, headers: Headers | None = None, *, content_type: bytes = b"application/json"
) -> None:
    """Send an answer in one piece."""
    own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": own + (headers or [])})
    await send({"type": "http.response.body", "body": body})
