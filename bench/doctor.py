"""How long `isabella doctor --json` takes in a fresh process: in a healthy system, and with everything down."""

from __future__ import annotations

import json
import os
import socket
import statistics
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx
import psycopg

from bench.help_command import bare_interpreter
from bench.provider_rows import delete_providers
from bench.results import Results
from bench.setup import Servers, Setup
from bench.timing import Way, alternate, medians
from isabella.config.vendors import usual_vendors
from isabella.letta.llm_config import Binding
from isabella.providers.desired import desired_providers

_COMMAND = Path(sysconfig.get_path("scripts")) / "isabella"


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure four proven providers with an agent each; then with all ports closed, and with silent servers."""
    results = Results()
    with servers.vendors(sealed=True) as (setup, _), _silence() as silent:
        await _only_four(setup)
        configured = _Configured(setup)
        closed, mute = configured.at("http://127.0.0.1:9"), configured.at(silent)

        async def healthy() -> None:
            found = await configured.ask()
            assert found == set(), found

        async def nobody() -> None:
            found = await closed.ask()
            assert found == _down("vendor-unreachable", "letta-unreachable"), found

        async def silence() -> None:
            found = await mute.ask()
            assert found == _down("vendor-timeout", "letta-silent"), found

        # A first run has no remembered proofs.
        well, closed_ports, silent_ports, bare = await alternate(
            5 if quick else 9,
            Way(healthy, before=setup.forget_proofs),
            Way(nobody),
            Way(silence),
            Way(bare_interpreter),
        )
        results.compare("doctor_over_bare", well, bare, medians(ours=well, a_bare_interpreter=bare))
        slower = max(closed_ports, silent_ports, key=statistics.median)
        told = medians(closed_ports=closed_ports, silence=silent_ports)
        results.add("doctor_down_seconds", statistics.median(slower), told, slower)
    return results


@dataclass(frozen=True)
class _Configured:
    """A configuration, and the doctor run in a folder with it as `.env`.

    Attributes:
        setup: the Letta, and the folder.
        instead: the address at which everybody is looked for, in place of their own.
    """

    setup: Setup
    instead: str | None = None

    def at(self, address: str) -> _Configured:
        """Return a copy with Letta and every vendor at this address."""
        return _Configured(self.setup, address)

    async def ask(self) -> set[tuple[str, str | None]]:
        """Run the doctor; return code and provider of each finding."""
        env = self.setup.folder / ".env"
        env.write_text("".join(f"{name}={text}\n" for name, text in self._variables().items()))
        env.chmod(0o600)
        ran = await anyio.run_process(
            [_COMMAND, "doctor", "--json"],
            cwd=self.setup.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.setup.folder)},
            check=False,
        )
        assert ran.returncode in (0, 2), ran.stderr.decode()[-2000:]
        document = json.loads(ran.stdout)
        assert document["healthy"] == (ran.returncode == 0)
        return {(finding["code"], finding["provider"]) for finding in document["findings"]}

    def _variables(self) -> dict[str, str]:
        letta = self.setup.letta
        assert letta.master_key is not None
        variables = {
            "ISABELLA_HOME": str(self.setup.folder),
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_API_KEY": letta.password.get_secret_value(),
            "LETTA_ENCRYPTION_KEY": letta.master_key.get_secret_value(),
            "ISABELLA_DATABASE_URL": letta.database_url.get_secret_value(),
            **{name: value.text for name, value in self.setup.settings.sources.overlay.items()},
        }
        if self.instead is not None:
            variables |= {name: self.instead for name in variables if name.endswith("_BASE_URL")}
        return variables


def _down(vendor: str, letta: str) -> set[tuple[str, str | None]]:
    """Return the expected findings if Letta and all vendors are down in the same way."""
    return {(letta, None), *((vendor, one.provider) for one in usual_vendors())}


async def _only_four(setup: Setup) -> None:
    """Leave only the four providers in Letta, with an agent on each."""
    letta = setup.letta
    with psycopg.connect(letta.database_url.get_secret_value()) as database:
        delete_providers(database)
    await setup.start()
    headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}", "Connection": "close"}
    async with httpx.AsyncClient(base_url=letta.base_url, headers=headers, timeout=60, trust_env=False) as http:
        for agent in (await http.get("/v1/agents/", params={"limit": 1000})).raise_for_status().json():
            (await http.delete(f"/v1/agents/{agent['id']}")).raise_for_status()
        for one in desired_providers(setup.settings):
            window = one.vendor.default_window
            binding = Binding(one.name, one.vendor.default_model or "", one.base_url, window)
            body: dict[str, Any] = {
                "name": one.name,
                "include_base_tools": False,
                "llm_config": binding.as_llm_config(),
            }
            made = (await http.post("/v1/agents/", json=body)).raise_for_status().json()
            # Letta stores a model for summaries, whatever the request says.
            unset = {"compaction_settings": {"model": None}}
            (await http.patch(f"/v1/agents/{made['id']}", json=unset)).raise_for_status()


@contextmanager
def _silence() -> Iterator[str]:
    """Yield the base URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
