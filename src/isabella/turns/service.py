"""Where turns are taken on, and found again while they are under way."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import anyio

from isabella.agents.service import AgentService
from isabella.errors import MessageRefused, TurnUnknown
from isabella.locks.provider_lock import TurnLocks, open_locks
from isabella.turns.agent_cache import AgentCache
from isabella.turns.circuit_breaker import CircuitBreaker
from isabella.turns.events import Event
from isabella.turns.queue import TurnQueue
from isabella.turns.turn import Turn, TurnDependencies, TurnLimits
from isabella.vendors.status import VendorStatusBoard

#: The longest message that is said, in characters.
LONGEST_MESSAGE = 200_000
#: What every message matches: at least one character that is neither space nor control, and no NUL anywhere.
SAYABLE = r"^[^\x00]*[^\s\x00-\x1f\x7f-\x9f][^\x00]*$"
_SOMETHING = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]")
_STOP_SECONDS = 30.0

#: Sees every event of every turn, for counting.
Watch = Callable[[Turn, Event], None]


class TurnService:
    """Takes turns on.

    Args:
        deps: what they share.
        queue: one turn at a time for each agent.
        watch: sees every event.
    """

    def __init__(self, deps: TurnDependencies, queue: TurnQueue, watch: Watch = lambda _turn, _event: None) -> None:
        self.deps = deps
        self.queue = queue
        self._watch = watch
        self._under_way: dict[str, Turn] = {}

    async def open(self, agent: str, message: str) -> Turn:
        """Take on a turn. Its `events` have to be asked for, or it has to `leave`.

        Args:
            agent: the agent's name, definition id, or Letta id.
            message: what is said to it.

        Raises:
            MessageRefused: it cannot be said.
            AgentUnknown: there is no such agent.
            QueueFull: too many turns wait for it already.
            LettaError: Letta cannot be read.
        """
        check_message(message)
        agent_ref = await self.deps.agent_cache.find(agent)
        return Turn(self.deps, agent_ref, message, self.queue.take(agent_ref.id))

    async def events(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """The events of a turn, which can be found by its id meanwhile."""
        self._under_way[turn.id] = turn
        try:
            async with aclosing(turn.events()) as events:
                async for event in events:
                    self._watch(turn, event)
                    yield event
        finally:
            self._under_way.pop(turn.id, None)

    async def stop(self, agent: str, id: str) -> None:
        """End a turn, and wait until it has ended.

        Args:
            agent: the agent's name, definition id, or Letta id.
            id: the turn's id.

        Raises:
            AgentUnknown: there is no such agent.
            TurnUnknown: no such turn is under way here.
        """
        agent_ref = await self.deps.agent_cache.find(agent)
        turn = self._under_way.get(id)
        if turn is None or turn.agent_ref.id != agent_ref.id:
            raise TurnUnknown(
                f"No turn {id[:60]!r} of {agent_ref.name} is under way in this backend.",
                remedy="It may have ended already.",
            )
        turn.stop()
        with anyio.move_on_after(_STOP_SECONDS):
            await turn.ended.wait()

    @property
    def under_way(self) -> int:
        """How many turns are speaking or waiting."""
        return len(self._under_way)


@asynccontextmanager
async def open_turn_service(
    agent_service: AgentService,
    *,
    locks: TurnLocks | None = None,
    watch: Watch = lambda _turn, _event: None,
    vendors: VendorStatusBoard | None = None,
) -> AsyncIterator[TurnService]:
    """A desk for the agents of one Letta.

    Args:
        agent_service: the agents.
        locks: what holds turns and changes of providers apart; by default its own.
        watch: sees every event.
        vendors: are told what each vendor does.
    """
    settings = agent_service.settings
    async with AsyncExitStack() as stack:
        if locks is None:
            locks = await stack.enter_async_context(open_locks(settings, agent_service.connection))
        deps = TurnDependencies(
            letta=agent_service.letta,
            agent_cache=AgentCache(agent_service.registry, agent_service.models),
            gate=locks.gate,
            breaker=CircuitBreaker(),
            vendors=vendors or VendorStatusBoard(),
            limits=TurnLimits(first_token=settings.first_token_timeout, silence=settings.silence_timeout),
        )
        yield TurnService(
            deps, TurnQueue(locks.advisory, limit=settings.turn_queue, patience=settings.turn_wait), watch
        )


def check_message(message: str) -> None:
    """Whether this can be said at all.

    Raises:
        MessageRefused: it is empty, too long, or no text that can be stored.
    """
    if not has_text(message):
        raise MessageRefused("The message is empty.", remedy="Say something.")
    if len(message) > LONGEST_MESSAGE:
        raise MessageRefused(
            f"The message has {len(message)} characters; {LONGEST_MESSAGE} are the most.", remedy="Say less at once."
        )
    if "\0" in message or not _is_text(message):
        raise MessageRefused(
            "The message holds characters that are no text (NUL, or half of a surrogate pair).",
            remedy="Send it as UTF-8 text.",
        )


def has_text(message: str) -> bool:
    """Whether there is anything in it but spaces and control characters."""
    return _SOMETHING.search(message) is not None


def _is_text(message: str) -> bool:
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return True
