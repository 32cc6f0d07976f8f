"""The agents that speak through a provider, as far as its address concerns them.

Letta sends the key that is stored for a provider to the address that stands in the agent (fact M6), not to the one
that stands in the provider. So no key is written while an agent of its provider calls another address than the key
is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class MovedAgent:
    """An agent that is to call another address.

    Attributes:
        id: Letta's id of it.
        name: what it is called.
        former: the address that it called before.
    """

    id: str
    name: str
    former: str | None


#: Is told of an agent before it is changed, because the answer to that may be lost.
Note = Callable[[MovedAgent], None]


class BoundAgents(Protocol):
    """The agents of one Letta."""

    async def astray(self, provider: str, base_url: str) -> bool:
        """Whether any agent of this provider calls another address, as it was when this was first asked.

        Raises:
            LettaError: they cannot be looked at.
        """

    async def follow(self, provider: str, base_url: str, note: Note) -> None:
        """Have every agent of this provider call this address, with nothing else about it changed.

        Raises:
            LettaError: some may still call another one; all that could be changed have been.
        """

    async def send_back(self, provider: str, moved: Sequence[MovedAgent]) -> None:
        """Have these agents call what they called before.

        Raises:
            LettaError: some may still call the other address; all that could be changed have been.
        """
