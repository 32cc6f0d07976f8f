"""Of two facts about each provider, the stored key and the vendor, the worse one leads."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from isabella.providers.health import Level, headline, with_vendor_status
from isabella.providers.plan import Action
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.server.readiness import Phase, Readiness
from isabella.turns.events import ErrorCode
from isabella.turns.stream import VendorRefusal
from isabella.vendors.client import KeyVerdict, VendorAnswer, VendorObservation, VendorState, VendorStatusBoard
from isabella.watch.model_refresh import ModelRefresh, ProviderModels
from tests.support.sample_reports import DRIFTED, FOREIGN, IN_SYNC, MENDED, REFUSED

START = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
GOOD = IN_SYNC
UNPROVEN = replace(MENDED, proof=Proof.UNPROVEN)
LEVELS = {GOOD: Level.OK, DRIFTED: Level.PROBLEM, REFUSED: Level.PROBLEM, UNPROVEN: Level.WARNING}
STATES = {
    VendorState.ANSWERS: Level.OK,
    VendorState.NOT_ASKED: Level.UNKNOWN,
    VendorState.REFUSES: Level.WARNING,
    VendorState.REFUSES_KEY: Level.PROBLEM,
    VendorState.FAILS: Level.PROBLEM,
    VendorState.UNREACHABLE: Level.PROBLEM,
}


def at(minutes: int) -> datetime:
    """So many minutes after the start."""
    return START + timedelta(minutes=minutes)


def seen(state: VendorState, minutes: int = 0) -> VendorObservation:
    """A vendor that was seen so."""
    return VendorObservation(state, f"it {state.value}", at(minutes))


def report(*entries: ProviderReport) -> Report:
    """A report with these providers."""
    return Report("http://letta", "0.16.8", list(entries))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("entry", LEVELS, ids=lambda entry: entry.reason[:20])
def test_the_worse_fact_leads(entry: ProviderReport, state: VendorState) -> None:
    """Whatever the stored key and the vendor are, the headline is as bad as the worse of them, and names it."""
    lead = headline(report(replace(entry, vendor_status=seen(state)), FOREIGN))
    assert lead.level is max(LEVELS[entry], STATES[state])
    assert (lead.title == "Everything is in order.") is (lead.level is Level.OK)
    if lead.level > Level.UNKNOWN:
        assert lead.title == "1 of 1 providers is not in order."
        assert "cerebras" in lead.text


def test_a_vendor_that_refuses_comes_before_a_key_that_differs() -> None:
    """Of two problems of one level, the one that no sync repairs leads; each has its time and its own next step."""
    refused = replace(GOOD, name="byok-groq", key_source="GROQ_API_KEY (.env)")
    refused = replace(refused, vendor_status=seen(VendorState.REFUSES_KEY, 5))
    lead = headline(report(DRIFTED, refused))
    assert lead.title == "2 of 2 providers are not in order."
    assert lead.text.index("byok-groq: the vendor refuses the key") < lead.text.index("cerebras: Letta does not hold")
    assert (lead.seen, lead.remedy) == (at(5), "Replace GROQ_API_KEY (.env); a new key takes effect at once.")
    lead = headline(report(DRIFTED, replace(refused, vendor_status=seen(VendorState.REFUSES, 5))))
    assert lead.text.startswith("cerebras: Letta does not hold")
    assert lead.seen is None
    assert "isabella providers sync" in lead.remedy


def test_what_is_fine_needs_nothing_and_what_is_not_known_can_be_asked() -> None:
    """There is a next step for everything but good news."""
    assert headline(report(replace(GOOD, vendor_status=seen(VendorState.ANSWERS)))).remedy == ""
    assert "isabella providers verify" in headline(report(GOOD)).remedy
    for state in STATES:
        lead = headline(report(replace(GOOD, vendor_status=seen(state))))
        assert bool(lead.remedy) is (lead.level is not Level.OK)
        assert "{" not in lead.remedy


def test_a_vendor_that_nobody_has_asked_is_not_in_order() -> None:
    """A proven key says nothing of the vendor: the headline does not say that everything is in order."""
    for status in (None, seen(VendorState.NOT_ASKED)):
        lead = headline(report(replace(GOOD, vendor_status=status)))
        assert (lead.level, lead.title) == (Level.UNKNOWN, "The stored key is proven.")
        assert "cerebras" in lead.text


def test_without_providers_nothing_is_in_order() -> None:
    """Providers that nobody declared are no reason to say that all is well."""
    assert headline(report(FOREIGN)).title == "No provider is configured."


def test_an_observation_comes_in_by_one_way_and_the_latest_counts() -> None:
    """What was seen earlier does not replace what was seen later, and only a change is told."""
    rung: list[int] = []
    statuses = VendorStatusBoard(lambda: at(0))
    statuses.changed = lambda: rung.append(1)
    assert statuses.of("cerebras") == VendorObservation(
        VendorState.NOT_ASKED, "not asked since the backend was started", at(0)
    )
    statuses.observe("cerebras", VendorState.REFUSES_KEY, "401: no", at(2))
    statuses.observe("cerebras", VendorState.REFUSES_KEY, "401: no", at(2))
    statuses.observe("cerebras", VendorState.ANSWERS, "it answered", at(1))
    assert statuses.of("cerebras") == VendorObservation(VendorState.REFUSES_KEY, "401: no", at(2))
    assert len(rung) == 1


def test_a_list_of_models_does_not_make_up_for_a_refused_message() -> None:
    """A vendor lists its models for a key without funds, too; it makes up for a list that did not come."""
    statuses = VendorStatusBoard(lambda: at(0))
    statuses.observe("cerebras", VendorState.UNREACHABLE, "no list", at(1), listing=True)
    statuses.observe("cerebras", VendorState.ANSWERS, "a list", at(2), listing=True)
    assert statuses.of("cerebras").state is VendorState.ANSWERS
    statuses.observe("cerebras", VendorState.REFUSES, "402: no funds", at(3))
    statuses.observe("cerebras", VendorState.UNREACHABLE, "no list", at(4), listing=True)
    statuses.observe("cerebras", VendorState.ANSWERS, "a list", at(4), listing=True)
    assert statuses.of("cerebras").state is VendorState.REFUSES
    statuses.observe("cerebras", VendorState.ANSWERS, "it answered", at(5))
    assert statuses.of("cerebras").state is VendorState.ANSWERS


def test_a_stored_key_that_works_makes_a_refused_one_no_better() -> None:
    """Turns go on with the stored key; the configured one is refused until another sync says otherwise."""
    refused = replace(REFUSED, vendor_status=seen(VendorState.REFUSES_KEY, 1))
    (entry,) = with_vendor_status(report(refused), {"cerebras": seen(VendorState.ANSWERS, 2)}.get).providers
    assert entry == refused
    (entry,) = with_vendor_status(report(GOOD), {"cerebras": seen(VendorState.ANSWERS, 2)}.get).providers
    assert entry.vendor_status == seen(VendorState.ANSWERS, 2)


@pytest.mark.parametrize("code", ErrorCode)
def test_what_a_turn_shows_of_the_vendor(code: ErrorCode) -> None:
    """What is about the vendor is seen as what it is; what is about the request, the agent or Letta says nothing."""
    expected = {
        ErrorCode.KEY_REFUSED: VendorState.REFUSES_KEY,
        ErrorCode.OUT_OF_FUNDS: VendorState.REFUSES,
        ErrorCode.FORBIDDEN: VendorState.REFUSES,
        ErrorCode.RATE_LIMITED: VendorState.REFUSES,
        ErrorCode.VENDOR_FAILING: VendorState.FAILS,
        ErrorCode.VENDOR_GARBLED: VendorState.FAILS,
        ErrorCode.EMPTY_ANSWER: VendorState.FAILS,
        ErrorCode.VENDOR_SILENT: VendorState.UNREACHABLE,
        ErrorCode.VENDOR_UNREACHABLE: VendorState.UNREACHABLE,
    }
    assert VendorRefusal(code, "said").vendor is expected.get(code)


def test_readiness_tells_the_worse_fact() -> None:
    """A backend whose keys are proven is degraded where a vendor refuses, says why, and goes on serving."""
    readiness = Readiness()
    readiness.record(report(GOOD))
    assert (readiness.status, readiness.reasons) == (Phase.READY, [])
    readiness.vendors.observe("cerebras", VendorState.REFUSES_KEY, "401: no")
    assert (readiness.phase, readiness.status, readiness.serving) == (Phase.READY, Phase.DEGRADED, True)
    assert readiness.reasons == ["cerebras: the vendor refuses the key (401: no)."]
    readiness.vendors.observe("cerebras", VendorState.ANSWERS, "it answered")
    assert (readiness.status, readiness.reasons) == (Phase.READY, [])


def test_another_key_makes_what_was_seen_of_the_former_one_void() -> None:
    """After a write without the vendor's word nothing is known, neither good nor bad; with it, that is known."""
    readiness = Readiness()
    readiness.vendors.observe("cerebras", VendorState.REFUSES_KEY, "401: no")
    readiness.record(report(replace(MENDED, action=Action.UPDATE)))
    assert readiness.vendors.of("cerebras").state is VendorState.NOT_ASKED
    answered = VendorAnswer(KeyVerdict.ACCEPTED, "4 models", 200).vendor_status
    readiness.record(report(replace(MENDED, vendor_status=answered)))
    assert readiness.vendors.of("cerebras") == answered


