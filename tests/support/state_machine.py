"""A model of it all: whatever is configured, edited by hand, restarted, broken or killed, in whatever order.

The machine runs on a `World`: a fake Letta, or a real one. After each sync without faults it checks
that Isabella's promises hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Protocol

import anyio
import httpx2
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import SecretStr

from isabella.config.choices import Strategy
from isabella.config.vendors import known_vendors
from isabella.errors import IsabellaError
from isabella.letta.client import LettaClient
from isabella.letta.encryption import ProofMemo
from isabella.letta.http import LettaHttp
from isabella.letta.releases import capabilities_of
from isabella.providers.apply import Options
from isabella.providers.desired import Desired
from isabella.providers.plan import Action
from isabella.providers.report import Proof, Report
from isabella.providers.sync import sync_providers
from isabella.system.urls import PLACEHOLDER_URL
from isabella.vendors.client import KeyVerdict, VendorAnswer
from tests.support.fake_agents import Agent, FakeAgents
from tests.support.fake_letta import NO_KEY
from tests.support.fault_transport import FaultTransport, Killed, Kind, Sent, When

RELEASES = ("0.16.0", "0.16.1", "0.16.2", "0.16.4", "0.16.5", "0.16.6", "0.16.7", "0.16.8")
MASTER_KEYS = ("a1" * 32, "b2" * 32, None)
#: The third looks sealed to Letta where it stands in plaintext.
KEYS = ("model-first", "model-second", "c0ffee5eed" * 6 + "cafe")
NAMES = ("machine-a", "machine-b", "machine-c")
STRANGERS = ("stranger-a", "stranger-b")
TYPES = ("openai", "cerebras")
PROBE = "isabella-encryption-probe"
#: What stands in a key's place while the key must not be there.
PLACEHOLDER = "no-key-yet-"
#: Nothing listens there.
URLS = ("http://127.0.0.1:9/one/v1", "http://127.0.0.1:9/two/v1")

KINDS = ("early", "late")
PLANTED = ("the key in plaintext", "another in plaintext", "sealed elsewhere", "nothing", "an empty text")

names, strangers, types = st.sampled_from(NAMES), st.sampled_from(STRANGERS), st.sampled_from(TYPES)
numbers, urls = st.sampled_from(range(len(KEYS))), st.sampled_from(URLS)
master_keys = st.sampled_from(MASTER_KEYS)
#: Those that a sync is about; all of them where there is none.
some = st.frozensets(names, max_size=2)
kinds: st.SearchStrategy[Kind] = st.sampled_from(
    ["drop", "hang", "truncate", "html", "refuse", 409, 429, 500, 502, 503]
)
whens: st.SearchStrategy[When] = st.sampled_from(["before", "after"])
points = st.integers(1, 24)


class World(Protocol):
    """A Letta, and what can be done to it past Isabella."""

    #: How many steps have been made in all its lives.
    steps: ClassVar[int]
    #: Seconds that it may take to answer.
    timeout: float

    @property
    def release(self) -> str:
        """Its release."""

    @property
    def master_key(self) -> str | None:
        """Its master key; None if it stores keys in plaintext."""

    def transport(self) -> httpx2.AsyncBaseTransport:
        """What Isabella speaks to it through."""

    def loop_factory(self) -> Callable[[], Any] | None:
        """The event loop that suits it; None for the usual one."""

    def begin(self, release: str, master_key: str | None) -> None:
        """Start anew, without any of our providers."""

    def rest(self, method: str, path: str, body: Any = None) -> int:
        """One request by hand."""

    def rows(self) -> dict[str, dict[str, Any]]:
        """The live providers by name, with `api_key_enc`."""

    def write(self, name: str, text: str | None) -> None:
        """Put a text into the key's place of a live provider."""

    def restart(self, master_key: str | None, release: str | None = None) -> None:
        """Stop it and start it on the same data."""

    def opened(self, text: str | None, master_key: str | None) -> str | None:
        """The key in a text, under this master key."""

    def seal(self, key: str, master_key: str) -> str:
        """A text with this key in it."""

    def bearer(self, name: str) -> str | None:
        """What an agent would carry to the vendor."""


