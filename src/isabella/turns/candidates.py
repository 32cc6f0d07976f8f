"""The vendors that may answer an agent, and binding it to each for as long as it is asked."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import structlog

from isabella.agents.binding import Binding
from isabella.agents.context import FittedContext, required_id_form
from isabella.errors import IsabellaError
from isabella.turns.events import VendorAsked
from isabella.turns.roster import AgentCache, AgentRef

log = structlog.get_logger()

_BINDING_SECONDS = 10.0


@dataclass(frozen=True)
class Candidate:
    """A vendor that may answer.

    Attributes:
        handle: `provider/model`.
        provider: the provider's name in Letta.
        model: the vendor's id of the model.
        binding: what the agent has to be bound to for it; None for what it is bound to already.
    """

    handle: str
    provider: str
    model: str
    binding: Binding | None = None

    @classmethod
    def of(cls, speaker: AgentRef) -> Candidate:
        """What an agent is bound to already."""
        return cls(speaker.handle, speaker.provider, speaker.model)

    @property
    def asked(self) -> VendorAsked:
        """The event that tells that it is asked."""
        return VendorAsked(self.handle, self.provider, self.model)


class TemporaryBinding:
    """An agent bound elsewhere for a turn, and back to what its people chose afterwards.

    Args:
        roster: the agents.
        speaker: the agent.
    """

    def __init__(self, roster: AgentCache, speaker: AgentRef) -> None:
        self._roster = roster
        self._speaker = speaker
        self._chosen: Binding | None = None
        self._now: Binding | None = None
        self._fitted: FittedContext | None = None

    async def to(self, binding: Binding) -> None:
        """Bind it to this one, whose gate has been passed.

        Raises:
            LettaError: Letta refuses or fails.
        """
        if self._chosen is None:
            # Somebody may have switched it meanwhile: that is what it goes back to.
            self._chosen = self._now = (await self._roster.look(self._speaker)).binding
        binding = await self._roster.placed(binding)
        if self._now != binding:
            # Noted before: where the answer to it is lost, it may be bound there all the same.
            self._now = binding
            bound = await self._roster.bind(self._speaker.id, binding)
            self._now = bound.binding
            if bound.fitted is not None:
                self._fitted = bound.fitted

    async def __aenter__(self) -> TemporaryBinding:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._chosen is None or self._now is None or self._now == self._chosen:
            return
        with anyio.CancelScope(shield=True), anyio.move_on_after(_BINDING_SECONDS):
            try:
                # Not through the gate, which may be closed for long: nothing is said here, and where the provider
                # moves meanwhile the agent goes along.
                home = await self._roster.placed(self._chosen)
                if home != self._now and (await self._roster.look(self._speaker)).binding == self._now:
                    bound = await self._roster.bind(self._speaker.id, home)
                    if self._fitted is not None and required_id_form(bound.binding) is None:
                        await self._roster.put_back(self._speaker.id, self._fitted)
            except IsabellaError as error:
                log.warning("not bound back", agent=self._speaker.name, to=self._chosen.handle, error=error.what)
