"""A cold start: nothing is registered yet, and every vendor takes half a second for its model list."""

from __future__ import annotations

from bench.loop import bare_posts, delete_all, list_delete_post
from bench.stage import Stage
from bench.subject import Results
from bench.timing import Way, in_ms, medians
from isabella.practice import NAMES
from isabella.providers.desired import desired_providers

_SLOW = 0.5


async def measure(stage: Stage, *, quick: bool) -> Results:
    """With a master key, as the embedded Letta runs: sealing and proving are part of it."""
    results = Results()
    with stage.vendors(sealed=True) as (scene, vendors):
        for name in NAMES:
            vendors.fault(name, on="models", latency=_SLOW)
        desired = [provider for provider in desired_providers(scene.settings) if provider.wanted]
        connection = scene.connection

        async def erase() -> None:
            await delete_all(connection)

        ours, bare, loop = await medians(
            2 if quick else 9,
            Way(scene.start, before=erase),
            Way(lambda: bare_posts(connection, desired), before=erase),
            Way(lambda: list_delete_post(connection, desired), before=erase),
        )
        results.add("cold_over_bare", ours / bare, in_ms(("ours", "bare"), (ours, bare)))
        results.add("cold_over_loop", ours / loop, in_ms(("ours", "loop"), (ours, loop)))
    return results
