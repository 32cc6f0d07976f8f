"""The plan: a pure function of desired, stored, strategy and abilities, tested in every combination."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from isabella.config.choices import Strategy
from isabella.config.vendors import known_vendors
from isabella.letta.encryption import KeyMatch, KeyReading
from isabella.letta.releases import Capabilities
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Desired
from isabella.providers.plan import Action, PlannedChange, ProviderState, plan, state_of

VENDOR = known_vendors()[0]
KEY = SecretStr("csk-canary-plan-0001")
OLD = SecretStr("csk-canary-plan-0000")

WANTED = Desired(VENDOR, "cerebras", "cerebras", "http://a/v1", KEY, "CEREBRAS_API_KEY (.env)")
NO_KEY = replace(WANTED, key=None, key_source="CEREBRAS_API_KEY is not set")
PROBLEM = replace(WANTED, key=None, problem="CEREBRAS_API_KEY cannot be used: it is empty", remedy="Put one there.")
MOVED_PROBLEM = replace(WANTED, problem="CEREBRAS_BASE_URL cannot be used: no address")

ROW = StoredProvider("provider-1", "cerebras", "cerebras", "http://a/v1", "text")
NEW_RELEASE = Capabilities("0.16.8", known=True, recreates=True)
OLD_RELEASE = Capabilities("0.16.1", known=True, recreates=False)
UNKNOWN_RELEASE = Capabilities("0.40.0", known=False, recreates=False)

#: A record and its reading, for each state in which Letta can be found, with a master key configured.
FOUND: dict[ProviderState, tuple[StoredProvider | None, KeyReading | None]] = {
    ProviderState.ABSENT: (None, None),
    ProviderState.IN_SYNC: (ROW, KeyReading(KeyMatch.EQUAL, sealed=True, key=KEY)),
    ProviderState.STALE: (ROW, KeyReading(KeyMatch.DIFFERENT, sealed=True, key=OLD)),
    ProviderState.UNREADABLE: (ROW, KeyReading(KeyMatch.UNREADABLE, sealed=True)),
    ProviderState.PLAINTEXT: (ROW, KeyReading(KeyMatch.EQUAL, sealed=False, key=KEY)),
    ProviderState.MISTYPED: (replace(ROW, type="openai"), KeyReading(KeyMatch.EQUAL, sealed=True, key=KEY)),
    ProviderState.MOVED: (replace(ROW, base_url="http://b/v1"), KeyReading(KeyMatch.EQUAL, sealed=True, key=KEY)),
    ProviderState.HIDDEN: (ROW, KeyReading(KeyMatch.HIDDEN)),
}

KEEP, UPDATE, RECREATE, CREATE, REFUSE = (
    Action.KEEP,
    Action.UPDATE,
    Action.RECREATE,
    Action.CREATE,
    Action.REFUSE,
)
#: What is to be done: state -> auto, recreate, in-place on a release that recreates; the same on one that cannot.
TABLE: dict[ProviderState, tuple[tuple[Action, Action, Action], tuple[Action, Action, Action]]] = {
    ProviderState.ABSENT: ((CREATE, CREATE, CREATE), (CREATE, CREATE, CREATE)),
    ProviderState.IN_SYNC: ((KEEP, RECREATE, KEEP), (KEEP, KEEP, KEEP)),
    ProviderState.STALE: ((UPDATE, RECREATE, UPDATE), (UPDATE, UPDATE, UPDATE)),
    ProviderState.PLAINTEXT: ((UPDATE, RECREATE, UPDATE), (UPDATE, UPDATE, UPDATE)),
    ProviderState.MOVED: ((UPDATE, RECREATE, UPDATE), (UPDATE, UPDATE, UPDATE)),
    ProviderState.HIDDEN: ((UPDATE, RECREATE, UPDATE), (UPDATE, UPDATE, UPDATE)),
    ProviderState.UNREADABLE: ((RECREATE, RECREATE, UPDATE), (UPDATE, UPDATE, UPDATE)),
    ProviderState.MISTYPED: ((RECREATE, RECREATE, REFUSE), (REFUSE, REFUSE, REFUSE)),
}
STRATEGIES = (Strategy.AUTO, Strategy.RECREATE, Strategy.IN_PLACE)


def planned(
    desired: Desired,
    found: tuple[StoredProvider | None, KeyReading | None],
    strategy: Strategy,
    abilities: Capabilities = NEW_RELEASE,
    *,
    sealing: bool = True,
) -> PlannedChange:
    """The plan for a record as it was found."""
    return plan(desired, *found, strategy=strategy, abilities=abilities, sealing=sealing)


def test_the_table_has_every_state_that_can_be_found() -> None:
    """No state is left out of these tests; foreign is what nobody declared, and never planned."""
    assert set(TABLE) == set(FOUND) == set(ProviderState) - {ProviderState.FOREIGN}


@pytest.mark.parametrize("state", TABLE)
def test_each_state_is_recognised(state: ProviderState) -> None:
    """What Letta holds is called by its name."""
    assert state_of(WANTED, *FOUND[state], sealing=True) is state


@pytest.mark.parametrize(
    ("state", "strategy", "abilities"),
    [*itertools.product(TABLE, STRATEGIES, [NEW_RELEASE, OLD_RELEASE, UNKNOWN_RELEASE])],
)
def test_each_combination_has_its_action(state: ProviderState, strategy: Strategy, abilities: Capabilities) -> None:
    """State, strategy and release decide what is done, as the table above says."""
    change = planned(WANTED, FOUND[state], strategy, abilities)
    assert change.action is TABLE[state][not abilities.recreates][STRATEGIES.index(strategy)]
    assert change.state is state
    assert change.reason
    assert (change.remedy is not None) == (change.action is Action.REFUSE)


@pytest.mark.parametrize("state", TABLE)
def test_without_a_master_key_plaintext_is_in_sync(state: ProviderState) -> None:
    """Where nothing is to be sealed, the right key in plaintext is as it should be."""
    expected = ProviderState.IN_SYNC if state is ProviderState.PLAINTEXT else state
    assert state_of(WANTED, *FOUND[state], sealing=False) is expected


@pytest.mark.parametrize(
    ("stored", "reading", "state"),
    [
        (
            replace(ROW, type="openai", base_url="http://b/v1"),
            KeyReading(KeyMatch.DIFFERENT, sealed=True),
            ProviderState.MISTYPED,
        ),
        (replace(ROW, type="openai"), KeyReading(KeyMatch.UNREADABLE, sealed=True), ProviderState.MISTYPED),
        (
            replace(ROW, base_url="http://b/v1"),
            KeyReading(KeyMatch.UNREADABLE, sealed=True),
            ProviderState.UNREADABLE,
        ),
        (replace(ROW, base_url="http://b/v1"), KeyReading(KeyMatch.DIFFERENT, sealed=True), ProviderState.STALE),
        (replace(ROW, base_url="http://b/v1"), KeyReading(KeyMatch.EQUAL, sealed=False), ProviderState.PLAINTEXT),
        (ROW, KeyReading(KeyMatch.DIFFERENT, sealed=False), ProviderState.STALE),
        (ROW, KeyReading(KeyMatch.NOTHING), ProviderState.STALE),
        (replace(ROW, base_url=None), KeyReading(KeyMatch.EQUAL, sealed=True), ProviderState.MOVED),
    ],
)
def test_of_several_differences_the_hardest_counts(
    stored: StoredProvider, reading: KeyReading, state: ProviderState
) -> None:
    """A record that differs in more than one way is called by the difference that is hardest to mend."""
    assert state_of(WANTED, stored, reading, sealing=True) is state


def test_no_key_in_letta_is_told_apart_from_another_key() -> None:
    """An empty row is stale, too, but the reason says that there is no key in it."""
    empty = planned(WANTED, (ROW, KeyReading(KeyMatch.NOTHING)), Strategy.AUTO)
    stale = planned(WANTED, FOUND[ProviderState.STALE], Strategy.AUTO)
    assert empty.reason.startswith("Letta holds no key")
    assert stale.reason == "Letta holds another key"


@pytest.mark.parametrize(
    ("state", "strategy", "ask"),
    [
        (ProviderState.ABSENT, Strategy.AUTO, True),
        (ProviderState.STALE, Strategy.AUTO, True),
        (ProviderState.HIDDEN, Strategy.AUTO, True),
        (ProviderState.UNREADABLE, Strategy.AUTO, True),
        (ProviderState.IN_SYNC, Strategy.AUTO, False),
        (ProviderState.IN_SYNC, Strategy.RECREATE, False),
        (ProviderState.PLAINTEXT, Strategy.AUTO, False),
        (ProviderState.MOVED, Strategy.AUTO, False),
        (ProviderState.MISTYPED, Strategy.AUTO, False),
        (ProviderState.MISTYPED, Strategy.IN_PLACE, False),
    ],
)
def test_the_vendor_is_asked_about_keys_that_letta_does_not_hold(
    state: ProviderState, strategy: Strategy, ask: bool
) -> None:
    """A key that Letta holds already is not asked about again, and none where nothing is written."""
    assert planned(WANTED, FOUND[state], strategy).ask_vendor is ask


def test_an_unknown_release_is_told_as_such() -> None:
    """Where nothing is deleted because the release was not measured, the reason says so, not that it cannot."""
    unknown = planned(WANTED, FOUND[ProviderState.MISTYPED], Strategy.AUTO, UNKNOWN_RELEASE)
    old = planned(WANTED, FOUND[ProviderState.MISTYPED], Strategy.AUTO, OLD_RELEASE)
    assert "not a supported release" in unknown.reason
    assert "cannot recreate" in old.reason


def test_a_refusal_in_place_names_the_way_out() -> None:
    """Who wants no DELETE is told the command that would allow it, for this provider alone."""
    change = planned(WANTED, FOUND[ProviderState.MISTYPED], Strategy.IN_PLACE)
    assert change.remedy is not None
    assert "--only cerebras --strategy auto" in change.remedy


@pytest.mark.parametrize("stored", [None, ROW])
def test_a_vendor_without_a_key_is_left_alone(stored: StoredProvider | None) -> None:
    """Without a key nothing is done, not even about a record of that name, and the reason says which variable."""
    change = planned(NO_KEY, (stored, None), Strategy.RECREATE)
    assert change.action is Action.NONE
    assert "CEREBRAS_API_KEY is not set" in change.reason
    assert ("left unchanged" in change.reason) == (stored is not None)


MATCHES = st.builds(KeyReading, st.sampled_from(KeyMatch), st.booleans(), st.sampled_from([None, KEY, OLD]))
RECORDS = st.builds(
    StoredProvider,
    st.just("provider-1"),
    st.just("cerebras"),
    st.sampled_from(["cerebras", "openai", "groq"]),
    st.sampled_from([None, "http://a/v1", "http://b/v1"]),
    st.sampled_from([None, "", "text"]),
    st.booleans(),
    st.booleans(),
)
FOUND_ANYHOW = st.one_of(st.just((None, None)), st.tuples(RECORDS, MATCHES))


@pytest.mark.parametrize("state", [ProviderState.ABSENT, ProviderState.STALE, ProviderState.IN_SYNC])
def test_a_key_that_letta_would_take_for_a_sealed_one_is_refused(state: ProviderState) -> None:
    """Up to 0.16.6 a long key is never used where no master key is set, whatever is stored (O7)."""
    long = replace(WANTED, key=SecretStr("5eed" * 16))
    old = Capabilities("0.16.6", mistakes_long_keys=True)
    refused = planned(long, FOUND[state], Strategy.AUTO, old, sealing=False)
    assert refused.action is Action.REFUSE
    assert refused.remedy is not None
    assert "LETTA_ENCRYPTION_KEY" in refused.remedy
    assert planned(long, FOUND[state], Strategy.AUTO, old).action is not Action.REFUSE
    assert planned(long, FOUND[state], Strategy.AUTO, NEW_RELEASE, sealing=False).action is not Action.REFUSE


RELEASES = st.sampled_from([NEW_RELEASE, OLD_RELEASE, UNKNOWN_RELEASE])
WRITES = (Action.CREATE, Action.UPDATE, Action.RECREATE)


@given(FOUND_ANYHOW, st.sampled_from(Strategy), RELEASES, st.booleans())
def test_nothing_is_deleted_where_it_cannot_come_back(
    found: tuple[StoredProvider | None, KeyReading | None], strategy: Strategy, abilities: Capabilities, sealing: bool
) -> None:
    """No DELETE on a release that cannot recreate, and none with strategy in-place, whatever is found."""
    change = planned(WANTED, found, strategy, abilities, sealing=sealing)
    if not abilities.recreates or strategy is Strategy.IN_PLACE:
        assert change.action is not Action.RECREATE


@given(FOUND_ANYHOW, st.sampled_from(Strategy), RELEASES, st.booleans())
def test_kept_is_only_what_is_in_sync(
    found: tuple[StoredProvider | None, KeyReading | None], strategy: Strategy, abilities: Capabilities, sealing: bool
) -> None:
    """Keep means: type, base URL and key equal, and sealed where a master key is set; auto keeps exactly that."""
    stored, reading = found
    change = planned(WANTED, found, strategy, abilities, sealing=sealing)
    right = (
        stored is not None
        and reading is not None
        and reading.match is KeyMatch.EQUAL
        and (reading.sealed or not sealing)
        and (stored.type, stored.base_url) == (WANTED.type, WANTED.base_url)
    )
    assert right == (change.state is ProviderState.IN_SYNC)
    if change.action is Action.KEEP:
        assert right
    if strategy is not Strategy.RECREATE:
        assert right == (change.action is Action.KEEP)


@given(
    st.sampled_from([NO_KEY, PROBLEM, MOVED_PROBLEM]),
    FOUND_ANYHOW,
    st.sampled_from(Strategy),
    RELEASES,
    st.booleans(),
)
def test_nothing_is_written_for_a_vendor_without_a_usable_key(
    desired: Desired,
    found: tuple[StoredProvider | None, KeyReading | None],
    strategy: Strategy,
    abilities: Capabilities,
    sealing: bool,
) -> None:
    """No key, or a problem with it: whatever Letta holds, it stays, and no vendor is asked."""
    change = planned(desired, found, strategy, abilities, sealing=sealing)
    assert change.action is (Action.REFUSE if desired.problem else Action.NONE)
    assert not change.ask_vendor
    assert change.remedy == desired.remedy


@given(FOUND_ANYHOW, st.sampled_from(Strategy), RELEASES, st.booleans())
def test_a_plan_is_whole(
    found: tuple[StoredProvider | None, KeyReading | None], strategy: Strategy, abilities: Capabilities, sealing: bool
) -> None:
    """Every plan has a reason without a key in it; create means absent, the others mean present."""
    change = planned(WANTED, found, strategy, abilities, sealing=sealing)
    assert change.reason
    assert "canary" not in change.reason + (change.remedy or "")
    assert "canary" not in repr(change)
    assert (change.action is Action.CREATE) == (found[0] is None)
    assert change == planned(WANTED, found, strategy, abilities, sealing=sealing)
