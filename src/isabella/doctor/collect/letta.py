"""Collects the evidence about Letta: over REST, from its database, and from its process. Changes nothing."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import psutil
from pydantic import SecretStr

from isabella.agents.prompt_budget import PromptBudget, prompt_budget
from isabella.doctor.evidence import AgentEvidence, LettaEvidence, LettaProcess, ProviderEvidence, VendorEvidence
from isabella.errors import IsabellaError, LettaError, LettaUnreachable
from isabella.letta import releases
from isabella.letta.client import Connection, LettaClient
from isabella.letta.encryption import KeyMatch, KeyReading, ProofMemo, read_back
from isabella.letta.store import StoredProvider, read_store
from isabella.providers.desired import Desired
from isabella.system.english import english
from isabella.system.peers import listening_addresses
from isabella.system.tasks import gather
from isabella.system.urls import is_loopback
from isabella.vendors.client import KeyVerdict

#: Time limits in seconds: for one request, for all of them together, and for the database.
REQUEST_TIMEOUT, TOTAL_TIMEOUT, DATABASE_TIMEOUT = 3.0, 5.0, 2
_PROBE_AGENT = "isabella-receipt-"  # the names of temporary agents begin like this
_SMALL_WINDOW, _MOST_PROMPTS = 16_384, 10  # the largest window, and the most agents, whose prompts are looked at
_MOST_CHECKS = 8  # the most keys that Letta is asked to decrypt
_MASTER_KEY = "LETTA_ENCRYPTION_KEY"
#: Letta in a command line (`letta`, `letta.main` after `-m`, `letta/main.py`), and Isabella's launcher of it.
_LETTA, _LAUNCHER = re.compile(r"(.*/)?letta(\.main|/main\.py)?"), re.compile(r"isabella/embedded/launch\.py$")
#: Variables in Letta's environment that end in `_API_KEY` and are not a vendor's key.
_NO_VENDOR_KEYS = ("LETTA_API_KEY",)


async def read_database(database_url: SecretStr | None) -> dict[str, Any]:
    """Return the evidence that only Letta's database shows. A database that cannot be read is not a finding."""
    import psycopg

    if database_url is None:
        return {}
    try:
        async with await psycopg.AsyncConnection.connect(
            database_url.get_secret_value(), connect_timeout=DATABASE_TIMEOUT, autocommit=True
        ) as connection:
            await connection.execute("SET default_transaction_read_only = on")
            await connection.execute(f"SET statement_timeout = {DATABASE_TIMEOUT * 1000}")
            result = await connection.execute(
                "SELECT name, is_deleted, organization_id IS NULL, "
                "coalesce(api_key, '') <> '' AND coalesce(api_key_enc, '') = '' FROM providers"
            )
            rows = await result.fetchall()
    except (psycopg.Error, OSError):
        return {}
    return {
        "deleted": frozenset(name for name, deleted, base, _ in rows if deleted and not base),
        "base": frozenset(name for name, deleted, base, _ in rows if base and not deleted),
        "bare": frozenset(name for name, deleted, _, bare in rows if bare and not deleted),
    }


