"""Letta's providers over REST: the `Store` of its V1 server (facts P1 to P13, O1 to O14)."""

from __future__ import annotations

from typing import Any, NotRequired

from pydantic import SecretStr, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from isabella.errors import LettaRefused
from isabella.letta import paths
from isabella.letta.http import LettaHttp
from isabella.letta.releases import Capabilities, capabilities_of, release_in
from isabella.letta.store import StoredProvider

PAGE_SIZE = 1000  # rows that are requested at once: one request for most installations

#: The least time limit, in seconds, of a request in which Letta reads a vendor's model list (fact P13).
_VENDOR_SECONDS = 60.0


class _Row(TypedDict):
    """A provider in Letta's list."""

    id: str
    name: str
    provider_type: str
    base_url: NotRequired[str | None]
    # If the field is absent, as opposed to null, this server does not show it.
    api_key_enc: NotRequired[str | None]
    # Releases up to 0.15 show the key itself instead (fact O14).
    api_key: NotRequired[str | None]
    last_synced: NotRequired[str | None]


_ROWS = TypeAdapter(list[_Row])


class LettaProviders:
    """The providers of one Letta server. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp) -> None:
        self._http = http

    @property
    def address(self) -> str:
        """Letta's base URL, for messages."""
        return self._http.base_url

    async def abilities(self) -> Capabilities:
        """Read the release, which needs no password (facts R6, R7), and return its abilities."""
        release = release_in(await self._read(paths.HEALTH))
        if release is None:
            raise self._http.not_letta("it does not answer as Letta's health check does")
        return capabilities_of(release)

    async def all(self) -> list[StoredProvider]:
        """Return every live provider, oldest first. An incomplete list is an error (fact P1)."""
        try:
            return self._stored(await self._http.list_all(paths.PROVIDERS, page_size=PAGE_SIZE))
        except LettaRefused as error:
            raise self._unless_missing(error, paths.PROVIDERS) from None

    async def find(self, name: str) -> StoredProvider | None:
        """Return the live provider of this name. Its route by id would also return deleted ones (fact O8)."""
        rows = await self._read(paths.PROVIDERS, limit=PAGE_SIZE, name=name)
        return next((stored for stored in self._stored(rows) if stored.name == name), None)

    async def create(self, *, name: str, type: str, base_url: str | None, key: SecretStr) -> None:
        """POST a provider. Letta answers after it has read the vendor's model list, or has failed to (fact P9)."""
        body = {"name": name, "provider_type": type, "api_key": key.get_secret_value()}
        if base_url is not None:
            body["base_url"] = base_url
        await self._http.post(paths.PROVIDERS, body, timeout=self._vendor_timeout)

    async def update(self, id: str, *, key: SecretStr, base_url: str) -> None:
        """PATCH key and base URL, and nothing else (fact P3). Letta answers 400 if it cannot decrypt the key."""
        await self._http.patch(paths.provider(id), {"api_key": key.get_secret_value(), "base_url": base_url})

    async def delete(self, id: str) -> None:
        """DELETE a provider: Letta empties its key and marks it and its models deleted (fact P6)."""
        await self._http.delete(paths.provider(id))

    async def refresh(self, id: str) -> None:
        """Make Letta read the vendor's model list. It answers 200 even if the vendor refused (fact P11)."""
        await self._http.patch(f"{paths.provider(id)}/refresh", timeout=self._vendor_timeout)

    async def check(self, id: str) -> tuple[bool | None, bool | None]:
        """Make Letta decrypt a stored key and read the vendor's models with it (fact P11). Nothing is written.

        Return whether it can decrypt the key, and whether the vendor accepts it; None if that is not known.
        """
        response = await self._http.send("POST", f"{paths.provider(id)}/check")
        text = response.text.lower()
        match response.status_code:
            case 400 if "decrypt" in text:
                return False, None
            case 401 if "llm_authentication" in text:
                return True, False
            case 500:
                # Types that cannot be checked answer 500, but only after the key was decrypted.
                return True, None
        return (True, True) if response.is_success else (None, None)

    async def is_listed(self) -> bool | None:
        """Return whether Letta lists providers to this client, with its password or without; None if not known."""
        status = (await self._http.send("GET", paths.PROVIDERS, params={"limit": 1})).status_code
        return {200: True, 401: False, 403: False}.get(status)

    async def models(self, name: str) -> int:
        """Return the number of models of a provider. If it was never synced, Letta asks the vendor."""
        return len(await self._models(name))

    async def model_names(self, name: str) -> frozenset[str]:
        """Return the vendor's ids of a provider's models. If it was never synced, Letta asks the vendor."""
        handles = [row.get("handle") for row in await self._models(name)]
        # The first part is Letta's name for the provider, which is not always the provider's own (fact M4).
        return frozenset(handle.partition("/")[2] for handle in handles if isinstance(handle, str))

    async def base_providers(self) -> frozenset[str]:
        """Return the names of the base providers with models. The list of providers does not have them (fact P10)."""
        names = [row.get("provider_name") for row in await self._models(None, category="base")]
        return frozenset(name for name in names if isinstance(name, str))

    async def _models(self, name: str | None, *, category: str = "byok") -> list[dict[str, Any]]:
        rows = await self._read(paths.MODELS, provider_name=name, provider_category=category)
        if not isinstance(rows, list):
            raise self._http.not_letta("its list of models is not a list")
        return [row for row in rows if isinstance(row, dict)]

    async def _read(self, path: str, **query: Any) -> Any:
        try:
            return await self._http.get(path, **query)
        except LettaRefused as error:
            raise self._unless_missing(error, path) from None

    def _unless_missing(self, error: LettaRefused, path: str) -> Exception:
        """Return the error, or `NotLetta`: many programs answer 404 in JSON, and Letta has these paths."""
        return self._http.not_letta(f"GET {path} returns {error.status}") if error.status in (404, 405) else error

    def _stored(self, rows: Any) -> list[StoredProvider]:
        try:
            valid = _ROWS.validate_python(rows)
        except ValidationError:
            raise self._http.not_letta("its list of providers has another shape") from None
        return [
            StoredProvider(
                id=row["id"],
                name=row["name"],
                type=row["provider_type"],
                base_url=row.get("base_url"),
                key_text=row.get("api_key_enc") or row.get("api_key"),
                key_shown="api_key_enc" in row or "api_key" in row,
                synced=row.get("last_synced") is not None,
            )
            for row in valid
        ]

    @property
    def _vendor_timeout(self) -> float:
        return max(self._http.timeout, _VENDOR_SECONDS)
