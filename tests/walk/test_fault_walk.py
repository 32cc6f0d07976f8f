"""Every request of a sync goes wrong, in every way: nothing is lost, and the next start makes everything right.

The real Letta carries each request out once in each state of its database; see `remembered_letta.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import stamina

from isabella.api import ensure_providers
from isabella.errors import IsabellaError
from isabella.letta import providers as store
from isabella.providers import safe_writes
from isabella.providers.report import Proof
from tests.support.fault_injection import BEHIND_GATEWAY, SITUATIONS, WalkEnv
from tests.support.fault_proxy import Kind, Match, Proxy, When
from tests.support.remembered_letta import RememberedLetta

#: What goes wrong, and whether Letta has carried the request out by then.
FAULTS: list[tuple[Kind, When]] = [
    ("drop", "after"),
    ("reset", "before"),
    (500, "before"),
    (500, "after"),
    (409, "before"),
    (429, "before"),
    ("truncate", "after"),
    ("hang", "after"),
]


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses between tries are cut, and so is what a silent Letta is waited for. What is tried stays the same."""
    monkeypatch.setattr(safe_writes, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(store, "_VENDOR_SECONDS", 0.5)
    stamina.set_testing(True, attempts=3, cap=True)
    yield
    stamina.set_testing(False)


def sync(env: WalkEnv, situation: str, proxy: Proxy, kind: Kind | None = None) -> bool:
    """A sync through the proxy: whether it says that everything is proven. What it says is checked."""
    timeout = "0.5" if kind == "hang" else "30"
    settings = env.settings(situation, proxy.url, ISABELLA_TIMEOUT=timeout)
    try:
        report = asyncio.run(ensure_providers(settings))
    except IsabellaError as error:
        assert all((error.what, error.remedy))  # noqa: PT017 - a sync in bad weather may end so, or not
        return False
    for entry in report.configured:
        held = env.state(entry.name)
        if entry.proof is Proof.PROVEN:
            assert held == ("openai", env.base_url(entry.name), env.key), entry.reason
        else:
            assert entry.reason
            assert entry.remedy, entry.reason
        told = f"{entry.reason} {entry.remedy}"
        assert held is not None or entry.stored == "absent" or "not in Letta" in told or "again" in told, told
    return report.all_proven


def nth_request(number: int) -> Match:
    """Match the request of this number, counted from 1."""
    numbers = itertools.count(1)
    return lambda _line, _body: next(numbers) == number


@pytest.mark.timeout(900)
@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "everything at once"])
def test_whatever_goes_wrong_at_any_request_is_healed_by_the_next_start(
    env: WalkEnv, situation: str, record_property: Callable[[str, object], None]
) -> None:
    """A lost answer, an error, half an answer, silence, at each request: told truly, and healed at the next start."""
    with nullcontext() if situation in BEHIND_GATEWAY else env.behind_gateway(), env.remembering() as letta:
        walk(env, letta, situation, record_property)


def walk(
    env: WalkEnv, letta: RememberedLetta, situation: str, record_property: Callable[[str, object], None]
) -> None:
    """Walk through all points of a situation."""
    env.plant(situation)
    with Proxy(letta) as proxy:
        env.arm(situation, proxy)
        sync(env, situation, proxy)
        requests = proxy.requests
    number = len(requests)
    walked = proven = 0
    for point in range(1, number + 1):
        for kind, when in FAULTS:
            ids = env.plant(situation)
            with Proxy(letta) as proxy:
                proxy.fault(nth_request(point), kind, when)
                env.arm(situation, proxy)
                at_once = sync(env, situation, proxy, kind)
            assert ids.keys() <= {name for name in ids if env.row(name)}, (point, kind, when)
            env.check_agents(situation)
            env.check_healed(situation, ids, proven=at_once)
            proven += at_once
            walked += 1
    record_property("points", ("fault walk", walked))
    record_property(
        "walked",
        f"fault walk: {SITUATIONS[situation]}{env.way}: {number} requests, {walked} points, {proven} proven at once; "
        f"{letta.asked} requests in all, {letta.carried_out} of them carried out",
    )
    assert any(request.method != "GET" for request in requests)
    assert walked == len(FAULTS) * number
