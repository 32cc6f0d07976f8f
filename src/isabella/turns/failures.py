"""How the failure of a whole turn is told."""

from __future__ import annotations

from isabella.errors import AgentUnknown, IsabellaError, LettaBroken, LettaRefused, LettaUnreachable, TurnTimeout
from isabella.turns.events import Code, TurnFailed
from isabella.turns.refusals import VendorRefusal


def broken_turn(begun: bool, refusal: VendorRefusal) -> TurnFailed:
    """The error of a turn that ended in the middle, or with an empty answer."""
    if not begun:
        return TurnFailed(
            refusal.code, refusal.message, "Ask again, or switch to another model.", status=refusal.status
        )
    if refusal.code is Code.PROVIDER_CHANGING:
        return TurnFailed(refusal.code, refusal.message, "What came is kept. Ask again in a moment.")
    return TurnFailed(
        Code.STREAM_BROKEN,
        f"The answer broke off in the middle: {refusal.message}",
        "What came is kept. Ask again, or switch to another model.",
        status=refusal.status,
    )


def unanswered_turn(refusals: list[VendorRefusal]) -> TurnFailed:
    """The error of a turn that nobody answered: the only reason there is, or that there are several."""
    waits = [refusal.retry_after for refusal in refusals if refusal.retry_after]
    retry_after = round(min(waits), 1) if waits else None
    if not refusals:
        return TurnFailed(
            Code.NO_VENDOR, "The agent has no model that it could speak with.", "Switch it to another model."
        )
    if len(refusals) == 1:
        only = refusals[0]
        return TurnFailed(
            only.code,
            f"The vendor does not answer: {only.message}",
            "Mend the cause, or give the agent further models to go on with.",
            retry_after=retry_after,
            status=only.status,
        )
    return TurnFailed(
        Code.NO_VENDOR,
        "None of the agent's vendors answers.",
        "The failover events say why; `isabella providers status` shows how the providers stand.",
        retry_after=retry_after,
    )


def refused_turn(error: IsabellaError) -> TurnFailed:
    """The error of a turn that one of ours has ended."""
    match error:
        case TurnTimeout():
            code = Code.BUSY
        case AgentUnknown():
            code = Code.AGENT_UNKNOWN
        case LettaUnreachable():
            code = Code.LETTA_UNREACHABLE
        case LettaRefused():
            code = Code.LETTA_REFUSED
        case LettaBroken():
            code = Code.LETTA_FAILING
        case _:
            code = Code.INTERNAL
    return TurnFailed(code, error.what, error.remedy)
