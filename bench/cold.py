"""A cold start: no provider is registered yet, and each vendor takes 0.5 s for its list of models."""

from __future__ import annotations

from bench.baseline import bare_posts, delete_all, list_delete_post
from bench.results import Results
from bench.setup import Servers
from bench.timing import Way, alternate, medians
from isabella.practice import NAMES
from isabella.providers.desired import desired_providers

_SLOW = 0.5


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure with a master key, as the embedded Letta runs; encryption and proof are included."""
    results = Results()
    with servers.vendors(sealed=True) as (setup, vendors):
        for name in NAMES:
            vendors.fault(name, on="models", latency=_SLOW)
        desired = [provider for provider in desired_providers(setup.settings) if provider.configured]
        connection = setup.connection

        async def erase() -> None:
            await delete_all(connection)

        ours, bare, loop = await alternate(
            5 if quick else 9,
            Way(setup.start, before=erase),
            Way(lambda: bare_posts(connection, desired), before=erase),
            Way(lambda: list_delete_post(connection, desired), before=erase),
        )
        results.compare("cold_over_bare", ours, bare, medians(ours=ours, bare=bare))
        results.compare("cold_over_loop", ours, loop, medians(ours=ours, loop=loop))
    return results
