"""Letta's agents over REST, through the official SDK: its errors become ours, and lost readings are repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, cast

import httpx
from letta_client import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncLetta

from isabella.errors import (
    IsabellaError,
    LettaBroken,
    LettaRefused,
    LettaUnauthorized,
    LettaUnreachable,
    UnverifiedPeer,
)
from isabella.letta.connection import Connection
from isabella.system.peers import async_hooks
from isabella.system.redaction import redact

#: Rows asked for at once where Letta pages.
PAGE = 100

_DETAIL_LIMIT = 300
_READINGS = 2
_SOMETHING_BETWEEN = "Look at Letta's log, and at what stands between here and Letta."


class LettaClient:
    """JSON to and from one Letta. Readings are tried twice, writes once: a repeated write might happen twice.

    Args:
        client: an open client of the official SDK.
    """

    def __init__(self, client: AsyncLetta) -> None:
        self.client = client

    async def get(self, path: str, **query: Any) -> Any:
        """Read. Query values of None are left out.

        Raises:
            LettaError: it cannot be reached, refuses, or fails.
        """
        given = {name: value for name, value in query.items() if value is not None}
        for reading in range(1, _READINGS + 1):
            try:
                with letta_errors():
                    return await self.client.get(path, cast_to=cast(Any, object), options={"params": given})
            except LettaUnreachable as error:
                # Letta closes a connection after an unhandled failure, and idle ones; the next is a new one.
                if not error.sent or reading == _READINGS:
                    raise
        raise AssertionError("unreachable")

    async def agent(self, agent_id: str) -> Any:
        """An agent without blocks, tools and tags, which take Letta twice as long. Raises as `get` does."""
        path = f"/v1/agents/{agent_id}"
        row = await self.get(path, include_relationships="")
        if not isinstance(row, dict):
            raise LettaBroken(f"Letta's answer to GET {path} is no agent.", remedy=_SOMETHING_BETWEEN)
        return row

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Write. Raises as `get` does; after `LettaUnreachable` with `sent`, look before writing again."""
        with letta_errors():
            return await self.client.post(path, cast_to=cast(Any, object), body=dict(body or {}))

    async def patch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Change. Raises as `post` does."""
        with letta_errors():
            return await self.client.patch(path, cast_to=cast(Any, object), body=dict(body or {}))

    async def delete(self, path: str) -> None:
        """Remove. Raises as `post` does."""
        with letta_errors():
            # Some of Letta's answers to DELETE have no body.
            await self.client.delete(path, cast_to=httpx.Response)

    async def every(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """All rows of a list, oldest first, to its last page."""
        found: dict[str, dict[str, Any]] = {}
        after: str | None = None
        while True:
            page = await self.get(path, limit=PAGE, order="asc", after=after, **query)
            if not isinstance(page, list):
                raise LettaBroken(f"Letta's answer to GET {path} is not a list.", remedy=_SOMETHING_BETWEEN)
            fresh = {row["id"]: row for row in page if row["id"] not in found}
            found |= fresh
            if len(page) < PAGE:
                return [*found.values()]
            if not fresh:
                # Where the last row of a page is deleted meanwhile, Letta begins anew: what comes after is not known.
                raise LettaBroken(f"Letta's list GET {path} changed while it was read.", remedy="Try again.")
            after = page[-1]["id"]


@contextmanager
def letta_errors() -> Iterator[None]:
    """Turn the SDK's errors into ours, with Letta's words scrubbed.

    Raises:
        LettaError: whatever went wrong between us and Letta.
    """
    try:
        yield
    except APIError as error:
        raise as_letta_error(error) from None
    except JSONDecodeError:
        raise LettaBroken("Letta's answer is cut off, or no JSON.", remedy=_SOMETHING_BETWEEN) from None


def as_letta_error(error: APIError) -> IsabellaError:
    """The error of ours that says what an error of the SDK means."""
    if isinstance(error, APIStatusError):
        return _of_status(error)
    place = _place(error)
    if isinstance(error, APITimeoutError):
        return LettaUnreachable(
            f"Letta did not answer {place} in time.",
            remedy="Look at its log; ISABELLA_TIMEOUT sets how long is waited.",
            sent=not isinstance(error.__cause__, httpx.ConnectTimeout),
        )
    if isinstance(error, APIConnectionError):
        if isinstance(error.__cause__, UnverifiedPeer):
            return LettaUnreachable(error.__cause__.what, remedy=error.__cause__.remedy)
        if isinstance(error.__cause__, httpx.ConnectError):
            return LettaUnreachable(
                f"No Letta server answers at {error.request.url.host}:{error.request.url.port}.",
                remedy="Start it (`isabella letta up` starts one here), or correct LETTA_BASE_URL.",
            )
        return LettaUnreachable(
            f"The connection to Letta broke during {place}.", remedy="Look at its log, then try again.", sent=True
        )
    return LettaBroken(f"Letta's answer to {place} cannot be understood: {redact(str(error))[:_DETAIL_LIMIT]}")


def _of_status(error: APIStatusError) -> IsabellaError:
    status, place = error.status_code, _place(error)
    detail = error_detail(error)
    if status == 401 and error_type(error) is None:
        return LettaUnauthorized(
            "Letta wants a password, or another one (401).",
            remedy="Put its server password, or the cloud token, into LETTA_API_KEY.",
        )
    if status >= 500:
        return LettaBroken(f"Letta answered {place} with {status}: {detail}", status=status)
    return LettaRefused(f"Letta refused {place} ({status}): {detail}", status=status, detail=detail)


def error_type(error: APIStatusError) -> str | None:
    """The `type` in Letta's error, such as `llm_authentication`, where it tells one."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    kind = inner.get("type") if isinstance(inner, dict) else None
    return kind if isinstance(kind, str) else None


def error_detail(error: APIStatusError) -> str:
    """Letta's own words, scrubbed: it repeats whole request bodies in its 422."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    details = inner if isinstance(inner, dict) else body
    said = details.get("detail") or details.get("message") or inner or f"status {error.status_code}"
    if isinstance(said, list):
        said = "; ".join(str(item.get("msg", "")) for item in said if isinstance(item, dict))
    return redact(str(said))[:_DETAIL_LIMIT]


def _place(error: APIError) -> str:
    return f"{error.request.method} {error.request.url.path}"


# Letta's server closes connections that were idle for 5 s. A message sent on one that is just being closed may or may
# not have arrived, so they are given up before; and as many turns as want to may run side by side.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


def open_sdk_client(connection: Connection) -> AsyncLetta:
    """A client for the agents of this Letta. It retries nothing: a repeated message would be said twice."""
    loopback = httpx.URL(connection.base_url).host in ("127.0.0.1", "localhost", "::1")
    return AsyncLetta(
        base_url=connection.base_url,
        api_key=connection.password.get_secret_value() if connection.password else None,
        max_retries=0,
        timeout=connection.timeout * 2,
        # A proxy of the environment has no business between us and a server on this machine.
        http_client=httpx.AsyncClient(
            trust_env=not loopback,
            timeout=connection.timeout * 2,
            limits=_LIMITS,
            event_hooks=async_hooks(connection.peer),
            # Loading the certificate store takes longer than all that a command does on a plain address.
            verify=connection.base_url.startswith("https:"),
        ),
    )
