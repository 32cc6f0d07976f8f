"""Rows of providers, written straight into Letta's database: a thousand POSTs would take a quarter of an hour."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import psycopg

from isabella.embedded import Letta
from isabella.letta.encryption import encrypt

#: Nothing listens there.
BASE_URL = "http://127.0.0.1:9/v1"

_INSERT = """
    INSERT INTO providers (id, name, organization_id, provider_type, provider_category, base_url, api_key_enc,
                           created_at, last_synced)
    VALUES (%s, %s, (SELECT id FROM organizations LIMIT 1), 'openai', 'byok', %s, %s,
            now() + %s * interval '1 millisecond', now())
"""


def insert_providers(letta: Letta, keys: Mapping[str, str]) -> None:
    """Replace all providers by these, as if each had been POSTed and synced.

    Args:
        letta: the server; if it has a master key, every key is encrypted with it.
        keys: the keys by the provider's name.
    """
    stored = list(keys.values())
    if letta.master_key is not None:
        with ProcessPoolExecutor() as processes:
            one = partial(encrypt, master_key=letta.master_key.get_secret_value())
            stored = list(processes.map(one, stored, chunksize=20))
    rows = [
        (f"provider-00000000-0000-4000-8000-{number:012}", name, BASE_URL, key, number)
        for number, (name, key) in enumerate(zip(keys, stored, strict=True))
    ]
    with psycopg.connect(letta.database_url.get_secret_value()) as database, database.cursor() as cursor:
        delete_providers(database)
        cursor.executemany(_INSERT, rows)


def delete_providers(database: psycopg.Connection) -> None:
    """Delete every provider with its models, soft-deleted ones included; Letta's own base providers stay."""
    ours = "SELECT id FROM providers WHERE organization_id IS NOT NULL"
    database.execute(f"DELETE FROM provider_models WHERE provider_id IN ({ours})")
    database.execute("DELETE FROM providers WHERE organization_id IS NOT NULL")
