"""The gateway: its cost on the way of a token; keys and turns while providers are deleted; failover; ending.

Keys and turns are measured on an embedded Letta whose environment has an OpenAI key of its own, once with the gateway
and once without.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx

from bench import hop
from bench.backend import serving
from bench.baseline import client as client_of_letta
from bench.baseline import list_delete_post
from bench.conversation import (
    ENVIRONMENT_WITH_KEY,
    HANDLES,
    Say,
    agent_id,
    client_of,
    defined,
    directly,
    events,
    run_turns,
    through,
    write_agents,
)
from bench.operator import Operator
from bench.results import Results
from bench.setup import Servers, Setup
from bench.timing import duration
from isabella.embedded import Server
from isabella.embedded.instance import make_home
from isabella.gateway import process
from isabella.practice import NAMES, PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.providers.desired import desired_providers
from isabella.providers.health import HealthState

_VENDOR, _NEXT = "cerebras", "groq"
_AGENT = "failover"
_PATIENCE = 60.0
#: Letta takes every 413 for a context that is too long. This is how Groq refuses more than its tokens per minute.
_TOO_LARGE = (
    '{"error":{"message":"Request too large for model `gpt-oss-120b` on tokens per minute (TPM): Limit 100000, '
    'Requested 120000, please reduce your message size and try again.","type":"tokens","code":"rate_limit_exceeded"}}'
)
_REFUSALS: Mapping[str, Mapping[str, Any]] = {
    **{str(status): {"status": status} for status in (401, 402, 403, 404)},
    # The vendor asks for the shortest pause, because it has to be asked again.
    "413": {"status": 413, "body": _TOO_LARGE, "retry_after": 1},
    "429": {"status": 429},
    "429 with retry-after": {"status": 429, "retry_after": 1},
    "500": {"status": 500},
    "503": {"status": 503},
    "reset": {"reset": True},
}


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure the cost, then turns with the gateway and without."""
    results = Results()
    results.include(await hop.measure(quick=quick))
    rotations = 1 if quick else 20
    with _setup(servers) as setup, PracticeVendors() as vendors:
        async with _conversation(setup, vendors, gateway="on") as backend:
            await _keys_and_turns(setup, vendors, backend, rotations, results, "gateway")
            await _failover(backend, vendors, results, rounds=1 if quick else 7)
            await _ending(setup, vendors, backend, results, rounds=1 if quick else 7)
        async with _conversation(setup, vendors, gateway="off") as backend:
            await _keys_and_turns(setup, vendors, backend, rotations, results, "direct")
    return results


# --- keys and turns -------------------------------------------------------------------------------------------------


async def _keys_and_turns(
    setup: Setup, vendors: PracticeVendors, backend: httpx.AsyncClient, rotations: int, results: Results, name: str
) -> None:
    """Rotate all keys while another program deletes the providers and makes them again."""
    operator = Operator(vendors, setup.folder / ".env")
    vendors.forget()
    async with client_of_letta(setup.connection) as letta:

        async def rotate(_number: int) -> None:
            for vendor in NAMES:
                operator.make(vendor)
                operator.accept(vendor)
            operator.write()
            await _recreate(setup, vendors)
            await operator.until(HealthState.IN_SYNC, NAMES, backend)
            for vendor in NAMES:
                operator.revoke(vendor)

        outcome = await run_turns(await _by_turns(letta, backend), rotate, rotations)
    results.add(f"{name}_failed_turns", len(outcome.failed), f"{rotations} rotations: {outcome.told}")
    results.add(f"{name}_foreign_keys", operator.foreign(), f"of {operator.asked()} requests")


async def _by_turns(letta: httpx.AsyncClient, backend: httpx.AsyncClient) -> Say:
    """Return what runs a turn: through Isabella and by a program that speaks to Letta directly, one by one."""
    ids = {vendor: await agent_id(letta, vendor) for vendor in NAMES}
    turns = dict.fromkeys(NAMES, 0)

    async def say(vendor: str) -> tuple[str | None, bool]:
        turns[vendor] += 1
        if turns[vendor] % 2:
            failed, elsewhere = await through(backend, vendor)
            return failed and f"through Isabella: {failed}", elsewhere
        failed = await directly(letta, ids[vendor])
        return failed and f"through Letta: {failed}", False

    return say


