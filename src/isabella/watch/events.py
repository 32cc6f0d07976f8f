"""The events of the watcher, and the log sentences for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from isabella.providers.plan import DONE
from isabella.providers.report import Proof, ProviderReport, Report, join_some
from isabella.system.english import english, joined
from isabella.watch.model_refresh import ModelRefresh, ProviderModels


class SyncCause(StrEnum):
    """Why something was done."""

    CHANGE = "a change of the configuration"
    RESYNC = "a check for drift"
    RETRY = "another try"
    REFRESH = "the nightly refresh"


@dataclass(frozen=True)
class Synced:
    """Providers were brought into sync, or were already in sync."""

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
    """Providers are no longer configured; they stay unchanged in Letta."""

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
            text = english("The changed configuration cannot be used: %(what)s", what=what)
            return [LogSentence(_joined(text, remedy, english("The former one stays in force.")), warning=True)]
        case ConfigAccepted():
            return [LogSentence(english("The configuration can be read again."))]
        case RestartNeeded(variables=variables):
            return [LogSentence(_restart(variables), warning=True)]
        case ProvidersDropped(names=names):
            return [
                LogSentence(
                    english("No longer configured, left unchanged in Letta: %(names)s.", names=", ".join(names))
                )
            ]
        case WatchFailed(what=what, cause=cause, remedy=remedy):
            text = english("Failed (%(cause)s): %(what)s", cause=english(cause.value), what=what)
            return [LogSentence(_joined(text, remedy, english("It is tried again.")), warning=True)]
        case ModelsRefreshed(refresh=refresh):
            return [line for models in refresh.providers for line in _of_models(models)]


def unproven_sentence(entry: ProviderReport) -> str:
    """Return the sentence about a provider whose key is not proven."""
    return _joined(english("%(name)s is not proven: %(reason)s.", name=entry.name, reason=entry.reason), entry.remedy)


def _of_provider(entry: ProviderReport, cause: str) -> Iterator[LogSentence]:
    if entry.proof is not Proof.PROVEN:
        yield LogSentence(unproven_sentence(entry), warning=True)
    elif entry.action in DONE:
        yield LogSentence(
            english(
                "%(name)s: %(done)s and proven (%(reason)s), after %(cause)s.",
                name=entry.name,
                done=english(DONE[entry.action]),
                reason=entry.reason,
                cause=english(cause),
            )
        )


def _restart(variables: tuple[str, ...]) -> str:
    text = english("Changed, effective after a restart: %(names)s.", names=", ".join(variables))
    if "LETTA_ENCRYPTION_KEY" in variables:
        return _joined(
            text,
            english(
                "Letta's secrets are encrypted under the former master key: "
                "`isabella letta rekey --from-env` encrypts them again."
            ),
        )
    return text


def _of_models(models: ProviderModels) -> Iterator[LogSentence]:
    if models.problem is not None:
        yield LogSentence(
            english(
                "%(provider)s: its models are not known: %(problem)s.",
                provider=models.provider,
                problem=models.problem,
            ),
            warning=True,
        )
    if models.appeared:
        yield LogSentence(
            english(
                "%(provider)s has new models: %(models)s.",
                provider=models.provider,
                models=join_some(models.appeared, _MAX_MODELS),
            )
        )
    if models.vanished:
        yield LogSentence(
            english(
                "%(provider)s no longer lists: %(models)s.",
                provider=models.provider,
                models=join_some(models.vanished, _MAX_MODELS),
            )
        )
    for ending in models.ending:
        yield LogSentence(ending.sentence, warning=True)
    for agent in models.lost:
        yield LogSentence(
            english(
                "%(name)s has lost its model: %(provider)s no longer has %(model)s. "
                "`isabella agents repair` binds it to another.",
                name=agent.name,
                provider=models.provider,
                model=agent.model,
            ),
            warning=True,
        )


def _joined(*parts: str | None) -> str:
    return joined([part for part in parts if part])