def test_a_later_part_does_not_void_what_was_seen_since() -> None:
    """What an earlier sync has written is in the report still; only what this one has done counts."""
    readiness, other = Readiness(), replace(GOOD, name="byok-groq")
    readiness.record(report(MENDED, other))
    readiness.vendors.observe("cerebras", VendorState.ANSWERS, "it answered")
    readiness.record(report(MENDED, other), report(other))
    assert readiness.vendors.of("cerebras").state is VendorState.ANSWERS


def test_a_refused_key_that_is_not_stored_says_nothing_of_the_stored_one() -> None:
    """The sync's own report tells it; when the former key is configured again, nothing of it is left."""
    readiness = Readiness()
    readiness.record(report(replace(REFUSED, vendor_status=seen(VendorState.REFUSES_KEY))))
    assert headline(readiness.with_vendors(readiness.report or report())).level is Level.PROBLEM
    readiness.record(report(GOOD))
    assert readiness.vendors.of("cerebras").state is VendorState.NOT_ASKED


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (KeyVerdict.ACCEPTED, VendorState.ANSWERS),
        (KeyVerdict.REFUSED, VendorState.REFUSES_KEY),
        (KeyVerdict.OUT_OF_FUNDS, VendorState.REFUSES),
        (KeyVerdict.RATE_LIMITED, VendorState.REFUSES),
        (KeyVerdict.FAILING, VendorState.FAILS),
        (KeyVerdict.UNREACHABLE, VendorState.UNREACHABLE),
        # Many vendors have no list of models, and answer agents.
        (KeyVerdict.WRONG_ADDRESS, VendorState.NOT_ASKED),
    ],
)
def test_a_refresh_of_the_models_tells_of_the_vendor(verdict: KeyVerdict, state: VendorState) -> None:
    """The nightly refresh asks with the configured key, which says something only where Letta holds it."""
    model_refresh = ModelRefresh(at(0), (ProviderModels("cerebras", answer=VendorAnswer(verdict, "said", 200)),))
    readiness = Readiness()
    readiness.record(report(GOOD))
    readiness.record_model_refresh(model_refresh)
    assert readiness.vendors.of("cerebras").state is state
    elsewhere = Readiness()
    elsewhere.record(report(DRIFTED))
    elsewhere.record_model_refresh(model_refresh)
    assert elsewhere.vendors.of("cerebras").state is VendorState.NOT_ASKED
