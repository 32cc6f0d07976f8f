"""Key rotation under load: an agent on each vendor has turns without pause while keys are rotated.

With Isabella, an operator changes keys in `.env`, in four ways. As the baseline, the loop of list, DELETE and POST
rotates them while similar agents talk to Letta directly. The environment of this Letta has an OpenAI key of its own,
as in fact P8: Letta sends it to a vendor whose provider is missing (fact P7).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx

from bench.backend import TOKEN, serving
from bench.baseline import client as client_of_letta
from bench.baseline import list_delete_post
from bench.operator import Operator
from bench.results import Results
from bench.setup import Servers, Setup
from isabella.agents.model_catalog import ModelCatalog
from isabella.config.settings import Settings
from isabella.config.sources import Sources
from isabella.embedded import Server
from isabella.practice import NAMES, PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.providers.desired import desired_providers
from isabella.providers.health import HealthState

ROTATIONS = 20
_MESSAGE = "Say good morning"
_HANDLES = {
    "cerebras": "cerebras/gpt-oss-120b",
    "groq": "byok-groq/openai/gpt-oss-120b",
    "mistral": "byok-mistral/mistral-medium-latest",
    "longcat": "longcat/LongCat-2.0",
}
#: An invalid key, and a base URL at which nothing listens.
_OF_LETTA = {"OPENAI_API_KEY": "sk-fake-base-key-of-the-bench", "OPENAI_API_BASE": "http://127.0.0.1:9/v1"}

Rotate = Callable[[Operator, httpx.AsyncClient, int], Awaitable[None]]
#: Runs a turn of the agent on a vendor; returns the failure or None, and whether another vendor answered.
Say = Callable[[str], Awaitable[tuple[str | None, bool]]]


@dataclass
class Outcome:
    """The outcome of the turns during some rotations.

    Attributes:
        turns: the number of turns.
        failed: the reason of each failed turn.
        elsewhere: the number of turns that another vendor answered.
        seconds: the duration of the rotations.
    """

    turns: int = 0
    failed: list[str] = field(default_factory=list)
    elsewhere: int = 0
    seconds: float = 0.0

    @property
    def told(self) -> str:
        """A summary as text."""
        elsewhere = f", {self.elsewhere} answered elsewhere" if self.elsewhere else ""
        first = f" ({self.failed[0]})" if self.failed else ""
        return f"{len(self.failed)} of {self.turns} turns{elsewhere}, {self.seconds:.0f} s{first}"


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
    rotations = 2 if quick else ROTATIONS
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
    file.write_text("\n".join(_defined(way, name) for way in WAYS for name in NAMES))
    told, failed = [], 0
    variables = {
        "ISABELLA_AGENTS_FILE": str(file),
        "ISABELLA_EMBEDDINGS": "off",
        # A busy machine may exceed the default; the time limit is not measured here.
        "ISABELLA_FIRST_TOKEN_TIMEOUT": "60",
    }
    with serving(setup, variables) as (address, _process):
        vendors.forget()
        async with _client(address) as backend:
            for way in WAYS:
                rotate = partial(way.rotate, operator, backend)
                outcome = await _run_turns(partial(_through, backend, way), rotate, rotations)
                astray = [name for name in NAMES if not operator.last_key_arrived(name)]
                assert not astray, f"{way.name}: {astray} did not get the last key after the last rotation"
                told.append(f"{way.name} {outcome.told}")
                failed += len(outcome.failed)
    results.add("rotation_failed_turns", failed, f"{rotations} rotations each: {'; '.join(told)}")
    results.add("rotation_foreign_keys", operator.foreign(), f"of {operator.asked()} requests")


def _defined(way: Way, vendor: str) -> str:
    """Return the definition of an agent whose first handle is on this vendor."""
    handles = [_HANDLES[vendor], *(handle for name, handle in _HANDLES.items() if name != vendor)]
    entries = {"id": f"{way.name}-{vendor}", "name": f"{way.name}-{vendor}", "persona": "Talk.", "handles": handles}
    return "\n".join(["[[agents]]", *(f"{key} = {json.dumps(value)}" for key, value in entries.items()), ""])


async def _through(backend: httpx.AsyncClient, way: Way, vendor: str) -> tuple[str | None, bool]:
    events: list[tuple[str, dict[str, Any]]] = []
    kind = ""
    path = f"/api/agents/{way.name}-{vendor}/turns"
    async with backend.stream("POST", path, json={"message": _MESSAGE}) as response:
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                events.append((kind, json.loads(line[6:])))
    refusals = [f"{said['handle']} {said['code']} ({said['message']})" for kind, said in events if kind == "failover"]
    ends = [said["reason"] for kind, said in events if kind == "end"]
    if ends != ["completed"]:
        told = [said["code"] for kind, said in events if kind == "error"]
        return ", ".join([f"status {response.status_code}", *refusals, *told, *ends]), bool(refusals)
    if refusals and not way.refuses:
        # No vendor refuses its key, so a failover is a failure.
        return ", ".join(refusals), True
    return None, bool(refusals)


# --- with the loop --------------------------------------------------------------------------------------------------


async def _with_the_loop(setup: Setup, vendors: PracticeVendors, rotations: int, results: Results) -> None:
    operator = Operator(vendors, setup.folder / ".env")
    vendors.forget()
    async with client_of_letta(setup.connection) as letta:
        agents = await _made(letta, with_practice_vendors(setup.settings, vendors))

        async def say(vendor: str) -> tuple[str | None, bool]:
            return await _directly(letta, agents[vendor]), False

        async def rotate(_number: int) -> None:
            for name in NAMES:
                operator.make(name)
                operator.accept(name)
            settings = with_practice_vendors(setup.settings, vendors)
            await list_delete_post(setup.connection, [one for one in desired_providers(settings) if one.configured])

        outcome = await _run_turns(say, rotate, rotations)
    results.add("loop_failed_turns", len(outcome.failed), f"{rotations} rotations: {outcome.told}")
    results.add("loop_foreign_keys", operator.foreign(), f"of {operator.asked()} requests")


async def _made(letta: httpx.AsyncClient, settings: Settings) -> Mapping[str, str]:
    """Return the Letta ids of agents on the vendors, bound as Isabella binds its own."""
    models = ModelCatalog.of(settings)
    agents = {}
    for name, handle in _HANDLES.items():
        body = {"name": f"loop-{name}", "llm_config": (await models.binding(handle)).as_llm_config()}
        agents[name] = (await letta.post("/v1/agents/", json=body)).raise_for_status().json()["id"]
    return agents


async def _directly(letta: httpx.AsyncClient, agent: str) -> str | None:
    body = {"messages": [{"role": "user", "content": _MESSAGE}], "stream_tokens": True}
    answered = False
    async with letta.stream("POST", f"/v1/agents/{agent}/messages/stream", json=body) as response:
        async for line in response.aiter_lines():
            if '"error_message"' in line:
                return str(json.loads(line.removeprefix("data: "))["error_type"])
            answered = answered or '"assistant_message"' in line
    return None if answered else f"status {response.status_code}, and no answer"


# --- both -----------------------------------------------------------------------------------------------------------


async def _run_turns(say: Say, rotate: Callable[[int], Awaitable[None]], rotations: int) -> Outcome:
    """Rotate keys one after another while an agent on each vendor has turns without pause.

    The first rotation waits until each agent has completed a turn; each has another turn after the last rotation.

    Args:
        say: runs one turn.
        rotate: performs one rotation.
        rotations: the number of rotations.
    """
    outcome = Outcome()
    rotated = anyio.Event()
    ended = {vendor: anyio.Event() for vendor in NAMES}

    async def turn(vendor: str) -> None:
        try:
            failed, elsewhere = await say(vendor)
        except httpx.TransportError as error:
            failed, elsewhere = f"{type(error).__name__}: {error}", False
        outcome.turns += 1
        outcome.elsewhere += elsewhere
        if failed is not None:
            outcome.failed.append(f"{vendor}: {failed}")
        ended[vendor].set()
        ended[vendor] = anyio.Event()

    async def conversation(vendor: str) -> None:
        while not rotated.is_set():
            await turn(vendor)
        await turn(vendor)

    async with anyio.create_task_group() as tasks:
        for vendor in NAMES:
            tasks.start_soon(conversation, vendor)
        for end in [*ended.values()]:
            await end.wait()
        began = time.monotonic()
        for number in range(rotations):
            await rotate(number)
        outcome.seconds = time.monotonic() - began
        rotated.set()
    return outcome


@asynccontextmanager
async def _client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, trust_env=False) as client:
        yield client


@contextmanager
def _setup(servers: Servers) -> Iterator[Setup]:
    """Yield a setup on a separate Letta whose environment has an OpenAI key."""
    server = Server(servers.home, instance="bench-rotation", extra_env=_OF_LETTA)
    # Remove the leftovers of a killed run.
    server.erase()
    try:
        print("starting a Letta with a key in its environment …", flush=True)
        letta = server.up()
        with tempfile.TemporaryDirectory(prefix="isabella-bench-") as folder:
            own: dict[str, Any] = {
                "ISABELLA_HOME": Path(folder),
                "ISABELLA_CONFIG_FILE": Path(folder) / "isabella.toml",
            }
            yield Setup(letta, Settings(sources=Sources({}), **own), Path(folder))
    finally:
        server.erase()
