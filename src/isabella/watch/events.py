"""What the keeper tells whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from isabella.providers.plan import Action
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.watch.model_refresh import ModelRefresh, ProviderModels


class SyncCause(StrEnum):
    """Why something was done."""

    CHANGE = "the configuration was changed"
    RESYNC = "a look for drift"
    RETRY = "another try"
    REFRESH = "the nightly refresh"


@dataclass(frozen=True)
class Synced:
    """Providers were brought in line, or looked at and found so.

    Attributes:
        report: how all of them stand now.
        part: what this run has found and done.
        cause: why it ran.
        seconds: its duration.
    """

    report: Report
    part: Report
    cause: SyncCause
    seconds: float


@dataclass(frozen=True)
class ConfigRefused:
    """The changed configuration cannot be used: the former stays in force.

    Attributes:
        what: what is wrong with it.
        remedy: what to do about that.
    """

    what: str
    remedy: str | None = None


@dataclass(frozen=True)
class ConfigAccepted:
    """A configuration that could not be used can be used again."""


@dataclass(frozen=True)
class RestartNeeded:
    """Settings were changed that take effect when the process is started again.

    Attributes:
        variables: which ones.
    """

    variables: tuple[str, ...]


@dataclass(frozen=True)
class ProvidersDropped:
    """The configuration does not want these any more; they stay in Letta as they are.

    Attributes:
        names: of the providers.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class WatchFailed:
    """Something could not be done; it is tried again.

    Attributes:
        what: what happened.
        cause: why it was tried.
        remedy: what to do about it.
    """

    what: str
    cause: SyncCause
    remedy: str | None = None


@dataclass(frozen=True)
class ModelsRefreshed:
    """The model lists were read anew.

    Attributes:
        census: what came of it.
    """

    census: ModelRefresh


WatchEvent = (
    Synced | ConfigRefused | ConfigAccepted | RestartNeeded | ProvidersDropped | WatchFailed | ModelsRefreshed
)
Tell = Callable[[WatchEvent], None]

_DONE = {Action.CREATE: "created", Action.UPDATE: "updated in place", Action.RECREATE: "recreated"}
_SAID_MODELS = 8


@dataclass(frozen=True)
class LogSentence:
    """One sentence.

    Attributes:
        text: what is said; never holds a key.
        warning: whether somebody should do something about it, or at least know.
    """

    text: str
    warning: bool = False


def sentences(event: WatchEvent) -> list[LogSentence]:
    """What is to be said about an event; nothing where all is as it was."""
    match event:
        case Synced(part=part, cause=cause):
            return [said for entry in part.ours if (said := _of_provider(entry, cause.value)) is not None]
        case ConfigRefused(what=what, remedy=remedy):
            text = _joined(f"The changed configuration is not used: {what}", remedy, "The former one stays in force.")
            return [LogSentence(text, warning=True)]
        case ConfigAccepted():
            return [LogSentence("The configuration can be read again.")]
        case RestartNeeded(variables=variables):
            return [LogSentence(_restart(variables), warning=True)]
        case ProvidersDropped(names=names):
            return [LogSentence(f"Not configured any more, and left in Letta as they are: {', '.join(names)}.")]
        case WatchFailed(what=what, cause=cause, remedy=remedy):
            return [
                LogSentence(_joined(f"Not done ({cause.value}): {what}", remedy, "It is tried again."), warning=True)
            ]
        case ModelsRefreshed(census=census):
            return [sentence for count in census.counts for sentence in _of_count(count)]


def _of_provider(entry: ProviderReport, cause: str) -> LogSentence | None:
    if entry.proof is not Proof.PROVEN:
        return LogSentence(_joined(f"{entry.name} is not proven: {entry.reason}.", entry.remedy), warning=True)
    done = _DONE.get(entry.action)
    return None if done is None else LogSentence(f"{entry.name}: {done} and proven ({entry.reason}), after {cause}.")


def _restart(variables: tuple[str, ...]) -> str:
    text = f"Changed, and in force from the next start on: {', '.join(variables)}."
    if "LETTA_ENCRYPTION_KEY" in variables:
        text += (
            " What Letta holds is sealed under the former master key: `isabella letta rekey --from-env` changes it."
        )
    return text


def _of_count(count: ProviderModels) -> Iterator[LogSentence]:
    if count.problem is not None:
        yield LogSentence(f"{count.provider}: its models are not known: {count.problem}.", warning=True)
    if count.appeared:
        yield LogSentence(f"{count.provider} has new models: {_some(count.appeared)}.")
    if count.vanished:
        yield LogSentence(f"{count.provider} does not list any more: {_some(count.vanished)}.")
    for agent_ref in count.lost:
        yield LogSentence(
            f"{agent_ref.name} has lost its model: {count.provider} has no {agent_ref.model} any more. "
            "`isabella agents repair` binds it to another.",
            warning=True,
        )


def _some(models: tuple[str, ...]) -> str:
    more = len(models) - _SAID_MODELS
    return ", ".join(models[:_SAID_MODELS]) + (f" and {more} more" if more > 0 else "")


def _joined(*parts: str | None) -> str:
    return " ".join(part for part in parts if part)
