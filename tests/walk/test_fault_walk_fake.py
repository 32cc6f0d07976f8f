"""Every request of a sync goes wrong in every way, on the fake Letta: all situations, all faults, before and after.

`test_fault_walk.py` and `test_crash_walk.py` walk the same on a real Letta, as far as there is time for it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from pydantic import SecretStr

from isabella.config.vendors import known_vendors
from isabella.errors import ConfigurationError, IsabellaError
from isabella.letta import encryption
from isabella.letta.client import LettaClient
from isabella.letta.http import LettaHttp
from isabella.locks.provider_lock import CloseProvider, unguarded
from isabella.providers.apply import Options
from isabella.providers.bound_agents import Note
from isabella.providers.desired import Desired
from isabella.providers.plan import Action
from isabella.providers.report import Proof, Report
from isabella.providers.sync import sync_providers
from isabella.system.urls import PLACEHOLDER_URL
from tests.support.fake_agents import Agent, FakeAgents
from tests.support.fake_letta import NO_KEY, FakeLetta, Row
from tests.support.fault_transport import FaultTransport, JumpingLoop, Killed, Kind, Sent, When
from tests.support.letta_encryption import MASTER_KEY, OTHER_MASTER_KEY, seal, unseal

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
    monkeypatch.setattr(encryption, "_ROUNDS", 1)


def letta_in(situation: str) -> tuple[FakeLetta, Desired]:
    """A fake Letta in this situation, and what is configured for it."""
    stored, type, key = SITUATIONS[situation]
    fake = FakeLetta(master_key=MASTER_KEY, rounds=1)
    for name in ("walk", "bystander"):
        body = {"name": name, "provider_type": type, "base_url": URL, "api_key": FORMER_KEY}
        assert fake.handle("POST", "/v1/providers/", {}, body)[0] == 200
    row = fake.rows[0]
    match stored:
        case "absent":
            fake.rows.remove(row)
        case "deleted":
            row.enc, row.deleted = None, True
        case "plaintext":
            row.enc = key
        case "elsewhere":
            row.enc = seal(key, OTHER_MASTER_KEY, rounds=1)
        case None:
            row.enc = None
    vendor = dataclasses.replace(known_vendors()[0], name="walk", provider="walk", type="openai", base_url=URL)
    return fake, Desired(vendor, "walk", "openai", URL, SecretStr(key), "WALK_API_KEY (.env)")


def sync(
    fake: FakeLetta,
    desired: Desired,
    fault: tuple[int, Kind, When] | None = None,
    *,
    fake_agents: FakeAgents | None = None,
    seen: Callable[[Sent], None] = lambda sent: None,
) -> tuple[Report | None, list[Sent]]:
    """One sync, one of whose requests may go wrong; how it went, and the requests it made."""
    transport = FaultTransport(fake.transport(), {fault[0]: fault[1:]} if fault else {}, seen)

    async def run() -> Report:
        async with LettaClient(LettaHttp("http://letta", transport=transport, timeout=5.0)) as letta:
            store = letta.providers
            if fake_agents is not None:
                fake_agents.store = store
            return await sync_providers(
                store, [desired], Options(master_key=SecretStr(MASTER_KEY), bound_agents=fake_agents)
            )

    report = None
    try:
        report = anyio.run(run, backend_options={"loop_factory": JumpingLoop})
    except IsabellaError as error:
        _is_told(error)
    except (Killed, BaseExceptionGroup):
        if not transport.dead:
            raise
    return report, transport.sent


@pytest.mark.parametrize("situation", SITUATIONS)
def test_whatever_goes_wrong_is_told_truly_and_healed(situation: str) -> None:
    """At each request, each fault: no false proof, the row is there unless it is said, and the next start heals."""
    _, sent = sync(*letta_in(situation))
    assert len(sent) > 3
    healed_from: set[Hashable] = set()
    for point in range(1, len(sent) + 1):
        for kind in FAULTS:
            for when in WHENS:
                fake, desired = letta_in(situation)
                was_there, bystander = fake.live("walk"), dataclasses.replace(_bystander(fake))
                report, _ = sync(fake, desired, (point, kind, when))
                where = f"{situation}: {kind} {when} request {point}"
                if kind != "kill":
                    assert fake.live("walk") or not was_there or _says_it_is_gone(report), where
                if report is not None and report.all_proven:
                    assert fake.bearer("walk") == SITUATIONS[situation][2], where
                assert _bystander(fake) == bystander, where
                # The next start depends on nothing but this: from the same contents, it is the same.
                if (contents := contents_of(fake)) in healed_from:
                    continue
                healed_from.add(contents)
                healed, _ = sync(fake, desired)
                assert healed is not None, where
                assert healed.all_proven, where
                assert fake.bearer("walk") == SITUATIONS[situation][2], where
                assert _bystander(fake) == bystander, where
                assert len([row for row in fake.rows if not row.deleted]) == 2, where


#: A key that a sync has made up. Its random part makes no difference.
_MADE_UP = re.compile(r"^(no-key-yet|encryption-probe)-[0-9a-f]+$")


def contents_of(fake: FakeLetta) -> Hashable:
    """What a Letta holds, but for the ids, the salts, and the random part of keys that a sync has made up."""
    return tuple(
        (row.name, row.type, row.base_url, _key_in(row.enc), row.deleted, row.synced, row.plain) for row in fake.rows
    )


def _key_in(text: str | None) -> Hashable:
    if text is None:
        return None
    for master_key in (MASTER_KEY, OTHER_MASTER_KEY):
        if (key := unseal(text, master_key, rounds=1)) is not None:
            return master_key, _MADE_UP.sub(r"\1", key)
    return text


def _bystander(fake: FakeLetta) -> Row:
    row = fake.live("bystander")
    assert row is not None
    return row


def _is_told(error: IsabellaError) -> None:
    """An error that ends a sync says what happened and what to do."""
    assert error.what
    assert error.remedy


def _says_it_is_gone(report: Report | None) -> bool:
    return report is not None and any("not in Letta now" in entry.reason for entry in report.configured)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", ["drop", "hang", "html", 409, 429, 500, 503])
@pytest.mark.parametrize("when", WHENS)
def test_one_fault_of_a_writing_costs_no_proof(situation: str, kind: Kind, when: When) -> None:
    """A single lost answer, silence, conflict or failure of a writing is overcome within the same sync."""
    _, sent = sync(*letta_in(situation))
    for point in (number for number, one in enumerate(sent, 1) if one.writes):
        report, _ = sync(*letta_in(situation), (point, kind, when))
        assert report is not None
        (entry,) = report.configured
        assert entry.proof is Proof.PROVEN, (point, entry.reason)


def test_one_of_a_thousand_is_touched_alone() -> None:
    """Where one key of 1,000 was rotated, one is written, and beside the listing nothing but that one is read."""
    fake = FakeLetta(master_key=MASTER_KEY, rounds=1)
    vendor = known_vendors()[0]
    desired = []
    for number in range(1_000):
        name = f"one-of-many-{number}"
        body = {"name": name, "provider_type": "openai", "base_url": URL, "api_key": f"{KEY}-{number}"}
        assert fake.handle("POST", "/v1/providers/", {}, body)[0] == 200
        key = SecretStr(f"{KEY}-rotated" if number == 617 else f"{KEY}-{number}")
        desired.append(Desired(vendor, name, "openai", URL, key, "MANY_API_KEY (.env)"))
    transport = FaultTransport(fake.transport())

    async def run() -> Report:
        async with LettaClient(LettaHttp("http://letta", transport=transport)) as letta:
            store = letta.providers
            return await sync_providers(store, desired, Options(master_key=SecretStr(MASTER_KEY)))

    report = anyio.run(run)
    assert report.all_proven
    assert [entry.name for entry in report.configured if entry.action is not Action.KEEP] == ["one-of-many-617"]
    assert [sent.method for sent in transport.sent if sent.writes] == ["PATCH"]
    # The release, a full page and the one after it, the look under the lock, the update, and the reading back.
    assert len(transport.sent) == 6


class NoPatch(httpx2.AsyncBaseTransport):
    """A way to the fake Letta on which every update is refused with this status, after the first so many."""

    def __init__(self, fake: FakeLetta, status: int, *, after: int = 0) -> None:
        self._inner = fake.transport()
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
    closed: CloseProvider = unguarded,
    fake_agents: FakeAgents | None = None,
) -> Report:
    """What one sync over this way to Letta reports."""

    async def run() -> Report:
        async with LettaClient(LettaHttp("http://letta", transport=transport, timeout=5.0)) as letta:
            store = letta.providers
            if fake_agents is not None:
                fake_agents.store = store
            options = Options(master_key=SecretStr(MASTER_KEY), closed=closed, bound_agents=fake_agents)
            return await sync_providers(store, desired, options)

    return anyio.run(run, backend_options={"loop_factory": JumpingLoop})


@pytest.mark.parametrize("status", [409, 429])
@pytest.mark.parametrize(
    "situation", ["stale", "no key", "sealed elsewhere", "plaintext", "plaintext that is taken for sealed"]
)
def test_a_letta_that_is_busy_for_long_is_no_reason_to_delete(situation: str, status: int) -> None:
    """Where every update meets a lock or too much to do, it failed and is told so; what is stored stays as it was."""
    fake, desired = letta_in(situation)
    row = fake.live("walk")
    assert row is not None
    before = dataclasses.replace(row)
    transport = FaultTransport(NoPatch(fake, status))
    report = report_over(transport, [desired])
    (entry,) = report.configured
    assert entry.proof is Proof.FAILED
    assert "not now" in entry.reason
    assert [sent.path for sent in transport.sent if sent.method == "DELETE" and row.id in sent.path] == []
    assert fake.live("walk") == before
    healed, _ = sync(fake, desired)
    assert healed is not None
    assert healed.all_proven


@pytest.mark.parametrize("status", [409, 429, 503])
def test_a_placeholder_that_was_left_behind_is_told_and_healed(status: int) -> None:
    """Sealing takes two updates. Where only the first went through, what stands there is no key, and that is said."""
    fake, desired = letta_in("plaintext")
    (entry,) = report_over(NoPatch(fake, status, after=1), [desired]).configured
    assert (entry.action, entry.proof) == (Action.UPDATE, Proof.FAILED)
    assert "Letta now holds a placeholder, not a key" in entry.reason
    assert "the key is right" not in entry.reason
    assert "providers sync --only walk" in str(entry.remedy)
    healed, _ = sync(fake, desired)
    assert healed is not None
    assert healed.all_proven


class DeletedMeanwhile(httpx2.AsyncBaseTransport):
    """A way to the fake Letta on which somebody deletes the provider just before an update arrives."""

    def __init__(self, fake: FakeLetta) -> None:
        self._double = fake
        self._inner = fake.transport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "PATCH" and (row := self._double.live("walk")) is not None:
            row.enc, row.deleted = None, True
        return await self._inner.handle_async_request(request)


NEW_URL = "http://moved.test/v1"

#: From where a provider moves, and the key that agents carried before.
MOVES = {
    "in line": KEY,
    "stale": FORMER_KEY,
    "no key": None,
    "another type": FORMER_KEY,
    "the same key, another type": KEY,
    "sealed elsewhere": None,
    "plaintext": KEY,
    "absent": None,
    "deleted": None,
}


def letta_before_a_move(situation: str) -> tuple[FakeLetta, Desired, FakeAgents]:
    """The same with a provider that has to move, and its agents."""
    here = {"in line": "stale", "the same key, another type": "another type"}
    fake, desired = letta_in(here.get(situation, situation))
    if situation in here:
        row = fake.live("walk")
        assert row is not None
        row.enc = seal(KEY, MASTER_KEY, rounds=1)
    agents = {name: Agent("walk", URL, late=name == "late") for name in ("Isabella", "late")}
    return (
        fake,
        dataclasses.replace(desired, base_url=NEW_URL),
        FakeAgents(agents | {"other": Agent("bystander", URL)}),
    )


def move(
    fake: FakeLetta, desired: Desired, fake_agents: FakeAgents, fault: tuple[int, Kind, When] | None = None
) -> tuple[Report | None, list[Sent]]:
    """One sync of a provider that moves. After every request, what agents would send to whom is looked at."""
    former = fake.bearer("walk")

    def watch(_sent: Sent) -> None:
        for agent in fake_agents.agents.values():
            key = fake.bearer(agent.provider)
            if (
                agent.provider == "walk"
                and agent.address != PLACEHOLDER_URL
                and key not in (None, NO_KEY)
                and not key.startswith("no-key-yet-")
            ):
                assert (agent.address, key) in {(URL, former), (NEW_URL, KEY), (URL, KEY) if former == KEY else ()}

    return sync(fake, desired, fault, fake_agents=fake_agents, seen=watch)


@pytest.mark.parametrize("situation", MOVES)
def test_no_key_arrives_at_another_address_whatever_goes_wrong_in_a_move(situation: str) -> None:
    """At each request, each fault, and whoever speaks to Letta in between without a gate; and healed after."""
    assert letta_before_a_move(situation)[0].bearer("walk") in (MOVES[situation], NO_KEY, None)
    _, sent = move(*letta_before_a_move(situation))
    assert len([one for one in sent if one.writes]) >= 1
    healed_from: set[Hashable] = set()
    for point in range(1, len(sent) + 1):
        for kind in FAULTS:
            for when in WHENS:
                fake, desired, fake_agents = letta_before_a_move(situation)
                move(fake, desired, fake_agents, (point, kind, when))
                agents = tuple(map(dataclasses.astuple, fake_agents.agents.values()))
                if (contents := (contents_of(fake), agents)) in healed_from:
                    continue
                healed_from.add(contents)
                healed, _ = move(fake, desired, fake_agents)
                where = f"{situation}: {kind} {when} request {point}"
                assert healed is not None, where
                assert healed.all_proven, where
                assert [agent.address for agent in fake_agents.agents.values()] == [NEW_URL, NEW_URL, URL], where
                assert fake.bearer("walk") == KEY, where


def test_a_move_that_was_cut_off_may_be_taken_back() -> None:
    """Killed anywhere, then configured as before: agents come back before the key does."""
    _, sent = move(*letta_before_a_move("stale"))
    for point in range(1, len(sent) + 1):
        for when in WHENS:
            fake, desired, fake_agents = letta_before_a_move("stale")
            back = dataclasses.replace(desired, base_url=URL, key=SecretStr(FORMER_KEY))
            move(fake, desired, fake_agents, (point, "kill", when))
            report = report_over(fake.transport(), [back], fake_agents=fake_agents)
            assert report.all_proven
            assert fake.bearer("walk") == FORMER_KEY
            assert [agent.address for agent in fake_agents.agents.values()] == [URL] * 3, (point, when)


@pytest.mark.parametrize(
    "situation", ["in line", "stale", "another type", "sealed elsewhere", "plaintext", "absent", "deleted meanwhile"]
)
def test_agents_follow_a_provider_behind_a_closed_gate(situation: str) -> None:
    """However it is done: the gate is closed, agents follow, the gate opens, and the report names them."""
    fake, desired, _ = letta_before_a_move("stale" if situation == "deleted meanwhile" else situation)
    names = ["Isabella", *(f"agent {number}" for number in range(9))]
    fake_agents = FakeAgents({name: Agent("walk", URL) for name in names})
    happened: list[str] = []

    def addresses() -> str:
        return " and ".join(sorted({str(agent.address) for agent in fake_agents.agents.values()}))

    @asynccontextmanager
    async def closed(provider: str) -> AsyncIterator[None]:
        happened.append(f"{provider} closed, agents at {addresses()}")
        yield
        happened.append(f"{provider} open, agents at {addresses()}")

    way = DeletedMeanwhile(fake) if situation == "deleted meanwhile" else fake.transport()
    (entry,) = report_over(way, [desired], closed, fake_agents).configured
    assert entry.proof is Proof.PROVEN
    assert happened[-2:] == [f"walk closed, agents at {URL}", f"walk open, agents at {NEW_URL}"]
    assert "agents moved to the new base URL: Isabella, agent 0, agent 1, agent 2, agent 3 and 5 more" in (
        entry.reason
    )


@pytest.mark.parametrize("situation", ["stale", "another type", "sealed elsewhere", "absent"])
def test_a_key_is_withheld_while_an_agent_calls_another_address(situation: str) -> None:
    """One agent cannot be changed: no key is written that it would carry away. Once it is gone, all is well."""
    fake, desired, fake_agents = letta_before_a_move(situation)
    fake_agents.agents["late"].stubborn = True
    report, sent = move(fake, desired, fake_agents)
    assert report is not None
    (entry,) = report.configured
    assert entry.proof is Proof.FAILED
    assert "Letta refused to change an agent." in entry.reason
    assert "providers sync --only walk" in str(entry.remedy)
    assert KEY not in {one.body["api_key"] for one in sent if one.method in ("POST", "PATCH")}
    fake_agents.agents["late"].stubborn, fake_agents.agents["late"].provider = False, "gone"
    healed, _ = move(fake, desired, fake_agents)
    assert healed is not None
    assert healed.all_proven
    assert fake_agents.agents["Isabella"].address == NEW_URL


@pytest.mark.parametrize("situation", ["in line", "plaintext", "the same key, another type"])
def test_the_same_key_is_not_withheld(situation: str) -> None:
    """Where the key is good at both addresses, nobody is without it; the move is told, and tried again."""
    fake, desired, fake_agents = letta_before_a_move(situation)
    fake_agents.agents["late"].stubborn = True
    for _ in range(2):
        report, _ = move(fake, desired, fake_agents)
        assert report is not None
        (entry,) = report.configured
        assert entry.proof is Proof.FAILED
        assert "it has not moved yet" in entry.reason
        row = fake.live("walk")
        assert row is not None
        assert (row.base_url, fake.bearer("walk")) == (PLACEHOLDER_URL, KEY)
        assert [agent.address for agent in fake_agents.agents.values()] == [NEW_URL, URL, URL]
    fake_agents.agents["late"].stubborn = False
    healed, _ = move(fake, desired, fake_agents)
    assert healed is not None
    assert healed.all_proven
    assert [agent.address for agent in fake_agents.agents.values()] == [NEW_URL, NEW_URL, URL]


class NoPost(httpx2.AsyncBaseTransport):
    """A way to the fake Letta on which the first provider that would be made is refused."""

    def __init__(self, fake: FakeLetta) -> None:
        self._inner = fake.transport()
        self._refused = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST" and not self._refused:
            self._refused = True
            return httpx2.Response(422, json={"detail": "no such type"}, request=request)
        return await self._inner.handle_async_request(request)


@pytest.mark.parametrize("situation", MOVES)
def test_an_agent_that_is_bound_while_its_provider_is_nowhere_arrives(situation: str) -> None:
    """Somebody binds it to what Letta says just then; the last look finds it, and the report names it."""
    fake, desired, fake_agents = letta_before_a_move(situation)
    followed = fake_agents.move_to

    async def move_to(provider: str, base_url: str, note: Note) -> None:
        await followed(provider, base_url, note)
        row = fake.live("walk")
        if row is None or row.base_url == PLACEHOLDER_URL:
            fake_agents.agents["late"].address = PLACEHOLDER_URL

    fake_agents.move_to = move_to  # type: ignore[method-assign]
    report, _ = move(fake, desired, fake_agents)
    assert report is not None
    assert report.all_proven
    assert [agent.address for agent in fake_agents.agents.values()] == [NEW_URL, NEW_URL, URL]
    assert "agents moved to the new base URL: Isabella, late" in report.providers[0].reason


@pytest.mark.parametrize("stays", [False, True])
def test_a_former_key_is_put_back_once_its_agents_are(stays: bool) -> None:
    """POST is refused after the DELETE: agents go back, and then the key; with one that does not, there is none."""
    fake, desired, fake_agents = letta_before_a_move("another type")
    followed = fake_agents.move_to

    async def move_to(provider: str, base_url: str, note: Note) -> None:
        await followed(provider, base_url, note)
        fake_agents.agents["late"].stubborn = stays

    fake_agents.move_to = move_to  # type: ignore[method-assign]
    (entry,) = report_over(NoPost(fake), [desired], fake_agents=fake_agents).configured
    assert entry.proof is Proof.FAILED
    assert fake.bearer("walk") == (NO_KEY if stays else FORMER_KEY)
    assert fake_agents.agents["Isabella"].address == URL
    assert ("it is not in Letta now" if stays else "The former record is back in Letta.") in entry.reason
    fake_agents.move_to, fake_agents.agents["late"].stubborn = followed, False  # type: ignore[method-assign]
    healed, _ = move(fake, desired, fake_agents)
    assert healed is not None
    assert healed.all_proven


class GoneAfterDelete(httpx2.AsyncBaseTransport):
    """A way to a fake Letta that goes away once it has deleted something."""

    def __init__(self, fake: FakeLetta) -> None:
        self._inner = fake.transport()
        self.gone = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.gone:
            raise httpx2.ConnectError("nobody listens", request=request)
        self.gone = request.method == "DELETE"
        return await self._inner.handle_async_request(request)


@pytest.mark.parametrize("moves", [False, True])
def test_a_letta_that_goes_away_after_the_delete_leaves_no_doubt_about_what_is_known(moves: bool) -> None:
    """Nothing can be put back or looked at: the report says what was done, and that it may be gone; and it heals."""
    fake, desired, fake_agents = letta_before_a_move("another type")
    if not moves:
        desired = dataclasses.replace(desired, base_url=URL)
    (entry,) = report_over(GoneAfterDelete(fake), [desired], fake_agents=fake_agents).configured
    assert entry.proof is Proof.UNPROVEN
    assert "deleted, and creating it again failed" in entry.reason
    assert "It may not be in Letta now" in entry.reason
    assert entry.remedy
    assert report_over(fake.transport(), [desired], fake_agents=fake_agents).all_proven


def test_nobody_follows_where_nothing_moves() -> None:
    """A changed key at the same address is no matter of the agents, and of no gate."""
    fake, desired = letta_in("stale")
    fake_agents = FakeAgents({"elsewhere": Agent("walk", NEW_URL)})
    assert report_over(fake.transport(), [desired], _never_closed, fake_agents).all_proven
    assert fake_agents.agents["elsewhere"].address == NEW_URL


@asynccontextmanager
async def _never_closed(provider: str) -> AsyncIterator[None]:
    raise AssertionError(f"{provider} has no gap")
    yield


def test_a_gate_that_cannot_be_closed_concerns_its_provider_alone() -> None:
    """Where the database of its locks fails for one provider, that one is told, and the other is carried out."""
    fake, desired = letta_in("another type")
    before = fake.live("walk")
    assert before is not None
    before = dataclasses.replace(before)
    other = dataclasses.replace(desired, name="bystander")

    @asynccontextmanager
    async def closed(provider: str) -> AsyncIterator[None]:
        if provider == "walk":
            raise ConfigurationError("The database cannot be used for locks.", remedy="Start it.")
        yield

    report = report_over(fake.transport(), [desired, other], closed)
    failed, done = report.configured
    assert (failed.name, failed.proof, failed.remedy) == ("walk", Proof.FAILED, "Start it.")
    assert "The database cannot be used for locks." in failed.reason
    assert fake.live("walk") == before
    assert (done.name, done.action, done.proof) == ("bystander", Action.RECREATE, Proof.PROVEN)
