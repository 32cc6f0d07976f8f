"""The backend's view of the gateway: statuses of vendors, keys that were stopped, and restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import structlog

from isabella.config.gateway_address import gateway_address
from isabella.errors import GatewayError, IsabellaError
from isabella.gateway.client import GatewayClient, GatewayTraffic, gateway_status
from isabella.gateway.keys import KeyKind
from isabella.gateway.traffic import StoppedKey, VendorTraffic
from isabella.providers.report import GatewayState, GatewayStatus
from isabella.server.runtime import Runtime
from isabella.system import audit
from isabella.system.english import english
from isabella.turns.service import TurnService
from isabella.turns.stream import state_of_refusal
from isabella.vendors.client import VendorState

log = structlog.get_logger()

_INTERVAL = 1.0
_ADDRESS_INTERVAL = 5.0
#: The part of an allowance per minute that one request may have, because vendors count the answer, too.
_OF_AN_ALLOWANCE = 0.9


@asynccontextmanager
async def run_gateway_monitor(runtime: Runtime, turn_service: TurnService) -> AsyncIterator[None]:
    """Watch the gateway in the background. Without one, nothing runs."""
    client = turn_service.deps.gateway
    async with anyio.create_task_group() as tasks:
        if client is not None:
            with audit.acting(audit.Actor(audit.ActorKind.JOB, "gateway monitor")):
                tasks.start_soon(_GatewayMonitor(runtime, client).run)
        elif runtime.settings.uses_gateway:
            tasks.start_soon(_watch_address, runtime)
        yield
        tasks.cancel_scope.cancel()


async def _watch_address(runtime: Runtime) -> None:
    """Ask a gateway that others run for its health, until cancelled."""
    former: GatewayStatus | None = None
    while True:
        status = await gateway_status(runtime.settings)
        runtime.readiness.record_gateway(status)
        if former is not None and status is not None and former.state is not status.state:
            runs = status.state is GatewayState.RUNS
            (log.info if runs else log.warning)(status.sentence)
            runtime.event_log.add_notice(status.sentence, warning=not runs)
        former = status
        await anyio.sleep(_ADDRESS_INTERVAL)


class _GatewayMonitor:
    """Reads the gateway's traffic every second."""

    def __init__(self, runtime: Runtime, client: GatewayClient) -> None:
        self._runtime = runtime
        self._models = runtime.agents.models
        self._client = client
        self._number: int | None = None

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                await self._read()
            except GatewayError:
                self._runtime.gateway = None
            except IsabellaError as error:
                log.info("gateway not followed", error=error.what)
            self._runtime.readiness.record_gateway(await self._status())
            await anyio.sleep(_INTERVAL)

    async def _status(self) -> GatewayStatus | None:
        """Return whether the gateway runs: it does if it was read just now."""
        settings = self._runtime.settings
        address = gateway_address(settings)
        if self._runtime.gateway is None or address is None:
            return await gateway_status(settings)
        return GatewayStatus(address, GatewayState.RUNS)

    async def _read(self) -> None:
        traffic = await self._client.traffic(self._number or 0)
        if self._number is not None and traffic.number < self._number:
            # It was restarted, and counts from the beginning.
            traffic = await self._client.traffic(0)
        first, self._number = self._number is None, traffic.number
        former, self._runtime.gateway = self._runtime.gateway, traffic
        if former is None or former.vendors != traffic.vendors:
            self._runtime.event_log.notifier.notify()
        for provider, vendor in traffic.vendors.items():
            self._observe(provider, vendor)
            allowance = None if vendor.limits is None else vendor.limits.tokens_minute
            if allowance is not None and allowance.limit:
                self._cap_by_allowance(provider, allowance.limit)
        for outcome in traffic.outcomes:
            if outcome.never_fits:
                self._cap_by_allowance(outcome.provider, outcome.never_fits, refused=True)
            if outcome.window and outcome.model:
                handle = f"{outcome.provider}/{outcome.model}"
                reason = english(
                    "%(name)s takes at most %(tokens)s tokens in a context.", name=handle, tokens=outcome.window
                )
                self._models.cap(handle, outcome.window, reason, refused=True)
        if not first:
            await self._report(traffic)

    def _cap_by_allowance(self, provider: str, tokens: int, *, refused: bool = False) -> None:
        reason = english(
            "%(name)s takes at most %(tokens)s tokens per minute, with those of its answers.",
            name=provider,
            tokens=tokens,
        )
        self._models.cap(provider, int(tokens * _OF_AN_ALLOWANCE), reason, refused=refused)

    def _observe(self, provider: str, vendor: VendorTraffic) -> None:
        """Pass on the last answer or refusal, which may be one to a turn of another program."""
        vendors = self._runtime.readiness.vendors
        accepted, refused = vendor.accepted_at or 0.0, vendor.refused_at or 0.0
        if accepted > refused:
            vendors.observe(
                provider, VendorState.ANSWERS, english("it answered through the gateway"), _time(accepted)
            )
        elif refused:
            # The words are not kept when the gateway is restarted.
            status, message = vendor.refused_status, vendor.refused_message
            state = VendorState.UNREACHABLE if status is None else state_of_refusal(status, message or "")
            if state is not None:
                reason = ": ".join(str(part) for part in (status, message) if part) or english("no answer")
                vendors.observe(provider, state, reason, _time(refused))

    async def _report(self, traffic: GatewayTraffic) -> None:
        for stopped in traffic.stopped_keys:
            sentence = describe_stopped_key(stopped)
            log.warning("key stopped", provider=stopped.provider, sentence=sentence)
            self._runtime.event_log.add_notice(sentence, stopped.provider, warning=True)
        drifted = {one.provider for one in traffic.stopped_keys}
        watcher = self._runtime.watcher
        if watcher is not None and drifted:
            await watcher.retry(sorted(drifted))


def describe_stopped_key(stopped: StoppedKey) -> str:
    """Describe the gateway's treatment of a key that is not the configured one, in one sentence."""
    if not stopped.answered:
        return english(
            "A request to %(provider)s carried a key that is not its own (%(masked)s); nothing "
            "was sent to the vendor.",
            provider=stopped.provider,
            masked=stopped.masked,
        )
    whose = english("an outdated key") if stopped.kind == KeyKind.STALE else english("a key that is not its own")
    done = english("the configured key was sent in its place")
    if not stopped.replaced:
        done = english("it was sent to the vendor, which refuses the configured one")
    return english(
        "Letta called %(provider)s with %(whose)s (%(masked)s); %(done)s.",
        provider=stopped.provider,
        whose=whose,
        masked=stopped.masked,
        done=done,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
