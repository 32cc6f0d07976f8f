"""A thousand providers, put straight into Letta's database: POSTing them would take a quarter of an hour."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from isabella.embedded import Letta

#: Nothing listens there.
BASE_URL = "http://127.0.0.1:9/v1"

_INSERT = """
    INSERT INTO providers (id, name, organization_id, provider_type, provider_category, base_url, api_key_enc,
                           created_at, last_synced)
    VALUES (%s, %s, (SELECT id FROM organizations LIMIT 1), 'openai', 'byok', %s, %s,
            now() + %s * interval '1 millisecond', now())
"""


def plant(letta: Letta, keys: Mapping[str, str]) -> None:
    """Have Letta hold exactly these providers, as if each had been POSTed and synced.

    Args:
        letta: the server; with a master key, every key is sealed as it would seal it.
        keys: the keys by the provider's name.
    """
    stored = list(keys.values())
    if letta.master_key is not None:
        with ProcessPoolExecutor() as processes:
            stored = list(processes.map(partial(seal, letta.master_key.get_secret_value()), stored, chunksize=20))
    rows = [
        (f"provider-00000000-0000-4000-8000-{number:012}", name, BASE_URL, key, number)
        for number, (name, key) in enumerate(zip(keys, stored, strict=True))
    ]
    with psycopg.connect(letta.database_url.get_secret_value()) as database, database.cursor() as cursor:
        clear(database)
        cursor.executemany(_INSERT, rows)


def clear(database: psycopg.Connection) -> None:
    """Take every provider out, deleted ones and their models too; Letta's own base providers stay."""
    ours = "SELECT id FROM providers WHERE organization_id IS NOT NULL"
    database.execute(f"DELETE FROM provider_models WHERE provider_id IN ({ours})")
    database.execute("DELETE FROM providers WHERE organization_id IS NOT NULL")


def seal(master_key: str, key: str) -> str:
    """The key as Letta stores it under this master key (fact P2)."""
    salt, iv = os.urandom(16), os.urandom(12)
    derived = hashlib.pbkdf2_hmac("sha256", master_key.encode(), salt, 100_000, dklen=32)
    return base64.b64encode(salt + iv + AESGCM(derived).encrypt(iv, key.encode(), None)).decode()
