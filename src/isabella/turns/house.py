"""What all turns share."""

from __future__ import annotations

from dataclasses import dataclass, field

from letta_client import AsyncLetta

from isabella.agents.wire import LettaClient
from isabella.gate import ProviderLock
from isabella.turns.breaker import CircuitBreaker
from isabella.turns.roster import AgentCache
from isabella.vendors.status import VendorStatusBoard


@dataclass(frozen=True)
class TurnLimits:
    """How long a turn waits for what.

    Attributes:
        first_token: seconds that a vendor may take to begin its answer.
        silence: seconds of silence after which an answer that has begun is broken.
    """

    first_token: float = 20.0
    silence: float = 60.0


@dataclass(frozen=True)
class TurnDependencies:
    """What all turns share.

    Attributes:
        client: the official SDK.
        wire: the same, for what it has no words for.
        roster: the agents.
        gate: of the providers.
        breaker: which vendors are left out.
        limits: how long a turn waits for what.
        vendors: what each vendor did when it was asked last.
    """

    client: AsyncLetta
    wire: LettaClient
    roster: AgentCache
    gate: ProviderLock
    breaker: CircuitBreaker
    limits: TurnLimits
    vendors: VendorStatusBoard = field(default_factory=VendorStatusBoard)
