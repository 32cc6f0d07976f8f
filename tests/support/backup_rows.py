"""A database with much in it, and everything that is in it: for backups, in tests and in the bench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2
import psycopg
from psycopg import sql
from pydantic import SecretStr

from isabella.embedded import Letta, encrypted_columns, postgres
from isabella.letta.llm_config import Binding

AGENTS = 5
_COPIES = {
    "messages": """
        INSERT INTO messages SELECT copy.*
        FROM (SELECT * FROM messages WHERE role = 'user' ORDER BY id LIMIT 1) AS one, generate_series(1, %s) AS n,
            LATERAL jsonb_populate_record(NULL::messages, to_jsonb(one) || jsonb_build_object(
                'id', 'message-' || gen_random_uuid(), 'sequence_id', nextval('message_seq_id'),
                'content', jsonb_build_array(jsonb_build_object(
                    'type', 'text', 'text', 'Message ' || n || ' of ' || md5(random()::text))))) AS copy
    """,
    "archival_passages": """
        INSERT INTO archival_passages SELECT copy.*
        FROM (SELECT * FROM archival_passages ORDER BY id LIMIT 1) AS one, generate_series(1, %s) AS n,
            LATERAL jsonb_populate_record(NULL::archival_passages, to_jsonb(one) || jsonb_build_object(
                'id', 'passage-' || gen_random_uuid(), 'text', 'Fact ' || n || ' of ' || md5(random()::text))) AS copy
    """,
}
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


def furnish(letta: Letta, binding: Binding, *, messages: int, passages: int) -> list[str]:
    """Make agents with a block each, and a history; real rows are copied until there are at least so many.

    Returns their ids. The first one has a message and a passage that were written over REST.
    """
    headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}"}
    with httpx2.Client(base_url=letta.base_url, headers=headers, timeout=60, trust_env=False) as http:
        made = []
        for number in range(AGENTS):
            body = {
                "name": f"of-the-backup-{number}",
                "llm_config": binding.as_llm_config(),
                "include_base_tools": False,
                "memory_blocks": [{"label": "human", "value": f"The human's number is {number}."}],
            }
            made.append(str(http.post("/v1/agents/", json=body).raise_for_status().json()["id"]))
        said = {"messages": [{"role": "user", "content": "Remember the tin of tea."}], "max_steps": 1}
        http.post(f"/v1/agents/{made[0]}/messages", json=said).raise_for_status()
        fact = {"text": "The tin of tea is green."}
        http.post(f"/v1/agents/{made[0]}/archival-memory", json=fact).raise_for_status()
        http.patch(f"/v1/agents/{made[0]}", json={"secrets": {"WEATHER_TOKEN": "of-the-weather"}}).raise_for_status()
    with psycopg.connect(letta.database_url.get_secret_value()) as database:
        copy_rows(database, "messages", messages)
        copy_rows(database, "archival_passages", passages)
    return made


def copy_rows(database: psycopg.Connection, table: str, number: int) -> None:
    """Copy a real row of messages or passages so many times, each with another text."""
    database.execute(_COPIES[table], (number,))


def all_rows(url: SecretStr) -> dict[str, list[str]]:
    """Every row of every table, without the columns that are encrypted."""
    found: dict[str, list[str]] = {}
    with postgres.connect(url) as database:
        for (table,) in database.execute(_TABLES).fetchall():
            query = sql.SQL(
                "SELECT (SELECT jsonb_object_agg(key, value) FROM jsonb_each(to_jsonb(one)) "
                "WHERE key NOT LIKE '%\\_enc')::text FROM {} AS one ORDER BY 1"
            ).format(sql.Identifier(table))
            found[table] = [str(row) for (row,) in database.execute(query).fetchall()]
    return found


def secrets(url: SecretStr, keys: Sequence[SecretStr]) -> dict[str, Any]:
    """Every encrypted value, decrypted by these master keys; None for one that none of them decrypts."""
    values = encrypted_columns.read_values(url, keys)
    return {one.place: one.plaintext and one.plaintext.get_secret_value() for one in values}
