"""A thousand providers in one Letta, all of them declared, all of them fresh."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle

import psycopg

from bench.loop import bare_listing
from bench.planting import BASE_URL, clear, plant
from bench.stage import Scene, Stage
from bench.subject import Results
from bench.timing import Way, in_ms, medians
from isabella.config.settings import Settings
from isabella.letta.connection import Connection
from isabella.providers.plan import Action
from isabella.providers.report import Proof
from isabella.watch.watcher import LettaActions

_COUNT = 1000
#: The one whose key is rotated.
_ROTATED = "t-0617"


async def measure_open(stage: Stage, *, quick: bool) -> Results:
    """Without a master key; and the memory it takes in a process of its own."""
    return await _measure(stage, sealed=False, rounds=3 if quick else 21, name="thousand_over_listing")


async def measure_sealed(stage: Stage, *, quick: bool) -> Results:
    """With a master key: the second run, when every proof is remembered."""
    return await _measure(stage, sealed=True, rounds=3 if quick else 21, name="thousand_over_listing_sealed")


async def _measure(stage: Stage, *, sealed: bool, rounds: int, name: str) -> Results:
    results = Results()
    keys = {f"t-{number:04}": f"thousand-{number:04}-{secrets.token_hex(12)}" for number in range(_COUNT)}
    environment = {_variable(provider): key for provider, key in keys.items()}
    declared = "\n".join(
        f'[[providers]]\nname = "{provider}"\nbase_url = "{BASE_URL}"\napi_key_env = "{_variable(provider)}"\n'
        for provider in keys
    )
    letta = stage.letta(sealed=sealed)
    plant(letta, keys)
    try:
        with stage.scene(environment, sealed=sealed, declared=declared) as scene:
            connection = scene.connection

            async def start() -> None:
                report = await scene.start()
                assert len(report.ours) == _COUNT

            async def list_them() -> None:
                assert len(await bare_listing(connection)) == _COUNT

            await start()
            ours, listing = await medians(rounds, Way(start), Way(list_them))
            results.add(name, ours / listing, in_ms(("ours", "listing"), (ours, listing)))
            await _measure_rotation(scene, environment, rounds, name, results)
            if not sealed:
                results.add("thousand_rss_mb", _memory(scene, environment))
    finally:
        with psycopg.connect(letta.database_url.get_secret_value()) as database:
            clear(database)
    return results


async def _measure_rotation(
    scene: Scene, environment: Mapping[str, str], rounds: int, name: str, results: Results
) -> None:
    """The key of one of them rotated, again and again: while a backend runs, and before one starts."""
    connection = scene.connection

    async def found(_: Settings) -> Connection:
        return connection

    work = LettaActions(find=found)
    scenes = cycle([_rotated(scene, environment), scene])

    async def list_them() -> None:
        await bare_listing(connection)

    async def rotate() -> None:
        (entry,) = (await work.ensure(next(scenes).settings, [_ROTATED])).providers
        assert (entry.name, entry.action, entry.proof) == (_ROTATED, Action.UPDATE, Proof.PROVEN), entry.reason

    async def start() -> None:
        report = await next(scenes).start()
        written = [entry.name for entry in report.ours if entry.action is not Action.KEEP]
        assert written == [_ROTATED], f"written were {written[:3]}"

    before = await bare_listing(connection)
    for way, what in ((rotate, "rotation"), (start, "rotated_start")):
        ours, listing = await medians(rounds, Way(way), Way(list_them))
        results.add(
            name.replace("thousand_", f"thousand_{what}_"),
            ours / listing,
            in_ms(("ours", "listing"), (ours, listing)),
        )
    changed = {row["name"] for row, after in zip(before, await bare_listing(connection), strict=True) if row != after}
    assert changed <= {_ROTATED}, f"touched were {sorted(changed)[:3]}"


def _rotated(scene: Scene, environment: Mapping[str, str]) -> Scene:
    """The same with another key for one of them."""
    sources = replace(
        scene.settings.sources, environment={**environment, _variable(_ROTATED): f"rotated-{secrets.token_hex(12)}"}
    )
    return replace(scene, settings=scene.settings.model_copy(update={"sources": sources}))


def _variable(provider: str) -> str:
    return provider.upper().replace("-", "_") + "_KEY"


# The keys come by standard input: arguments and environments can be seen from outside.
_PROGRAM = """
import asyncio, json, resource, sys
from pathlib import Path
from isabella.api import ensure_providers
from isabella.config.settings import Settings
from isabella.config.sources import Sources

given = json.load(sys.stdin)
folder = Path(given["folder"])
settings = Settings(
    sources=Sources(given["environment"]), ISABELLA_HOME=folder, ISABELLA_CONFIG_FILE=folder / "isabella.toml"
)
report = asyncio.run(ensure_providers(settings))
assert report.all_proven and len(report.ours) == given["count"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))
"""


def _memory(scene: Scene, environment: dict[str, str]) -> float:
    """The most memory, in MB, that a fresh process takes to prove them."""
    letta = {"LETTA_BASE_URL": scene.letta.base_url, "LETTA_API_KEY": scene.letta.password.get_secret_value()}
    given = {"folder": str(scene.folder), "environment": environment | letta, "count": _COUNT}
    finished = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ.get("PATH", "")},
    )
    return float(finished.stdout)
