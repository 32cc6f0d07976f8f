"""`GET /api/doctor`, on an application whose Letta and vendors are out of reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2 as httpx
import pytest

from isabella.config.settings import load_settings
from isabella.letta.client import Connection
from isabella.server.app import create_app
from isabella.server.runtime import Runtime

NOBODY = "http://127.0.0.1:9"
KEY = "gsk_fake-canary-0815"


@asynccontextmanager
async def backend(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a backend that was started with a Groq key and a Letta that is gone."""

    async def start() -> None:
        await anyio.sleep_forever()

    environment = {"GROQ_API_KEY": KEY, "GROQ_BASE_URL": f"{NOBODY}/v1", "ISABELLA_HOME": str(tmp_path)}
    settings = load_settings(environment=environment)
    connection = Connection(NOBODY, None, None, None, tmp_path, 5.0, embedded=False)
    app = create_app(Runtime(None, settings, connection), start)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://backend") as client:
        yield client


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_answers_as_the_command_does(tmp_path: Path) -> None:
    """What is wrong is told with what to do, of the settings that the backend was started with, and without a key."""

    async def ask() -> None:
        async with backend(tmp_path) as client:
            response = await client.get("/api/doctor")
        assert response.status_code == 200
        document = response.json()
        assert document["healthy"] is False
        assert {one["code"] for one in document["findings"]} == {"letta-unreachable", "vendor-unreachable"}
        assert document["unknown"]
        assert KEY not in response.text

    anyio.run(ask)


def test_a_name_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    """An unknown provider is the client's mistake, in the one form of errors."""

    async def ask() -> None:
        async with backend(tmp_path) as client:
            response = await client.get("/api/doctor", params={"provider": "nobody"})
        assert response.status_code == 404
        assert "byok-groq" in response.json()["error"]["message"]

    anyio.run(ask)
