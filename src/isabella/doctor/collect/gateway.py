"""Collects the evidence about the gateway between Letta and the vendors."""

from __future__ import annotations

import anyio.to_thread

from isabella.config.settings import Settings
from isabella.doctor.evidence import GatewayEvidence
from isabella.errors import GatewayError
from isabella.providers.report import GatewayState


async def collect_gateway(settings: Settings) -> GatewayEvidence | None:
    """Return whether the gateway of these settings runs, and what it has; None without one. Never raises."""
    if not settings.uses_gateway:
        return None
    # Imported late: without a gateway, nothing of it is needed.
    from isabella.gateway import process
    from isabella.gateway.client import gateway_status, read_traffic

    status = await gateway_status(settings)
    if status is None:
        return None
    evidence = GatewayEvidence(status, here=process.starts_here(settings))
    running = process.daemon(settings.home).recorded()
    if status.state is not GatewayState.RUNS or not evidence.here or running is None:
        return evidence
    try:
        traffic = await anyio.to_thread.run_sync(read_traffic, settings.home, running)
    except GatewayError as error:
        return GatewayEvidence(status, unread=error.what)
    return GatewayEvidence(status, providers=traffic.providers)
