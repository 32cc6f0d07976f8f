"""A warm start: everything is in line already, and only has to be proven."""

from __future__ import annotations

from dataclasses import replace

from bench.loop import list_delete_post
from bench.recorder import recording
from bench.stage import Scene, Stage
from bench.subject import Results
from bench.timing import Way, in_ms, medians
from isabella.api import ensure_providers
from isabella.practice import NAMES, PracticeVendors
from isabella.providers.desired import desired_providers


async def measure_open(stage: Stage, *, quick: bool) -> Results:
    """Without a master key, and how many requests it takes."""
    results = Results()
    with stage.vendors(sealed=False) as (scene, vendors):
        ours, loop = await _ours_and_loop(scene, rounds=3 if quick else 15)
        results.add("warm_speedup", loop / ours, in_ms(("ours", "loop"), (ours, loop)))
        await _count_requests(scene, vendors, results)
    return results


async def measure_sealed(stage: Stage, *, quick: bool) -> Results:
    """With a master key: proofs derived anew, and proofs remembered."""
    results = Results()
    with stage.vendors(sealed=True) as (scene, _):
        await scene.start()
        desired = [provider for provider in desired_providers(scene.settings) if provider.wanted]

        async def start_again() -> None:
            # The loop before it has sealed every key under a new salt.
            await scene.start()

        # The loop goes first: after it, no sealed value is the one that was proven before.
        loop, anew, again = await medians(
            3 if quick else 15,
            Way(lambda: list_delete_post(scene.connection, desired)),
            Way(scene.start, before=scene.forget_proofs),
            Way(scene.start, before=start_again),
        )
        results.add("warm_speedup_sealed", loop / anew, in_ms(("ours", "loop"), (anew, loop)))
        results.add("warm_speedup_sealed_again", loop / again, in_ms(("ours", "loop"), (again, loop)))
    return results


async def _ours_and_loop(scene: Scene, *, rounds: int) -> tuple[float, float]:
    await scene.start()
    desired = [provider for provider in desired_providers(scene.settings) if provider.wanted]
    ours, loop = await medians(rounds, Way(scene.start), Way(lambda: list_delete_post(scene.connection, desired)))
    return ours, loop


async def _count_requests(scene: Scene, vendors: PracticeVendors, results: Results) -> None:
    await scene.start()
    vendors.forget()
    async with recording(scene.letta.base_url) as recorder:
        through = replace(scene.connection, base_url=recorder.address)
        report = await ensure_providers(scene.settings, connection=through)
    assert report.all_proven
    writes = [method for method, _ in recorder.requests if method not in ("GET", "HEAD")]
    assert not writes, f"a warm start has written: {writes}"
    asked = [name for name in NAMES if vendors.requests(name)]
    assert not asked, f"a warm start has asked {asked}"
    requests = [path for _, path in recorder.requests if path.startswith("/v1/providers")]
    others = sorted({path.partition("?")[0] for _, path in recorder.requests} - {"/v1/providers/"})
    results.add("warm_requests", len(requests), f"beside it: GET {', '.join(others)}")
