"""Which models would work now, and how an agent is bound to one (fact M6).

A handle is `PROVIDER/MODEL`; `PROVIDER` alone means its usual model. What a vendor has is asked of the vendor itself
and kept for a few minutes; what it does not tell about a model's window is in the catalog.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import anyio
from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.errors import ModelUnknown
from isabella.letta.llm_config import Binding
from isabella.letta.releases import GENERIC
from isabella.providers.desired import Desired, desired_providers
from isabella.system.tasks import gather
from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_vendor

#: Asks a vendor for its models: base URL and key.
Ask = Callable[[str, SecretStr], Awaitable[VendorAnswer]]

#: What Letta takes where nothing tells the window (fact M1); an agent of ours never gets it by accident.
LETTA_GUESS = 8192

_KEPT_SECONDS = 300.0
#: A vendor that failed is asked again sooner.
_FAILURE_KEPT_SECONDS = 20.0
_AT_ONCE = 8
#: Below this a model is none for agents: a speech model, or a classifier.
_SMALLEST_WINDOW = 4096
_HANDLES_SAID = 6


@dataclass(frozen=True)
class _Known:
    answer: VendorAnswer
    until: float


class ModelCatalog:
    """The models of every vendor that the configuration names.

    Args:
        providers: what the configuration asks for.
        ask: asks a vendor; by default over the network.
        clock: tells the time, in seconds.
        client: which of Letta's clients agents are bound with.
    """

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
        #: Is told what a vendor answered, by its provider's name.
        self.on_event: Callable[[str, VendorAnswer], None] = lambda _provider, _answer: None
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, anyio.Lock] = {}

    @classmethod
    def of(cls, settings: Settings) -> ModelCatalog:
        """The models of the settings' vendors.

        Raises:
            ConfigurationError: `isabella.toml` is malformed.
        """
        return cls(desired_providers(settings), partial(ask_vendor, timeout=min(settings.timeout, 10.0)))

    @property
    def providers(self) -> tuple[Desired, ...]:
        """What the configuration asks for."""
        return tuple(self._providers.values())

    def provider(self, name: str) -> Desired | None:
        """What the configuration asks for under this name."""
        return self._providers.get(name)

    def renew(self, providers: Iterable[Desired]) -> None:
        """Go by another configuration from now on. What a vendor said to a key that is replaced is forgotten."""
        fresh = {provider.name: provider for provider in providers}
        self._known = {name: known for name, known in self._known.items() if fresh.get(name) == self._providers[name]}
        self._providers = fresh

    async def binding(self, handle: str, *, window: int | None = None, unasked: bool = False) -> Binding:
        """What ties an agent to the model of a handle.

        Args:
            handle: `PROVIDER/MODEL`, or `PROVIDER` for its usual model.
            window: at most so many tokens of context.
            unasked: take the catalog's word where the vendor gives no answer, as at a start without a network.

        Raises:
            ModelUnknown: it would not work: no such provider or model, no key, or the vendor refuses. The error
                names the handles that would.
        """
        found, why, remedy = await self._bind(handle, unasked)
        if found is not None:
            return found if window is None or window >= found.window else replace(found, window=window)
        handles = tuple(await self.handles())
        raise ModelUnknown(why, handles=handles, remedy=f"{remedy} {_offer(handles)}".strip())

    async def handles(self) -> list[str]:
        """The handles that would work now, in the configuration's order, each vendor's usual model first."""
        keyed = [provider for provider in self._providers.values() if _usable(provider)]
        answers = await gather([partial(self._answer, provider) for provider in keyed], at_once=_AT_ONCE)
        return [
            f"{provider.name}/{model}"
            for provider, answer in zip(keyed, answers, strict=True)
            if _working(answer)
            for model in _ordered(provider, _fit(provider, answer))
        ]

    def catalog(self) -> dict[str, int]:
        """Windows by handle, as far as they are known without asking."""
        return {
            f"{provider.name}/{model}": window
            for provider in self._providers.values()
            for model, window in provider.vendor.models.items()
        }

    async def census(self) -> tuple[dict[str, int], dict[str, frozenset[str]]]:
        """Windows by handle, and the models of each vendor that has answered, by provider."""
        windows, listed = self.catalog(), {}
        keyed = [provider for provider in self._providers.values() if _usable(provider)]
        answers = await gather([partial(self._answer, provider) for provider in keyed], at_once=_AT_ONCE)
        for provider, answer in zip(keyed, answers, strict=True):
            if answer.verdict is KeyVerdict.ACCEPTED:
                listed[provider.name] = frozenset(answer.models)
                for model, window in _fit(provider, answer).items():
                    true = window or provider.vendor.models.get(model) or provider.vendor.default_window
                    windows[f"{provider.name}/{model}"] = true
        return windows, listed

    async def choose(self, handles: Iterable[str], *, window: int | None = None) -> Binding:
        """The first of these that works; otherwise the first that works at all; otherwise the first with a key.

        Raises:
            ModelUnknown: no vendor has a key.
        """
        wanted = list(handles)
        for handle in wanted:
            found, _, _ = await self._bind(handle, unasked=False)
            if found is not None:
                return await self.binding(handle, window=window)
        for handle in await self.handles():
            return await self.binding(handle, window=window)
        # No vendor answers now. The agent is made all the same: it will speak when one does.
        for handle in [*wanted, *self._providers]:
            found, _, _ = await self._bind(handle, unasked=True)
            if found is not None:
                return await self.binding(handle, window=window, unasked=True)
        raise ModelUnknown(
            "No vendor has a key that could be used, so no agent can speak.",
            remedy="Put one into .env, for instance CEREBRAS_API_KEY; `isabella settings` shows what is set.",
        )

    async def _bind(self, handle: str, unasked: bool) -> tuple[Binding | None, str, str]:
        name, _, model = handle.partition("/")
        provider = self._providers.get(name)
        if provider is None:
            return None, f"There is no provider {name!r}.", ""
        if provider.problem is not None:
            return None, f"{name} cannot be used: {provider.problem}.", provider.remedy or ""
        if provider.key is None:
            return None, f"{name} has no key: {provider.key_source}.", ""
        answer = await self._answer(provider)
        if answer.verdict is KeyVerdict.REFUSED:
            return None, f"{provider.vendor.title} refuses the key ({answer.said}).", _keys_page(provider)
        silent = answer.verdict is not KeyVerdict.ACCEPTED
        if silent and not (unasked or answer.verdict is KeyVerdict.RATE_LIMITED):
            return None, f"{provider.vendor.title} cannot answer now ({answer.said}).", ""
        windows = _fit(provider, answer)
        model = model or next(iter(_ordered(provider, windows)), "")
        if not model:
            return None, f"{name} lists no model.", ""
        if not silent and windows and model not in windows:
            unfit = " for conversations" if model in answer.models else ""
            return None, f"{name} has no model {model!r}{unfit}.", ""
        # The catalog is the fallback for what the vendor does not tell, and never Letta's guess.
        window = windows.get(model) or provider.vendor.models.get(model) or provider.vendor.default_window
        return Binding(name, model, provider.base_url, window, client=self.client), "", ""

    async def _answer(self, provider: Desired) -> VendorAnswer:
        async with self._asking.setdefault(provider.name, anyio.Lock()):
            known = self._known.get(provider.name)
            if known is None or known.until <= self._clock():
                answer = await self._ask(provider.base_url, provider.key or SecretStr(""))
                kept = _KEPT_SECONDS if answer.verdict is KeyVerdict.ACCEPTED else _FAILURE_KEPT_SECONDS
                known = _Known(answer, self._clock() + kept)
                if self._providers.get(provider.name) == provider:
                    self._known[provider.name] = known
                    self.on_event(provider.name, answer)
            return known.answer


def _usable(provider: Desired) -> bool:
    return provider.key is not None and provider.problem is None


def _working(answer: VendorAnswer) -> bool:
    # A key that asks too often is a good key: its models may be used, only not at this moment.
    return answer.verdict in (KeyVerdict.ACCEPTED, KeyVerdict.RATE_LIMITED)


def _fit(provider: Desired, answer: VendorAnswer) -> dict[str, int | None]:
    """The vendor's models that an agent can run on, with their windows; the catalog's where it lists none."""
    if not answer.models:
        return dict(provider.vendor.models)
    return {
        model: window
        for model, window in answer.models.items()
        if model not in answer.unfit and (window is None or window >= _SMALLEST_WINDOW)
    }


def _ordered(provider: Desired, windows: dict[str, int | None]) -> list[str]:
    usual = provider.vendor.default_model
    return sorted(windows, key=lambda model: (model != usual, model not in provider.vendor.models))


def _keys_page(provider: Desired) -> str:
    page = provider.vendor.keys_page
    return f"Make a new one at {page}, put it into .env, and start again." if page else ""


def _offer(handles: Sequence[str]) -> str:
    if not handles:
        return "No other handle would work now."
    # One of each vendor says more than all of one.
    first = {handle.partition("/")[0]: handle for handle in reversed(handles)}
    said = list(dict.fromkeys([*reversed(first.values()), *handles]))[:_HANDLES_SAID]
    return f"These would work: {', '.join(said)}{', …' if len(handles) > len(said) else ''}"
