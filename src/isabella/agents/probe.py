"""The receipt: a real completion that went through Letta to the vendor, with the stored key.

A temporary agent, bound explicitly (fact M6), says one line and is removed again whatever happens.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import anyio
import stamina
from letta_client import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncLetta, NotFoundError

from isabella.agents import bindings
from isabella.agents.embeddings import NO_EMBEDDING
from isabella.letta.llm_config import Binding
from isabella.providers.report import Receipt
from isabella.system.redaction import redact
from isabella.system.tasks import gather
from isabella.turns.vendor_errors import classify_refusal
from isabella.vendors.status import VendorState

#: Marks temporary agents, so that those of a run that was killed are found and removed.
TAG = "isabella:receipt"

_AT_ONCE = 4
_ABANDONED_AFTER = timedelta(minutes=10)
_SAID_LIMIT = 200


@dataclass(frozen=True)
class ProbeResult:
    """What a completion has shown.

    Attributes:
        receipt: whether the vendor accepted it.
        said: what went wrong, for people; empty where nothing did.
        vendor: what it shows of the vendor; None where that was not reached.
    """

    receipt: Receipt
    said: str = ""
    vendor: VendorState | None = None


async def probe_bindings(client: AsyncLetta, bindings: list[Binding]) -> list[ProbeResult]:
    """Have an agent of each binding say one line. Never raises for what Letta or a vendor does."""
    await _remove_abandoned(client)
    return await gather([partial(_receipt, client, binding) for binding in bindings], at_once=_AT_ONCE)


class _LettaFailed(Exception):
    """Letta itself failed, which says nothing of the key."""


async def _receipt(client: AsyncLetta, binding: Binding) -> ProbeResult:
    try:
        # A deadlock in its database, a connection that it closed: another agent may well be answered.
        async for attempt in stamina.retry_context(on=_LettaFailed, attempts=2, wait_initial=0.2):
            with attempt:
                proceeds = await _ask_for_one(client, binding)
    except _LettaFailed as failed:
        return ProbeResult(Receipt.FAILED, str(failed))
    return proceeds


async def _ask_for_one(client: AsyncLetta, binding: Binding) -> ProbeResult:
    agent_id: str | None = None
    try:
        agent_id = await _create(client, binding)
        answer = await client.agents.messages.create(
            agent_id, messages=[{"role": "user", "content": "Say hello."}], max_steps=1, streaming=False
        )
        said = any(message.message_type == "assistant_message" for message in answer.messages)
        if not said and answer.stop_reason.stop_reason not in ("end_turn", "max_steps"):
            return ProbeResult(
                Receipt.FAILED, f"the turn ended with {answer.stop_reason.stop_reason}", VendorState.FAILS
            )
        return ProbeResult(Receipt.ACCEPTED, vendor=VendorState.ANSWERS)
    except APIStatusError as error:
        return _judge(error)
    except APITimeoutError:
        return ProbeResult(Receipt.FAILED, "Letta gave no answer in time")
    except APIConnectionError:
        raise _LettaFailed("Letta gave no answer") from None
    except APIError as error:
        return ProbeResult(Receipt.FAILED, redact(str(error))[:_SAID_LIMIT])
    finally:
        if agent_id is not None:
            with anyio.CancelScope(shield=True), suppress(APIError):
                await client.agents.delete(agent_id)


async def _create(client: AsyncLetta, binding: Binding) -> str:
    create = partial(
        client.agents.create,
        name=f"isabella-receipt-{binding.provider}",
        **cast(Any, bindings.creation_fields(binding)),
        include_base_tools=False,
        tags=[TAG],
        system="Answer with one short sentence.",
    )
    try:
        return (await create()).id
    except APIStatusError as error:
        if error.status_code != 400 or "embedding" not in str(error):
            raise
        # Before 0.16.2 there is no agent without an embedding model (fact O12); this one embeds nothing.
        return (await create(embedding_config=cast(Any, NO_EMBEDDING))).id


def _judge(error: APIStatusError) -> ProbeResult:
    """Whether the vendor refused the key, or something else failed. Letta words every refusal alike (fact M7).

    Raises:
        _LettaFailed: it was Letta.
    """
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    details = inner if isinstance(inner, dict) else body
    detail = str(details.get("detail") or details.get("message") or error)
    said = redact(detail)[:_SAID_LIMIT]
    kind = str(details.get("type") or "")
    if error.status_code >= 500 and not kind.startswith("llm_"):
        raise _LettaFailed(said)
    refused = error.status_code == 401 and kind == "llm_authentication"
    if refused:
        return ProbeResult(Receipt.REFUSED, said, VendorState.REFUSES_KEY)
    return ProbeResult(Receipt.FAILED, said, classify_refusal(kind, detail).vendor)


async def _remove_abandoned(client: AsyncLetta) -> None:
    """Remove temporary agents of runs that were killed. Young ones may belong to a run that is still going."""
    with suppress(APIError):
        before = datetime.now(UTC) - _ABANDONED_AFTER
        async for agent in client.agents.list(tags=[TAG]):
            if agent.created_at is not None and agent.created_at < before:
                with suppress(NotFoundError):
                    await client.agents.delete(agent.id)
