"""A warm start: all providers are in sync and only have to be proven."""

from __future__ import annotations

from dataclasses import replace

from bench.baseline import bare_listing, list_delete_post
from bench.recorder import recording
from bench.results import Results
from bench.setup import Servers, Setup
from bench.timing import Way, alternate, medians
from isabella.api import ensure_providers
from isabella.practice import NAMES, PracticeVendors
from isabella.providers.desired import desired_providers


async def measure_open(servers: Servers, *, quick: bool) -> Results:
    """Measure without a master key, and count the requests."""
    results = Results()
    with servers.vendors(sealed=False) as (setup, vendors):
        ours, loop, listing = await _ours_and_others(setup, rounds=5 if quick else 15)
        results.compare("warm_speedup", loop, ours, medians(ours=ours, loop=loop))
        results.compare("warm_over_listing", ours, listing, medians(ours=ours, listing=listing))
        await _count_requests(setup, vendors, results)
    return results


async def measure_sealed(servers: Servers, *, quick: bool) -> Results:
    """Measure with a master key, without and with remembered proofs."""
    results = Results()
    with servers.vendors(sealed=True) as (setup, _):
        await setup.start()
        desired = [provider for provider in desired_providers(setup.settings) if provider.configured]

        async def start_again() -> None:
            # The baseline has encrypted every key with a new salt.
            await setup.start()

        # The baseline runs first, so that no stored ciphertext has been proven before.
        loop, anew, again = await alternate(
            5 if quick else 15,
            Way(lambda: list_delete_post(setup.connection, desired)),
            Way(setup.start, before=setup.forget_proofs),
            Way(setup.start, before=start_again),
        )
        results.compare("warm_speedup_sealed", loop, anew, medians(ours=anew, loop=loop))
        results.compare("warm_speedup_sealed_again", loop, again, medians(ours=again, loop=loop))
    return results


async def _ours_and_others(setup: Setup, *, rounds: int) -> list[list[float]]:
    await setup.start()
    desired = [provider for provider in desired_providers(setup.settings) if provider.configured]
    return await alternate(
        rounds,
        Way(setup.start),
        Way(lambda: list_delete_post(setup.connection, desired)),
        Way(lambda: bare_listing(setup.connection)),
    )


async def _count_requests(setup: Setup, vendors: PracticeVendors, results: Results) -> None:
    await setup.start()
    vendors.forget()
    async with recording(setup.letta.base_url) as recorder:
        # The recorder is another process than the Letta that is expected there.
        through = replace(setup.connection, base_url=recorder.address, peer=None)
        report = await ensure_providers(setup.settings, connection=through)
    assert report.all_proven
    writes = [method for method, _ in recorder.requests if method not in ("GET", "HEAD")]
    assert not writes, f"a warm start has written: {writes}"
    asked = [name for name in NAMES if vendors.requests(name)]
    assert not asked, f"a warm start has asked {asked}"
    requests = [path for _, path in recorder.requests if path.startswith("/v1/providers")]
    others = sorted({path.partition("?")[0] for _, path in recorder.requests} - {"/v1/providers/"})
    results.add("warm_requests", len(requests), f"beside it: GET {', '.join(others)}")
