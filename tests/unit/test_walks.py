"""Every request of a sync goes wrong in every way, on the double: all situations, all faults, before and after.

`test_fault_walk.py` and `test_crash_walk.py` walk the same on a real Letta, as far as there is time for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from double import Double, Row
from pydantic import SecretStr
from sealed import MASTER_KEY, OTHER_MASTER_KEY, seal
from weather import JumpingLoop, Killed, Kind, Sent, Weather, When

from isabella.catalog import known_vendors
from isabella.errors import ConfigurationError, IsabellaError, LettaRefused
from isabella.gate import Closed, ungated
from isabella.providers import sealing
from isabella.providers.apply import Follow
from isabella.providers.desired import Desired
from isabella.providers.plan import Action
from isabella.providers.report import Proof, Report
from isabella.providers.sync import Options, bring_in_line
from isabella.stores.letta_server import LettaServer

KEY, FORMER_KEY = "csk-walk-0002", "csk-walk-0001"
LONG_KEY = "5eed" * 16
URL = "http://127.0.0.1:9/v1"
FAULTS: tuple[Kind, ...] = ("drop", "hang", "truncate", "html", "refuse", "kill", 409, 422, 429, 500, 502, 503)
WHENS: tuple[When, ...] = ("before", "after")

#: What stands in the key's place before the sync, the type, and the key that is configured.
SITUATIONS: dict[str, tuple[str | None, str, str]] = {
    "absent": ("absent", "openai", KEY),
    "deleted": ("deleted", "openai", KEY),
    "stale": (FORMER_KEY, "openai", KEY),
    "no key": (None, "openai", KEY),
    "sealed elsewhere": ("elsewhere", "openai", KEY),
    "another type": (FORMER_KEY, "cerebras", KEY),
    "plaintext": ("plaintext", "openai", KEY),
    "plaintext that is taken for sealed": ("plaintext", "openai", LONG_KEY),
}


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides derive in one round what takes Letta 100,000."""
    monkeypatch.setattr(sealing, "_ROUNDS", 1)


def letta_in(situation: str) -> tuple[Double, Desired]:
    """A double in this situation, and what is configured for it."""
    stored, type, key = SITUATIONS[situation]
    double = Double(master_key=MASTER_KEY, rounds=1)
    for name in ("walk", "bystander"):
        body = {"name": name, "provider_type": type, "base_url": URL, "api_key": FORMER_KEY}
        assert double.handle("POST", "/v1/providers/", {}, body)[0] == 200
    row = double.rows[0]
    match stored:
        case "absent":
            double.rows.remove(row)
        case "deleted":
            row.enc, row.deleted = None, True
        case "plaintext":
            row.enc = key
        case "elsewhere":
            row.enc = seal(key, OTHER_MASTER_KEY, rounds=1)
        case None:
            row.enc = None
    vendor = dataclasses.replace(known_vendors()[0], name="walk", provider="walk", type="openai", base_url=URL)
    return double, Desired(vendor, "walk", "openai", URL, SecretStr(key), "WALK_API_KEY (.env)")


def sync(
    double: Double, desired: Desired, fault: tuple[int, Kind, When] | None = None
) -> tuple[Report | None, list[Sent]]:
    """One sync, one of whose requests may go wrong; how it went, and the requests it made."""
    weather = Weather(double.transport(), {fault[0]: fault[1:]} if fault else {})

    async def run() -> Report:
        async with LettaServer("http://letta", transport=weather, timeout=5.0) as store:
            return await bring_in_line(store, [desired], Options(master_key=SecretStr(MASTER_KEY)))

    report = None
    try:
        report = anyio.run(run, backend_options={"loop_factory": JumpingLoop})
    except IsabellaError as error:
        _is_told(error)
    except (Killed, BaseExceptionGroup):
        assert weather.dead
    return report, weather.sent


@pytest.mark.parametrize("situation", SITUATIONS)
def test_whatever_goes_wrong_is_told_truly_and_healed(situation: str) -> None:
    """At each request, each fault: no false proof, the row is there unless it is said, and the next start heals."""
    _, sent = sync(*letta_in(situation))
    assert len(sent) > 3
    for point in range(1, len(sent) + 1):
        for kind in FAULTS:
            for when in WHENS:
                double, desired = letta_in(situation)
                was_there, bystander = double.live("walk"), dataclasses.replace(_bystander(double))
                report, _ = sync(double, desired, (point, kind, when))
                where = f"{situation}: {kind} {when} request {point}"
                if kind != "kill":
                    assert double.live("walk") or not was_there or _says_it_is_gone(report), where
                if report is not None and report.all_proven:
                    assert double.bearer("walk") == SITUATIONS[situation][2], where
                healed, _ = sync(double, desired)
                assert healed is not None, where
                assert healed.all_proven, where
                assert double.bearer("walk") == SITUATIONS[situation][2], where
                assert _bystander(double) == bystander, where
                assert len([row for row in double.rows if not row.deleted]) == 2, where


