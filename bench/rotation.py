"""Key rotation under load: an agent on each vendor has turns without pause while keys are rotated.

With Isabella, an operator changes keys in `.env`, in four ways. As the baseline, the loop of list, DELETE and POST
rotates them while similar agents talk to Letta directly. The environment of this Letta has an OpenAI key of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx

from bench.backend import serving
from bench.baseline import client as client_of_letta
from bench.baseline import list_delete_post
from bench.conversation import (
    ENVIRONMENT_WITH_KEY,
    HANDLES,
    Say,
    client_of,
    defined,
    directly,
    first_on,
    run_turns,
    through,
)
from bench.operator import Operator
from bench.results import Results
from bench.setup import Servers, Setup
from isabella.agents.model_catalog import ModelCatalog
from isabella.config.settings import Settings
from isabella.config.sources import Sources
from isabella.practice import NAMES, PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.providers.desired import desired_providers
from isabella.providers.health import HealthState

ROTATIONS = 20

Rotate = Callable[[Operator, httpx.AsyncClient, int], Awaitable[None]]


@dataclass(frozen=True)
class Way:
    """A way to rotate a key.

    Attributes:
        name: used in the summary and in the names of agents.
        rotate: performs one rotation and waits until it is proven.
        refuses: whether a vendor refuses the stored key meanwhile, so that another vendor may answer.
    """

    name: str
    rotate: Rotate
    refuses: bool = False


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure all ways, and the baseline."""
    results = Results()
    rotations = 1 if quick else ROTATIONS
    with _setup(servers) as setup, PracticeVendors() as vendors:
        await _with_isabella(setup, vendors, rotations, results)
        await _with_the_loop(setup, vendors, rotations, results)
    return results


# --- the ways -------------------------------------------------------------------------------------------------------


async def _in_place(operator: Operator, backend: httpx.AsyncClient, _number: int) -> None:
    """The vendor accepts the new key and the old one."""
    for name in NAMES:
        operator.make(name)
        operator.accept(name)
    operator.write()
    await operator.until(HealthState.IN_SYNC, NAMES, backend)


async def _recreated(operator: Operator, backend: httpx.AsyncClient, number: int) -> None:
    """The type changes with the key, so that the provider is recreated."""
    for name in NAMES:
        operator.change_type(name)
    await _in_place(operator, backend, number)


async def _too_early(operator: Operator, backend: httpx.AsyncClient, _number: int) -> None:
    """The vendor accepts the new key only after the backend has tried it."""
    for name in NAMES:
        operator.make(name)
    operator.write()
    await operator.until(HealthState.REFUSED, NAMES, backend)
    for name in NAMES:
        operator.accept(name)
    await operator.until(HealthState.IN_SYNC, NAMES, backend)


async def _too_late(operator: Operator, backend: httpx.AsyncClient, number: int) -> None:
    """A vendor has revoked the old key already; each rotation affects one vendor."""
    name = NAMES[number % len(NAMES)]
    operator.make(name)
    operator.revoke(name)
    operator.write()
    await operator.until(HealthState.IN_SYNC, (name,), backend)


WAYS = (
    Way("in-place", _in_place),
    Way("recreated", _recreated),
    Way("too-early", _too_early),
    Way("too-late", _too_late, refuses=True),
)


# --- with Isabella --------------------------------------------------------------------------------------------------


async def _with_isabella(setup: Setup, vendors: PracticeVendors, rotations: int, results: Results) -> None:
    operator = Operator(vendors, setup.folder / ".env")
    file = setup.folder / "agents.toml"
    file.write_text("\n".join(defined(f"{way.name}-{name}", first_on(name)) for way in WAYS for name in NAMES))
    told, failed = [], 0
    variables = {
        "ISABELLA_AGENTS_FILE": str(file),
        "ISABELLA_EMBEDDINGS": "off",
        # A busy machine may exceed the default; the time limit is not measured here.
        "ISABELLA_FIRST_TOKEN_TIMEOUT": "60",
    }
    with serving(setup, variables) as (address, _process):
        vendors.forget()
        async with client_of(address) as backend:
            for way in WAYS:
                outcome = await run_turns(_through(backend, way), partial(way.rotate, operator, backend), rotations)
                astray = [name for name in NAMES if not operator.last_key_arrived(name)]
                assert not astray, f"{way.name}: {astray} did not get the last key after the last rotation"
                told.append(f"{way.name} {outcome.told}")
                failed += len(outcome.failed)
    results.add("rotation_failed_turns", failed, f"{rotations} rotations each: {'; '.join(told)}")
    results.add("rotation_foreign_keys", operator.foreign(), f"of {operator.asked()} requests")


def _through(backend: httpx.AsyncClient, way: Way) -> Say:
    return lambda vendor: through(backend, f"{way.name}-{vendor}", refuses=way.refuses)


# --- with the loop --------------------------------------------------------------------------------------------------


async def _with_the_loop(setup: Setup, vendors: PracticeVendors, rotations: int, results: Results) -> None:
    operator = Operator(vendors, setup.folder / ".env")
    vendors.forget()
    async with client_of_letta(setup.connection) as letta:
        agents = await _made(letta, with_practice_vendors(setup.settings, vendors))

        async def say(vendor: str) -> tuple[str | None, bool]:
            return await directly(letta, agents[vendor]), False

        async def rotate(_number: int) -> None:
            for name in NAMES:
                operator.make(name)
                operator.accept(name)
            settings = with_practice_vendors(setup.settings, vendors)
            await list_delete_post(setup.connection, [one for one in desired_providers(settings) if one.configured])

        outcome = await run_turns(say, rotate, rotations)
    results.add("loop_failed_turns", len(outcome.failed), f"{rotations} rotations: {outcome.told}")
    results.add("loop_foreign_keys", operator.foreign(), f"of {operator.asked()} requests")


async def _made(letta: httpx.AsyncClient, settings: Settings) -> Mapping[str, str]:
    """Return the Letta ids of agents on the vendors, bound as Isabella binds its own."""
    models = ModelCatalog.of(settings)
    agents = {}
    for name, handle in HANDLES.items():
        body = {"name": f"loop-{name}", "llm_config": (await models.binding(handle)).as_llm_config()}
        agents[name] = (await letta.post("/v1/agents/", json=body)).raise_for_status().json()["id"]
    return agents


@contextmanager
def _setup(servers: Servers) -> Iterator[Setup]:
    """Yield a setup on a separate Letta whose environment has an OpenAI key."""
    with (
        servers.new("bench-rotation", extra_env=ENVIRONMENT_WITH_KEY) as server,
        tempfile.TemporaryDirectory(prefix="isabella-bench-") as folder,
    ):
        print("starting a Letta with a key in its environment …", flush=True)
        own: dict[str, Any] = {
            "ISABELLA_HOME": Path(folder),
            "ISABELLA_CONFIG_FILE": Path(folder) / "isabella.toml",
        }
        yield Setup(server.up(), Settings(sources=Sources({}), **own), Path(folder))
