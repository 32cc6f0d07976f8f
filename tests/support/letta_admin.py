"""Bringing a real Letta into a given state behind Isabella's back: by plain REST, and by SQL where REST cannot."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from isabella.embedded import Letta
from isabella.letta.llm_config import Binding
from isabella.system.urls import client_options

PROVIDERS = "/v1/providers/"


@dataclass(frozen=True)
class LettaAdmin:
    """A Letta to plant in.

    Attributes:
        letta: the server.
        http: plain REST, with its password.
        database: its Postgres.
    """

    letta: Letta
    http: httpx2.Client
    database: psycopg.Connection[dict[str, Any]]

    def provider(self, name: str, type: str, base_url: str, key: str) -> str:
        """POST a provider; its id."""
        body = {"name": name, "provider_type": type, "base_url": base_url, "api_key": key}
        made = self.http.post(PROVIDERS, json=body).raise_for_status().json()
        return str(made["id"])

    def delete(self, id: str) -> None:
        """DELETE a provider, which is soft (fact P6)."""
        self.http.delete(f"{PROVIDERS}{id}").raise_for_status()

    def write_key(self, id: str, text: str) -> None:
        """Put a text into the key's place, past Letta."""
        self.database.execute("UPDATE providers SET api_key_enc = %s WHERE id = %s", (text, id))

    def key_text(self, id: str) -> str | None:
        """What stands in the key's place."""
        row = self.database.execute("SELECT api_key_enc FROM providers WHERE id = %s", (id,)).fetchone()
        assert row is not None
        text: str | None = row["api_key_enc"]
        return text

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The live records of this name, every column of them."""
        found = self.database.execute(
            "SELECT * FROM providers WHERE name = %s AND NOT is_deleted ORDER BY id", (name,)
        )
        return found.fetchall()

    def crowd(self, id: str, number: int) -> None:
        """Copy a provider so many times, under other names, with earlier and later dates of creation."""
        row = self.database.execute("SELECT * FROM providers WHERE id = %s", (id,)).fetchone()
        assert row is not None
        columns = sql.SQL(", ").join(map(sql.Identifier, row))
        places = sql.SQL(", ").join(map(sql.Placeholder, row))
        insert = sql.SQL("INSERT INTO providers ({}) VALUES ({})").format(columns, places)
        for n in range(number):
            fresh = f"{secrets.token_hex(4)}-0000-4000-8000-{n:012}"
            self.database.execute(insert, {**row, "id": f"provider-{fresh}", "name": f"crowd-{fresh}"})
            shift = "INTERVAL '1 day'" if n % 2 else "INTERVAL '-1 day'"
            self.database.execute(
                f"UPDATE providers SET created_at = created_at + {shift} WHERE id = %s", (f"provider-{fresh}",)
            )

    def clear(self, *names: str) -> None:
        """Remove records of these names, or whose names begin so where one ends in `*`, without a trace."""
        for name in names:
            pattern = name.replace("_", r"\_").replace("*", "%")
            self.database.execute(
                "DELETE FROM provider_models WHERE provider_id IN (SELECT id FROM providers WHERE name LIKE %s)",
                (pattern,),
            )
            self.database.execute("DELETE FROM providers WHERE name LIKE %s", (pattern,))

    def delete_everything(self) -> None:
        """Delete all agents and all providers but Letta's own."""
        while agents := self.http.get("/v1/agents/", params={"limit": 50}).raise_for_status().json():
            for agent in agents:
                self.http.delete(f"/v1/agents/{agent['id']}").raise_for_status()
        providers = "SELECT id FROM providers WHERE organization_id IS NOT NULL"
        self.database.execute(f"DELETE FROM provider_models WHERE provider_id IN ({providers})")
        self.database.execute("DELETE FROM providers WHERE organization_id IS NOT NULL")

    def agent(self, binding: Binding) -> str:
        """An agent that is bound so; its id."""
        body = {
            "name": f"planted-{secrets.token_hex(4)}",
            "llm_config": binding.as_llm_config(),
            "include_base_tools": False,
        }
        return str(self.http.post("/v1/agents/", json=body).raise_for_status().json()["id"])

    def point(self, agent: str, address: str) -> None:
        """Have an agent call this address, past Letta."""
        self.database.execute(
            "UPDATE agents SET llm_config = jsonb_set(llm_config::jsonb, '{model_endpoint}', to_jsonb(%s::text)) "
            "WHERE id = %s",
            (address, agent),
        )

    def endpoint(self, agent: str) -> str:
        """What an agent calls."""
        row = self.database.execute(
            "SELECT llm_config ->> 'model_endpoint' AS address FROM agents WHERE id = %s", (agent,)
        ).fetchone()
        assert row is not None
        return str(row["address"])

    def say(self, agent: str, text: str = "Hello.") -> httpx2.Response:
        """The agent's next message."""
        body = {"messages": [{"role": "user", "content": text}], "max_steps": 1}
        return self.http.post(f"/v1/agents/{agent}/messages", json=body)


@contextmanager
def open_admin(letta: Letta) -> Iterator[LettaAdmin]:
    """Open one."""
    headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}"}
    with (
        httpx2.Client(base_url=letta.base_url, headers=headers, timeout=60, **client_options(letta.base_url)) as http,
        psycopg.connect(letta.database_url.get_secret_value(), autocommit=True, row_factory=dict_row) as database,
    ):
        yield LettaAdmin(letta, http, database)
