"""The models that work now, and the binding of an agent to one of them (fact M6).

A handle is `PROVIDER/MODEL`, or `PROVIDER` for its default model. Each vendor is asked for its models, and the answer
is kept for a few minutes. If a vendor does not state a model's window, the catalog of known vendors does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio
from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.config.vendors import Vendor
from isabella.errors import ModelUnknown
from isabella.letta.llm_config import Binding
from isabella.letta.releases import GENERIC
from isabella.providers.desired import Desired, desired_providers
from isabella.system.english import english, joined
from isabella.system.tasks import gather
from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_vendor

#: A function that asks a vendor for its models: base URL and key.
Ask = Callable[[str, SecretStr], Awaitable[VendorAnswer]]

_KEPT_SECONDS = 300.0
_FAILURE_KEPT_SECONDS = 20.0  # a vendor that failed is asked again sooner
_AT_ONCE = 8
_SMALLEST_WINDOW = 2048  # a model with a smaller window is none for agents: a speech model, or a classifier
_AMPLE_WINDOW = 131_072  # a larger one makes no model better
_HANDLES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Cap:
    """The number of tokens that one request to a vendor may have, whatever window the vendor states."""

    tokens: int
    reason: str  #: a sentence


class ModelCatalog:
    """The models of all configured vendors. `client` is Letta's client that agents are bound with."""

    def __init__(
        self,
        providers: Sequence[Desired],
        ask: Ask = ask_vendor,
        clock: Callable[[], float] = time.monotonic,
        *,
        client: str = GENERIC,
    ) -> None:
        self._providers = {provider.name: provider for provider in providers}
        self._ask = ask
        self._clock = clock
        self.client = client
        #: A callback that receives each new answer of a vendor, with its provider's name.
        self.on_event: Callable[[str, VendorAnswer], None] = lambda _provider, _answer: None
        #: A callback that receives a sentence when a default model has gone and another one takes its place, once.
        self.on_replaced: Callable[[str], None] = lambda _sentence: None
        self._told: set[tuple[str, str]] = set()  # handles that took the place of a default model, by provider
        self._kept: dict[str, tuple[VendorAnswer, float]] = {}  # each with the time until which it is kept
        #: A callback that runs after the configured providers were replaced by others.
        self.on_renewed: Callable[[], None] = lambda: None
        #: A callback that runs when a cap is new, or when a vendor has refused a request because of one.
        self.on_capped: Callable[[], None] = lambda: None
        self._caps: dict[str, Cap] = {}
        self._locks: dict[str, anyio.Lock] = {}

    @classmethod
    def of(cls, settings: Settings) -> ModelCatalog:
        """Return the catalog of the settings' vendors; a malformed `isabella.toml` is a `ConfigurationError`."""
        return cls(desired_providers(settings), partial(ask_vendor, timeout=min(settings.timeout, 10.0)))

    @property
    def providers(self) -> tuple[Desired, ...]:
        """The configured providers."""
        return tuple(self._providers.values())

    @property
    def usable(self) -> frozenset[str]:
        """The names of the providers with a key that can be used."""
        return frozenset(name for name, one in self._providers.items() if one.key is not None and one.problem is None)

    def provider(self, name: str) -> Desired | None:
        """Return the configured provider of this name."""
        return self._providers.get(name)

    def renew(self, providers: Iterable[Desired]) -> None:
        """Replace the configured providers. Answers to keys that were replaced are dropped."""
        fresh = {provider.name: provider for provider in providers}
        self._kept = {name: kept for name, kept in self._kept.items() if fresh.get(name) == self._providers[name]}
        changed, self._providers = fresh != self._providers, fresh
        if changed:
            self.on_renewed()

    def cap(self, name: str, tokens: int, reason: str, *, refused: bool = False) -> None:
        """Limit the window of a model, named by its handle, or of all models of a provider.

        A vendor may refuse a request that is smaller than the window it states, because of its allowance per minute
        or of a server's own settings. `refused` says that it has done so just now. A limit with which no agent could
        work changes nothing.
        """
        if tokens < _SMALLEST_WINDOW:
            return
        cap = Cap(tokens, reason)
        changed = self._caps.get(name) != cap
        self._caps[name] = cap
        if changed or refused:
            self.on_capped()

    def cap_of(self, provider: str, model: str) -> Cap | None:
        """Return the lowest cap that is known for a model."""
        caps = [self._caps[name] for name in (provider, f"{provider}/{model}") if name in self._caps]
        return min(caps, key=lambda cap: cap.tokens, default=None)

    def capped(self, provider: str, model: str, window: int) -> int:
        """Return the window within the known caps."""
        cap = self.cap_of(provider, model)
        return window if cap is None else min(window, cap.tokens)

    async def binding(self, handle: str, *, window: int | None = None) -> Binding:
        """Return the binding to the model of a handle; `ModelUnknown` if it does not work now, with handles that do.

        The handle is `PROVIDER/MODEL`, or `PROVIDER` for its default model. `window` is the largest window in tokens.
        """
        try:
            return await self._bind(handle, window)
        except ModelUnknown as error:
            handles = tuple(await self.handles())
            remedy = joined([*filter(None, [error.remedy]), _offer(handles)])
            raise ModelUnknown(error.what, handles=handles, remedy=remedy) from None

    async def handles(self) -> list[str]:
        """Return the handles that work now, in the configuration's order, each vendor's default model first."""
        return [
            f"{provider.name}/{model}"
            for provider, answer in await self._answers()
            if answer.verdict in (KeyVerdict.ACCEPTED, KeyVerdict.RATE_LIMITED)
            for model in ordered_models(provider.vendor, answer)
        ]

    def catalog(self) -> dict[str, int]:
        """Return windows by handle, as far as they are known without asking a vendor."""
        return {
            f"{provider.name}/{model}": window
            for provider in self._providers.values()
            for model, window in provider.vendor.models.items()
        }

    def calls_tools(self, binding: Binding) -> bool:
        """Return whether a model calls tools: false only if the vendor's last list says so."""
        kept = self._kept.get(binding.provider)
        model = None if kept is None else kept[0].listed.get(binding.model)
        return model is None or model.tools is not False

    async def limits(self, *, ask: bool = True) -> dict[str, int]:
        """Return the windows by handle that no agent may exceed; see `window_limits`.

        Without `ask`, the answers that the vendors have given count, however old they are.
        """
        if ask:
            answers = {provider.name: answer for provider, answer in await self._answers()}
        else:
            answers = {name: answer for name, (answer, _until) in self._kept.items()}
        return {
            f"{provider.name}/{model}": window
            for provider in self._providers.values()
            for model, window in window_limits(provider.vendor, answers.get(provider.name)).items()
        }

    async def listings(self) -> tuple[dict[str, int], dict[str, frozenset[str]]]:
        """Return windows by handle, and the models of each vendor that answered, by provider."""
        windows, listed = self.catalog(), {}
        for provider, answer in await self._answers():
            if answer.verdict is KeyVerdict.ACCEPTED:
                listed[provider.name] = frozenset(answer.models)
                for model, window in _fit(provider.vendor, answer).items():
                    windows[f"{provider.name}/{model}"] = _window(provider, model, window)
        return windows, listed

    async def choose(self, handles: Iterable[str], *, window: int | None = None) -> Binding:
        """Return the first of these that works, else the first that works at all, else the first with a key.

        If one names a vendor's default model, and the vendor no longer lists it, the best listed one counts.
        """
        preferred = list(handles)
        for handle in preferred:
            with suppress(ModelUnknown):
                return await self._bind(await self._replaced(handle), window)
        for handle in await self.handles():
            return await self._bind(handle, window)
        # No vendor answers now. An agent is created anyway: it works as soon as one does.
        for handle in [*preferred, *self._providers]:
            with suppress(ModelUnknown):
                return await self._bind(handle, window, unasked=True)
        raise ModelUnknown(
            english("No vendor has a key that could be used, so no agent can answer."),
            remedy=english(
                "Put one into .env, for instance CEREBRAS_API_KEY; `isabella settings` shows what is set."
            ),
        )

    async def _replaced(self, handle: str) -> str:
        """Return the name of the provider alone if the handle is one of a default model that is gone."""
        name, _, model = handle.partition("/")
        provider = self._providers.get(name)
        if provider is None or name not in self.usable or model != provider.vendor.default_model:
            return handle
        answer = await self._answer(provider)
        gone = answer.verdict is KeyVerdict.ACCEPTED and bool(answer.models) and model not in answer.models
        return name if gone else handle

    async def _bind(self, handle: str, largest: int | None, *, unasked: bool = False) -> Binding:
        """Return the binding to a handle, with a window up to the largest. The error names no other handles."""
        name, _, model = handle.partition("/")
        provider = self._providers.get(name)
        if provider is None:
            raise ModelUnknown(english("There is no provider %(name)s.", name=repr(name)))
        if provider.problem is not None:
            raise ModelUnknown(
                english("%(name)s cannot be used: %(problem)s.", name=name, problem=provider.problem),
                remedy=provider.remedy,
            )
        if provider.key is None:
            raise ModelUnknown(
                english("%(name)s has no key: %(key_source)s.", name=name, key_source=provider.key_source),
                remedy=english("Put one into %(variable)s.", variable=provider.vendor.api_key_env),
            )
        answer = await self._answer(provider)
        if answer.verdict is KeyVerdict.REFUSED:
            values = {"variable": provider.vendor.api_key_env, "page": provider.vendor.keys_page}
            remedy = english("Put a valid one into %(variable)s.", **values)
            if provider.vendor.keys_page:
                remedy = english("Put a valid one from %(page)s into %(variable)s.", **values)
            raise ModelUnknown(
                english("%(title)s refuses the key (%(said)s).", title=provider.vendor.title, said=answer.said),
                remedy=remedy,
            )
        silent = answer.verdict is not KeyVerdict.ACCEPTED
        if silent and not (unasked or answer.verdict is KeyVerdict.RATE_LIMITED):
            raise ModelUnknown(
                english("%(title)s cannot answer now (%(said)s).", title=provider.vendor.title, said=answer.said),
                remedy=english("Try again later."),
            )
        windows = _fit(provider.vendor, answer)
        model = model or next(iter(ordered_models(provider.vendor, answer)), "")
        if not model:
            raise ModelUnknown(english("%(name)s lists no model.", name=name))
        if not silent and windows and model not in windows:
            values = {"name": name, "model": repr(model)}
            if model in answer.models:
                raise ModelUnknown(english("%(name)s has no model %(model)s for conversations.", **values))
            raise ModelUnknown(english("%(name)s has no model %(model)s.", **values))
        window = self.capped(name, model, _window(provider, model, windows.get(model)))
        return Binding(name, model, provider.base_url, min(window, largest or window), client=self.client)

    async def _answers(self) -> list[tuple[Desired, VendorAnswer]]:
        """Return the answer of every vendor with a usable key."""
        names = self.usable
        usable = [provider for name, provider in self._providers.items() if name in names]
        answers = await gather([partial(self._answer, provider) for provider in usable], at_once=_AT_ONCE)
        return [*zip(usable, answers, strict=True)]

    async def _answer(self, provider: Desired) -> VendorAnswer:
        async with self._locks.setdefault(provider.name, anyio.Lock()):
            kept = self._kept.get(provider.name)
            if kept is not None and self._clock() < kept[1]:
                return kept[0]
            answer = await self._ask(provider.reached_at, provider.key or SecretStr(""))
            seconds = _KEPT_SECONDS if answer.verdict is KeyVerdict.ACCEPTED else _FAILURE_KEPT_SECONDS
            if self._providers.get(provider.name) == provider:
                self._kept[provider.name] = answer, self._clock() + seconds
                self.on_event(provider.name, answer)
                self._tell_replaced(provider, answer)
            return answer

    def _tell_replaced(self, provider: Desired, answer: VendorAnswer) -> None:
        """Log once that the vendor no longer lists its default model, and which model replaces it."""
        default, best = provider.vendor.default_model, next(iter(ordered_models(provider.vendor, answer)), None)
        if default is None or best is None or not answer.models or default in answer.models:
            return
        if (provider.name, best) not in self._told:
            self._told.add((provider.name, best))
            variable = provider.vendor.model_env
            text = english(
                "%(vendor)s no longer has %(default)s; %(best)s takes its place.",
                vendor=provider.vendor.title,
                default=default,
                best=best,
            )
            keep = [english("%(variable)s names another one.", variable=variable)] if variable else []
            self.on_replaced(joined([text, *keep]))


