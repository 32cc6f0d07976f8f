"""The exception tree. Every error says what happened, where, and what to do next.

IsabellaError
├── ConfigurationError        .env, isabella.toml, an environment variable, a key file
│   └── FileUnreadable        a file that somebody named: no text, too large, a device, not permitted
│       └── FileAbsent        there is no such file
├── LettaError                the Letta server
│   ├── LettaUnreachable      nothing answers, or not in time
│   ├── NotLetta              something answers, but it is not Letta
│   ├── LettaUnauthorized     the server password is missing or wrong
│   ├── LettaRefused          Letta understood and refused (4xx)
│   └── LettaBroken           Letta failed (5xx), or its answer cannot be understood
├── AgentError                agents, their models and their memory
│   ├── AgentUnknown          no agent of that name
│   ├── AgentExists           there is one of that name already
│   ├── AgentFileRefused      a file that is to be imported, or was exported, is not fit for it
│   ├── ModelUnknown          the handle names no model that would work now
│   └── MemoryRefused         a memory cannot be read or written as asked
│       ├── MemoryUnknown     no block of that label, or no passage of that id
│       ├── MemoryTooLong     the text is longer than the block's limit
│       └── MemoryChanged     somebody else has written it meanwhile
├── TurnError                 a turn of an agent that could not be begun
│   ├── QueueFull             too many wait for this agent already
│   ├── TurnUnknown           no turn of that id is under way here
│   └── MessageRefused        a message that cannot be said: empty, too long, or no text
├── EmbeddedError             the Letta and Postgres that Isabella runs herself
│   ├── InstallFailed         fetching or installing the release
│   └── StartFailed           a process did not come up
├── UnverifiedPeer            another process listens on a port of ours
├── NotReady                  the backend has not come up yet, or not at all
├── PracticeError             the practice vendors
└── LockTimeout               another process is at work on the same thing
    ├── TurnTimeout           the turns before this one went on for too long
    └── GateTimeout           a provider's turns did not end in time, or its change did not
"""

from __future__ import annotations

from typing import Self


class IsabellaError(Exception):
    """What happened, and what to do next.

    Args:
        what: one sentence: what happened and where. Never holds a key.
        remedy: what the reader can do about it, where that is known.
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
    """A file that somebody named cannot be read as what it is for.

    Args:
        what: one sentence: which file, and why.
        reason: why, as the rest of a sentence.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, reason: str = "", remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.reason = reason

    @classmethod
    def of(cls, path: object, reason: str, *, remedy: str) -> Self:
        """The error for this file."""
        return cls(f"{path}: cannot be read: {reason}.", reason=reason, remedy=remedy)


class FileAbsent(FileUnreadable):
    """There is no file of that name."""


class LettaError(IsabellaError):
    """Something is wrong between Isabella and the Letta server."""


class LettaUnreachable(LettaError):
    """Nothing answers at Letta's address, or not in time. This never means "no providers".

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
    """Something answers at Letta's address, but it is not a Letta server."""


class LettaUnauthorized(LettaError):
    """Letta wants a server password, or another one (fact R6)."""


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
    """Something is wrong with what was asked of an agent."""


class AgentUnknown(AgentError):
    """Letta has no agent of this name, or several that cannot be told apart by it."""


class AgentExists(AgentError):
    """Letta has an agent of this name already."""


class AgentFileRefused(AgentError):
    """A file is no agent file, cannot be imported, or would have carried a secret."""


class ModelUnknown(AgentError):
    """A handle names no model that would work now.

    Args:
        what: one sentence: why it would not.
        handles: those that would.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, handles: tuple[str, ...] = (), remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.handles = handles


class MemoryRefused(AgentError):
    """A memory cannot be read or written as asked."""


class MemoryUnknown(MemoryRefused):
    """The agent has no block of this label, or no passage of this id."""


class MemoryTooLong(MemoryRefused):
    """The text is longer than its block's limit, which Letta itself does not enforce."""


class MemoryChanged(MemoryRefused):
    """The block is no longer what its editor saw.

    Args:
        what: one sentence: which block.
        version: the version that it has now.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, version: str, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.version = version


class EmbeddedError(IsabellaError):
    """Something is wrong with the Letta or the Postgres that Isabella runs herself."""


class InstallFailed(EmbeddedError):
    """A Letta release could not be fetched or installed."""


class StartFailed(EmbeddedError):
    """A process did not come up. The message names its log."""


class UnverifiedPeer(IsabellaError):
    """Another process listens where a server of ours should. Nothing was sent to it."""


class NotReady(IsabellaError):
    """The backend has not come up yet, or not at all."""


class PracticeError(IsabellaError):
    """The practice vendors could not be started or reached."""


class LockTimeout(IsabellaError):
    """Another process has been at work on the same thing for too long."""


class TurnTimeout(LockTimeout):
    """Other turns of the same agent have been going on for too long."""


class GateTimeout(LockTimeout):
    """A provider's turns did not end in time for its change, or its change not in time for a turn."""


class TurnError(IsabellaError):
    """A turn of an agent could not be begun, or cannot be found."""


class QueueFull(TurnError):
    """Too many turns wait for this agent already.

    Args:
        what: one sentence: what happened and where.
        retry_after: seconds after which it is worth trying again.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, retry_after: float, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.retry_after = retry_after


class TurnUnknown(TurnError):
    """No turn of that id is under way in this backend."""


class MessageRefused(TurnError):
    """A message that cannot be said: it is empty, too long, or holds what is no text."""
