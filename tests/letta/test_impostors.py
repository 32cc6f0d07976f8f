"""The real Letta and the real backend are killed, and somebody else takes their ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx2
import psutil
import pytest

from isabella.agents.service import open_agent_service
from isabella.api import compare_providers
from isabella.doctor.run import run_doctor
from isabella.embedded import Letta, Server, postgres
from isabella.errors import LettaUnreachable
from isabella.practice import PracticeVendors
from tests.support.backend_server import TOKEN, backend
from tests.support.command import Command
from tests.support.impostor import impostor

GROQ = "byok-groq/openai/gpt-oss-120b"


@pytest.fixture(scope="module")
def server(new_server: Callable[..., Server]) -> Server:
    """An instance that these tests have for themselves; its Letta keeps a port, as it does the gateway's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = ("127.0.0.1", int(listener.getsockname()[1]))
    return new_server("impostors", kept_ports=(kept,))


@pytest.fixture
def letta(server: Server) -> Iterator[Letta]:
    """Its Letta, running."""
    yield server.up()
    server.down()


def test_letta_is_killed_under_a_backend(server: Server, letta: Letta, tmp_path: Path) -> None:
    """The next turn, the next look and the doctor send nothing to who has Letta's port; with Letta back, they do."""
    with PracticeVendors() as vendors, backend(letta, tmp_path, vendors) as served:
        agent = served.agent("impostor", GROQ)
        assert served.say(agent, "Say good morning").text == "good morning"
        assert "in use" in taken_by_another_user(server.kept_ports[0][1])
        kill_postgres_under(letta, server)
        pid = server.status().letta.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)], timeout=30)
        assert taken_by_another_user(server.kept_ports[0][1]) == ""
        port = int(letta.base_url.rsplit(":", 1)[1])
        with impostor(port) as other:
            refused = served.client.post(f"/api/agents/{agent}/turns", json={"message": "My name is Ada."})
            assert "nothing was sent to it: Letta" in refused.text
            assert "isabella letta up" in refused.text
            listed = served.client.get("/api/agents")
            assert (listed.status_code, listed.json()["error"]["code"]) == (503, "letta_unreachable")

            async def look() -> None:
                with pytest.raises(LettaUnreachable, match="nothing was sent"):
                    await compare_providers(served.settings, connection=served.connection)
                with pytest.raises(LettaUnreachable, match="nothing was sent"):
                    async with open_agent_service(served.settings, served.connection) as agent_service:
                        await agent_service.registry.all()
                found = await run_doctor(settings=served.settings, connection=served.connection)
                assert "nothing was sent" in str(found.evidence.letta.error)

            anyio.run(look)
            heard = other.heard
        assert heard
        assert set(heard) == {b""}
        again = server.up()
        assert again.base_url == letta.base_url
        assert served.say(agent, "Say good night").text == "good night"


def taken_by_another_user(port: int) -> str:
    """What the system says to another user who takes a port; nothing if he can. Only root can be somebody else."""
    script = (
        "import os, socket\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "taker = socket.socket()\n"
        "taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        f"taker.bind(('127.0.0.1', {port}))\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stderr


def kill_postgres_under(letta: Letta, server: Server) -> None:
    """A Letta whose Postgres was killed never connects to who has its port then and asks for the password."""
    status = server.status()
    assert status.postgres.pid is not None
    assert status.postgres.port is not None
    os.kill(status.postgres.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(status.postgres.pid)], timeout=30)
    with impostor(status.postgres.port, answer=b"R\0\0\0\x08\0\0\0\x03") as other:
        headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}"}

        def ask(_number: int) -> int:
            return httpx2.get(f"{letta.base_url}/v1/providers/", headers=headers, timeout=60).status_code

        with ThreadPoolExecutor(10) as threads:
            assert all(status >= 500 for status in threads.map(ask, range(100)))
        assert other.heard == []
    cluster = postgres.find_cluster(server.paths)
    assert cluster is not None
    cluster.start(status.postgres.port)
    assert ask(0) == 200


def test_the_backend_is_killed(letta: Letta, tmp_path: Path) -> None:
    """A chat and a login after the end of the real backend send nothing to who has its port."""
    with PracticeVendors() as vendors:
        variables = {
            "ISABELLA_HOME": str(tmp_path / "home"),
            "ISABELLA_TOKEN": TOKEN,
            "ISABELLA_PORT": "0",
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_API_KEY": letta.password.get_secret_value(),
            "GROQ_API_KEY": vendors.key("groq").get_secret_value(),
            "GROQ_BASE_URL": vendors.base_url("groq"),
        }
        command = Command(tmp_path, variables)
        with command.start("up", "--no-practice") as process:
            assert process.stderr is not None
            found = next(
                (
                    said
                    for line in process.stderr
                    if (said := re.search(r"(?:Ready|Degraded): (http://\S+:(\d+))", line))
                ),
                None,
            )
            assert found is not None
            assert command.run("login").out.startswith(f"{found[1]}/login?code=")
            second = command.run("up", "--no-practice")
            assert second.code == 1
            assert f"at {found[1]} (process {process.pid})" in second.err
            process.kill()
            process.wait()
        with impostor(int(found[2])) as other:
            for arguments in (("chat",), ("login",)):
                ended = command.run(*arguments)
                assert ended.code == 1
                assert "nothing was sent to it: the backend" in ended.err
                assert TOKEN not in ended.out + ended.err
            assert set(other.heard) == {b""}
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(found[1])
