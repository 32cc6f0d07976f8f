"""Checks of the gateway between Letta and the vendors: whether it runs, and with this configuration."""

from __future__ import annotations

from collections.abc import Iterator

from isabella.doctor.evidence import Evidence, GatewayEvidence
from isabella.doctor.findings import Finding, Outcome, PassedCheck, Unknown, finding
from isabella.doctor.layers import Layer
from isabella.providers.desired import Desired
from isabella.providers.report import GatewayState
from isabella.system.english import english


def check_gateway(evidence: Evidence) -> Iterator[Outcome]:
    """Check that the gateway runs, if Letta is to reach the vendors through one, and what it is configured with."""
    gateway = evidence.gateway
    if gateway is None or not evidence.configuration.usable:
        return
    match gateway.status.state:
        case GatewayState.DOWN:
            yield _down(gateway, evidence)
        case GatewayState.UNKNOWN:
            because = gateway.status.reason or english("it cannot be reached from here")
            what = english("whether the gateway at %(address)s runs", address=gateway.status.address)
            yield Unknown(Layer.GATEWAY, what, because)
        case GatewayState.RUNS:
            yield PassedCheck(Layer.GATEWAY, f"the gateway answers at {gateway.status.address}")
            yield from _configuration(gateway, evidence)


def _down(gateway: GatewayEvidence, evidence: Evidence) -> Finding:
    status = gateway.status
    return finding(
        "gateway-not-running",
        *([] if gateway.here else ["elsewhere"]),
        evidence=(f"{status.address}: {status.reason}",),
        gateway_url=status.address,
        problem=status.reason,
        remedy=status.remedy or "Start it: isabella gateway run",
        env_option=evidence.configuration.env_option,
    )


def _configuration(gateway: GatewayEvidence, evidence: Evidence) -> Iterator[Outcome]:
    """Yield the providers that the gateway has otherwise than the configuration."""
    if gateway.providers is None:
        because = gateway.unread or english("only its own machine can read that")
        yield Unknown(Layer.GATEWAY, english("which keys and base URLs the gateway has"), because)
        return
    different = [
        (desired, lines) for desired in evidence.configuration.usable if (lines := _differences(gateway, desired))
    ]
    for desired, lines in different:
        yield finding(
            "gateway-otherwise-configured",
            provider=desired.name,
            evidence=tuple(lines),
            env_option=evidence.configuration.env_option,
        )
    if not different:
        yield PassedCheck(Layer.GATEWAY, "the gateway has the configured keys and base URLs")


def _differences(gateway: GatewayEvidence, desired: Desired) -> list[str]:
    known = (gateway.providers or {}).get(desired.name)
    if known is None:
        return [f"the gateway has no provider {desired.name}"]
    lines = []
    if known.upstream != desired.upstream:
        lines.append(f"the gateway calls {known.upstream}; {desired.upstream} is configured")
    if known.key != desired.masked_key:
        lines.append(f"the gateway has the key {known.key or 'of nobody'}; {desired.masked_key} is configured")
    if known.problem is not None:
        lines.append(f"the gateway cannot use its key: {known.problem}")
    return lines