class LettaCollector:
    """Collects the evidence about one Letta."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def collect(self, desired: Sequence[Desired]) -> LettaEvidence:
        """Return all evidence but `check_keys`. Failures of Letta are not raised: they are part of the evidence."""
        connection = self._connection
        letta = LettaEvidence(
            base_url=connection.base_url,
            embedded=connection.embedded,
            password_sent=connection.password is not None,
        )
        try:
            with anyio.fail_after(TOTAL_TIMEOUT):
                async with self._open() as client:
                    abilities, stored = await read_store(client.providers)
                    reached = replace(letta, abilities=abilities)
                    return await self._contents(client, reached, stored, desired)
        except IsabellaError as error:
            return replace(letta, error=error)
        except TimeoutError:
            what = english(
                "Letta at %(url)s did not answer within %(seconds)s s.",
                url=connection.base_url,
                seconds=format(TOTAL_TIMEOUT, "g"),
            )
            return replace(letta, error=LettaUnreachable(what, remedy=english("See its log."), sent=True))

    async def check_keys(self, letta: LettaEvidence, vendors: Mapping[str, VendorEvidence]) -> LettaEvidence:
        """Make Letta decrypt the keys that are still in doubt and send them to their vendors."""
        doubtful = [row for row in letta.rows or () if _doubtful(row, letta, vendors)][:_MOST_CHECKS]
        if not doubtful:
            return letta
        async with self._open() as client:
            checked = await gather([partial(_check, client, row) for row in doubtful])
        by_id = {row.stored.id: row for row in checked}
        return replace(letta, rows=tuple(by_id.get(row.stored.id, row) for row in letta.rows or ()))

    async def _contents(
        self, client: LettaClient, letta: LettaEvidence, stored: Sequence[StoredProvider], desired: Sequence[Desired]
    ) -> LettaEvidence:
        """Add the evidence that is collected once Letta answers."""
        connection = self._connection

        async def process() -> dict[str, Any]:
            find = partial(find_process, connection.base_url, connection.master_key)
            return {"process": await anyio.to_thread.run_sync(find, abandon_on_cancel=True)}

        # Each of them returns the fields of the evidence that it knows.
        reads: list[Callable[[], Awaitable[dict[str, Any]]]] = [
            partial(self._rows, stored, desired),
            partial(_agents, client),
            partial(_base_providers, client),
            self._openness,
            process,
            partial(read_database, connection.database_url),
        ]
        parts = await gather(reads)
        base = frozenset().union(*(part.get("base", ()) for part in parts))
        return replace(letta, **{name: value for part in parts for name, value in part.items()} | {"base": base})

    async def _rows(self, stored: Sequence[StoredProvider], desired: Sequence[Desired]) -> dict[str, Any]:
        connection = self._connection
        memo = None
        if connection.master_key is not None:
            # The proofs of earlier syncs; the doctor saves none of its own.
            memo = ProofMemo.of(connection.home, connection.base_url, connection.master_key)
        by_name = {one.name: one for one in desired}

        async def row(provider: StoredProvider) -> ProviderEvidence:
            configured = by_name.get(provider.name)
            if configured is None:
                return ProviderEvidence(provider)
            # Even without a configured key: whether the stored one is encrypted, and whether it can be decrypted.
            key = "" if configured.key is None else configured.key.get_secret_value()
            read = partial(read_back, provider.key_text, key, connection.master_key, memo, shown=provider.key_shown)
            reading: KeyReading = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
            return ProviderEvidence(provider, reading)

        return {"rows": tuple(await gather([partial(row, provider) for provider in stored], at_once=64))}

    async def _openness(self) -> dict[str, Any]:
        """Return whether Letta lists its providers without a password."""
        if self._connection.password is None:
            return {"open": True}
        try:
            async with self._open(replace(self._connection, password=None)) as client:
                return {"open": await client.providers.is_listed()}
        except LettaError:
            return {}

    def _open(self, connection: Connection | None = None) -> LettaClient:
        # Letta breaks a connection after it has answered 500; each request gets one of its own.
        return LettaClient.open(connection or self._connection, timeout=REQUEST_TIMEOUT, keep_alive=False)


async def _agents(client: LettaClient) -> dict[str, Any]:
    """Return every agent with its `llm_config`, except temporary ones."""
    try:
        rows = await client.agents.all()
    except LettaError as error:
        return {"agents_error": f"Letta did not list them ({type(error).__name__})"}
    found = [AgentEvidence(row.id, row.name or row.id, row.llm) for row in rows if row.llm is not None]
    agents = [agent for agent in found if not agent.name.startswith(_PROBE_AGENT)]
    # Only a small window may be too small for persona, memory and tools.
    small = [agent for agent in agents if 0 < agent.llm.window <= _SMALL_WINDOW][:_MOST_PROMPTS]
    prompts = dict(await gather([partial(_prompt, client, agent.id) for agent in small], at_once=4))
    return {"agents": tuple(replace(agent, prompt=prompts.get(agent.id)) for agent in agents)}


async def _prompt(client: LettaClient, agent_id: str) -> tuple[str, PromptBudget | None]:
    try:
        return agent_id, await prompt_budget(client, agent_id)
    except LettaError:
        return agent_id, None


async def _base_providers(client: LettaClient) -> dict[str, Any]:
    try:
        return {"base": await client.providers.base_providers()}
    except LettaError:
        return {}


def _doubtful(row: ProviderEvidence, letta: LettaEvidence, vendors: Mapping[str, VendorEvidence]) -> bool:
    """Whether only Letta itself can show if it can decrypt a key. The process, if it is known, shows more."""
    reading = row.reading
    if reading is None or letta.process is not None:
        return False
    if reading.match is KeyMatch.UNREADABLE:
        return True
    release = letta.abilities.release if letta.abilities is not None else None
    vendor = vendors.get(row.stored.name)
    return (
        reading.match is KeyMatch.EQUAL
        and reading.sealed
        and row.stored.type in ("cerebras", "openai")
        and vendor is not None
        and vendor.answer.verdict is KeyVerdict.ACCEPTED
        # Older releases ask without a bearer token, which would look the same (fact O10).
        and releases.has(release, "check")
    )


async def _check(client: LettaClient, row: ProviderEvidence) -> ProviderEvidence:
    """Make Letta decrypt a key and try it (fact P11)."""
    try:
        opens, accepted = await client.providers.check(row.stored.id)
    except LettaError:
        return row
    return replace(row, opens=opens, accepted=accepted)


def find_process(base_url: str, master_key: SecretStr | None) -> LettaProcess | None:
    """Return the Letta process that listens at this address; None if it is on another machine or another user's."""
    parts = urlsplit(base_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if not is_loopback(host) and host not in ("0.0.0.0", "::"):  # noqa: S104 - addresses of this machine
        return None
    try:
        found = next(((one, listens) for one in _letta_servers() if (listens := _listening(one, port))), None)
        if found is None:
            return None
        process, listens = found
        environ = process.environ()
    except (psutil.Error, OSError):
        return None
    environment_key = environ.get(_MASTER_KEY, "")
    same = None
    variables = [name for name, text in environ.items() if name.endswith("_API_KEY") and text]
    if environment_key and master_key is not None:
        same = hmac.compare_digest(environment_key.encode(), master_key.get_secret_value().encode())
    return LettaProcess(
        pid=process.pid,
        listens=listens,
        has_master_key=bool(environment_key),
        same_master_key=same,
        base_keys=tuple(sorted(name for name in variables if name not in _NO_VENDOR_KEYS)),
    )


def _letta_servers() -> Iterator[psutil.Process]:
    """Iterate over the Letta servers of this machine."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if is_letta_server(process.cmdline()):
                yield process


def _listening(process: psutil.Process, port: int) -> tuple[str, ...]:
    """Return the addresses at which a process listens on this port; none if that cannot be read."""
    with suppress(psutil.Error, OSError):
        addresses = [listening_addresses(process.pid, port, ipv6=ipv6) for ipv6 in (False, True)]
        return tuple(sorted({*chain(*addresses)}))
    return ()


def is_letta_server(arguments: Sequence[str]) -> bool:
    """Return whether a command line is that of a Letta server, however it was started.

    That is by `letta server` or `python -m letta.main server`, by Isabella's launcher, or with Letta's application in
    another web server.
    """
    runs_command = any(_LETTA.fullmatch(program) and command == "server" for program, command in pairwise(arguments))
    runs_launcher = any(_LAUNCHER.search(program) and "server" in arguments for program in arguments)
    return runs_command or runs_launcher or any(argument.startswith("letta.server.") for argument in arguments)
