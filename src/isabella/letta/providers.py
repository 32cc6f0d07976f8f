"""Letta's V1 server over REST: the only place that knows its shapes (facts P1 to P13, O1 to O14)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, NotRequired, Self

import anyio.lowlevel
import httpx2 as httpx
import stamina
from pydantic import SecretStr, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from isabella.errors import (
    LettaBroken,
    LettaError,
    LettaRefused,
    LettaUnauthorized,
    LettaUnreachable,
    NotLetta,
    UnverifiedPeer,
)
from isabella.letta.connection import Connection
from isabella.letta.releases import capabilities_of
from isabella.letta.store import Capabilities, StoredProvider
from isabella.system.peers import Peer, async_hooks
from isabella.system.redaction import redact
from isabella.system.tasks import gather
from isabella.system.urls import client_options

#: Rows asked for at once. Letta's own default of 50 would hide whatever comes after (fact P1).
PAGE = 1000

#: Rows that are read before others have their turn: about half a millisecond.
_ROWS_AT_ONCE = 200
_ANOTHER_SHAPE = "its list of providers has another shape"
#: No Letta has so many; one that goes on after them makes them up.
_MOST_PAGES = 200
#: What a request may take at least in which Letta reads a vendor's model list (fact P13).
_VENDOR_SECONDS = 60.0
_DETAIL_LIMIT = 300
#: What a server says that has too much to do, or is at work on the same thing.
_BUSY = (409, 429)


class _Row(TypedDict):
    """A provider as the list shows it; there may be a thousand of them, and this is the cheapest form of it."""

    id: str
    name: str
    provider_type: str
    base_url: NotRequired[str | None]
    # Absent altogether, as opposed to null, means that this server does not show it.
    api_key_enc: NotRequired[str | None]
    # Releases up to 0.15 show the key itself instead (fact O14).
    api_key: NotRequired[str | None]
    last_synced: NotRequired[str | None]


def _stored(row: _Row) -> StoredProvider:
    return StoredProvider(
        id=row["id"],
        name=row["name"],
        type=row["provider_type"],
        base_url=row.get("base_url"),
        key_text=row.get("api_key_enc") or row.get("api_key"),
        key_shown="api_key_enc" in row or "api_key" in row,
        synced=row.get("last_synced") is not None,
    )


_ROWS = TypeAdapter(list[_Row])


class LettaProviders:
    """The providers of one Letta server.

    Args:
        base_url: its address, without a trailing slash.
        password: its server password or cloud token, where it asks for one (fact R6).
        timeout: seconds it may take to answer. A POST may take longer, because Letta reads the vendor's model
            list before it answers (fact P13).
        transport: what carries the requests, in place of the network.
        peer: by which its process is known before anything is sent there, where it is ours.
    """

    def __init__(
        self,
        base_url: str,
        *,
        password: SecretStr | None = None,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        peer: Peer | None = None,
    ) -> None:
        self._base_url = base_url
        self._has_password = password is not None
        self._timeout = timeout
        headers = {} if password is None else {"Authorization": f"Bearer {password.get_secret_value()}"}
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0)),
            transport=transport,
            event_hooks=async_hooks(peer),
            **client_options(base_url),
        )

    @classmethod
    def at(cls, connection: Connection, *, timeout: float | None = None) -> Self:
        """The providers of the Letta that a connection leads to; `timeout` in place of the connection's own."""
        return cls(
            connection.base_url,
            password=connection.password,
            timeout=connection.timeout if timeout is None else timeout,
            peer=connection.peer,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return self._base_url

    async def abilities(self) -> Capabilities:
        """Ask for the release, which needs no password (facts R6, R7), and tell what it can do.

        Raises:
            NotLetta: something else answers there.
            LettaError: it cannot be reached, or fails.
        """
        answer = await self._read("/v1/health/")
        try:
            release = answer["version"] if answer["status"] == "ok" else None
        except (TypeError, KeyError):
            release = None
        if not isinstance(release, str):
            self._not_letta("it does not answer as Letta's health check does")
        return capabilities_of(release)

    async def all(self) -> list[StoredProvider]:
        """Every live provider, oldest first, to the last page (fact P1).

        Raises:
            LettaError: it cannot be listed as a whole; this never means that there are none.
        """
        found: dict[str, StoredProvider] = {}
        query: dict[str, str | int] = {"limit": PAGE, "order": "asc"}
        rows, pages = await self._rows(query), 1

        async def ask_for_next() -> None:
            nonlocal rows, pages
            rows, pages = await self._rows(query), pages + 1

        while len(rows) >= PAGE:
            query["after"] = self._id_of(rows[-1])
            if query["after"] in found or pages == _MOST_PAGES:
                raise LettaBroken(f"{self._base_url}: the list of providers comes to no end.")
            # While Letta makes the next page, this one is read.
            calls: list[Callable[[], Awaitable[None]]] = [ask_for_next, partial(self._take_in, rows, found)]
            await gather(calls)
        await self._take_in(rows, found)
        return [*found.values()]

    async def find(self, name: str) -> StoredProvider | None:
        """The live provider of this name. Asking by id would also show deleted ones (fact O8).

        Raises:
            LettaError: it cannot be read.
        """
        found: dict[str, StoredProvider] = {}
        await self._take_in(await self._rows({"limit": PAGE, "name": name}), found)
        return next((one for one in found.values() if one.name == name), None)

    async def create(self, *, name: str, type: str, base_url: str | None, key: SecretStr) -> None:
        """POST a provider. Letta answers when it has read the vendor's model list, or has failed to (fact P9).

        Raises:
            LettaError: it was refused, or the answer was lost.
        """
        body = {"name": name, "provider_type": type, "api_key": key.get_secret_value()}
        if base_url is not None:
            body["base_url"] = base_url
        await self._write("POST", "/v1/providers/", body, timeout=max(self._timeout, _VENDOR_SECONDS))

    async def update(self, id: str, *, key: SecretStr, base_url: str) -> None:
        """PATCH key and base URL; the body must not carry anything else (fact P3).

        Raises:
            LettaError: it was refused (400 where Letta cannot open what it holds: fact P4), or the answer was lost.
        """
        await self._write("PATCH", f"/v1/providers/{id}", {"api_key": key.get_secret_value(), "base_url": base_url})

    async def delete(self, id: str) -> None:
        """DELETE a provider: Letta empties its key and marks it and its models deleted (fact P6).

        Raises:
            LettaError: it was refused, or the answer was lost.
        """
        await self._write("DELETE", f"/v1/providers/{id}", None)

    async def models(self, name: str) -> int:
        """How many models Letta lists for a provider. Of one never synced this would make Letta ask the vendor.

        Raises:
            LettaError: they cannot be listed.
        """
        return len(await self._models(name))

    async def model_names(self, name: str) -> frozenset[str]:
        """Which models Letta lists for a provider, by the vendor's ids. Of one never synced Letta asks the vendor.

        Raises:
            LettaError: they cannot be listed.
        """
        handles = [row.get("handle") if isinstance(row, dict) else None for row in await self._models(name)]
        # The first part is Letta's name for the provider, which need not be the provider's own (fact M4).
        return frozenset(handle.partition("/")[2] for handle in handles if isinstance(handle, str))

    async def refresh(self, id: str) -> None:
        """Have Letta read the vendor's model list anew. It answers 200 even where the vendor refused (fact P11).

        Raises:
            LettaError: it was refused, or the answer was lost.
        """
        await self._write("PATCH", f"/v1/providers/{id}/refresh", None, timeout=max(self._timeout, _VENDOR_SECONDS))

    async def count_agents(self) -> int:
        """How many agents there are, whoever has made them, and hidden ones, too.

        Raises:
            LettaError: they cannot be counted.
        """
        answer = await self._read("/v1/agents/count", {"show_hidden_agents": "true"})
        if not isinstance(answer, int):
            self._not_letta("its number of agents is no number")
        return answer

    async def _models(self, name: str) -> list[Any]:
        answer = await self._read("/v1/models/", {"provider_name": name, "provider_category": "byok"})
        if not isinstance(answer, list):
            self._not_letta("its list of models is no list")
        return answer

    async def _rows(self, query: dict[str, str | int]) -> list[Any]:
        answer = await self._read("/v1/providers/", query)
        if not isinstance(answer, list):
            self._not_letta(_ANOTHER_SHAPE)
        return answer

    def _id_of(self, row: Any) -> str:
        id = row.get("id") if isinstance(row, dict) else None
        if not isinstance(id, str):
            self._not_letta(_ANOTHER_SHAPE)
        return id

    async def _take_in(self, rows: list[Any], found: dict[str, StoredProvider]) -> None:
        """Add what the rows hold, by id; in parts, so that a request beside it is not kept waiting."""
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            try:
                some = _ROWS.validate_python(rows[begin : begin + _ROWS_AT_ONCE])
            except ValidationError:
                self._not_letta(_ANOTHER_SHAPE)
            for row in some:
                found.setdefault(row["id"], _stored(row))
            await anyio.lowlevel.checkpoint()

    async def _read(self, path: str, query: dict[str, str | int] | None = None) -> Any:
        async for attempt in stamina.retry_context(
            on=_is_passing, attempts=3, timeout=self._timeout, wait_initial=0.2, wait_max=1.0
        ):
            with attempt:
                response = await self._reading(path, query)
        try:
            return response.json()
        except ValueError:
            self._not_letta(f"GET {path} answers {_kind(response)} instead of JSON")

    async def _reading(self, path: str, query: dict[str, str | int] | None) -> httpx.Response:
        try:
            return await self._send("GET", path, query=query)
        except LettaRefused as error:
            if error.status in (404, 405):
                # Many programs say this in JSON, too; of what we read, Letta has every path.
                self._not_letta(f"GET {path} gives {error.status}")
            raise

    async def _write(
        self, method: str, path: str, body: dict[str, str] | None, *, timeout: float | None = None
    ) -> None:
        response = await self._send(method, path, body=body, timeout=timeout)
        try:
            response.json()
        except ValueError:
            # A gateway's page with status 200: whether Letta has got the request, nobody knows.
            raise LettaBroken(
                f"{self._base_url} answered {method} {path} with {_kind(response)} instead of JSON.",
                status=response.status_code,
                remedy="See what stands between here and Letta.",
            ) from None

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str | int] | None = None,
        body: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        try:
            response = await self._http.request(
                method, path, params=query, json=body, timeout=timeout or httpx.USE_CLIENT_DEFAULT
            )
        except UnverifiedPeer as error:
            raise LettaUnreachable(error.what, remedy=error.remedy) from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise LettaUnreachable(
                f"No Letta server answers at {self._base_url}.",
                remedy="Start it (`isabella letta up` starts one here), or correct LETTA_BASE_URL.",
            ) from None
        except httpx.TimeoutException:
            raise LettaUnreachable(
                f"Letta at {self._base_url} did not answer {method} {path} within {timeout or self._timeout:g} s.",
                remedy="Look at its log; ISABELLA_TIMEOUT sets how long is waited.",
                sent=True,
            ) from None
        except httpx.RequestError as error:
            raise LettaUnreachable(
                f"The connection to Letta at {self._base_url} broke during {method} {path}: {type(error).__name__}.",
                remedy="Look at its log, then run this again.",
                sent=True,
            ) from None
        if response.is_success:
            return response
        raise self._error(response, method, path)

    def _error(self, response: httpx.Response, method: str, path: str) -> LettaError:
        status = response.status_code
        if status == 401:
            wants = "wants another password" if self._has_password else "wants a password"
            return LettaUnauthorized(
                f"Letta at {self._base_url} {wants} (401).",
                remedy="Put its server password, or the cloud token, into LETTA_API_KEY.",
            )
        detail = _detail(response)
        if detail is None and (response.is_redirect or status in (403, 404, 405)):
            return NotLetta(
                f"What answers at {self._base_url} is not a Letta server: {method} {path} gives {status}.",
                remedy="Correct LETTA_BASE_URL; it has no path, for instance http://127.0.0.1:8283.",
            )
        if status >= 500 or detail is None:
            said = f": {detail}" if detail else f", as {_kind(response)}"
            return LettaBroken(
                f"Letta at {self._base_url} answered {method} {path} with {status}{said}",
                status=status,
                remedy="Look at Letta's log.",
            )
        return LettaRefused(
            f"Letta refused {method} {path} ({status}): {detail}",
            status=status,
            detail=detail,
            remedy="Run this again when Letta is less busy." if status in _BUSY else "Look at Letta's log.",
        )

    def _not_letta(self, why: str) -> NoReturn:
        raise NotLetta(
            f"What answers at {self._base_url} is not a Letta server: {why}.",
            remedy="Correct LETTA_BASE_URL; it has no path, for instance http://127.0.0.1:8283.",
        )


def _is_passing(error: Exception) -> bool:
    """Whether a reading may succeed when it is tried again: a broken connection, a gateway's error, a busy Letta."""
    if isinstance(error, LettaUnreachable):
        return error.sent and "did not answer" not in error.what
    if isinstance(error, LettaRefused):
        return error.status in _BUSY
    return isinstance(error, LettaBroken) and error.status in (502, 503)


def _kind(response: httpx.Response) -> str:
    kind = response.headers.get("content-type", "").split(";")[0]
    return "an empty answer" if not response.content else (kind or "an answer without a type")


def _detail(response: httpx.Response) -> str | None:
    """Letta's own words, scrubbed: it repeats whole request bodies in its 422. None where it is not Letta's JSON."""
    try:
        document = response.json()
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    said = document.get("detail") or document.get("error") or document.get("message")
    if isinstance(said, list):
        said = "; ".join(str(item.get("msg", "")) for item in said if isinstance(item, dict))
    return None if said is None else redact(str(said))[:_DETAIL_LIMIT]
