"""What the log of events counts as an answer or an error of a vendor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from isabella.server.event_log import EventLog
from isabella.turns.events import ErrorCode, Failover

TURN: Any = SimpleNamespace(id="turn-1", agent_ref=SimpleNamespace(id="agent-1", name="Anna"))


@pytest.mark.parametrize(
    ("failover", "counted"),
    [
        (Failover("byok-groq/m", ErrorCode.RATE_LIMITED, "429: slow down", 429), True),
        (Failover("byok-groq/m", ErrorCode.REQUEST_REFUSED, "400: no", 400), True),
        (Failover("byok-groq/m", ErrorCode.VENDOR_UNREACHABLE, "no answer"), True),
        # Its key is missing: nobody has asked it.
        (Failover("byok-groq/m", ErrorCode.GATEWAY_REFUSED, "Isabella's gateway has no usable key"), False),
        (Failover("byok-groq/m", ErrorCode.MODEL_UNKNOWN, "No key is configured for byok-groq."), False),
        (Failover("byok-groq/m", ErrorCode.CIRCUIT_OPEN, "Skipped for another 5 s", retry_after=5.0), False),
        (Failover("byok-groq/m", ErrorCode.LETTA_FAILING, "Letta stumbled"), False),
        (Failover("byok-groq/m", ErrorCode.GATEWAY_UNREACHABLE, "The gateway does not answer."), False),
    ],
)
def test_only_a_vendor_s_own_errors_count_as_its_errors(failover: Failover, counted: bool) -> None:
    """A missing key, a vendor that was left out, Letta and the gateway make no error in a vendor's chart."""
    log = EventLog()
    log.on_turn_event(TURN, failover)
    assert len([*log.samples_of_last(60)]) == counted
    (entry,) = log.entries
    assert ("did not answer" in entry.text) is counted
    assert ("was not used by" in entry.text) is not counted
