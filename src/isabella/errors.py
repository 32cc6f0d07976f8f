"""The exception tree. Every error says what happened, where, and what to do next.

IsabellaError
├── ConfigurationError        .env, isabella.toml, an environment variable, a key file
│   └── FileUnreadable        a file is not text, too large, a device, or not permitted
│       └── FileAbsent        a file does not exist
├── LettaError                the Letta server
│   ├── LettaUnreachable      no server answers, or not in time
│   ├── NotLetta              a server answers that is not Letta
│   ├── LettaUnauthorized     the server password is missing or wrong
│   ├── LettaRefused          Letta refused the request (4xx)
│   └── LettaBroken           Letta failed (5xx), or its response is malformed
├── AgentError                agents, their models and their memory
│   ├── AgentUnknown          no agent has this name
│   ├── AgentExists           an agent has this name already
│   ├── AgentFileRefused      an agent file cannot be imported or exported
│   ├── ModelUnknown          the handle is not that of a model that works now
│   └── MemoryRefused         memory cannot be read or written as requested
│       ├── MemoryUnknown     no block has this label, or no passage this id
│       ├── MemoryTooLong     the text is longer than the limit of its block
│       └── MemoryChanged     the block was changed by another writer
├── TurnError                 a turn of an agent cannot start, or does not exist
│   ├── QueueFull             too many turns of the agent are waiting
│   ├── TurnUnknown           no running turn has this id
│   └── MessageRefused        a message is empty, too long, or not text
├── EmbeddedError             the embedded Letta and Postgres
│   ├── InstallFailed         a release could not be downloaded or installed
│   └── StartFailed           a process did not start
├── UnverifiedPeer            another process listens on a port of Isabella's
├── NotReady                  the backend is not ready
├── PracticeError             the practice vendors
└── LockTimeout               another process holds a lock
    ├── TurnTimeout           the previous turns of the agent took too long
    └── GateTimeout           the turns of a provider, or a change of it, took too long
"""

from __future__ import annotations

from typing import Self


class IsabellaError(Exception):
    """The base of all errors.

    Args:
        what: one sentence: what happened and where. Never contains a key.
        remedy: what the reader can do about it, if that is known.
    """

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return self.what if self.remedy is None else f"{self.what} {self.remedy}"


class ConfigurationError(IsabellaError):
    """A setting is missing, malformed, or contradicts another."""


class FileUnreadable(ConfigurationError):
    """A file cannot be read. `reason` is the end of a sentence: "it is not UTF-8 text"."""

    def __init__(self, what: str, *, reason: str = "", remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.reason = reason

    @classmethod
    def of(cls, path: object, reason: str, *, remedy: str) -> Self:
        """Return the error for a file."""
        return cls(f"{path}: cannot be read: {reason}.", reason=reason, remedy=remedy)


class FileAbsent(FileUnreadable):
    """A file does not exist."""


class LettaError(IsabellaError):
    """A request to the Letta server failed."""


class LettaUnreachable(LettaError):
    """No server answers at Letta's base URL, or not in time. This never means "no providers".

    Args:
        what: one sentence: what happened and where.
        remedy: what the reader can do about it.
        sent: whether the request may have reached Letta, so that a write may have been carried out.
        timed_out: whether the connection was there, and no answer came in time.
    """

    def __init__(self, what: str, *, remedy: str | None = None, sent: bool = False, timed_out: bool = False) -> None:
        super().__init__(what, remedy=remedy)
        self.sent = sent
        self.timed_out = timed_out


class NotLetta(LettaError):
    """A server answers at Letta's base URL, but it is not Letta."""


class LettaUnauthorized(LettaError):
    """Letta requires a server password, or another one (fact R6)."""


class LettaRefused(LettaError):
    """Letta understood the request and refused it.

    Args:
        what: one sentence: what was refused.
        status: the HTTP status, 400 to 499.
        detail: Letta's own words, scrubbed of keys.
        kind: the type that Letta gives the error, such as `llm_authentication`; empty if it gives none.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, status: int, detail: str, kind: str = "", remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.status = status
        self.detail = detail
        self.kind = kind


class LettaBroken(LettaError):
    """Letta answered with a server error, or with something that is not what its API promises.

    Args:
        what: one sentence: what came back.
        status: the HTTP status, if there was one.
        detail: Letta's own words, scrubbed of keys; empty if there are none.
        kind: the type that Letta gives the error, such as `llm_error`; empty if it gives none.
        remedy: what the reader can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        detail: str = "",
        kind: str = "",
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.status = status
        self.detail = detail
        self.kind = kind


class AgentError(IsabellaError):
    """A request about an agent cannot be carried out."""


class AgentUnknown(AgentError):
    """Letta has no agent of this name, or several that the name does not distinguish."""


class AgentExists(AgentError):
    """Letta has an agent of this name already."""


class AgentFileRefused(AgentError):
    """A file is not an agent file, cannot be imported, or would contain a secret."""


class ModelUnknown(AgentError):
    """A handle is not that of a model that works now. `handles` are those of the models that do."""

    def __init__(self, what: str, *, handles: tuple[str, ...] = (), remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.handles = handles


class MemoryRefused(AgentError):
    """Memory cannot be read or written as requested."""


class MemoryUnknown(MemoryRefused):
    """The agent has no block of this label, or no passage of this id."""


class MemoryTooLong(MemoryRefused):
    """The text is longer than the limit of its block, which Letta itself does not enforce."""


class MemoryChanged(MemoryRefused):
    """The block was changed since it was read. `version` is its version now."""

    def __init__(self, what: str, *, version: str, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.version = version


class EmbeddedError(IsabellaError):
    """The embedded Letta or its Postgres failed."""


class InstallFailed(EmbeddedError):
    """A release of Letta could not be downloaded or installed."""


class StartFailed(EmbeddedError):
    """A process did not start. The message names its log."""


class UnverifiedPeer(IsabellaError):
    """Another process listens in place of a server of Isabella's. Nothing was sent to it."""


class NotReady(IsabellaError):
    """The backend is still starting, or has failed to start."""


class PracticeError(IsabellaError):
    """The practice vendors could not be started or reached."""


class GatewayError(IsabellaError):
    """The gateway could not be started or reached."""


class LockTimeout(IsabellaError):
    """Another process has held a lock for too long."""


class TurnTimeout(LockTimeout):
    """The previous turns of the agent have taken too long."""


class GateTimeout(LockTimeout):
    """The turns of a provider did not end in time for its change, or its change not in time for a turn."""


class TurnError(IsabellaError):
    """A turn of an agent cannot start, or does not exist."""


class QueueFull(TurnError):
    """Too many turns of the agent are waiting. `retry_after` is in seconds."""

    def __init__(self, what: str, *, retry_after: float, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.retry_after = retry_after


class TurnUnknown(TurnError):
    """No running turn of this backend has this id."""


class MessageRefused(TurnError):
    """A message is empty, too long, or not text."""
