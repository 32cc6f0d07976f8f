"""Notes what agents write into their memory blocks: at the start, and after each turn that called a tool for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio.lowlevel
import structlog

from isabella.agents.block_history import Author, Writing
from isabella.agents.service import AgentService
from isabella.errors import IsabellaError
from isabella.turns.events import Ended, Event, ToolCalled
from isabella.turns.turn import Turn

log = structlog.get_logger()


class MemoryObserver:
    """Observes the memory of one Letta's agents. `start` runs a function in the background."""

    def __init__(self, agents: AgentService, start: Callable[..., Any]) -> None:
        self._agents = agents
        self._start = start

    def on_turn_event(self, turn: Turn, event: Event) -> None:
        """Remember the tool calls that write into memory, and note their effects when the turn has ended."""
        agent, history = turn.agent_ref, self._agents.memory.history
        match event:
            case ToolCalled(name=tool, arguments=arguments):
                author = Author.REFLECTION if agent.reflects else Author.AGENT
                history.expect(agent.id, tool, Writing(arguments, author, agent.name, turn.text))
            case Ended() if history.written(agent.id):
                self._start(_unless_failed, self._agents.memory.observe, agent.id)

    async def begin(self) -> None:
        """Note the texts of all blocks, so that their histories begin now."""
        await _unless_failed(self._begin)

    async def _begin(self) -> None:
        history = self._agents.memory.history
        for agent in await self._agents.letta.agents.overview(blocks=True):
            for block in agent.blocks:
                if block.label and block.value is not None:
                    history.note(block.id, block.label, block.value, agent.id)
            await anyio.lowlevel.checkpoint()


async def _unless_failed(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> None:
    try:
        await function(*arguments)
    except IsabellaError as error:
        # The next observation notes the texts, then with an unknown author.
        log.warning("memory blocks not observed", error=error.what)
