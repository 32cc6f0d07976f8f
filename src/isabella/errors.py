"""The exception tree. Every error says what happened, where, and what to do next."""

from __future__ import annotations


class IsabellaError(Exception):
    """The base of all errors: `what` happened and where, in one sentence without a key, and the `remedy` if known."""

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        if self.remedy is None:
            return self.what
        between = "\n" if "\n" in self.what else " "  # lines of a log, for instance
        return f"{self.what}{between}{self.remedy}"


class ConfigurationError(IsabellaError):
    """A setting is missing, malformed, or contradicts another."""


class DatabaseUnusable(ConfigurationError):
    """Letta's Postgres cannot be used: it cannot be reached, or refuses."""


class FileUnreadable(ConfigurationError):
    """A file cannot be read. `reason` is the end of a sentence: "it is not UTF-8 text"."""

    def __init__(self, what: str, *, reason: str = "", remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.reason = reason


class FileAbsent(FileUnreadable):
    """A file does not exist."""


class LettaError(IsabellaError):
    """A request to the Letta server failed."""


class LettaUnreachable(LettaError):
    """No server answers at Letta's base URL, or not in time. This never means "no providers".

    `sent`: the request may have reached Letta, and a write may have been carried out. `timed_out`: it was connected.
    """

    def __init__(self, what: str, *, remedy: str | None = None, sent: bool = False, timed_out: bool = False) -> None:
        super().__init__(what, remedy=remedy)
        self.sent = sent
        self.timed_out = timed_out


class NotLetta(LettaError):
    """A server answers at Letta's base URL, but it is not Letta."""


class LettaUnauthorized(LettaError):
    """Letta requires a server password, or a different one (fact R6)."""


class LettaAnswered(LettaError):
    """Letta answered with an error: its HTTP status, its own words and the type that it gives the error.

    `detail` is scrubbed of keys. `kind` is a word such as `llm_authentication`. Both are empty if Letta gives none.
    """

    def __init__(
        self, what: str, *, status: int | None = None, detail: str = "", kind: str = "", remedy: str | None = None
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.status = status
        self.detail = detail
        self.kind = kind


class LettaRefused(LettaAnswered):
    """Letta understood the request and refused it, with a status from 400 to 499."""

    status: int


class LettaBroken(LettaAnswered):
    """Letta answered with a server error, or with something that is not what its API promises."""


class AgentError(IsabellaError):
    """A request about an agent cannot be carried out."""


class AgentUnknown(AgentError):
    """Letta has no agent of this name, or several that the name does not distinguish."""


class ConversationUnknown(AgentError):
    """The agent has no such conversation."""


class ConversationRefused(AgentError):
    """A conversation cannot be used or changed as requested."""


class AgentExists(AgentError):
    """Letta has an agent of this name already."""


class AgentNameRefused(AgentError):
    """Letta does not accept this name for an agent."""


class AgentFileRefused(AgentError):
    """A file is not an agent file, cannot be imported, or would contain a secret."""


class ExportRefused(AgentFileRefused):
    """The folder of an export cannot be written, or it is damaged, incomplete, or not Isabella's."""


class ExportFailed(IsabellaError):
    """An export cannot be made on this machine."""


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


class VectorsUnavailable(IsabellaError):
    """The source of embeddings, `mistral` or `local`, cannot be used."""

    def __init__(self, what: str, *, source: str, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.source = source


class VectorsRefused(IsabellaError):
    """A vendor refused to make embeddings, with an HTTP status and perhaps its `Retry-After`."""

    def __init__(self, what: str, *, status: int, retry_after: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.status = status
        self.wait = retry_after


class EmbeddedError(IsabellaError):
    """The embedded Letta or its Postgres failed."""


class InstallFailed(EmbeddedError):
    """A release of Letta could not be downloaded or installed."""


class StartFailed(EmbeddedError):
    """A process did not start. The message names its log."""


class BackupRefused(EmbeddedError):
    """A backup is damaged, cannot be opened, or does not fit. Nothing was changed."""


class NoKeyOpens(BackupRefused):
    """No known key opens a backup."""


class EndedWhileStarting(StartFailed):
    """Letta, or the Postgres that it needs, ended while it was starting."""


class UnverifiedPeer(IsabellaError):
    """Another process listens in place of an Isabella server. Nothing was sent to it."""


class NotReady(IsabellaError):
    """The backend is still starting, or has failed to start."""


class Interrupted(IsabellaError):
    """A process that the backend needs has ended or does not answer, and is being restarted."""


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


class MessageGone(TurnError):
    """A message to be replaced is not in the agent's context."""


class ImagesRefused(MessageRefused):
    """No model of the agent takes the images of a message."""
