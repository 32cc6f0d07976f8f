"""A fake of Letta's providers API, for tests that have no time for a real one.

It behaves as was measured (facts P1 to P10, O1 to O10), release by release, and nothing else: what it does is pinned
by `test_contract.py`, which runs the same cases on it and on a real Letta. It keeps everything in memory and speaks
through a transport of httpx, so that the store in front of it is the real one.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support.letta_encryption import ROUNDS, seal, unseal

#: What Letta sends where it has no key (fact P7).
NO_KEY = "DUMMY_API_KEY"

TYPES = frozenset({"openai", "cerebras", "groq", "mistral", "deepseek", "xai", "anthropic", "together"})
#: Beginnings of a plaintext key that Letta never takes for a sealed one.
_PLAIN = ("sk-", "pk-", "api-", "key-", "token-", "Bearer ", "xoxb-", "xoxp-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_")
_SHORTEST_SEALED = 45

Answer = tuple[int, Any]


@dataclass
class Row:
    """A provider as it stands in the database."""

    id: str
    name: str
    type: str
    base_url: str | None
    enc: str | None
    #: The former column in plaintext, which 0.16 does not use any more (fact O4).
    plain: str | None = None
    deleted: bool = False
    synced: bool = False

    def as_json(self) -> dict[str, Any]:
        """As the list shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "provider_type": self.type,
            "provider_category": "byok",
            "api_key": None,
            "base_url": self.base_url,
            "last_synced": "2026-01-01T00:00:00Z" if self.synced else None,
            "api_key_enc": self.enc,
        }


