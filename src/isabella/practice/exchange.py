"""One request at a practice vendor, and its answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from isabella.practice import assistant, embeddings, situation, strictness
from isabella.practice.completions import ModelCompletion
from isabella.practice.faults import ActiveFaults, Route, VendorFault
from isabella.practice.profiles import ListedModel, RefusalShape
from isabella.practice.requests import Request, fingerprint
from isabella.practice.strictness import Objection
from isabella.practice.transports import Transports
from isabella.practice.vendor import PracticeVendor
from isabella.system.redaction import mask

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_LARGEST_BODY = 64 * 1024 * 1024
#: Seconds that a client has to read what came before its connection is reset.
_BEFORE_A_RESET = 0.5
_PROXY_PAGE = (
    b"<html>\r\n<head><title>%d %s</title></head>\r\n<body>\r\n<center><h1>%d %s</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_PHRASES = {
    200: b"OK",
    404: b"Not Found",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
}


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class VendorExchange:
    """One request at one vendor, and its answer.

    Args:
        vendor: the vendor that is asked.
        transports: the connections, for the faults that break them.
        scope: the request, as ASGI has it.
        receive: gives its body, and tells when the client has gone.
        send: takes the answer.
    """

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
        self._request_id = f"req_{secrets.token_hex(13)}"
        self._key = _bearer(scope)
        self._key_sha256 = None if self._key is None else fingerprint(self._key)
        self._accepted = vendor.takes(self._key_sha256)
        self._route, self._item = self._routed()
        self._body: Mapping[str, Any] = {}
        self._body_length = 0
        self._objections: tuple[Objection, ...] = ()

    async def answer(self) -> None:
        """Read the request, judge it, and answer it or let it fail.

        Raises:
            ClientGone: the client did not wait for the answer.
        """
        raw = await self._read_body()
        valid = self._parse(raw)
        if self._route == "chat":
            self._objections = strictness.objections(self._profile.name, self._body)
        weather = self._vendor.faults.befall(self._route, accepted=self._accepted)
        fault = weather.fault
        # What a network or a proxy does comes before the vendor looks at the key.
        if fault is not None and fault.before_the_vendor:
            await self._break_early(fault, weather)
            return
        refusal, places = self._judge(valid, fault)
        if refusal is not None:
            self._log(refusal.status, fault)
            await self._pause(weather.latency)
            await self._refuse(refusal, fault, places)
            return
        self._log(200, fault)
        await self._pause(weather.latency)
        model = self._model()
        if model is None or self._route == "models":
            await self._deliver(self._models(), fault)
        elif self._route == "chat":
            await self._complete(model, weather)
        else:
            await self._deliver(self._embeddings(model), fault)

    def _routed(self) -> tuple[Route | None, str | None]:
        """Which of the vendor's endpoints is asked for, and the model named in the path."""
        path, method = self._scope["path"], self._scope["method"]
        if not path.startswith(self._profile.path + "/"):
            return None, None
        rest = path[len(self._profile.path) + 1 :].rstrip("/")
        if method in ("GET", "HEAD") and rest == "models":
            return "models", None
        if method in ("GET", "HEAD") and rest.startswith("models/"):
            return "models", rest.removeprefix("models/")
        if method == "POST" and rest == "chat/completions":
            return "chat", None
        embeds = any(model.dimensions for model in self._profile.models.values())
        if method == "POST" and rest == "embeddings" and embeds:
            return "embeddings", None
        return None, None

    def _judge(self, valid: bool, fault: VendorFault | None) -> tuple[RefusalShape | None, dict[str, str]]:
        """The vendor's refusal of this request, if it refuses; the key is looked at first."""
        refusals = self._profile.refusals
        named = self._item if self._item is not None else self._body.get("model")
        places = {"model": str(named), "path": self._scope["path"], "detail": "Invalid request."}
        if self._key is None:
            return refusals["no_key"], places
        if not self._accepted:
            return refusals["wrong_key"], places
        if fault is not None and fault.status is not None:
            return self._profile.refusal_of(fault.status), places
        if self._route is None:
            return refusals["no_path"], places
        if self._route == "models":
            return (refusals["no_model"] if self._item and self._item not in self._profile.models else None), places
        if not valid:
            places["detail"] = "The body is not a JSON object."
            return refusals["bad_request"], places
        model = self._model()
        if model is None or (self._route == "chat") != model.chat:
            return refusals["no_model"], places
        wanted = "messages" if self._route == "chat" else "input"
        if not self._body.get(wanted):
            places["detail"] = f"{wanted}: field required"
            return refusals["bad_request"], places
        strict = self._vendor.strict
        refused = [one for one in self._objections if strict or (strict is None and one.certain)]
        if refused:
            places["detail"] = refused[0].text
            return refusals[refused[0].refusal], places
        return None, places

    def _model(self) -> ListedModel | None:
        name = self._body.get("model")
        return self._profile.models.get(name) if isinstance(name, str) else None

    async def _break_early(self, fault: VendorFault, weather: ActiveFaults) -> None:
        self._log(fault.html or 0, fault)
        await self._pause(weather.latency)
        if fault.html is not None:
            phrase = _PHRASES.get(fault.html, b"Error")
            page = _PROXY_PAGE % (fault.html, phrase, fault.html, phrase)
            await respond(self._send, fault.html, page, [], content_type=b"text/html")
        elif fault.hang is not None:
            await self._pause(fault.hang)
            self._transports.end(self._scope)
            await self._until_gone()
        else:
            self._transports.reset(self._scope)
            await self._until_gone()

    async def _refuse(self, refusal: RefusalShape, fault: VendorFault | None, places: dict[str, str]) -> None:
        asked_wait = refusal.retry_after
        body: bytes | None = None
        if fault is not None and fault.status == refusal.status:
            asked_wait = fault.retry_after if fault.retry_after is not None else asked_wait
            body = None if fault.body is None else fault.body.encode()
        headers = self._headers(0)
        if asked_wait is not None:
            headers.append((b"retry-after", f"{asked_wait:g}".encode()))
        if body is None:
            body = refusal.filled(**places, request_id=self._request_id, retry_after=f"{asked_wait or 0:g}")
        await respond(self._send, refusal.status, body, headers)

    async def _complete(self, model: ListedModel, weather: ActiveFaults) -> None:
        found = situation.read(self._body)
        reply = assistant.reply(found, speaker=f"{model.id} at {self._profile.title} (a practice vendor)")
        completion = ModelCompletion.of(
            self._profile, model, str(self._body["model"]), reply, prompt_characters=self._body_length
        )
        if not self._body.get("stream"):
            await self._deliver(completion.whole(), weather.fault, tokens=completion.usage["total_tokens"])
            return
        options = self._body.get("stream_options")
        include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        pieces = list(completion.pieces(include_usage=include_usage))
        await self._stream(pieces, weather, tokens=completion.usage["total_tokens"])

    async def _stream(self, pieces: list[bytes], weather: ActiveFaults, *, tokens: int) -> None:
        fault = weather.fault
        if fault is not None and fault.malformed:
            pieces = [pieces[0], b'data: {"id":"chatcmpl-broken","choices":[{"delta":{"content":"He\n\n', pieces[-1]]
        breaks = fault is not None and (fault.truncated or fault.reset == "midway")
        if breaks:
            pieces = pieces[: max(1, len(pieces) // 2)]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers + self._headers(tokens)})
        cleared = self._vendor.faults.cleared
        for index, piece in enumerate(pieces):
            if index and weather.between and self._vendor.faults.cleared == cleared:
                await self._pause(weather.between)
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if breaks:
            await self._break_midway(fault)
        else:
            await self._send({"type": "http.response.body", "body": b""})

    async def _deliver(self, body: bytes, fault: VendorFault | None, *, tokens: int = 0) -> None:
        """Send a JSON answer whole, or as a fault has it."""
        headers = self._headers(tokens)
        if fault is not None and fault.malformed:
            await respond(self._send, 200, body[: len(body) // 2], headers)
        elif fault is not None and (fault.truncated or fault.reset == "midway"):
            announced = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": announced + headers})
            await self._send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await self._break_midway(fault)
        else:
            await respond(self._send, 200, body, headers)

    async def _break_midway(self, fault: VendorFault | None) -> None:
        if fault is not None and fault.reset is not None:
            # A reset throws away what the client has not read yet; this lets it read the first half.
            await self._pause(_BEFORE_A_RESET)
            self._transports.reset(self._scope)
        else:
            self._transports.end(self._scope)
        await self._until_gone()

    def _models(self) -> bytes:
        if self._item is not None:
            return _json(self._profile.models[self._item].item)
        return _json({"object": "list", "data": self._profile.listed})

    def _embeddings(self, model: ListedModel) -> bytes:
        given = self._body["input"]
        texts = [given] if isinstance(given, str) else [str(text) for text in given]
        as_base64 = self._body.get("encoding_format") == "base64"
        called = str(self._body["model"])
        return _json(embeddings.answer(model, called, texts, as_base64=as_base64, identity=self._request_id))

    async def _read_body(self) -> bytes:
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            self._body_length += len(parts[-1])
            if self._body_length > _LARGEST_BODY:
                self._transports.reset(self._scope)
                raise ClientGone
            if not message.get("more_body", False):
                return b"".join(parts)

    def _parse(self, raw: bytes) -> bool:
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            return False
        if not isinstance(found, dict):
            return False
        self._body = found
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the client goes away."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._until_gone()
        except TimeoutError:
            return
        raise ClientGone

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _headers(self, tokens: int) -> Headers:
        identity = self._request_id.encode()
        headers = [(b"x-request-id", identity)]
        if self._profile.correlation_header:
            headers.append((self._profile.correlation_header.encode(), identity))
        if self._accepted and self._route in ("chat", "embeddings"):
            headers += self._vendor.limit_headers(tokens)
        return headers

    def _log(self, status: int, fault: VendorFault | None) -> None:
        model = self._body.get("model", self._item)
        self._vendor.log.add(
            Request(
                number=self._vendor.log.next_number(),
                at=self._at,
                method=self._scope["method"],
                path=self._scope["path"],
                status=status,
                accepted=self._accepted,
                key_masked=None if self._key is None else mask(self._key),
                key_sha256=self._key_sha256,
                model=model if isinstance(model, str) else None,
                stream=bool(self._body.get("stream")),
                fault=None if fault is None else fault.kind,
                strictness=self._objections[0].text if self._objections else None,
            )
        )


def _bearer(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            if kind.lower() == "bearer" and key.strip():
                return str(key.strip())
    return None


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def respond(
    send: Send, status: int, body: bytes, headers: Headers, *, content_type: bytes = b"application/json"
) -> None:
    """Send an answer in one piece."""
    own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": own + headers})
    await send({"type": "http.response.body", "body": body})