class Machine(RuleBasedStateMachine):
    """Isabella and a Letta, and all that can happen to both."""

    world: World

    @initialize(release=st.sampled_from(RELEASES), theirs=master_keys, same=st.booleans(), other=master_keys)
    def begin(self, release: str, theirs: str | None, same: bool, other: str | None) -> None:
        """A Letta without providers; most often Isabella has its master key."""
        self.world.begin(release, theirs)
        self.managed = theirs if same else other
        self.desired: dict[str, Desired] = {}
        self.refused: set[str] = set()
        self.vendors_answer = True
        self.strategy = Strategy.AUTO
        self.asked: list[tuple[str, str]] = []
        self.closed: list[str] = []
        self.memos: dict[str, ProofMemo] = {}
        #: Of every provider two agents: one is changed before an answer is lost, and one is not.
        self.agents = {f"{name}-{kind}": Agent(name, None, late=kind == "late") for name in NAMES for kind in KINDS}

    @invariant()
    def counted(self) -> None:
        """Count this step."""
        type(self.world).steps += 1

    # --- what the operator does -----------------------------------------------------------------------------------

    @rule(name=names, number=numbers, url=urls, type=types)
    def configure(self, name: str, number: int, url: str, type: str) -> None:
        """A provider is configured, or configured otherwise."""
        vendor = dataclasses.replace(known_vendors()[0], name=name, provider=name, type=type, base_url=url)
        key = SecretStr(_key_of(name, number))
        self.desired[name] = Desired(vendor, name, type, url, key, f"{name} (.env)")

    @rule(name=names)
    def forget(self, name: str) -> None:
        """A provider is not configured any more."""
        self.desired.pop(name, None)

    @rule(key=master_keys)
    def take_master_key(self, key: str | None) -> None:
        """Isabella is given another master key."""
        self.managed = key

    @rule()
    def take_letta_master_key(self) -> None:
        """Isabella is given the master key that Letta has."""
        self.managed = self.world.master_key

    @rule(strategy=st.sampled_from(Strategy))
    def choose(self, strategy: Strategy) -> None:
        """Another strategy is chosen."""
        self.strategy = strategy

    @rule(name=names)
    def settle(self, name: str) -> None:
        """The agents of a provider are bound to it, at the address that it has in Letta."""
        row = self.world.rows().get(name)
        if row is not None:
            for agent in self._agents_of(name):
                agent.address = row["base_url"]

    @rule(name=names, kind=st.sampled_from(KINDS))
    def turn_stubborn(self, name: str, kind: str) -> None:
        """Letta refuses to change an agent from now on, or lets it be changed again."""
        agent = self.agents[f"{name}-{kind}"]
        agent.stubborn = not agent.stubborn

    def _agents_of(self, name: str) -> list[Agent]:
        return [agent for agent in self.agents.values() if agent.provider == name]

    # --- what happens to Letta and at the vendors -------------------------------------------------------------------

    @rule(name=st.one_of(names, strangers), number=numbers, url=urls, type=types)
    def make_by_hand(self, name: str, number: int, url: str, type: str) -> None:
        """Somebody makes a provider in Letta, and binds its agents."""
        key = _key_of(name, number)
        self.world.rest("POST", "", {"name": name, "provider_type": type, "base_url": url, "api_key": key})
        self.settle(name)

    @rule(name=st.one_of(names, strangers), number=numbers)
    def change_by_hand(self, name: str, number: int) -> None:
        """Somebody changes a key in Letta."""
        row = self.world.rows().get(name)
        if row is not None:
            self.world.rest("PATCH", row["id"], {"api_key": _key_of(name, number)})

    @rule(name=st.one_of(names, strangers))
    def delete_by_hand(self, name: str) -> None:
        """Somebody deletes a provider in Letta."""
        row = self.world.rows().get(name)
        if row is not None:
            self.world.rest("DELETE", row["id"])

    @rule(name=names, what=st.sampled_from(PLANTED), number=numbers)
    def plant(self, name: str, what: str, number: int) -> None:
        """What stands in the key's place is overwritten: an older release, a restored backup, an accident."""
        if name not in self.world.rows():
            return
        key = _key_of(name, number)
        match what:
            case "the key in plaintext" if name in self.desired:
                self.world.write(name, _plain(self.desired[name]))
            case "sealed elsewhere":
                self.world.write(name, self.world.seal(key, "c3" * 32))
            case "nothing":
                self.world.write(name, None)
            case "an empty text":
                self.world.write(name, "")
            case _:
                self.world.write(name, key)

    @rule(key=master_keys)
    def restart(self, key: str | None) -> None:
        """Letta restarts, under the same master key, another one or none."""
        self.world.restart(key)

    @rule(release=st.sampled_from(RELEASES))
    def upgrade(self, release: str) -> None:
        """Letta is upgraded."""
        if RELEASES.index(release) > RELEASES.index(self.world.release):
            self.world.restart(self.world.master_key, release)

    @rule(name=names, number=numbers)
    def revoke(self, name: str, number: int) -> None:
        """A vendor refuses a key from now on, or takes it again."""
        self.refused ^= {_key_of(name, number)}

    @rule()
    def turn_vendors(self) -> None:
        """No vendor can be reached from now on, or all can again."""
        self.vendors_answer = not self.vendors_answer

    # --- what Isabella does ---------------------------------------------------------------------------------------

    @rule(faults=st.dictionaries(points, st.tuples(kinds, whens), min_size=1, max_size=4), heal=st.booleans())
    def sync_in_bad_weather(self, faults: dict[int, tuple[Kind, When]], heal: bool) -> None:
        """A sync, some of whose requests go wrong."""
        self._sync(faults)
        if heal:
            self.sync()

    @rule(point=points, when=whens, heal=st.booleans())
    def sync_and_be_killed(self, point: int, when: When, heal: bool) -> None:
        """A sync that is killed at one of its requests, most often followed by the next start."""
        self._sync({point: ("kill", when)})
        if heal:
            self.sync()

    @rule(only=some)
    @precondition(lambda self: self.desired)
    def sync(self, only: frozenset[str] = frozenset()) -> None:
        """A sync of some or of all without faults: afterwards, everything in it is proven or explained."""
        before = self.world.rows()
        report = self._sync({}, only)
        assert report is not None
        after = self.world.rows()
        assert {n: after.get(n) for n in STRANGERS} == {n: before.get(n) for n in STRANGERS}
        for entry in report.configured:
            wanted = self.desired[entry.name]
            assert entry.name in after or entry.name not in before, f"{entry.name} is lost: {entry.reason}"
            assert entry.proof is Proof.PROVEN or (entry.reason and entry.remedy), entry
            assert entry.proof is Proof.PROVEN or not self._can_be_proven(wanted), entry
            if entry.proof is Proof.PROVEN and self.managed == self.world.master_key:
                # What Letta could not open or use, no reading back would show; with the same master key it can.
                assert self.world.bearer(entry.name) == _plain(wanted)
            if entry.proof is Proof.PROVEN and before.get(entry.name, {}).get("base_url") != wanted.base_url:
                assert {agent.address for agent in self._agents_of(entry.name)} == {wanted.base_url}
        if report.all_proven and self.strategy is not Strategy.RECREATE:
            again = self._sync({}, only)
            assert again is not None
            assert all(entry.action in (Action.KEEP, Action.NONE) for entry in again.configured)
            assert not [sent for sent in self.sent if sent.writes]

    def _can_be_proven(self, wanted: Desired) -> bool:
        """Whether nothing stands in the way but what Isabella herself has to overcome."""
        return (
            self.strategy is not Strategy.IN_PLACE
            and capabilities_of(self.world.release).recreates
            and self.managed == self.world.master_key
            and _plain(wanted) not in self.refused
            and not any(one.stubborn and one.address != wanted.base_url for one in self._agents_of(wanted.name))
            and not (self.managed is None and _plain(wanted) == _long(wanted.name) and self._mistakes_long_keys)
        )

    @property
    def _mistakes_long_keys(self) -> bool:
        return RELEASES.index(self.world.release) < RELEASES.index("0.16.7")

    def _sync(self, faults: dict[int, tuple[Kind, When]], only: frozenset[str] = frozenset()) -> Report | None:
        """Run one; None where it was killed, or said why it could not go on. Checked is what always holds."""
        before = self.world.rows()
        former = {
            (name, row["base_url"], self.world.opened(row["api_key_enc"], self.managed))
            for name, row in before.items()
        }
        self.carried = {pair for name in before for pair in self._carried(name)}
        transport = FaultTransport(self.world.transport(), faults, self._watch)
        self.asked, self.closed, self.sent = [], [], transport.sent
        self.there = set(before)
        self.names_by_id = {row["id"]: name for name, row in before.items()}
        report: Report | None = None
        try:
            report = anyio.run(
                self._bring_in_line, transport, only, backend_options={"loop_factory": self.world.loop_factory()}
            )
        except IsabellaError as error:
            _is_told(error)
            if not faults:
                raise
        except (Killed, BaseExceptionGroup) as error:
            assert transport.dead
            _is_killing(error)
        self._check_writes(transport.sent, former)
        wanted = {(d.base_url, _plain(d)) for d in self.desired.values()}
        assert set(self.asked) <= wanted
        if report is not None:
            self._check_report(report)
        return report

    async def _bring_in_line(self, transport: FaultTransport, only: frozenset[str]) -> Report:
        named = [name for name in self.desired if name in only]
        async with LettaClient(LettaHttp("http://letta", transport=transport, timeout=self.world.timeout)) as letta:
            store = letta.providers
            return await sync_providers(
                store,
                [one for name, one in self.desired.items() if name in named or not named],
                Options(
                    strategy=self.strategy,
                    master_key=None if self.managed is None else SecretStr(self.managed),
                    ask=self._ask,
                    memo=self._memo(),
                    foreign=not named,
                    closed=self._close,
                    bound_agents=FakeAgents(self.agents, store),
                ),
            )

    def _memo(self) -> ProofMemo | None:
        """What every sync under this master key has found, whatever has happened since."""
        if self.managed is None:
            return None
        return self.memos.setdefault(self.managed, ProofMemo(None, SecretStr(self.managed)))

    async def _ask(self, base_url: str, key: SecretStr) -> VendorAnswer:
        self.asked.append((base_url, key.get_secret_value()))
        if not self.vendors_answer:
            return VendorAnswer(KeyVerdict.UNREACHABLE, "no answer")
        if key.get_secret_value() in self.refused:
            return VendorAnswer(KeyVerdict.REFUSED, "wrong key", 401)
        return VendorAnswer(KeyVerdict.ACCEPTED, "", 200)

    @asynccontextmanager
    async def _close(self, name: str) -> AsyncIterator[None]:
        self.closed.append(name)
        try:
            yield
        finally:
            self.closed.remove(name)

    def _watch(self, sent: Sent) -> None:
        """While a provider has a gap, the gate is closed: no turn of Isabella meets it (fact P7)."""
        if sent.method == "DELETE" and (sent.status or 500) < 300:
            name = self._name_of(sent)
            assert name == PROBE or name in self.closed or name not in self.there, name
        self._check_agents()

    def _check_agents(self) -> None:
        """No agent would carry a key to an address that it is not for, held by a gate or not (fact M6)."""
        for name in self.world.rows():
            wanted = self.desired.get(name)
            for carried in self._carried(name) - self.carried:
                assert wanted is not None
                assert carried == (name, wanted.base_url, _plain(wanted))

    def _carried(self, name: str) -> set[tuple[str, str | None, str]]:
        """What its agents would carry to which addresses: keys only, whatever else stands in the place of one."""
        key = self.world.bearer(name)
        if key is None or key == NO_KEY or key.startswith(PLACEHOLDER):
            return set()
        return {(name, agent.address, key) for agent in self._agents_of(name)}

    def _name_of(self, sent: Sent) -> str:
        if sent.method == "POST":
            return str(sent.body["name"])
        id = sent.path.removeprefix("/v1/providers/")
        if id not in self.names_by_id:
            self.names_by_id |= {row["id"]: name for name, row in self.world.rows().items()}
        return self.names_by_id.get(id, PROBE)

    def _check_writes(self, sent: list[Sent], former: set[tuple[str, str | None, str | None]]) -> None:
        """Only what is declared is written, and only keys of the vendor they go to."""
        for one in sent:
            if not one.writes:
                continue
            name = self._name_of(one)
            assert name in self.desired or name == PROBE, one
            assert one.method != "DELETE" or capabilities_of(self.world.release).recreates, one
            assert one.method != "DELETE" or self.strategy is not Strategy.IN_PLACE, one
            if one.method == "DELETE" or name == PROBE:
                continue
            key, url = one.body["api_key"], one.body["base_url"]
            wanted = self.desired[name]
            assert (
                (url, key) == (wanted.base_url, _plain(wanted))
                or (name, url, key) in former
                or key.startswith(PLACEHOLDER)
                or (url == PLACEHOLDER_URL and key == _plain(wanted))
            ), one

    def _check_report(self, report: Report) -> None:
        """What is called proven is so, and no key is told."""
        rows = self.world.rows()
        for entry in report.configured:
            wanted, row = self.desired[entry.name], rows.get(entry.name)
            if entry.proof is Proof.PROVEN:
                assert row is not None
                assert (row["provider_type"], row["base_url"]) == (wanted.type, wanted.base_url)
                assert self.world.opened(row["api_key_enc"], self.managed) == _plain(wanted)
        told = repr(report.as_json())
        assert not [key for name in NAMES for key in map(_key_of, [name] * 3, range(3)) if key in told]


def _key_of(name: str, number: int) -> str:
    """Every provider has keys of its own, so that one which goes astray is known."""
    return _long(name) if number == 2 else f"{KEYS[number]}-{name}"


def _long(name: str) -> str:
    return KEYS[2][:-1] + name[-1]


def _plain(desired: Desired) -> str:
    assert desired.key is not None
    return desired.key.get_secret_value()


def _is_told(error: IsabellaError) -> None:
    """An error that ends a sync says what happened and what to do."""
    assert error.what
    assert error.remedy


def _is_killing(error: BaseException) -> None:
    """Everything in it comes from the kill, or is an error told while things fell apart."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            _is_killing(one)
    else:
        assert isinstance(error, Killed), error
