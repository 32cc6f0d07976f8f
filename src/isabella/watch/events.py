"""The events of the watcher, and the log sentences for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from isabella.providers.plan import DONE
from isabella.providers.report import Proof, ProviderReport, Report, join_some
from isabella.watch.model_refresh import ModelRefresh, ProviderModels


class SyncCause(StrEnum):
    """Why something was done."""

    CHANGE = "a change of the configuration"
    RESYNC = "a check for drift"
    RETRY = "another try"
    REFRESH = "the nightly refresh"


@dataclass(frozen=True)
class Synced:
    """Providers were brought in sync, or found to be."""

    report: Report
    part: Report
    cause: SyncCause
    seconds: float


@dataclass(frozen=True)
class ConfigRefused:
    """The changed configuration cannot be used; the former one stays in force."""

    what: str
    remedy: str | None = None


@dataclass(frozen=True)
class ConfigAccepted:
    """A configuration that could not be used can be used again."""


@dataclass(frozen=True)
class RestartNeeded:
    """Variables were changed that take effect after a restart."""

    variables: tuple[str, ...]


@dataclass(frozen=True)
class ProvidersDropped:
    """Providers are not configured any more; they stay in Letta unchanged."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class WatchFailed:
    """Something failed; it is tried again."""

    what: str
    cause: SyncCause
    remedy: str | None = None


@dataclass(frozen=True)
class ModelsRefreshed:
    """The model lists were read again."""

    refresh: ModelRefresh


WatchEvent = (
    Synced | ConfigRefused | ConfigAccepted | RestartNeeded | ProvidersDropped | WatchFailed | ModelsRefreshed
)
WatchListener = Callable[[WatchEvent], None]

_MAX_MODELS = 8


@dataclass(frozen=True)
class LogSentence:
    """One sentence for people, without any key; `warning` if the operator should know of it."""

    text: str
    warning: bool = False


def log_sentences(event: WatchEvent) -> list[LogSentence]:
    """Return the sentences for an event; none if nothing has changed."""
    match event:
        case Synced(part=part, cause=cause):
            return [line for entry in part.configured for line in _of_provider(entry, cause.value)]
        case ConfigRefused(what=what, remedy=remedy):
            text = f"The changed configuration cannot be used: {what}"
            return [LogSentence(_joined(text, remedy, "The former one stays in force."), warning=True)]
        case ConfigAccepted():
            return [LogSentence("The configuration can be read again.")]
        case RestartNeeded(variables=variables):
            return [LogSentence(_restart(variables), warning=True)]
        case ProvidersDropped(names=names):
            return [LogSentence(f"Not configured any more, left in Letta unchanged: {', '.join(names)}.")]
        case WatchFailed(what=what, cause=cause, remedy=remedy):
            text = f"Failed ({cause.value}): {what}"
            return [LogSentence(_joined(text, remedy, "It is tried again."), warning=True)]
        case ModelsRefreshed(refresh=refresh):
            return [line for models in refresh.providers for line in _of_models(models)]


def unproven_sentence(entry: ProviderReport) -> str:
    """Return the sentence about a provider whose key is not proven."""
    return _joined(f"{entry.name} is not proven: {entry.reason}.", entry.remedy)


def _of_provider(entry: ProviderReport, cause: str) -> Iterator[LogSentence]:
    if entry.proof is not Proof.PROVEN:
        yield LogSentence(unproven_sentence(entry), warning=True)
    elif entry.action in DONE:
        yield LogSentence(f"{entry.name}: {DONE[entry.action]} and proven ({entry.reason}), after {cause}.")


def _restart(variables: tuple[str, ...]) -> str:
    text = f"Changed, effective after a restart: {', '.join(variables)}."
    if "LETTA_ENCRYPTION_KEY" in variables:
        text += (
            " Letta's secrets are encrypted under the former master key: "
            "`isabella letta rekey --from-env` encrypts them again."
        )
    return text


def _of_models(models: ProviderModels) -> Iterator[LogSentence]:
    if models.problem is not None:
        yield LogSentence(f"{models.provider}: its models are not known: {models.problem}.", warning=True)
    if models.appeared:
        yield LogSentence(f"{models.provider} has new models: {join_some(models.appeared, _MAX_MODELS)}.")
    if models.vanished:
        yield LogSentence(f"{models.provider} does not list any more: {join_some(models.vanished, _MAX_MODELS)}.")
    for ending in models.ending:
        yield LogSentence(ending.sentence, warning=True)
    for agent in models.lost:
        yield LogSentence(
            f"{agent.name} has lost its model: {models.provider} has no {agent.model} any more. "
            "`isabella agents repair` binds it to another.",
            warning=True,
        )


def _joined(*parts: str | None) -> str:
    return " ".join(part for part in parts if part)
