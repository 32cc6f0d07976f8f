"""A sync is killed before and after every single request it makes: the next start makes everything right.

It is a real process that gets a real SIGKILL, from the proxy between it and Letta: either before Letta has the
request, or when Letta has carried it out and nobody has heard of it yet. Where requests come one after another, the
real Letta carries each of them out once in each state of its database; see `remembered_letta.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.fault_injection import BEHIND_GATEWAY, SITUATIONS, WalkEnv, count_requests
from tests.support.fault_proxy import Proxy, Server
from tests.support.fork_server import Child, ForkServer

TOGETHER = "everything at once"
SYNC = ("providers", "sync", "--json")


class Executioner(Proxy):
    """A proxy that kills its client at one of its requests."""

    def __init__(self, target: str | Server, number: int, when: str) -> None:
        super().__init__(target)
        self._number, self._when = number, when
        self.victim: int | None = None

    async def _pass_on(self, start: str, headers: list[list[str]], body: bytes) -> bytes:
        self._number -= 1
        if self._number != 0:
            return await super()._pass_on(start, headers, body)
        if self._when == "after":
            await super()._pass_on(start, headers, body)
        assert self.victim is not None
        os.kill(self.victim, signal.SIGKILL)
        raise ConnectionError("nobody is there to be answered")


@pytest.fixture(scope="module")
def env(env: WalkEnv) -> WalkEnv:
    """The same with four more providers, whose models a sync counts at its end."""
    env.plant("stale")
    env.add_counted(4)
    return env


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    """Where the processes come from."""
    with ForkServer() as running:
        yield running


def sync(env: WalkEnv, fork_server: ForkServer, situation: str, base_url: str, *, hold: bool = False) -> Child:
    """Start a sync against this address."""
    environment = {"PATH": os.environ["PATH"], **env.configuration(situation, base_url)}
    output = Path(env.home) / "output.json"
    tokens = None if env.memory is None else env.memory.state.digest
    return fork_server.start(SYNC, environment, output, hold=hold, tokens=tokens)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_kill_at_any_request_is_healed_by_the_next_start(
    env: WalkEnv, fork_server: ForkServer, situation: str, record_property: Callable[[str, object], None]
) -> None:
    """Killed before or after any request: everything proven at the next start, no provider gone, none changed.

    Where several providers are written side by side, to be killed after one request is to be killed before another.
    """
    with (
        env.behind_gateway() if situation in BEHIND_GATEWAY else nullcontext(),
        nullcontext() if situation == TOGETHER else env.remembering(),
    ):
        walk(env, fork_server, situation, record_property)


def walk(
    env: WalkEnv, fork_server: ForkServer, situation: str, record_property: Callable[[str, object], None]
) -> None:
    """Walk through all points of a situation."""
    number = count_requests(env, situation, lambda url: sync(env, fork_server, situation, url).wait())
    walked = 0
    for point in range(1, number + 1):
        for when in ("after",) if situation == TOGETHER else ("before", "after"):
            ids = env.plant(situation)
            with Executioner(env.target, point, when) as proxy:
                env.arm(situation, proxy)
                child = sync(env, fork_server, situation, proxy.url, hold=True)
                proxy.victim = child.pid
                child.go()
                code = child.wait()
            # Side by side, requests come now in this number and now in that.
            assert code == -signal.SIGKILL or (situation == TOGETHER and code in (0, 1))
            env.check_agents(situation)
            env.check_healed(situation, ids)
            walked += 1
    record_property("points", ("crash walk", walked))
    record_property(
        "walked",
        f"crash walk: {SITUATIONS[situation]}{env.way}: {number} requests, {walked} points{_carried_out(env)}",
    )
    assert walked >= number > 4


def _carried_out(env: WalkEnv) -> str:
    if env.memory is None:
        return ""
    return f"; {env.memory.asked} requests in all, {env.memory.carried_out} of them carried out"
