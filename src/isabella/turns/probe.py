"""The receipt: a completion that went through Letta to the vendor, with the key that Letta stores.

A temporary agent, bound explicitly (fact M6), says one line, and is removed in every case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import stamina

from isabella.agents.metadata import PROBE_TAG
from isabella.errors import LettaBroken, LettaError, LettaRefused, LettaUnreachable
from isabella.letta.client import Connection, LettaClient
from isabella.letta.llm_config import Binding, creation_fields
from isabella.providers.report import Receipt
from isabella.system import audit
from isabella.system.english import english
from isabella.system.redaction import redact
from isabella.system.tasks import gather
from isabella.turns.events import ErrorCode
from isabella.turns.stream import classify_refusal, gateway_error
from isabella.vendors.client import VendorState

_AT_ONCE = 4
_ABANDONED_AFTER = timedelta(minutes=10)
_DETAIL_LIMIT = 200
#: Enough for the reasoning of a model before its line.
_ANSWER_TOKENS = 1024


@dataclass(frozen=True)
class ProbeResult:
    """The result of a completion."""

    receipt: Receipt
    said: str = ""  #: what went wrong, for people; empty if nothing did
    vendor: VendorState | None = None  #: what it shows of the vendor; None if the vendor was not reached
    gateway_code: str | None = None  #: the code with which the gateway itself refused it; None if it did not


async def probe_bindings(connection: Connection, bindings: Sequence[Binding]) -> list[ProbeResult]:
    """Ask a temporary agent of each binding for one line. It raises nothing for failures of Letta or a vendor."""
    # Its agents are gone afterwards.
    async with LettaClient.open(connection, timeout=connection.timeout * 2) as letta:
        with audit.temporary():
            await _remove_abandoned(letta)
            return await gather([partial(_probe, letta, binding) for binding in bindings], at_once=_AT_ONCE)


class _LettaFailed(Exception):
    """Letta itself failed, which says nothing about the key."""


async def _probe(letta: LettaClient, binding: Binding) -> ProbeResult:
    try:
        # After a deadlock in its database, or a connection that it closed, Letta may well answer another agent.
        async for attempt in stamina.retry_context(on=_LettaFailed, attempts=2, wait_initial=0.2):
            with attempt:
                result = await _probe_once(letta, binding)
    except _LettaFailed as failed:
        return ProbeResult(Receipt.FAILED, str(failed))
    return result


async def _probe_once(letta: LettaClient, binding: Binding) -> ProbeResult:
    agent_id: str | None = None
    try:
        agent_id = await letta.agents.create(
            {
                "name": _agent_name(binding.provider),
                **creation_fields(binding, {"max_tokens": min(_ANSWER_TOKENS, binding.window // 4)}),
                "include_base_tools": False,
                "tags": [PROBE_TAG],
                "system": "Answer with one short sentence.",
            }
        )
        turn = await letta.messages.send(agent_id, "Say hello.", max_steps=1)
        answered = any(message.get("message_type") == "assistant_message" for message in turn["messages"])
        stop_reason = turn["stop_reason"]["stop_reason"]
        if not answered and stop_reason not in ("end_turn", "max_steps"):
            return ProbeResult(
                Receipt.FAILED,
                english("the turn ended with %(stop_reason)s", stop_reason=stop_reason),
                VendorState.FAILS,
            )
        return ProbeResult(Receipt.ACCEPTED, vendor=VendorState.ANSWERS)
    except LettaUnreachable as error:
        if error.timed_out:
            return ProbeResult(Receipt.FAILED, english("Letta did not answer in time"))
        raise _LettaFailed(english("Letta gave no answer")) from None
    except (LettaRefused, LettaBroken) as error:
        return judge_refusal(error)
    except LettaError as error:
        return ProbeResult(Receipt.FAILED, error.what[:_DETAIL_LIMIT])
    finally:
        if agent_id is not None:
            with anyio.CancelScope(shield=True), suppress(LettaError):
                await letta.agents.delete(agent_id)


def _agent_name(provider: str) -> str:
    """Return the name of the temporary agent on a provider. Letta refuses dots and colons in names of agents."""
    return "isabella-receipt-" + re.sub(r"[^\w-]", "-", provider)


def judge_refusal(error: LettaRefused | LettaBroken) -> ProbeResult:
    """Return whether the vendor refused the key; Letta words every refusal alike (fact M7). Raise if Letta failed."""
    detail = (error.detail or error.what)[:_DETAIL_LIMIT]
    if (refused := gateway_error(error.detail or error.what)) is not None:
        # Its words have the vendor's state, if that is the reason.
        vendor = classify_refusal(error.kind, error.detail or error.what).vendor
        code, words = refused
        return ProbeResult(Receipt.FAILED, redact(words)[:_DETAIL_LIMIT], vendor, None if vendor else code)
    if isinstance(error, LettaBroken) and not error.kind.startswith("llm_"):
        raise _LettaFailed(detail)
    # Letta's sentence names a company that may have nothing to do with the vendor (fact M7).
    refusal = classify_refusal(error.kind, error.detail or error.what)
    said = refusal.message[:_DETAIL_LIMIT]
    if refusal.code is ErrorCode.KEY_REFUSED:
        return ProbeResult(Receipt.REFUSED, said, VendorState.REFUSES_KEY)
    return ProbeResult(Receipt.FAILED, said, classify_refusal(error.kind, error.detail).vendor)


async def _remove_abandoned(letta: LettaClient) -> None:
    """Remove temporary agents of runs that were killed. Young ones may belong to a run that is still going on."""
    with suppress(LettaError):
        before = datetime.now(UTC) - _ABANDONED_AFTER
        for agent in await letta.agents.all(tags=[PROBE_TAG]):
            if agent.created_at is not None and agent.created_at < before:
                with suppress(LettaRefused):
                    await letta.agents.delete(agent.id)
