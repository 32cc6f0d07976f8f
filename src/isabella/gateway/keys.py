"""Authentication at the gateway: who may use a vendor, and the key that is sent to it."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

import anyio
import anyio.to_thread
import structlog
from pydantic import SecretStr

from isabella.config import key_commands
from isabella.errors import ConfigurationError, IsabellaError
from isabella.letta.client import Connection, LettaClient
from isabella.letta.encryption import read_back
from isabella.practice.overlay import ConfigSnapshot
from isabella.providers.desired import Desired
from isabella.system import processes, redaction
from isabella.system.peers import holds_connection
from isabella.vendors.client import ask_vendor

#: Host and port.
Address = tuple[str, int]

log = structlog.get_logger()

#: Seconds after which the configuration is read again before the next request.
_CONFIGURATION_SECONDS = 2.0
#: The same after a request with an unknown key.
_UNKNOWN_KEY_SECONDS = 0.2
#: Commands that print keys are not run again more often than this.
_COMMAND_SECONDS = 10.0
_LETTA_SECONDS = 5.0
#: Seconds for which a vendor's verdict on the configured key holds, as long as Letta calls with a former one.
_VERDICT_SECONDS = 60.0


class KeyKind(StrEnum):
    """The key with which Letta called, compared with the configured one."""

    CONFIGURED = "configured"
    #: The key that Letta holds for the provider is not the configured one.
    STALE = "stale"
    #: Neither the configured key nor the one that Letta holds for the provider.
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Admission:
    """An admitted request: the provider, the key for the vendor, and the kind of the key that Letta sent."""

    desired: Desired
    key: SecretStr
    kind: KeyKind


class NotAdmitted(Exception):
    """The request is refused by the gateway itself.

    Attributes:
        status: the HTTP status.
        code: the code in the error.
        foreign: whether it carried a key that is not the provider's.
        close: whether the connection cannot be used again.
    """

    def __init__(self, status: int, code: str, message: str, *, foreign: bool = False, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.foreign = foreign
        self.close = close


class KeyRing:
    """The configured keys, and the decision about the key of a request.

    A request must carry the provider's configured key, or the key that Letta holds for it. The process of an
    embedded Letta may carry any: an agent whose provider was deleted calls with a key of Letta's environment (fact
    P7). The vendor always gets the configured key, or a former one as long as the vendor refuses the configured one.

    Args:
        snapshot: the configuration.
        find: finds the Letta; raises `IsabellaError` if there is none now.
    """

    def __init__(self, snapshot: ConfigSnapshot, find: Callable[[], Awaitable[Connection]]) -> None:
        self._snapshot = snapshot
        self._find = find
        self._read_at = time.monotonic()
        self._lock = anyio.Lock()
        self._verdicts: dict[bytes, tuple[bool, float]] = {}
        self._malformed = ""
        self._refused = False
        self._use(snapshot)

    @property
    def providers(self) -> tuple[Desired, ...]:
        """The configured providers."""
        return tuple(one for one in self._desired.values() if one.configured)

    def refused(self) -> None:
        """Note that a vendor has refused a key: the next request has the commands that print keys run again."""
        self._refused = True

    async def refresh(self) -> None:
        """Read the configuration again. A malformed one leaves the former in force."""
        await self._refresh(0.0)

    async def admit(self, name: str, bearer: str, client: Address, server: Address) -> Admission:
        """Decide about a request to a provider with this key, on a connection between these two addresses.

        Raises:
            NotAdmitted: it may not use the provider.
        """
        await self._refresh(0.0 if self._refused else _CONFIGURATION_SECONDS, renew=self._refused)
        if (desired := self._matching(name, bearer)) is None:
            await self._refresh(_UNKNOWN_KEY_SECONDS, renew=True)
            desired = self._matching(name, bearer)
        if desired is not None and desired.key is not None:
            return Admission(desired, desired.key, KeyKind.CONFIGURED)
        desired, key = self._configured(name)
        connection = await self._connection()
        from_letta = connection is not None and await anyio.to_thread.run_sync(_is_letta, connection, client, server)
        stored = await self._stored_key(name, connection) if bearer else None
        stale = stored is not None and hmac.compare_digest(stored.encode(), bearer.encode())
        if not (from_letta or stale):
            raise NotAdmitted(
                401,
                "invalid_api_key",
                f"Isabella's gateway did not pass this request on: its key ({redaction.mask(bearer)}) is neither the "
                f"key configured for {name} nor the one that Letta holds for it. Nothing was sent to "
                f"{desired.vendor.title}.",
                foreign=True,
            )
        # Only now: the keys of strangers would fill the memory.
        redaction.remember(bearer)
        if stale and not await self._accepts(desired, key):
            key = SecretStr(bearer)
        return Admission(desired, key, KeyKind.STALE if stale else KeyKind.FOREIGN)

    def _matching(self, name: str, bearer: str) -> Desired | None:
        """Return the provider if this is its configured key."""
        digest = self._digests.get(name)
        same = digest is not None and hmac.compare_digest(digest, _digest(bearer))
        return self._desired[name] if same else None

    def _configured(self, name: str) -> tuple[Desired, SecretStr]:
        """Return a provider and its key; raise `NotAdmitted` if it is unknown or cannot be used."""
        desired = self._desired.get(name)
        if desired is None:
            declared = ", ".join(one.name for one in self.providers) or "none"
            raise NotAdmitted(
                404, "provider_unknown", f"Isabella's gateway has no provider {name!r}. It has: {declared}."
            )
        if desired.key is None or desired.problem is not None:
            raise NotAdmitted(
                503,
                "provider_not_configured",
                f"Isabella's gateway has no usable key for {name}: {desired.problem or desired.key_source}.",
            )
        return desired, desired.key

    async def _accepts(self, desired: Desired, key: SecretStr) -> bool:
        """Return whether the vendor may accept a key. Only a refusal of the key itself counts as a no."""
        digest = _digest(f"{desired.upstream} {key.get_secret_value()}")
        accepts, until = self._verdicts.get(digest, (True, 0.0))
        if time.monotonic() < until:
            return accepts
        answer = await ask_vendor(desired.upstream, key, timeout=_LETTA_SECONDS)
        if answer.takes_key is None:
            return True
        self._verdicts[digest] = answer.takes_key, time.monotonic() + _VERDICT_SECONDS
        return answer.takes_key

    async def _refresh(self, seconds: float, *, renew: bool = False) -> None:
        """Read the configuration again if it is older than this. A malformed one leaves the former in force.

        With `renew`, the commands that print keys are run again before.
        """
        if time.monotonic() - self._read_at < seconds:
            return
        async with self._lock:
            if time.monotonic() - self._read_at < seconds:
                return
            if renew:
                self._refused = False
                await anyio.to_thread.run_sync(key_commands.renew, _COMMAND_SECONDS)
            try:
                self._use(await anyio.to_thread.run_sync(self._snapshot.again))
            except ConfigurationError as error:
                self._report(error.what)
            else:
                self._report("")
            self._read_at = time.monotonic()

    def _report(self, problem: str) -> None:
        """Log a problem of the configuration once, and its end."""
        if problem and problem != self._malformed:
            log.warning("configuration not read, the former one stays in force", error=problem)
        elif self._malformed and not problem:
            log.info("configuration read again")
        self._malformed = problem

    def _use(self, snapshot: ConfigSnapshot) -> None:
        self._snapshot = snapshot
        self._desired = {desired.name: desired for desired in snapshot.desired}
        self._digests = {
            desired.name: _digest(desired.key.get_secret_value())
            for desired in snapshot.desired
            if desired.key is not None and desired.problem is None
        }

    async def _connection(self) -> Connection | None:
        try:
            return await self._find()
        except IsabellaError:
            return None

    async def _stored_key(self, name: str, connection: Connection | None) -> str | None:
        """Return the key that Letta holds for a provider now; None if it cannot be read."""
        if connection is None:
            return None
        try:
            async with LettaClient.open(connection, timeout=_LETTA_SECONDS) as letta:
                stored = await letta.providers.find(name)
        except IsabellaError as error:
            log.info("stored key not read", provider=name, error=error.what)
            return None
        if stored is None:
            return None
        reading = read_back(stored.key_text, "", connection.master_key, None, shown=stored.key_shown)
        return None if reading.key is None else reading.key.get_secret_value()


def _is_letta(connection: Connection, client: Address, server: Address) -> bool:
    """Return whether the process of the embedded Letta has made this connection."""
    process = None if connection.peer is None else processes.load(connection.peer.record)
    return process is not None and holds_connection(process, client, server)


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()
