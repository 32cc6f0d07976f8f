"""The checks: pure functions that turn evidence into findings."""

from __future__ import annotations

from collections.abc import Iterator

from isabella.doctor.checks.agents import check_agents, check_probes
from isabella.doctor.checks.configuration import check_configuration, check_vendors
from isabella.doctor.checks.gateway import check_gateway
from isabella.doctor.checks.providers import check_providers
from isabella.doctor.checks.server import check_exposure, check_server
from isabella.doctor.evidence import Evidence
from isabella.doctor.findings import Outcome

#: In the order in which a key travels.
CHECKS = (
    check_configuration,
    check_vendors,
    check_server,
    check_providers,
    check_agents,
    check_gateway,
    check_probes,
    check_exposure,
)


def check(evidence: Evidence) -> Iterator[Outcome]:
    """Yield the outcomes of all checks."""
    for check_layer in CHECKS:
        yield from check_layer(evidence)
