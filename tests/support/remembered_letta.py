"""A Letta that carries a request out once in each state of its database, and from then on answers from memory.

A walk sends the same requests in the same few states thousands of times. The real Letta answers each of them the
first time, with what it leaves in its database; when the state comes back, so does the answer. This rests on Letta's
behaviour depending on nothing but its database, which is checked: the second time that a request comes in a state,
the real Letta carries it out again, and has to answer the same and leave the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from psycopg.types.json import Jsonb

from tests.support.letta_admin import LettaAdmin
from tests.support.letta_encryption import unseal

Row = dict[str, Any]
#: The rows of each table, by id.
Rows = Mapping[str, Mapping[str, Row]]
Request = tuple[str, str, bytes]

#: What of the database a sync reads or changes. Letta's own providers belong to no organization.
_QUERIES = {
    "providers": "SELECT to_jsonb(t) AS row FROM providers t WHERE organization_id IS NOT NULL",
    "provider_models": "SELECT to_jsonb(t) AS row FROM provider_models t WHERE provider_id IN "
    "(SELECT id FROM providers WHERE organization_id IS NOT NULL)",
    "agents": "SELECT jsonb_build_object('id', id, 'llm_config', llm_config::jsonb) AS row FROM agents",
}
_TIMES = frozenset({"created_at", "updated_at"})
_PROVIDER_ID = re.compile(r"provider-[0-9a-f-]{36}")
_NOT_FORWARDED = frozenset({"host", "connection", "accept-encoding", "content-length"})


@dataclass(frozen=True, eq=False)
class State:
    """A state of the database.

    Attributes:
        rows: everything in it.
        meaning: the same without times, with opened keys and without the ids of models; two states that differ in
            nothing else are one.
    """

    rows: Rows
    meaning: str

    @property
    def digest(self) -> str:
        """A short form of the meaning."""
        return hashlib.sha256(self.meaning.encode()).hexdigest()

    def providers(self, name: str) -> list[Row]:
        """The live providers of this name."""
        return [row for row in self.rows["providers"].values() if row["name"] == name and not row["is_deleted"]]

    def endpoint(self, agent: str) -> str:
        """What an agent calls."""
        return str(self.rows["agents"][agent]["llm_config"]["model_endpoint"])


@dataclass
class _Carried:
    """A request that Letta has carried out: its answer, the state afterwards, and whether both were confirmed."""

    answer: bytes
    after: State
    confirmed: bool = False


class RememberedLetta:
    """A Letta with a memory; a `Server` for `Proxy`.

    Args:
        admin: the real one.
        changing: the names of the providers that the walk changes. Of all others every column counts.

    Attributes:
        state: the state in which the next request finds it.
        asked: how many requests came.
        carried_out: how many of them the real Letta has carried out.
        differences: where it did not do the same again.
    """

    def __init__(self, admin: LettaAdmin, changing: frozenset[str]) -> None:
        self._admin = admin
        self._changing = changing
        self._carried: dict[tuple[str, Request], _Carried] = {}
        self._states: dict[str, State] = {}
        self._lock = threading.Lock()
        self.asked = self.carried_out = 0
        self.differences: list[str] = []
        self.look()

    def look(self) -> State:
        """Take the state from the database, which something else has changed."""
        self.state = self._read()
        return self.state

    def token_hex(self, size: int) -> str:
        """In the place of `secrets.token_hex`: as random, but the same in the same state."""
        return self.state.digest[: 2 * size]

    def answer(self, start: str, headers: list[list[str]], body: bytes) -> bytes:
        """Answer a request as Letta does in this state."""
        password = next((value for name, value in headers if name.lower() == "authorization"), "")
        with self._lock:
            self.asked += 1
            before, request = self.state, (start, password, body)
            carried = self._carried.get((before.meaning, request))
            if carried is None:
                carried = self._carried[before.meaning, request] = self._carry_out(before, start, headers, body)
            elif not carried.confirmed:
                carried.confirmed = True
                again = self._carry_out(before, start, headers, body)
                if (one := self._outcome(before, carried)) != (other := self._outcome(before, again)):
                    self.differences.append(f"{start}: {one} and {other}")
            self.state = carried.after
            return carried.answer

    def _carry_out(self, before: State, start: str, headers: list[list[str]], body: bytes) -> _Carried:
        self.carried_out += 1
        self._restore(before)
        method, target, _ = start.split(" ", 2)
        kept = [(name, value.strip()) for name, value in headers if name.lower() not in _NOT_FORWARDED]
        response = self._admin.http.request(method, target, headers=kept, content=body)
        return _Carried(_raw(response), self._read())

    def _read(self) -> State:
        with self._admin.database.transaction():
            found = {
                table: [one["row"] for one in self._admin.database.execute(query)]
                for table, query in _QUERIES.items()
            }
        self._stored: Rows = {table: {row["id"]: row for row in rows} for table, rows in found.items()}
        state = State(self._stored, self._meaning(self._stored))
        return self._states.setdefault(state.meaning, state)

    def _restore(self, state: State) -> None:
        """Bring the database into a state."""
        execute = self._admin.database.execute
        with self._admin.database.transaction():
            for table in ("providers", "provider_models"):
                stored, wanted = self._stored[table], state.rows[table]
                execute(f"DELETE FROM {table} WHERE id = ANY(%s)", ([*(stored.keys() - wanted.keys())],))
                for id, row in wanted.items():
                    source = f"SELECT {', '.join(row)} FROM jsonb_populate_record(NULL::{table}, %s)"
                    if id not in stored:
                        execute(f"INSERT INTO {table} ({', '.join(row)}) {source}", (Jsonb(row),))
                    elif stored[id] != row:
                        execute(f"UPDATE {table} SET ({', '.join(row)}) = ({source}) WHERE id = %s", (Jsonb(row), id))
            for id, row in state.rows["agents"].items():
                if self._stored["agents"].get(id) != row:
                    execute("UPDATE agents SET llm_config = %s WHERE id = %s", (Jsonb(row["llm_config"]), id))
        self._stored = state.rows

    # --- what counts ----------------------------------------------------------------------------------------------

    def _meaning(self, rows: Rows) -> str:
        providers = [
            self._without_chance(row) if row["name"] in self._changing else row for row in rows["providers"].values()
        ]
        models = [{**self._without_chance(row), "id": None} for row in rows["provider_models"].values()]
        agents = [*rows["agents"].values()]
        return json.dumps([sorted(map(_text, part)) for part in (providers, models, agents)])

    def _without_chance(self, value: Any) -> Any:
        """JSON without times and with opened keys: what is the same when Letta does the same again."""
        match value:
            case dict():
                kept = {name: self._without_chance(inner) for name, inner in value.items() if name not in _TIMES}
                if "last_synced" in kept:
                    kept["last_synced"] = kept["last_synced"] is not None
                if isinstance(text := kept.get("api_key_enc"), str):
                    assert self._admin.letta.master_key is not None
                    key = unseal(text, self._admin.letta.master_key.get_secret_value())
                    kept["api_key_enc"] = text if key is None else ["sealed", key]
                return kept
            case list():
                return [self._without_chance(inner) for inner in value]
            case _:
                return value

    def _outcome(self, before: State, carried: _Carried) -> str:
        """Answer and state, with the same name for each provider that was not there before."""
        head, _, body = carried.answer.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode()
        try:
            document = _text(self._without_chance(json.loads(body)))
        except ValueError:
            document = body.decode()
        known = before.rows["providers"].keys()
        return _PROVIDER_ID.sub(
            lambda found: found[0] if found[0] in known else "provider-new",
            f"{status} {document} {carried.after.meaning}",
        )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _raw(response: httpx2.Response) -> bytes:
    kind = response.headers.get("content-type", "application/json")
    head = f"HTTP/1.1 {response.status_code} From memory\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(response.content)}\r\nconnection: close\r\n\r\n".encode() + response.content
