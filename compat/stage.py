"""One release of Letta, and what the cases do to it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planting import Ground, ground
from proxy import Proxy
from sealed import unseal
from ward import VENDORS, Ward

from isabella.api import ensure_providers
from isabella.config.settings import load_settings
from isabella.embedded import Letta
from isabella.letta.llm_config import Binding
from isabella.letta.releases import OPENAI, client_for
from isabella.practice import PracticeVendors
from isabella.providers.report import ProviderReport

#: The practice vendor behind all the providers: type openai, so that no type of Letta's own comes in between.
VENDOR, TYPE, MODEL = "longcat", "openai", "LongCat-2.0"
FORMER_KEY = "ak_practice-former"


@dataclass
class Stage:
    """A running release.

    Attributes:
        letta: the server.
        ground: what plants in it, past Isabella.
        vendors: the vendors behind its providers.
        home: Isabella's home.
        key: the configured key, which the vendor accepts.
        writes: what the last sync wrote: `METHOD /path`.
        notices: what the last sync said about the release.
    """

    letta: Letta
    ground: Ground
    vendors: PracticeVendors
    home: Path
    key: str = ""
    writes: list[str] = field(default_factory=list)
    notices: tuple[str, ...] = ()

    @property
    def version(self) -> tuple[int, ...]:
        """The release, to compare with."""
        return tuple(int(part) for part in self.letta.version.split("."))

    @property
    def recreates(self) -> bool:
        """Whether a deleted name comes back (facts O1, O2)."""
        return self.version >= (0, 16, 2)

    @property
    def base_url(self) -> str:
        """The vendor's."""
        return self.vendors.base_url(VENDOR)

    def new_name(self) -> str:
        """A name for a provider that nobody has used."""
        return f"compat-{secrets.token_hex(4)}"

    def plant(self, name: str, *, key: str = FORMER_KEY, type: str = TYPE, base_url: str | None = None) -> str:
        """POST a provider; its id."""
        return self.ground.provider(name, type, base_url or self.base_url, key)

    def sync(self, name: str, *, key: str | None = None) -> ProviderReport:
        """Bring one provider in line; what is reported of it."""
        (self.home / "isabella.toml").write_text(
            f'[[providers]]\nname = "{name}"\nbase_url = "{self.base_url}"\napi_key_env = "COMPAT_API_KEY"\n'
            f'default_model = "{MODEL}"\n'
        )
        environment = {
            "LETTA_API_KEY": self.letta.password.get_secret_value(),
            "ISABELLA_HOME": str(self.home),
            "ISABELLA_CONFIG_FILE": str(self.home / "isabella.toml"),
            "COMPAT_API_KEY": key or self.key,
        }
        if self.letta.master_key is not None:
            environment["LETTA_ENCRYPTION_KEY"] = self.letta.master_key.get_secret_value()
        with Proxy(self.letta.base_url) as proxy:
            settings = load_settings(environment=environment | {"LETTA_BASE_URL": proxy.url})
            report = asyncio.run(ensure_providers(settings, only=[name]))
            self.writes = proxy.writes
        self.notices = report.notices
        (entry,) = report.providers
        return entry

    @property
    def deleted(self) -> bool:
        """Whether the last sync sent a DELETE."""
        return any(line.startswith("DELETE ") for line in self.writes)

    def opened(self, name: str) -> str | None:
        """The key that Letta holds now."""
        (row,) = self.ground.rows(name)
        text: str | None = row["api_key_enc"]
        if not text or self.letta.master_key is None:
            return text
        return unseal(text, self.letta.master_key.get_secret_value())

    def bearers(self, name: str) -> set[str]:
        """With which of these an agent's next message reached the vendor: the configured key, or what else."""
        with self.agent(name, self.base_url) as agent:
            return self.carried(agent)

    @contextmanager
    def agent(self, name: str, address: str) -> Iterator[str]:
        """An agent that is bound to a provider at this address; its id."""
        binding = Binding(name, MODEL, address, 32_768, client=OPENAI)
        body: dict[str, Any] = {
            "name": f"compat-{secrets.token_hex(4)}",
            "llm_config": binding.as_llm_config(),
            "include_base_tools": False,
            **self._needed,
        }
        agent = str(self.ground.http.post("/v1/agents/", json=body).raise_for_status().json()["id"])
        try:
            yield agent
        finally:
            self.ground.http.delete(f"/v1/agents/{agent}")

    def carried(self, agent: str) -> set[str]:
        """What this agent's next message carries to the vendor."""
        self.vendors.forget()
        self.ground.say(agent)
        arrived = [one for one in self.vendors.requests(VENDOR) if one.path.endswith("/chat/completions")]
        return {"the configured key" if one.carries(self.key) else "another" for one in arrived}

    @contextmanager
    def ward(self) -> Iterator[Ward]:
        """A system in order, for the doctor: the four vendors proven, an agent bound to each, and nothing else."""
        self.ground.clear("compat-*", "crowd-*")
        ward = Ward(
            self.home / "ward",
            self.letta,
            self.vendors,
            client=client_for(self.letta.version),
            needed=self._needed,
        )
        ward.reset()
        yield ward
        self.vendors.clear()
        for agent in ward.api("GET", "/v1/agents/?limit=100"):
            ward.api("DELETE", f"/v1/agents/{agent['id']}")
        self.ground.clear(*VENDORS.values())

    @property
    def _needed(self) -> dict[str, Any]:
        """What an agent needs to be made, besides its binding (fact O12)."""
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
def stage(letta: Letta, vendors: PracticeVendors, home: Path) -> Iterator[Stage]:
    """Open one, and take away in the end what was planted."""
    home.mkdir(parents=True, exist_ok=True)
    with ground(letta) as opened:
        opened.clear("compat-*", "crowd-*")
        yield Stage(letta, opened, vendors, home, key=vendors.key(VENDOR).get_secret_value())
        opened.clear("compat-*", "crowd-*")