def _bystander(double: Double) -> Row:
    row = double.live("bystander")
    assert row is not None
    return row


def _is_told(error: IsabellaError) -> None:
    """An error that ends a sync says what happened and what to do."""
    assert error.what
    assert error.remedy


def _says_it_is_gone(report: Report | None) -> bool:
    return report is not None and any("not in Letta now" in entry.reason for entry in report.ours)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", ["drop", "hang", "html", 409, 429, 500, 503])
@pytest.mark.parametrize("when", WHENS)
def test_one_fault_of_a_writing_costs_no_proof(situation: str, kind: Kind, when: When) -> None:
    """A single lost answer, silence, conflict or failure of a writing is overcome within the same sync."""
    _, sent = sync(*letta_in(situation))
    for point in (number for number, one in enumerate(sent, 1) if one.writes):
        report, _ = sync(*letta_in(situation), (point, kind, when))
        assert report is not None
        (entry,) = report.ours
        assert entry.proof is Proof.PROVEN, (point, entry.reason)


def test_one_of_a_thousand_is_touched_alone() -> None:
    """Where one key of 1,000 was rotated, one is written, and beside the listing nothing but that one is read."""
    double = Double(master_key=MASTER_KEY, rounds=1)
    vendor = known_vendors()[0]
    desired = []
    for number in range(1_000):
        name = f"one-of-many-{number}"
        body = {"name": name, "provider_type": "openai", "base_url": URL, "api_key": f"{KEY}-{number}"}
        assert double.handle("POST", "/v1/providers/", {}, body)[0] == 200
        key = SecretStr(f"{KEY}-rotated" if number == 617 else f"{KEY}-{number}")
        desired.append(Desired(vendor, name, "openai", URL, key, "MANY_API_KEY (.env)"))
    weather = Weather(double.transport())

    async def run() -> Report:
        async with LettaServer("http://letta", transport=weather) as store:
            return await bring_in_line(store, desired, Options(master_key=SecretStr(MASTER_KEY)))

    report = anyio.run(run)
    assert report.all_proven
    assert [entry.name for entry in report.ours if entry.action is not Action.KEEP] == ["one-of-many-617"]
    assert [sent.method for sent in weather.sent if sent.writes] == ["PATCH"]
    # The release, a full page and the one after it, the look under the lock, the update, and the reading back.
    assert len(weather.sent) == 6


class NoPatch(httpx2.AsyncBaseTransport):
    """A way to the double on which every update is refused with this status, after the first so many."""

    def __init__(self, double: Double, status: int, *, after: int = 0) -> None:
        self._inner = double.transport()
        self._status = status
        self._left = after

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "PATCH":
            self._left -= 1
            if self._left < 0:
                return httpx2.Response(self._status, json={"detail": "not now"}, request=request)
        return await self._inner.handle_async_request(request)


def report_over(
    transport: httpx2.AsyncBaseTransport,
    desired: Sequence[Desired],
    closed: Closed = ungated,
    follow: Follow | None = None,
) -> Report:
    """What one sync over this way to Letta reports."""

    async def run() -> Report:
        async with LettaServer("http://letta", transport=transport, timeout=5.0) as store:
            options = Options(master_key=SecretStr(MASTER_KEY), closed=closed, follow=follow)
            return await bring_in_line(store, desired, options)

    return anyio.run(run, backend_options={"loop_factory": JumpingLoop})


@pytest.mark.parametrize("status", [409, 429])
@pytest.mark.parametrize(
    "situation", ["stale", "no key", "sealed elsewhere", "plaintext", "plaintext that is taken for sealed"]
)
def test_a_letta_that_is_busy_for_long_is_no_reason_to_delete(situation: str, status: int) -> None:
    """Where every update meets a lock or too much to do, it failed and is told so; what is stored stays as it was."""
    double, desired = letta_in(situation)
    row = double.live("walk")
    assert row is not None
    before = dataclasses.replace(row)
    weather = Weather(NoPatch(double, status))
    report = report_over(weather, [desired])
    (entry,) = report.ours
    assert entry.proof is Proof.FAILED
    assert "not now" in entry.reason
    assert [sent.path for sent in weather.sent if sent.method == "DELETE" and row.id in sent.path] == []
    assert double.live("walk") == before
    healed, _ = sync(double, desired)
    assert healed is not None
    assert healed.all_proven


