"""What the real Letta prints, captured from it, is recognised by the doctor."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psycopg
import pytest

from isabella.doctor.log_messages import recognise, recognise_in
from isabella.embedded import Letta, Server
from isabella.practice import PracticeVendors
from isabella.system.urls import client_options
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal

#: Letta's own Groq client, asked to stream, in Letta's own interpreter.
STREAM = """
import asyncio
from letta.llm_api.groq_client import GroqClient
asyncio.run(GroqClient().stream_async({}, None))
"""


class Wire:
    """Requests to Letta, whatever it answers."""

    def __init__(self, letta: Letta) -> None:
        self._letta = letta

    def __call__(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._letta.password.get_secret_value()}", "Connection": "close"}
        url = f"{self._letta.base_url}{path}"
        return httpx.request(method, url, json=body, headers=headers, timeout=30, **client_options(url))

    def provider(self, name: str, type: str, base_url: str, key: str) -> httpx.Response:
        body = {"name": name, "provider_type": type, "base_url": base_url, "api_key": key}
        return self("POST", "/v1/providers/", body)

    def agent(self, **fields: Any) -> httpx.Response:
        return self("POST", "/v1/agents/", {"include_base_tools": False, **fields})

    def say(self, agent: httpx.Response) -> httpx.Response:
        messages = [{"role": "user", "content": "Hello."}]
        return self("POST", f"/v1/agents/{agent.json()['id']}/messages", {"messages": messages})


@pytest.fixture(scope="module")
def captured(letta_server: Letta, embedded: Server) -> Iterator[dict[str, str]]:
    """What Letta answered, and what it wrote into its log, when it was made to fail in each way."""
    wire, said = Wire(letta_server), {}
    log = embedded.paths.letta_log
    begin = log.stat().st_size
    made: list[str] = []
    agents: list[httpx.Response] = []
    with PracticeVendors() as vendors:

        def provider(name: str, type: str, vendor: str, key: str | None = None) -> str:
            right = vendors.key(vendor).get_secret_value()
            answer = wire.provider(name, type, vendors.base_url(vendor), key or right)
            assert answer.is_success, answer.text
            made.append(answer.json()["id"])
            return made[-1]

        def written() -> str:
            with log.open("rb") as lines:
                lines.seek(begin)
                return lines.read().decode("utf-8", "replace")

        def refused(name: str, type: str, vendor: str, key: str) -> None:
            # Where the machine stood still, Letta has given up before the vendor answered, and says nothing of a 401.
            for _ in range(3):
                id = provider(name, type, vendor, key)
                if f"'{name}': Client error '401" in written():
                    return
                wire("DELETE", f"/v1/providers/{id}")
                made.remove(id)

        provider("doc-cerebras", "cerebras", "cerebras")
        agents.append(wire.agent(name="doc-1", model="doc-cerebras/gpt-oss-120b"))
        vendors.accept("cerebras", ["csk-another"])
        said["wrong-api-key"] = wire.say(agents[-1]).text
        refused("doc-groq-refused", "groq", "groq", "gsk_refused")
        provider("doc-mistral-refused", "mistral", "mistral", "refused")
        provider("doc-groq", "groq", "groq")
        agents.append(wire.agent(name="doc-2", model="doc-groq/openai/gpt-oss-120b"))
        said["api-key-client-option"] = wire.say(agents[-1]).text
        provider("doc-longcat", "openai", "longcat")
        assert wire.agent(name="doc-3", model="doc-longcat/LongCat-2.0").status_code == 500
        said["handle-not-found"] = wire.agent(name="doc-4", model="doc-nobody/model").text
        said["base-provider-conflict"] = wire.provider("letta", "openai", vendors.base_url("groq"), "x").text
        said["unique-constraint"] = wire.provider("doc-groq", "groq", vendors.base_url("groq"), "x").text
        sealed = provider("doc-sealed", "mistral", "mistral")
        with psycopg.connect(letta_server.database_url.get_secret_value(), autocommit=True) as connection:
            text = seal("whatever", OTHER_MASTER_KEY)
            connection.execute("UPDATE providers SET api_key_enc = %s WHERE id = %s", (text, sealed))
        said["failed-to-decrypt"] = wire("PATCH", f"/v1/providers/{sealed}", {"api_key": "another"}).text
        said["server-password"] = httpx.get(f"{letta_server.base_url}/v1/providers/", trust_env=False).text
        said["model-sync-failed"] = said["handle-mismatch"] = written()
    yield said
    for agent in agents:
        wire("DELETE", f"/v1/agents/{agent.json()['id']}")
    for id in made:
        wire("DELETE", f"/v1/providers/{id}")


@pytest.mark.parametrize(
    "symptom",
    [
        "wrong-api-key",
        "api-key-client-option",
        "handle-not-found",
        "base-provider-conflict",
        "unique-constraint",
        "failed-to-decrypt",
        "server-password",
        "model-sync-failed",
        "handle-mismatch",
    ],
)
def test_what_the_real_server_prints_is_recognised(captured: dict[str, str], symptom: str) -> None:
    """The message, as 0.16.8 printed it just now, is recognised for what it is."""
    found = recognise_in(captured[symptom].splitlines())
    assert symptom in {one.message.id for one in found}, captured[symptom][:2000]


def test_the_failed_sync_of_models_is_recognised_as_letta_writes_it(captured: dict[str, str]) -> None:
    """The line about byok-groq is written in these words, and its provider is named."""
    lines = [line for line in captured["model-sync-failed"].splitlines() if "doc-groq-refused" in line]
    # The last one: see `refused` above.
    line = [line for line in lines if "Failed to sync models for provider 'doc-groq-refused'" in line][-1]
    assert "Client error '401 Unauthorized' for url" in line
    (one,) = recognise(line)
    assert "isabella providers sync --only doc-groq-refused" in one.remedy


def in_lettas_interpreter(server: Server, *arguments: str, **environment: str) -> str:
    """What Letta's own interpreter prints."""
    plain = {"PATH": os.environ["PATH"], "HOME": str(server.paths.server_home), **environment}
    command = [str(server.paths.python), *arguments]
    done = subprocess.run(
        command, cwd=server.paths.program, env=plain, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_letta_s_groq_client_does_not_stream(letta_server: Letta, embedded: Server) -> None:
    """What Letta's Groq client says when it is asked to stream is recognised."""
    printed = in_lettas_interpreter(embedded, "-c", STREAM, LETTA_PG_URI="postgresql://nobody:x@127.0.0.1:9/letta")
    assert "groq-streaming" in {one.message.id for one in recognise(printed)}, printed[-2000:]


def test_a_refused_database_is_recognised(letta_server: Letta, embedded: Server, tmp_path: Path) -> None:
    """What Letta's migrations print where no Postgres listens is recognised."""
    printed = in_lettas_interpreter(
        embedded, "-m", "alembic", "upgrade", "head", LETTA_PG_URI="postgresql://nobody:x@127.0.0.1:9/letta"
    )
    assert "database-refused" in {one.message.id for one in recognise(printed)}, printed[-2000:]