async def _recreate(setup: Setup, vendors: PracticeVendors) -> None:
    """Another program: it knows the vendors' own base URLs and keys, and goes on after an error."""
    for provider in desired_providers(with_practice_vendors(setup.settings, vendors)):
        if provider.configured:
            with suppress(httpx.HTTPStatusError):
                await list_delete_post(setup.connection, [provider])


@asynccontextmanager
async def _conversation(setup: Setup, vendors: PracticeVendors, *, gateway: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run a backend with the embedded Letta and an agent on each vendor; yield a client of it."""
    Operator(vendors, setup.folder / ".env")
    variables = {
        **write_agents(setup.folder, defined(_AGENT, [HANDLES[_VENDOR], HANDLES[_NEXT]])),
        "ISABELLA_GATEWAY": gateway,
        # A busy machine may exceed the default; the time limit is not measured here.
        "ISABELLA_FIRST_TOKEN_TIMEOUT": "60",
    }
    with serving(setup, variables, embedded=True) as (address, _process):
        async with client_of(address) as backend:
            yield backend


@contextmanager
def _setup(servers: Servers) -> Iterator[Setup]:
    """Yield a setup on the embedded Letta of a home of its own, whose environment has an OpenAI key."""
    home = servers.home / "bench-gateway"
    server = Server(home, extra_env=ENVIRONMENT_WITH_KEY)
    with home_with_releases(servers.home, server):
        print("starting a Letta with a key in its environment …", flush=True)
        letta = server.up()
        yield Setup.in_home(letta, home, ISABELLA_GATEWAY="off")


@contextmanager
def home_with_releases(home: Path, server: Server) -> Iterator[None]:
    """Make the home of a server, which shares the releases of another home; at the end all of it is erased."""
    # Remove the leftovers of a killed run.
    erase(server)
    releases = server.paths.releases
    for folder in (home, server.home):
        make_home(folder)
    (home / releases.name).mkdir(mode=0o700, exist_ok=True)
    releases.symlink_to((home / releases.name).resolve(), target_is_directory=True)
    try:
        yield
    finally:
        erase(server)


def erase(server: Server) -> None:
    """Stop a server and its gateway, and delete its home."""
    home = server.paths.home
    if home.is_dir():
        process.daemon(home).stop()
        server.erase()
        shutil.rmtree(home)


# --- failover -------------------------------------------------------------------------------------------------------


async def _failover(backend: httpx.AsyncClient, vendors: PracticeVendors, results: Results, *, rounds: int) -> None:
    """Measure from the refusal of a vendor to the first token of the next one, which answers at once."""
    pairs = {}
    for kind, fault in _REFUSALS.items():
        pairs[kind] = [await _seconds_to_next(backend, vendors, fault) for _ in range(rounds)]
    _add_slowest(results, "failover", pairs)


async def _seconds_to_next(
    backend: httpx.AsyncClient, vendors: PracticeVendors, fault: Mapping[str, Any]
) -> tuple[float, float]:
    """Return the seconds from a refusal to the next vendor's first token, and from a message to the vendor's own."""
    usual = await _until_it_answers(backend)
    vendors.forget()
    vendors.fault(_VENDOR, on="chat", **fault)
    answer = await _answer(backend)
    vendors.clear(_VENDOR)
    assert answer.handle == HANDLES[_NEXT], f"{answer.handle} has answered despite {fault}"
    refused = next(request for request in vendors.requests(_VENDOR) if request.path.endswith("/chat/completions"))
    assert refused.ended_after is not None
    return answer.first - (refused.at + refused.ended_after), usual


async def _until_it_answers(backend: httpx.AsyncClient) -> float:
    """Run turns until the vendor is asked again after the pause that it asked for. Its answer closes the circuit.

    Returns the seconds to the first token of that answer.
    """
    deadline = time.monotonic() + _PATIENCE
    while (answer := await _answer(backend)).handle != HANDLES[_VENDOR]:
        assert time.monotonic() < deadline, f"{HANDLES[_VENDOR]} has not answered for {_PATIENCE:g} s"
    return answer.seconds


@dataclass(frozen=True)
class _Answer:
    """The answer of a turn.

    Attributes:
        handle: the model that answered; None if none did.
        first: the time of its first token, in seconds since the epoch.
        seconds: the seconds from the message to that token.
    """

    handle: str | None
    first: float
    seconds: float


async def _answer(backend: httpx.AsyncClient) -> _Answer:
    """Run a turn."""
    began = time.time()
    first, handle = 0.0, None
    async for kind, said in events(backend, _AGENT):
        if kind in ("reasoning", "text") and not first:
            first = time.time()
        elif kind == "end":
            handle = said.get("handle")
    return _Answer(handle, first, first - began)


def _add_slowest(results: Results, name: str, pairs: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Add the kind with the largest median, in seconds, and over the first token of a usual turn just before."""
    seconds = {kind: [ours for ours, _ in of_kind] for kind, of_kind in pairs.items()}
    slowest = max(seconds, key=lambda kind: statistics.median(seconds[kind]))
    usual = [one for _, one in pairs[slowest]]
    told = ", ".join(f"{kind} {duration(statistics.median(each))}" for kind, each in seconds.items())
    results.add(f"{name}_seconds", statistics.median(seconds[slowest]), told, seconds[slowest])
    told = f"{slowest}; first token of a usual turn {duration(statistics.median(usual))}"
    results.compare(f"{name}_over_turn", seconds[slowest], usual, told)


# --- ending ---------------------------------------------------------------------------------------------------------

#: Ends a turn, given its id, the id of the agent, and clients of the backend and of Letta.
_End = Callable[[str, str, httpx.AsyncClient, httpx.AsyncClient], Awaitable[object]]


async def _stop(turn: str, _agent_id: str, backend: httpx.AsyncClient, _letta: httpx.AsyncClient) -> None:
    (await backend.delete(f"/api/agents/{_AGENT}/turns/{turn}")).raise_for_status()


async def _leave(_turn: str, _agent_id: str, _backend: httpx.AsyncClient, _letta: httpx.AsyncClient) -> None:
    """The caller closes the stream next."""


async def _cancel(_turn: str, agent_id: str, _backend: httpx.AsyncClient, letta: httpx.AsyncClient) -> None:
    (await letta.post(f"/v1/agents/{agent_id}/messages/cancel", json={})).raise_for_status()


_ENDS: Mapping[str, _End] = {"stopped": _stop, "client gone": _leave, "cancelled at Letta": _cancel}


async def _ending(
    setup: Setup, vendors: PracticeVendors, backend: httpx.AsyncClient, results: Results, *, rounds: int
) -> None:
    """Measure from the end of a turn to the end of the request at a vendor that would generate forever."""
    pairs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _ENDS}
    async with client_of_letta(setup.connection) as letta:
        agent = await agent_id(letta, _AGENT)
        for kind, end in _ENDS.items():
            for _ in range(rounds):
                usual = await _until_it_answers(backend)
                vendors.forget()
                vendors.fault(_VENDOR, endless=True, between=0.02, on="chat")
                pairs[kind].append((await _seconds_to_end(agent, end, vendors, backend, letta), usual))
                vendors.clear(_VENDOR)
    _add_slowest(results, "ending", pairs)


async def _seconds_to_end(
    agent_id: str, end: _End, vendors: PracticeVendors, backend: httpx.AsyncClient, letta: httpx.AsyncClient
) -> float:
    turn = ""
    async with aclosing(events(backend, _AGENT)) as happened:
        async for kind, said in happened:
            turn = said["id"] if kind == "turn" else turn
            if kind == "text":
                began = time.time()
                await end(turn, agent_id, backend, letta)
                break
    deadline = time.monotonic() + _PATIENCE
    while (request := vendors.requests(_VENDOR)[-1]).ended_after is None:
        assert time.monotonic() < deadline, f"{_VENDOR} has generated for {_PATIENCE:g} s after the end of the turn"
        await anyio.sleep(0.01)
    return request.at + request.ended_after - began