def probe_binding(provider: Desired, answer: VendorAnswer | None, *, client: str = GENERIC) -> Binding:
    """Return a binding for a short completion: to the vendor's default model, or to another one that it lists."""
    vendor = provider.vendor
    listed = answer.models if answer is not None and answer.verdict is KeyVerdict.ACCEPTED else {}
    unfit = frozenset() if answer is None else answer.unfit
    known = [model for model in (vendor.default_model, *vendor.models, *listed) if model is not None]
    model = next((model for model in known if not listed or (model in listed and model not in unfit)), "default")
    window = listed.get(model) or vendor.models.get(model) or vendor.default_window
    return Binding(provider.name, model, provider.base_url, window, client=client)


def window_limits(vendor: Vendor, answer: VendorAnswer | None) -> dict[str, int]:
    """Return the windows by model that no agent may exceed: as the vendor states, or `isabella.toml` declares.

    The windows in the catalog of known vendors are not limits: an account may have larger ones.
    """
    declared = dict(vendor.models) if vendor.base_url_env is None else {}
    stated = answer.models if answer is not None and answer.verdict is KeyVerdict.ACCEPTED else {}
    return declared | {model: window for model, window in stated.items() if window is not None}


def _window(provider: Desired, model: str, stated: int | None) -> int:
    """Return a model's window: as the vendor states it, else as the catalog does, and never Letta's guess."""
    return stated or provider.vendor.models.get(model) or provider.vendor.default_window


