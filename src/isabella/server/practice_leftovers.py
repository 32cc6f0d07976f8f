"""The providers of practice vendors that real keys have replaced: found in Letta, and removed on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from isabella.agents.registry import AgentRegistry
from isabella.config.settings import Settings
from isabella.config.vendors import usual_vendors
from isabella.errors import IsabellaError, PracticeError
from isabella.letta.client import Connection, LettaClient
from isabella.letta.encryption import read_back
from isabella.letta.store import StoredProvider
from isabella.locks.provider_lock import ProviderLock
from isabella.locks.sync_lock import sync_lock
from isabella.practice.daemon import keys_file
from isabella.practice.vendor import load_keys
from isabella.practice.wire import NAMES
from isabella.providers.desired import desired_providers
from isabella.providers.plan import explain_no_delete
from isabella.providers.report import Report
from isabella.providers.safe_writes import SafeWriter
from isabella.system import audit
from isabella.system.english import english


@dataclass(frozen=True)
class Leftover:
    """A provider whose stored key is one of a practice vendor, and that the configuration has no key for.

    Attributes:
        agents: the names of the agents that are bound to it.
    """

    stored: StoredProvider
    agents: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in Letta."""
        return self.stored.name


def candidates(report: Report, settings: Settings) -> frozenset[str]:
    """Return the names of the providers in Letta that may be leftovers."""
    return frozenset(one.name for one in report.providers if one.in_letta) & _replaced(settings)


async def find_leftovers(settings: Settings, connection: Connection, names: frozenset[str]) -> tuple[Leftover, ...]:
    """Return the leftovers among providers of these names.

    Raises:
        LettaError: Letta cannot be read.
    """
    keys = _practice_keys(settings)
    if not names or not keys:
        return ()
    async with LettaClient.open(connection) as letta:
        stored = sorted((one for one in await letta.providers.all() if one.name in names), key=lambda one: one.name)
        found = [one for one in stored if _key_of(one, connection.master_key) in keys.get(one.name, ())]
        records = await AgentRegistry(letta).all() if found else []
    bound = [(record.name, record.llm.provider) for record in records if record.llm is not None]
    return tuple(Leftover(one, tuple(name for name, provider in bound if provider == one.name)) for one in found)


async def remove_leftovers(settings: Settings, connection: Connection, lock: ProviderLock) -> tuple[str, ...]:
    """Delete the leftovers that no agent is bound to, and return their names. No turn runs on them meanwhile.

    Raises:
        IsabellaError: Letta cannot be read, or refuses, or a deleted provider could not be created again.
    """
    removed: list[str] = []
    async with (
        LettaClient.open(connection) as letta,
        sync_lock(connection.base_url, home=connection.home, database_url=connection.database_url),
    ):
        abilities = await letta.providers.abilities()
        if not abilities.recreates:
            raise IsabellaError(
                english("Nothing was removed: %(why)s.", why=explain_no_delete(abilities)),
                remedy=english("Use a supported release of Letta, 0.16.2 or later, then try again."),
            )
        writer = SafeWriter(letta.providers, abilities, master_key=connection.master_key, patience=connection.timeout)
        for leftover in await find_leftovers(settings, connection, _replaced(settings)):
            if not leftover.agents:
                async with lock.closed(leftover.name):
                    with audit.change("provider.deleted", leftover.name, reason="a practice provider"):
                        await writer.delete_surely(leftover.stored.id, leftover.name)
                removed.append(leftover.name)
    return tuple(removed)


def _replaced(settings: Settings) -> frozenset[str]:
    """Return the names of the providers of practice vendors that have no key now; none while those are in use."""
    if settings.sources.overlay or not keys_file(settings.home).is_file():
        return frozenset()
    return frozenset(
        one.name for one in desired_providers(settings) if one.vendor.name in NAMES and not one.configured
    )


def _practice_keys(settings: Settings) -> Mapping[str, Sequence[str]]:
    """Return the keys that practice vendors accept, by the name of the provider; nothing if they are not known."""
    try:
        accepted = load_keys(keys_file(settings.home)) or {}
    except PracticeError:
        return {}
    return {vendor.provider: accepted.get(vendor.name, ()) for vendor in usual_vendors()}


def _key_of(stored: StoredProvider, master_key: SecretStr | None) -> str | None:
    key = read_back(stored.key_text, "", master_key, None, shown=stored.key_shown).key
    return None if key is None else key.get_secret_value()
