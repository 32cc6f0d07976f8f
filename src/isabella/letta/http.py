"""HTTP with one Letta server: JSON requests, paging and streams. Every failure is one of Isabella's errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx
import stamina
from pydantic import SecretStr

from isabella.errors import LettaBroken, LettaRefused, LettaUnauthorized, LettaUnreachable, NotLetta, UnverifiedPeer
from isabella.letta import paths
from isabella.system import audit, tracing
from isabella.system.english import english
from isabella.system.peers import Peer, async_hooks
from isabella.system.redaction import redact
from isabella.system.urls import client_options

#: Rows of a list that are requested at once. Letta's own default of 50 would hide all later ones (fact P1).
PAGE_SIZE = 100

_MOST_PAGES = 200  # no Letta has so many pages; a server that goes on after them makes them up
_READ_ATTEMPTS = 3
_CONNECT_SECONDS = 5.0
_GRACE_SECONDS = 0.25  # in which a limit of httpx, whose error says more, comes first
_STREAM_CONNECT_SECONDS = 10.0
_DETAIL_LIMIT = 300
_VENDOR_DETAIL_LIMIT = 2_000  # the same for an error of a vendor, which Letta quotes with its body
_BUSY = (409, 429)  # the statuses of a server that is overloaded, or that works on the same thing
_GATEWAY_FAILED = (502, 503)
_CORRECT_BASE_URL = english("Correct LETTA_BASE_URL; it has no path, for instance http://127.0.0.1:8283.")
#: Letta streams, and leaves relations out by default, only for clients of the API since 1.0, known by this header.
_API_VERSION = {"X-Stainless-Package-Version": "1.12.1"}
# Letta closes connections that were idle for 5 s. Whether a message that is sent at that moment arrives is not known,
# so idle connections are dropped earlier. The number of turns at the same time is not limited.
_KEEP_ALIVE = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)
_NO_KEEP_ALIVE = httpx.Limits(max_connections=None, max_keepalive_connections=0)


class LettaHttp:
    """An HTTP client for one Letta server. Every method raises `LettaError`.

    A read is sent up to three times if the connection breaks, a gateway fails or Letta is busy. A write is sent once,
    because a repeated write may take effect twice: after `LettaUnreachable` with `sent`, read before you write again.

    `password` is Letta's server password or the cloud token (fact R6), `timeout` is in seconds, `transport` replaces
    the network, and `peer` verifies Letta's process before anything is sent to it. Without `keep_alive`, each request
    gets its own connection: Letta breaks a connection after it has answered 500. `audit_home` is the home whose
    audit log records changes.
    """

    def __init__(
        self,
        base_url: str,
        *,
        password: SecretStr | None = None,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        peer: Peer | None = None,
        keep_alive: bool = True,
        audit_home: Path | None = None,
    ) -> None:
        self.base_url = base_url
        self.timeout = timeout
        self._audit_home = audit_home
        self._has_password = password is not None
        headers = dict(_API_VERSION)
        if password is not None:
            headers["Authorization"] = f"Bearer {password.get_secret_value()}"
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            limits=_KEEP_ALIVE if keep_alive else _NO_KEEP_ALIVE,
            transport=transport,
            event_hooks=async_hooks(peer),
            **client_options(base_url),
        )

    def move(self, base_url: str) -> None:
        """Send later requests to another base URL of the same server."""
        self.base_url = base_url
        self._client.base_url = httpx.URL(base_url)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at a path. Query parameters that are None are left out."""
        params = {name: value for name, value in query.items() if value is not None}
        async for attempt in stamina.retry_context(
            on=_is_temporary, attempts=_READ_ATTEMPTS, timeout=self.timeout, wait_initial=0.2, wait_max=1.0
        ):
            with attempt:
                response = self._checked(await self.send("GET", path, params=params), "GET", path)
        try:
            return response.json()
        except ValueError:
            raise self.not_letta(
                english("GET %(path)s returns %(content)s instead of JSON", path=path, content=_content(response))
            ) from None

    async def rows(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Return the JSON list at a path. Each row has an `id`."""
        page = await self.get(path, **query)
        if not isinstance(page, list):
            raise self.not_letta(english("GET %(path)s does not return a list", path=path))
        if not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in page):
            raise self.not_letta(english("the list GET %(path)s has another shape", path=path))
        return page

    async def list_all(self, path: str, *, page_size: int = PAGE_SIZE, **query: Any) -> list[dict[str, Any]]:
        """Return every row of a list, oldest first, to the last page (fact P1).

        A list that cannot be read as a whole is an error, never a shorter list.
        """
        rows: dict[str, dict[str, Any]] = {}
        after: str | None = None
        for _ in range(_MOST_PAGES):
            page = await self.rows(path, limit=page_size, order="asc", after=after, **query)
            known = len(rows)
            for row in page:
                rows.setdefault(row["id"], row)
            if len(page) < page_size:
                return [*rows.values()]
            if len(rows) == known:
                # If the row after which a page begins was deleted meanwhile, Letta starts again with the first page.
                break
            after = page[-1]["id"]
        raise LettaBroken(
            english(
                "%(base_url)s: the list GET %(path)s does not end, or was changed while it was read.",
                base_url=self.base_url,
                path=path,
            ),
            remedy=english("Try again."),
        )

    async def post(self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Send a POST and return the JSON of the response. `timeout` replaces the client's own."""
        return await self.write("POST", path, json=body, timeout=timeout)

    async def patch(self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Send a PATCH and return the JSON of the response. `timeout` replaces the client's own."""
        return await self.write("PATCH", path, json=body, timeout=timeout)

    async def delete(self, path: str) -> None:
        """Send a DELETE."""
        await self.write("DELETE", path)

    async def write(self, method: str, path: str, *, timeout: float | None = None, **content: Any) -> Any:
        """Send a request that writes, once. `content` is httpx's `json`, or `data` and `files` of a form."""
        with self._recorded(method, path, content):
            response = self._checked(await self.send(method, path, timeout=timeout, **content), method, path)
        if response.status_code == 204:
            return None
        try:
            return response.json()
        except ValueError:
            # A gateway's page with status 200: it is not known whether Letta has the request.
            raise LettaBroken(
                english(
                    "%(base_url)s answered %(method)s %(path)s with %(content)s instead of JSON.",
                    base_url=self.base_url,
                    method=method,
                    path=path,
                    content=_content(response),
                ),
                status=response.status_code,
                remedy=english("Check for a proxy or a load balancer between this machine and Letta."),
            ) from None

    def _recorded(self, method: str, path: str, content: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Record a write in the audit log, unless it changes nothing but a conversation."""
        written = paths.written(method, path)
        if written is None:
            return nullcontext()
        body = content.get("json")
        return audit.writing(
            self._audit_home, written.change, written.subject, fields=sorted(body) if isinstance(body, dict) else []
        )

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        """Send a POST and yield the lines of the response as they arrive, without a time limit between them."""
        timeout = httpx.Timeout(None, connect=_STREAM_CONNECT_SECONDS)
        try:
            async with self._client.stream(
                "POST", path, json=body, timeout=timeout, headers=tracing.headers()
            ) as response:
                if not response.is_success:
                    await response.aread()
                self._checked(response, "POST", path)
                async for line in response.aiter_lines():
                    yield line
        except (httpx.RequestError, UnverifiedPeer) as error:
            raise self._unreachable(error, "POST", path, _STREAM_CONNECT_SECONDS) from None

    async def send(self, method: str, path: str, *, timeout: float | None = None, **content: Any) -> httpx.Response:
        """Send a request once and return the response, whatever its status; no response is `LettaUnreachable`."""
        limit = timeout or self.timeout
        try:
            # httpx limits each wait for a piece of the response; a server may send pieces for ever.
            with anyio.fail_after(limit + _GRACE_SECONDS):
                return await self._client.request(
                    method, path, timeout=timeout or httpx.USE_CLIENT_DEFAULT, headers=tracing.headers(), **content
                )
        except TimeoutError:
            raise self._unreachable(httpx.ReadTimeout(""), method, path, limit) from None
        except (httpx.RequestError, UnverifiedPeer) as error:
            raise self._unreachable(error, method, path, limit) from None

    def not_letta(self, why: str) -> NotLetta:
        """Return the error that another program answers at Letta's base URL."""
        return NotLetta(
            english("The server at %(base_url)s is not a Letta server: %(why)s.", base_url=self.base_url, why=why),
            remedy=_CORRECT_BASE_URL,
        )

    def _unreachable(
        self, error: httpx.RequestError | UnverifiedPeer, method: str, path: str, timeout: float
    ) -> LettaUnreachable:
        match error:
            case UnverifiedPeer():
                return LettaUnreachable(error.what, remedy=error.remedy)
            case httpx.ConnectError() | httpx.ConnectTimeout():
                return LettaUnreachable(
                    english("No Letta server answers at %(base_url)s.", base_url=self.base_url),
                    remedy=english("Start it (`isabella letta up` starts one here), or correct LETTA_BASE_URL."),
                )
            case httpx.TimeoutException():
                return LettaUnreachable(
                    english(
                        "Letta at %(base_url)s did not answer %(method)s %(path)s within %(seconds)s s.",
                        base_url=self.base_url,
                        method=method,
                        path=path,
                        seconds=format(timeout, "g"),
                    ),
                    remedy=english("Look at its log; ISABELLA_TIMEOUT sets the time limit."),
                    sent=True,
                    timed_out=True,
                )
        return LettaUnreachable(
            english(
                "The connection to Letta at %(base_url)s broke during %(method)s %(path)s: %(name)s.",
                base_url=self.base_url,
                method=method,
                path=path,
                name=type(error).__name__,
            ),
            remedy=english("Look at its log, then run this again."),
            sent=True,
        )

    def _checked(self, response: httpx.Response, method: str, path: str) -> httpx.Response:
        """Return a successful response; raise the error of any other."""
        if response.is_success:
            return response
        status = response.status_code
        kind, detail = _error_in(response)
        if status == 401 and not kind:
            wants = english("wants another password") if self._has_password else english("wants a password")
            raise LettaUnauthorized(
                english("Letta at %(base_url)s %(wants)s (401).", base_url=self.base_url, wants=wants),
                remedy=english("Put its server password, or the cloud token, into LETTA_API_KEY."),
            )
        if detail is None and (response.is_redirect or status in (403, 404, 405)):
            raise self.not_letta(
                english("%(method)s %(path)s returns %(status)s", method=method, path=path, status=status)
            )
        if status >= 500 or detail is None:
            answered = english(
                "Letta at %(base_url)s answered %(method)s %(path)s with %(status)s",
                base_url=self.base_url,
                method=method,
                path=path,
                status=status,
            )
            raise LettaBroken(
                english("%(answered)s: %(detail)s", answered=answered, detail=detail[:_DETAIL_LIMIT])
                if detail
                else english("%(answered)s, as %(content)s", answered=answered, content=_content(response)),
                status=status,
                kind=kind,
                detail=detail or "",
                remedy=english("Look at Letta's log."),
            )
        raise LettaRefused(
            english(
                "Letta refused %(method)s %(path)s (%(status)s): %(detail)s",
                method=method,
                path=path,
                status=status,
                detail=detail[:_DETAIL_LIMIT],
            ),
            status=status,
            kind=kind,
            detail=detail,
            remedy=english("Run this again when Letta is less busy.")
            if status in _BUSY
            else english("Look at Letta's log."),
        )


def _is_temporary(error: Exception) -> bool:
    """Return whether a read may succeed if it is sent again."""
    match error:
        case LettaUnreachable():
            # Letta closes a connection after an unhandled failure, and idle ones; the next request opens a new one.
            return error.sent and not error.timed_out
        case LettaRefused():
            return error.status in _BUSY
        case LettaBroken():
            return error.status in _GATEWAY_FAILED
    return False


def _content(response: httpx.Response) -> str:
    """Describe a response's content, for messages."""
    kind = response.headers.get("content-type", "").split(";")[0]
    return english("an empty answer") if not response.content else (kind or english("an answer without a type"))


def _error_in(response: httpx.Response) -> tuple[str, str | None]:
    """Return type and text of Letta's JSON error. The text is redacted and cut: Letta's 422 quotes whole requests."""
    try:
        document = response.json()
    except ValueError:
        return "", None
    if not isinstance(document, dict):
        return "", None
    inner = document.get("error")
    error = inner if isinstance(inner, dict) else document
    text = error.get("detail") or error.get("message") or inner
    if isinstance(text, list):
        text = "; ".join(str(item.get("msg", "")) for item in text if isinstance(item, dict))
    kind = str(error.get("type") or "")
    limit = _VENDOR_DETAIL_LIMIT if kind.startswith("llm_") else _DETAIL_LIMIT
    return kind, None if text is None else redact(str(text))[:limit]
