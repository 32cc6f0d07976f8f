"""A running release of Letta, with the operations that the cases need."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isabella.api import ensure_providers
from isabella.config.settings import Settings, load_settings
from isabella.embedded import Letta
from isabella.letta.llm_config import Binding
from isabella.letta.releases import OPENAI, client_for
from isabella.practice import PracticeVendors
from isabella.providers.report import ProviderReport
from tests.support.doctor_env import VENDORS, DoctorEnv
from tests.support.fault_proxy import Proxy
from tests.support.letta_admin import LettaAdmin, open_admin
from tests.support.letta_encryption import unseal

#: The practice vendor behind all the providers: type openai, so that no provider type of Letta interferes.
VENDOR, TYPE, MODEL = "longcat", "openai", "LongCat-2.0"
FORMER_KEY = "ak_practice-former"


@dataclass
class Target:
    """A running release.

    Attributes:
        letta: the server.
        admin: changes it directly, bypassing Isabella.
        vendors: the practice vendors behind its providers.
        home: Isabella's home.
        key: the configured key, which the vendor accepts.
        writes: the write requests of the last sync, as `METHOD /path`.
        notices: the notices of the last sync about the release.
    """

    letta: Letta
    admin: LettaAdmin
    vendors: PracticeVendors
    home: Path
    key: str = ""
    writes: list[str] = field(default_factory=list)
    notices: tuple[str, ...] = ()

    @property
    def version(self) -> tuple[int, ...]:
        """The release as a tuple."""
        return tuple(int(part) for part in self.letta.version.split("."))

    @property
    def recreates(self) -> bool:
        """Whether a deleted name can be recreated (facts O1, O2)."""
        return self.version >= (0, 16, 2)

    @property
    def base_url(self) -> str:
        """The base URL of the vendor."""
        return self.vendors.base_url(VENDOR)

    def new_name(self) -> str:
        """Return an unused name for a provider."""
        return f"compat-{secrets.token_hex(4)}"

    def plant(self, name: str, *, key: str = FORMER_KEY, type: str = TYPE, base_url: str | None = None) -> str:
        """POST a provider; return its id."""
        return self.admin.provider(name, type, base_url or self.base_url, key)

    def sync(self, name: str, *, key: str | None = None) -> ProviderReport:
        """Sync one provider; return its report."""
        with Proxy(self.letta.base_url) as proxy:
            settings = self.settings(name, key=key, LETTA_BASE_URL=proxy.url)
            report = asyncio.run(ensure_providers(settings, only=[name]))
            self.writes = proxy.writes
        self.notices = report.notices
        (entry,) = report.providers
        return entry

    def settings(self, name: str, *, key: str | None = None, **variables: str) -> Settings:
        """Return settings that declare one provider and name this Letta."""
        (self.home / "isabella.toml").write_text(
            f'[[providers]]\nname = "{name}"\nbase_url = "{self.base_url}"\napi_key_env = "COMPAT_API_KEY"\n'
            f'default_model = "{MODEL}"\n'
        )
        environment = {
            "LETTA_BASE_URL": self.letta.base_url,
            "LETTA_API_KEY": self.letta.password.get_secret_value(),
            "ISABELLA_HOME": str(self.home),
            "ISABELLA_CONFIG_FILE": str(self.home / "isabella.toml"),
            "COMPAT_API_KEY": key or self.key,
        }
        if self.letta.master_key is not None:
            environment["LETTA_ENCRYPTION_KEY"] = self.letta.master_key.get_secret_value()
        return load_settings(environment=environment | variables)

    @property
    def deleted(self) -> bool:
        """Whether the last sync sent a DELETE."""
        return any(line.startswith("DELETE ") for line in self.writes)

    def opened(self, name: str) -> str | None:
        """Return the key that Letta stores, decrypted."""
        (row,) = self.admin.rows(name)
        text: str | None = row["api_key_enc"]
        if not text or self.letta.master_key is None:
            return text
        return unseal(text, self.letta.master_key.get_secret_value())

    def bearers(self, name: str) -> set[str]:
        """Return the kinds of keys with which an agent's next message reached the vendor."""
        with self.agent(name, self.base_url) as agent:
            return self.carried(agent)

    @contextmanager
    def agent(self, name: str, address: str) -> Iterator[str]:
        """Create an agent bound to a provider at this base URL, yield its id, and delete it."""
        binding = Binding(name, MODEL, address, 32_768, client=OPENAI)
        body: dict[str, Any] = {
            "name": f"compat-{secrets.token_hex(4)}",
            "llm_config": binding.as_llm_config(),
            "include_base_tools": False,
            **self._needed,
        }
        agent = str(self.admin.http.post("/v1/agents/", json=body).raise_for_status().json()["id"])
        try:
            yield agent
        finally:
            self.admin.http.delete(f"/v1/agents/{agent}")

    def carried(self, agent: str) -> set[str]:
        """Return the kinds of keys that this agent's next message carries to the vendor."""
        self.vendors.forget()
        self.admin.say(agent)
        arrived = [one for one in self.vendors.requests(VENDOR) if one.path.endswith("/chat/completions")]
        return {"the configured key" if one.carries(self.key) else "another" for one in arrived}

    @contextmanager
    def doctor_env(self) -> Iterator[DoctorEnv]:
        """Yield a healthy system for the doctor: four proven providers, each with an agent, and nothing else."""
        self.admin.clear("compat-*", "crowd-*")
        env = DoctorEnv(
            self.home / "env",
            self.letta,
            self.vendors,
            client=client_for(self.letta.version),
            needed=self._needed,
        )
        env.reset()
        yield env
        self.vendors.clear()
        for agent in env.api("GET", "/v1/agents/?limit=100"):
            env.api("DELETE", f"/v1/agents/{agent['id']}")
        self.admin.clear(*VENDORS.values())

    @property
    def _needed(self) -> dict[str, Any]:
        """Fields that creating an agent needs besides its binding (fact O12)."""
        if self.version >= (0, 16, 2):
            return {}
        return {
            "embedding_config": {
                "embedding_endpoint_type": "openai",
                "embedding_endpoint": self.base_url,
                "embedding_model": "none",
                "embedding_dim": 8,
                "embedding_chunk_size": 300,
            }
        }


@contextmanager
def open_target(letta: Letta, vendors: PracticeVendors, home: Path) -> Iterator[Target]:
    """Yield a target, and delete its providers at the end."""
    home.mkdir(parents=True, exist_ok=True)
    with open_admin(letta) as opened:
        opened.clear("compat-*", "crowd-*")
        yield Target(letta, opened, vendors, home, key=vendors.key(VENDOR).get_secret_value())
        opened.clear("compat-*", "crowd-*")