def ordered_models(vendor: Vendor, answer: VendorAnswer) -> list[str]:
    """Return the models for agents, the best first.

    That is the default model, then those of the catalog. Of the others, those that the vendor ends or that call no
    tools come last, and a large window comes before a small one.
    """
    windows = _fit(vendor, answer)

    def rank(id: str) -> tuple[bool, bool, bool, bool, int]:
        listed = answer.listed.get(id)
        ending, no_tools = (listed.ending, listed.tools is False) if listed else (False, False)
        usual = id in vendor.models
        window = 0 if usual else -min(windows[id] or 0, _AMPLE_WINDOW)
        return id != vendor.default_model, not usual, ending, no_tools, window

    return sorted(windows, key=rank)


def _fit(vendor: Vendor, answer: VendorAnswer) -> dict[str, int | None]:
    """Return the models for agents, with their windows; those of the catalog if the vendor lists none."""
    if not answer.models:
        return dict(vendor.models)
    return {
        model: window
        for model, window in answer.models.items()
        if model not in answer.unfit and (window is None or window >= _SMALLEST_WINDOW)
    }


def _offer(handles: Sequence[str]) -> str:
    if not handles:
        return english("No other handle would work now; `isabella doctor` says why.")
    # One handle of each vendor is more useful than all of one.
    first = {handle.partition("/")[0]: handle for handle in reversed(handles)}
    shown = list(dict.fromkeys([*reversed(first.values()), *handles]))[:_HANDLES_SHOWN]
    names = ", ".join(shown) + (", …" if len(handles) > len(shown) else "")
    return english("These would work: %(handles)s", handles=names)
