"""The turn service: accepts turns, and finds the running ones."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio

from isabella.agents.conversations import usable
from isabella.agents.service import AgentService
from isabella.config.gateway_address import gateway_address
from isabella.errors import ImagesRefused, LettaBroken, LettaUnreachable, MessageRefused, TurnUnknown
from isabella.gateway.client import GatewayClient
from isabella.gateway.process import starts_here
from isabella.letta.conversations import DEFAULT
from isabella.locks.provider_lock import ProviderLock
from isabella.system.english import english
from isabella.system.supervision import Supervisor
from isabella.turns.agent_cache import AgentCache, AgentRef
from isabella.turns.circuit_breaker import CircuitBreaker
from isabella.turns.events import Event
from isabella.turns.leftovers import FirstTurns
from isabella.turns.message import UserMessage
from isabella.turns.queue import TurnQueue
from isabella.turns.turn import Turn, TurnDependencies
from isabella.vendors.client import VendorStatusBoard

_T = TypeVar("_T")

#: In characters.
MAX_MESSAGE_LENGTH = 200_000
#: Every valid message matches: at least one character that is neither space nor control, and no NUL.
MESSAGE_PATTERN = r"^[^\x00]*[^\s\x00-\x1f\x7f-\x9f][^\x00]*$"
_VISIBLE = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]")
_STOP_SECONDS = 30.0

#: Is called with every event of every turn, for counting and logging.
EventListener = Callable[[Turn, Event], None]


class TurnService:
    """Accepts turns, and finds the running ones."""

    def __init__(
        self, deps: TurnDependencies, queue: TurnQueue, on_event: EventListener = lambda _turn, _event: None
    ) -> None:
        self.deps = deps
        self.queue = queue
        self._on_event = on_event
        self._running: dict[str, Turn] = {}

    async def open(self, agent: str, message: str | UserMessage, conversation: str | None = None) -> Turn:
        """Accept a turn, whose `events` must be read.

        `conversation` is the id of a conversation; None and `default` are the agent's default one. Raises
        `MessageRefused`, `QueueFull`, `ConversationUnknown`, `ConversationRefused`, or `AgentUnknown` for a name,
        definition id or Letta id.
        """
        message = UserMessage.of(message)
        check_message(message.text)
        agent_ref = await self.find(agent)
        if message.images and (problem := self.blind(agent_ref)) is not None:
            raise problem
        row = None
        if conversation is not None and conversation != DEFAULT:
            row = await self._from_letta(partial(usable, self.deps.letta, agent_ref.id, agent_ref.type, conversation))
        ticket = self.queue.take(agent_ref.id)
        turn = Turn(
            self.deps,
            agent_ref,
            message,
            ticket,
            conversation=row,
            on_event=self._on_event,
            on_end=self._forget,
        )
        self._running[turn.id] = turn
        return turn

    async def find(self, agent: str) -> AgentRef:
        """Return the agent with this name, definition id or Letta id.

        While Letta is down, return it as it was, or wait for Letta.
        """
        cache = self.deps.agent_cache
        return await self._from_letta(partial(cache.find, agent), partial(cache.known, agent))

    async def _from_letta(
        self, read: Callable[[], Awaitable[_T]], known: Callable[[], _T | None] = lambda: None
    ) -> _T:
        """Return the agent from Letta; while Letta is down, the `known` one, or wait for Letta."""
        supervisor = self.deps.supervisor
        if supervisor is None:
            return await read()
        try:
            if not supervisor.down:
                return await read()
        except (LettaUnreachable, LettaBroken):
            await supervisor.doubt()
        if (last := known()) is not None:
            return last
        await supervisor.wait(self.deps.hold)
        return await read()

    def seeing(self, agent_ref: AgentRef) -> list[str]:
        """Return the handles of the agent's models that are known to take images, the present one first."""
        cache = self.deps.agent_cache
        handles = dict.fromkeys((agent_ref.handle, *cache.set_up(agent_ref.handles)))
        return [handle for handle in handles if cache.takes_images(handle)]

    def blind(self, agent_ref: AgentRef) -> ImagesRefused | None:
        """Return why none of the agent's models takes images; None if one does."""
        if self.seeing(agent_ref):
            return None
        handles = ", ".join(dict.fromkeys((agent_ref.handle, *agent_ref.handles)))
        return ImagesRefused(
            english(
                "No model of %(name)s is known to accept images (%(handles)s).", name=agent_ref.name, handles=handles
            ),
            remedy=english(
                "Switch the agent to one that does. For your own vendors, `quirks.image_models` in isabella.toml "
                "names them."
            ),
        )

    async def stop(self, agent: str, id: str) -> None:
        """End a turn, and wait until it has ended; raise `TurnUnknown` if this backend does not run it."""
        agent_ref = await self.find(agent)
        turn = self._running.get(id)
        if turn is None or turn.agent_ref.id != agent_ref.id:
            raise TurnUnknown(
                english(
                    "No turn %(id)s of %(name)s is running in this backend.",
                    id=repr(id[:60]),
                    name=agent_ref.name,
                ),
                remedy=english("It may have ended already."),
            )
        turn.stop()
        with anyio.move_on_after(_STOP_SECONDS):
            await turn.ended.wait()

    @property
    def under_way(self) -> int:
        """The number of turns that run or wait."""
        return len(self._running)

    def _forget(self, turn: Turn) -> None:
        self._running.pop(turn.id, None)


def new_turn_service(
    agent_service: AgentService,
    locks: ProviderLock,
    on_event: EventListener,
    vendors: VendorStatusBoard,
    supervisor: Supervisor | None = None,
) -> TurnService:
    """Return a turn service for the agents of one Letta; it records what each vendor did in `vendors`.

    With a `supervisor`, turns wait while a part that it watches is restarted.
    """
    settings, peer = agent_service.settings, agent_service.connection.peer
    several = settings.several_backends or locks.advisory is None
    deps = TurnDependencies(
        letta=agent_service.letta,
        gateway=GatewayClient(settings) if starts_here(settings) and gateway_address(settings) else None,
        agent_cache=AgentCache(agent_service.registry, agent_service.models),
        gate=locks,
        breaker=CircuitBreaker(),
        vendors=vendors,
        first_token=settings.first_token_timeout,
        silence=settings.silence_timeout,
        longest=settings.turn_timeout,
        supervisor=supervisor,
        hold=settings.turn_wait,
        shared=locks.advisory is not None and settings.several_backends,
        first_turns=None if peer is None or several else FirstTurns(peer),
    )
    queue = TurnQueue(locks.advisory, limit=settings.turn_queue, patience=settings.turn_wait)
    return TurnService(deps, queue, on_event)


def check_message(message: str) -> None:
    """Raise `MessageRefused` unless the message can be sent."""
    if not has_text(message):
        raise MessageRefused(
            english("The message is empty."), remedy=english("Write at least one visible character.")
        )
    if len(message) > MAX_MESSAGE_LENGTH:
        raise MessageRefused(
            english(
                "The message has %(count)s characters; at most %(most)s are allowed.",
                count=len(message),
                most=MAX_MESSAGE_LENGTH,
            ),
            remedy=english("Send a shorter message."),
        )
    try:
        message.encode()
    except UnicodeEncodeError:
        is_text = False
    else:
        is_text = "\0" not in message
    if not is_text:
        raise MessageRefused(
            english("The message contains a NUL or half of a surrogate pair, which are not text."),
            remedy=english("Send it as UTF-8 text."),
        )


def has_text(message: str) -> bool:
    """Return whether the message has a character that is neither space nor control."""
    return _VISIBLE.search(message) is not None
