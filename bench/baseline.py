"""Baselines: plain calls, and the loop of list, DELETE and POST that the earlier system had.

Both are minimal: one client, no checks, no read-back. They do less than Isabella does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2

from isabella.letta.client import Connection
from isabella.letta.providers import PAGE_SIZE
from isabella.providers.desired import Desired


@asynccontextmanager
async def client(connection: Connection) -> AsyncIterator[httpx2.AsyncClient]:
    """A client configured like Isabella's own, so that both have the same fixed costs."""
    password = connection.password.get_secret_value() if connection.password else ""
    async with httpx2.AsyncClient(
        base_url=connection.base_url,
        headers={"Authorization": f"Bearer {password}"},
        timeout=60,
        verify=False,
        trust_env=False,
    ) as opened:
        yield opened


async def bare_listing(connection: Connection) -> list[dict[str, Any]]:
    """Return all providers, in pages of the same size as Isabella's."""
    rows: list[dict[str, Any]] = []
    query: dict[str, str | int] = {"limit": PAGE_SIZE, "order": "asc"}
    async with client(connection) as http:
        while True:
            answer = await http.get("/v1/providers/", params=query)
            answer.raise_for_status()
            page = answer.json()
            rows += page
            if len(page) < PAGE_SIZE:
                return rows
            query["after"] = page[-1]["id"]


async def bare_posts(connection: Connection, desired: Sequence[Desired]) -> None:
    """POST all providers concurrently."""
    async with client(connection) as http, anyio.create_task_group() as tasks:
        for provider in desired:
            tasks.start_soon(_post, http, provider)


async def list_delete_post(connection: Connection, desired: Sequence[Desired]) -> None:
    """List the providers; then DELETE and POST one after another."""
    async with client(connection) as http:
        answer = await http.get("/v1/providers/")
        answer.raise_for_status()
        ids = {row["name"]: row["id"] for row in answer.json()}
        for provider in desired:
            if provider.name in ids:
                (await http.delete(f"/v1/providers/{ids[provider.name]}")).raise_for_status()
            await _post(http, provider)


async def delete_all(connection: Connection) -> None:
    """Delete all providers."""
    async with client(connection) as http:
        for row in await bare_listing(connection):
            (await http.delete(f"/v1/providers/{row['id']}")).raise_for_status()


async def _post(http: httpx2.AsyncClient, provider: Desired) -> None:
    assert provider.key is not None
    answer = await http.post(
        "/v1/providers/",
        json={
            "name": provider.name,
            "provider_type": provider.type,
            "base_url": provider.base_url,
            "api_key": provider.key.get_secret_value(),
        },
    )
    answer.raise_for_status()
