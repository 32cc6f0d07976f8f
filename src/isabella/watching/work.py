"""What the keeper has done: syncs and censuses on the Letta that the settings mean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from isabella.assurance import ensure_providers
from isabella.connection import Connection, connect
from isabella.gate import ProviderLock
from isabella.providers.report import Report
from isabella.settings import Settings
from isabella.strategy import Strategy
from isabella.watching.census import ModelRefresh, refresh_models


class LettaActions:
    """Work on a real Letta.

    Args:
        gate: the one that turns of this process pass.
        find: finds the Letta, anew each time: the embedded one may run under another master key by now.
    """

    def __init__(
        self, gate: ProviderLock | None = None, *, find: Callable[[Settings], Awaitable[Connection]] = connect
    ) -> None:
        self._gate = gate
        self._find = find

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        """Bring providers in line; all of them where none is named.

        Raises as `ensure_providers` does.
        """
        # To recreate everything is meant for the start. Every five minutes it would be a gap every five minutes.
        strategy = Strategy.AUTO if settings.strategy is Strategy.RECREATE else settings.strategy
        return await ensure_providers(
            settings,
            connection=await self._find(settings),
            only=only,
            strategy=strategy,
            count_models=True,
            gate=self._gate,
        )

    async def count(self, settings: Settings) -> ModelRefresh:
        """Read the model lists anew.

        Raises as `take_census` does.
        """
        return await refresh_models(settings, await self._find(settings))