@pytest.mark.parametrize("status", [409, 429, 503])
def test_a_placeholder_that_was_left_behind_is_told_and_healed(status: int) -> None:
    """Sealing takes two updates. Where only the first went through, what stands there is no key, and that is said."""
    double, desired = letta_in("plaintext")
    (entry,) = report_over(NoPatch(double, status, after=1), [desired]).ours
    assert (entry.action, entry.proof) == (Action.UPDATE, Proof.FAILED)
    assert "what stands there now is no key" in entry.reason
    assert "the key is right" not in entry.reason
    assert "providers sync --only walk" in str(entry.remedy)
    healed, _ = sync(double, desired)
    assert healed is not None
    assert healed.all_proven


class DeletedMeanwhile(httpx2.AsyncBaseTransport):
    """A way to the double on which somebody deletes the provider just before an update arrives."""

    def __init__(self, double: Double) -> None:
        self._double = double
        self._inner = double.transport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "PATCH" and (row := self._double.live("walk")) is not None:
            row.enc, row.deleted = None, True
        return await self._inner.handle_async_request(request)


NEW_URL = "http://moved.test/v1"


@pytest.mark.parametrize("situation", ["stale", "another type", "sealed elsewhere", "plaintext", "deleted meanwhile"])
def test_agents_follow_a_provider_before_anybody_speaks_again(situation: str) -> None:
    """However it is done: the gate is closed, the new key is at the new address, agents follow, the gate opens."""
    double, desired = letta_in("stale" if situation == "deleted meanwhile" else situation)
    desired = dataclasses.replace(desired, base_url=NEW_URL)
    happened: list[str] = []

    @asynccontextmanager
    async def closed(provider: str) -> AsyncIterator[None]:
        happened.append(f"{provider} closed")
        yield
        happened.append(f"{provider} open")

    async def follow(provider: str, base_url: str) -> Sequence[str]:
        row = double.live(provider)
        assert row is not None
        assert (row.base_url, double.bearer(provider)) == (NEW_URL, desired.key and desired.key.get_secret_value())
        happened.append(f"followed to {base_url}")
        return ["Isabella", *(f"agent {number}" for number in range(9))]

    way = DeletedMeanwhile(double) if situation == "deleted meanwhile" else double.transport()
    (entry,) = report_over(way, [desired], closed, follow).ours
    assert entry.proof is Proof.PROVEN
    assert happened[-3:] == ["walk closed", f"followed to {NEW_URL}", "walk open"]
    assert "agents that call the new address now: Isabella, agent 0, agent 1, agent 2, agent 3 and 5 more" in (
        entry.reason
    )


def test_agents_that_may_be_left_behind_are_told() -> None:
    """The provider is in place and proven; what could not be done about its agents has a remedy."""
    double, desired = letta_in("stale")

    async def follow(_provider: str, _base_url: str) -> Sequence[str]:
        raise LettaRefused("Letta refused to change an agent.", status=422, detail="no")

    moved = dataclasses.replace(desired, base_url=NEW_URL)
    (entry,) = report_over(double.transport(), [moved], follow=follow).ours
    assert (entry.proof, entry.remedy) == (Proof.PROVEN, "Bind them anew: isabella agents repair")
    assert "its agents may still call the former address: Letta refused to change an agent." in entry.reason


def test_nobody_follows_where_nothing_moves() -> None:
    """A changed key at the same address is no matter of the agents, and of no gate."""
    double, desired = letta_in("stale")

    async def follow(_provider: str, _base_url: str) -> Sequence[str]:
        raise AssertionError("nothing has moved")

    assert report_over(double.transport(), [desired], _never_closed, follow).all_proven


@asynccontextmanager
async def _never_closed(provider: str) -> AsyncIterator[None]:
    raise AssertionError(f"{provider} has no gap")
    yield


def test_sealing_that_is_cut_off_has_not_moved_yet() -> None:
    """The placeholder goes to the former address, so that the next sync still takes the agents along."""
    double, desired = letta_in("plaintext")
    moved = dataclasses.replace(desired, base_url=NEW_URL)
    report_over(NoPatch(double, 429, after=1), [moved])
    row = double.live("walk")
    assert row is not None
    assert row.base_url == URL


def test_a_gate_that_cannot_be_closed_concerns_its_provider_alone() -> None:
    """Where the database of its locks fails for one provider, that one is told, and the other is carried out."""
    double, desired = letta_in("another type")
    before = double.live("walk")
    assert before is not None
    before = dataclasses.replace(before)
    other = dataclasses.replace(desired, name="bystander")

    @asynccontextmanager
    async def closed(provider: str) -> AsyncIterator[None]:
        if provider == "walk":
            raise ConfigurationError("The database cannot be used for locks.", remedy="Start it.")
        yield

    report = report_over(double.transport(), [desired, other], closed)
    failed, done = report.ours
    assert (failed.name, failed.proof, failed.remedy) == ("walk", Proof.FAILED, "Start it.")
    assert "The database cannot be used for locks." in failed.reason
    assert double.live("walk") == before
    assert (done.name, done.action, done.proof) == ("bystander", Action.RECREATE, Proof.PROVEN)