class FakeLetta:
    """A Letta, as far as its providers go.

    Args:
        release: which one.
        master_key: the `LETTA_ENCRYPTION_KEY` it runs under; None without one.
        rounds: of the derivation, where there is no time for as many as Letta makes.
        takes: whether the vendor at a base URL takes a key, for the model list that is read after a POST.
        base_names: names of the providers that Letta made from its own environment (fact P10).
    """

    def __init__(
        self,
        release: str = "0.16.8",
        *,
        master_key: str | None = None,
        rounds: int = ROUNDS,
        takes: Callable[[str | None, str | None], bool] = lambda base_url, key: False,
        base_names: Sequence[str] = (),
    ) -> None:
        self.rows: list[Row] = []
        self._rounds = rounds
        self._takes = takes
        self._base_names = frozenset(base_names)
        self.restart(master_key, release=release)

    def restart(self, master_key: str | None, *, release: str | None = None) -> None:
        """Stop, and start on the same data under another master key, or as another release."""
        self.master_key = master_key
        if release is not None:
            self.release = release
            self._version = tuple(int(part) for part in release.split("."))
        if self._version >= (0, 16, 2):
            self._forget_plaintext()

    def transport(self) -> httpx2.MockTransport:
        """What a client of httpx speaks to it through."""

        def handle(request: httpx2.Request) -> httpx2.Response:
            body = json.loads(request.content) if request.content else None
            status, answer = self.handle(request.method, request.url.path, dict(request.url.params), body)
            return httpx2.Response(status, json=answer)

        return httpx2.MockTransport(handle)

    def handle(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        """Answer one request."""
        if path == "/v1/health/":
            return 200, {"version": self.release, "status": "ok"}
        if path == "/v1/models/":
            return 200, []
        if not path.startswith("/v1/providers/"):
            return 404, {"detail": "Not Found"}
        id, _, action = path.removeprefix("/v1/providers/").partition("/")
        match method:
            case "GET" if not id:
                return self._list(query)
            case "POST" if not id:
                return self._post(body)
            case "GET":
                row = self._row(id)
                return (200, row.as_json()) if row is not None else _not_found(id)
            case "PATCH" if not action:
                return self._patch(id, body)
            case "PATCH" if action == "refresh" and self._version >= (0, 16, 4):
                return self._refresh(id)
            case "DELETE":
                return self._delete(id)
            case _:
                return 405, {"detail": "Method Not Allowed"}

    def live(self, name: str) -> Row | None:
        """The live provider of this name."""
        return next((row for row in self.rows if row.name == name and not row.deleted), None)

    def bearer(self, name: str) -> str | None:
        """What an agent on this provider would carry to the vendor; None where Letta itself fails first."""
        row = self.live(name)
        if row is None or not row.enc:
            return NO_KEY
        try:
            return self._open(row.enc) or NO_KEY
        except _Unopened:
            return None

    # --- the requests ---------------------------------------------------------------------------------------------

    def _list(self, query: dict[str, str]) -> Answer:
        self._forget_plaintext()
        rows = [row for row in self.rows if not row.deleted and query.get("name") in (None, "", row.name)]
        if query.get("order", "desc") == "desc":
            rows.reverse()
        if "after" in query:
            ids = [row.id for row in rows]
            rows = rows[ids.index(query["after"]) + 1 :] if query["after"] in ids else []
        return 200, [row.as_json() for row in rows[: int(query.get("limit", "50"))]]

    def _post(self, body: Any) -> Answer:
        wanted, optional = {"name", "provider_type", "api_key"}, {"base_url"}
        if not _is_valid(body, wanted, optional) or body["provider_type"] not in TYPES:
            return 422, {"detail": [{"msg": "Input should be valid"}]}
        name, key = body["name"], self._stripped(body["api_key"]) or None
        if name in self._base_names:
            return 400, {"detail": f"Provider name '{name}' conflicts with an existing base provider."}
        row = next((row for row in self.rows if row.name == name), None)
        if row is not None and (not row.deleted or self._version < (0, 16, 2)):
            return 409, {"detail": "An object with these unique fields exists already."}
        if row is None:
            row = Row(f"provider-{uuid.uuid4()}", name, body["provider_type"], body.get("base_url"), None)
            self.rows.append(row)
        row.deleted, row.type, row.base_url = False, body["provider_type"], body.get("base_url")
        if key is not None:
            row.enc = self._sealed(key)
        # Older releases do not read the models of a provider when it is made (fact O10).
        self._sync_models(row)
        return 200, row.as_json()

    def _patch(self, id: str, body: Any) -> Answer:
        if not _is_valid(body, {"api_key"}, {"base_url"}):
            return 422, {"detail": [{"msg": "Input should be valid"}]}
        row = self._row(id)
        if row is None or row.deleted:
            return _not_found(id)
        try:
            former = self._open(row.enc) if row.enc else None
        except _Unopened:
            return 400, {"detail": "Failed to decrypt data"}
        key = self._stripped(body["api_key"])
        if key != former:
            row.enc = self._sealed(key)
        row.base_url = body.get("base_url") or row.base_url
        return 200, row.as_json()

    def _delete(self, id: str) -> Answer:
        row = self._row(id)
        if row is None or row.deleted:
            return _not_found(id)
        row.enc, row.plain, row.deleted = None, None, True
        return 200, {"message": f"Provider id={id} successfully deleted"}

    def _refresh(self, id: str) -> Answer:
        row = self._row(id)
        if row is None:
            return _not_found(id)
        self._sync_models(row)
        return 200, row.as_json()

    # --- what stands in the key's place -----------------------------------------------------------------------------

    def _sealed(self, key: str) -> str:
        return key if self.master_key is None else seal(key, self.master_key, rounds=self._rounds)

    def _open(self, text: str) -> str | None:
        if self.master_key is None:
            # Up to 0.16.6, what looks sealed counts as nothing (facts O6, O7); later it is taken as it is.
            return None if self._version < (0, 16, 7) and looks_sealed(text) else text
        opened = unseal(text, self.master_key, rounds=self._rounds)
        if opened is not None:
            return opened
        if looks_sealed(text):
            raise _Unopened
        return text

    def _sync_models(self, row: Row) -> None:
        try:
            key = self._open(row.enc) if row.enc else None
        except _Unopened:
            return
        # What was synced once stays so, also when the row is deleted and made again.
        row.synced = row.synced or self._takes(row.base_url, key)

    def _stripped(self, key: str) -> str:
        return key.strip() if self._version >= (0, 16, 5) else key

    def _forget_plaintext(self) -> None:
        for row in self.rows:
            row.plain = None

    def _row(self, id: str) -> Row | None:
        return next((row for row in self.rows if row.id == id), None)


class _Unopened(Exception):
    """What is stored looks sealed, and this master key does not open it."""


def looks_sealed(text: str) -> bool:
    """As Letta guesses it: what has the length, once everything that is no base64 was left out."""
    if text.startswith(_PLAIN):
        return False
    try:
        return len(base64.b64decode(text)) >= _SHORTEST_SEALED
    except (binascii.Error, ValueError):
        return False


def _is_valid(body: Any, wanted: set[str], optional: set[str]) -> bool:
    return (
        isinstance(body, dict)
        and wanted <= body.keys() <= wanted | optional
        and all(isinstance(body[field], str) for field in wanted)
    )


def _not_found(id: str) -> Answer:
    return 404, {"detail": f"{id} was not found"}
