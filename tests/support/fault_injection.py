"""What a sync finds in Letta, situation by situation, so that a walk can go through every request of each.

A situation is planted by SQL, past Letta, because a walk plants it hundreds of times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isabella.api import ensure_providers
from isabella.config.gateway_address import gateway_address
from isabella.config.settings import Settings, load_settings
from isabella.embedded import Letta
from isabella.letta.llm_config import Binding
from isabella.practice import PracticeVendors
from isabella.providers.report import Report
from isabella.system.urls import gateway_base_url
from tests.support.backend_server import connection_to, gateway
from tests.support.fault_proxy import Proxy
from tests.support.letta_admin import LettaAdmin, open_admin
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal, unseal
from tests.support.made_tokens import use_tokens
from tests.support.remembered_letta import RememberedLetta, State

FORMER_KEY = "ak_practice-former"
BYSTANDER = "walk-bystander"
PROBE = "isabella-encryption-probe"
_TYPE = "openai"

#: What stands in Letta -> which of Isabella's ways of writing that leads to.
SITUATIONS: dict[str, str] = {
    "absent": "create",
    "deleted": "create",
    "stale": "update",
    "sealed elsewhere": "recreate, after an update was refused",
    "another type": "recreate",
    "plaintext": "reseal, after the encryption probe",
    "another type, and POST is refused": "put back",
    "another address": "move",
    "another address and type": "move by recreation",
    "another address and type, and POST is refused": "move, put back",
    "absent, with agents of former days": "create, after its agents have followed",
    "everything at once": "all of these side by side",
}
#: Those in which the agents of the provider, and the provider itself where it is there, are at another address.
MOVES = frozenset(name for name in SITUATIONS if "address" in name or "agents" in name)
#: Those in which what is made after a DELETE is refused.
_REFUSALS = frozenset(name for name in SITUATIONS if name.endswith("POST is refused"))
#: The situations that the crash walk goes through behind the gateway; the fault walk does so with the others.
BEHIND_GATEWAY = frozenset([*SITUATIONS][::2])


@dataclass
class WalkEnv:
    """A Letta with some providers that are brought into a situation again and again.

    Attributes:
        gateway: the address of the gateway between this Letta and the vendors; None if there is none.
        memory: what answers in Letta's place what it was asked before; None if Letta answers everything itself.
    """

    admin: LettaAdmin
    vendors: PracticeVendors
    home: Path
    gateway: str | None = None
    memory: RememberedLetta | None = None
    _planted: dict[tuple[str, str | None], State] = field(default_factory=dict)
    _sealed: dict[tuple[str, str], str] = field(default_factory=dict)
    _agents: dict[str, str] = field(default_factory=dict)

    def base_url(self, name: str = "walk-one") -> str:
        """The base URL that a provider of this name is to have in Letta."""
        return gateway_base_url(self.gateway, name) if self.gateway else self.vendors.base_url("longcat")

    @property
    def way(self) -> str:
        """How Letta reaches the vendors, for messages."""
        return ", behind the gateway" if self.gateway else ""

    @property
    def former_base_url(self) -> str:
        """Where the vendor was before it moved."""
        return self.vendors.base_url("mistral")

    @property
    def key(self) -> str:
        """The configured key, which the vendor accepts."""
        return self.vendors.key("longcat").get_secret_value()

    @property
    def target(self) -> str | RememberedLetta:
        """Where a proxy passes requests on to."""
        return self.memory or self.admin.letta.base_url

    @property
    def master_key(self) -> str:
        """Letta's."""
        assert self.admin.letta.master_key is not None
        return self.admin.letta.master_key.get_secret_value()

    def names(self, situation: str) -> list[str]:
        """The providers in a situation."""
        if situation != "everything at once":
            return ["walk-one"]
        return ["walk-one", "walk-two", "walk-three", "walk-four"]

    def configuration(self, situation: str, base_url: str, **variables: str) -> dict[str, str]:
        """The environment for a sync in this situation, of the Letta at this address."""
        self.home.mkdir(exist_ok=True)
        (self.home / "isabella.toml").write_text(
            "".join(
                f'[[providers]]\nname = "{name}"\nbase_url = "{self.vendors.base_url("longcat")}"\n'
                'api_key_env = "WALK_API_KEY"\ndefault_model = "LongCat-2.0"\n'
                for name in self.names(situation)
            )
        )
        return {
            "LETTA_BASE_URL": base_url,
            "LETTA_API_KEY": self.admin.letta.password.get_secret_value(),
            "LETTA_ENCRYPTION_KEY": self.master_key,
            "ISABELLA_HOME": str(self.home),
            "ISABELLA_CONFIG_FILE": str(self.home / "isabella.toml"),
            "ISABELLA_GATEWAY": "on" if self.gateway else "off",
            "WALK_API_KEY": self.key,
            **variables,
        }

    def settings(self, situation: str, base_url: str | None = None, **variables: str) -> Settings:
        """The same as settings; by default of the real Letta."""
        return load_settings(
            environment=self.configuration(situation, base_url or self.admin.letta.base_url, **variables)
        )

    def plant(self, situation: str) -> dict[str, str]:
        """Bring Letta into a situation. Returned are the ids of the providers that are there, by name."""
        names = self.names(situation)
        if self.memory is None:
            self._plant(situation, names)
        elif (planted := self._planted.get((situation, self.gateway))) is not None:
            self.memory.state = planted
        else:
            self._plant(situation, names)
            self._planted[situation, self.gateway] = self.memory.look()
        return {name: row["id"] for name in names if (row := self.row(name)) is not None}

    def add_counted(self, number: int) -> None:
        """Add providers whose models Letta has read. A command that syncs counts the models of each."""
        (bystander,) = self.admin.rows(BYSTANDER)
        self.admin.crowd(bystander["id"], number)
        self.admin.database.execute("UPDATE providers SET last_synced = now() WHERE name LIKE 'crowd-%'")

    def _plant(self, situation: str, names: list[str]) -> None:
        if not self.admin.rows(BYSTANDER):
            self.admin.provider(BYSTANDER, _TYPE, self.base_url(BYSTANDER), FORMER_KEY)
        former = self.former_base_url if situation in MOVES else self.base_url()
        for name, address in (("walk-one", former), (BYSTANDER, self.former_base_url)):
            if name not in self._agents:
                self._agents[name] = self.admin.agent(Binding(name, "LongCat-2.0", address, 32_768))
            self.admin.point(self._agents[name], address)
        if len(names) == 1:
            self._plant_one(names[0], situation)
        else:
            for name, one in zip(names, ["absent", "stale", "sealed elsewhere", "plaintext"], strict=True):
                self._plant_one(name, one)

    def _plant_one(self, name: str, situation: str) -> None:
        if situation.startswith("absent"):
            self.admin.clear(name)
            return
        found = self.admin.database.execute("SELECT id FROM providers WHERE name = %s", (name,)).fetchone()
        id = found["id"] if found else self.admin.provider(name, _TYPE, self.base_url(name), self.key)
        text: str | None = self._seal(FORMER_KEY, self.master_key)
        type = _TYPE
        match situation:
            case "deleted":
                text = None
            case "sealed elsewhere":
                text = self._seal(self.key, OTHER_MASTER_KEY)
            case _ if "type" in situation:
                type = "cerebras"
            case "plaintext":
                text = self.key
        self.admin.database.execute(
            "UPDATE providers SET provider_type = %s, base_url = %s, api_key_enc = %s, is_deleted = %s WHERE id = %s",
            (
                type,
                self.former_base_url if situation in MOVES else self.base_url(name),
                text,
                situation == "deleted",
                id,
            ),
        )

    def _seal(self, key: str, master_key: str) -> str:
        """One text for each key: nobody looks at the salt, and the walk is long."""
        if (key, master_key) not in self._sealed:
            self._sealed[key, master_key] = seal(key, master_key)
        return self._sealed[key, master_key]

    def arm(self, situation: str, proxy: Proxy) -> None:
        """Let go wrong what belongs to the situation itself."""
        if situation in _REFUSALS:
            proxy.fault("POST /v1/providers/", 422)

    def row(self, name: str) -> dict[str, Any] | None:
        """The live record of this name."""
        rows = self.admin.rows(name) if self.memory is None else self.memory.state.providers(name)
        return next(iter(rows), None)

    def _endpoint(self, name: str) -> str:
        """What the agent of a provider calls."""
        agent = self._agents[name]
        return self.admin.endpoint(agent) if self.memory is None else self.memory.state.endpoint(agent)

    def state(self, name: str) -> tuple[str, str, str | None] | None:
        """Type, base URL and opened key of the live record."""
        row = self.row(name)
        if row is None:
            return None
        text = row["api_key_enc"]
        return row["provider_type"], row["base_url"], unseal(text, self.master_key) if text else None

    def check_agents(self, situation: str) -> None:
        """What the agent of the provider would carry now, and to which address: never a key that is not for it.

        That holds for whoever speaks to Letta itself, past every gate.
        """
        former = self.former_base_url if situation in MOVES else self.base_url()
        state = self.state("walk-one")
        if state is not None and state[2] is not None and not state[2].startswith("no-key-yet-"):
            carried = (self._endpoint("walk-one"), state[2])
            assert carried in ((former, FORMER_KEY), (self.base_url(), self.key)), f"{situation}: {carried}"

    def heal(self, situation: str) -> Report:
        """The next start, in fair weather."""
        if self.memory is None:
            return asyncio.run(ensure_providers(self.settings(situation)))
        with Proxy(self.memory) as proxy:
            return asyncio.run(ensure_providers(self.settings(situation, proxy.url)))

    def check_healed(self, situation: str, ids: Mapping[str, str], *, proven: bool = False) -> None:
        """After the next start everything is proven, under the ids it had, and nothing else was touched.

        If a sync has said that all is `proven`, nothing is left for the next start, and it is checked at once.
        """
        bystander = self.row(BYSTANDER)
        if not proven:
            report = self.heal(situation)
            assert report.all_proven, [entry.reason for entry in report.configured]
        for name in self.names(situation):
            assert self.state(name) == (_TYPE, self.base_url(name), self.key), name
            row = self.row(name)
            assert row is not None
            assert row["id"] == ids.get(name, row["id"])
        assert self._endpoint("walk-one") == self.base_url()
        assert self._endpoint(BYSTANDER) == self.former_base_url
        assert self.row(BYSTANDER) == bystander
        assert self.row(PROBE) is None

    @contextmanager
    def behind_gateway(self) -> Iterator[None]:
        """Have a gateway between Letta and the vendors for a while."""
        settings = self.settings("everything at once", ISABELLA_GATEWAY="on")
        with gateway(settings, connection_to(self.admin.letta, self.home)):
            self.gateway = gateway_address(settings)
            yield
        self.gateway = None

    @contextmanager
    def remembering(self) -> Iterator[RememberedLetta]:
        """Answer requests from memory for a while, where Letta has carried them out in the same state before.

        For this, the keys that Isabella makes up are the same in the same state.
        """
        self.memory = memory = RememberedLetta(self.admin, frozenset(["walk-one", PROBE]))
        try:
            with use_tokens(memory.token_hex):
                yield memory
        finally:
            self.memory = None
            self._planted.clear()
        assert memory.differences == []

    def clear(self) -> None:
        """Take everything away."""
        while self._agents:
            self.admin.http.delete(f"/v1/agents/{self._agents.popitem()[1]}").raise_for_status()
        self.admin.clear("walk-*", "crowd-*", PROBE)


def count_requests(env: WalkEnv, situation: str, run: Callable[[str], object]) -> int:
    """How many requests reach Letta in this situation, when a sync is run against the given address."""
    env.plant(situation)
    with Proxy(env.target) as proxy:
        env.arm(situation, proxy)
        run(proxy.url)
        return sum(request.passed_on for request in proxy.requests)


@contextmanager
def open_walk_env(letta: Letta, home: Path) -> Iterator[WalkEnv]:
    """A env on this Letta, with vendors of its own, cleared before and after."""
    with PracticeVendors() as vendors, open_admin(letta) as opened:
        env = WalkEnv(opened, vendors, home)
        env.clear()
        yield env
        env.clear()
