"""How providers stand and since when: a fold over reports, with times that the tests make up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from isabella.providers.health import (
    HealthFile,
    HealthState,
    ProviderHealth,
    health_state,
    update_health,
    with_health,
)
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.vendors.client import VendorObservation, VendorState
from tests.support.sample_reports import DRIFTED, FOREIGN, IN_SYNC, MENDED, REFUSED

BAD = VendorState.REFUSES_KEY
START = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def report(*entries: ProviderReport) -> Report:
    """A report with these providers."""
    return Report("http://letta", "0.16.8", list(entries))


def at(minutes: int) -> datetime:
    """So many minutes after the start."""
    return START + timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (IN_SYNC, HealthState.IN_SYNC),
        (MENDED, HealthState.IN_SYNC),
        (DRIFTED, HealthState.DRIFTED),
        (REFUSED, HealthState.REFUSED),
        (replace(REFUSED, proof=Proof.NOT_ASKED), HealthState.REFUSED),
        (replace(MENDED, proof=Proof.UNPROVEN), HealthState.UNPROVEN),
        (replace(DRIFTED, stored=ProviderState.HIDDEN), HealthState.UNPROVEN),
        (replace(MENDED, proof=Proof.FAILED), HealthState.FAILED),
        (replace(REFUSED, refused_by_vendor=False, reason="the key is empty"), HealthState.MISCONFIGURED),
        (replace(DRIFTED, configured=False, action=Action.NONE, stored=ProviderState.ABSENT), HealthState.NO_KEY),
        (FOREIGN, HealthState.FOREIGN),
    ],
)
def test_every_outcome_is_a_condition(entry: ProviderReport, kind: HealthState) -> None:
    """What a run finds and does comes down to one word."""
    assert health_state(entry) is kind


def test_a_look_that_finds_it_as_it_was_changes_nothing() -> None:
    """The time is that of the last change, and so is the reason for being in sync."""
    first = update_health({}, report(MENDED), at(0))
    assert first == {"cerebras": ProviderHealth(HealthState.IN_SYNC, "Letta holds another key", at(0))}
    assert update_health(first, report(IN_SYNC), at(5)) == first
    assert update_health(first, report(DRIFTED), at(5)) == {
        "cerebras": ProviderHealth(HealthState.DRIFTED, DRIFTED.reason, at(5))
    }


def test_what_had_to_be_mended_was_not_in_sync() -> None:
    """Drift that is found and mended in one go is a change, although no report has said `Drifted`."""
    first = update_health({}, report(IN_SYNC), at(0))
    assert update_health(first, report(MENDED), at(5))["cerebras"].since == at(5)


def test_what_is_refused_for_another_reason_is_refused_since_the_same_time() -> None:
    """The reason is today's, the time that of the first refusal."""
    first = update_health({}, report(REFUSED), at(0))
    again = update_health(first, report(replace(REFUSED, reason="refused again")), at(9))
    assert again == {"cerebras": ProviderHealth(HealthState.REFUSED, "refused again", at(0))}
    assert update_health(again, report(MENDED), at(10))["cerebras"] == ProviderHealth(
        HealthState.IN_SYNC, MENDED.reason, at(10)
    )


def test_a_report_on_some_leaves_the_others_as_they_were() -> None:
    """A whole one forgets what is gone."""
    first = update_health({}, report(IN_SYNC, FOREIGN), at(0))
    assert set(update_health(first, report(IN_SYNC), at(1), whole=False)) == {"cerebras", "somebody's"}
    assert set(update_health(first, report(IN_SYNC), at(1))) == {"cerebras"}


def test_who_only_looks_does_not_make_up_a_time() -> None:
    """A drift that is seen for the first time began at a time that nobody knows."""
    first = update_health({}, report(IN_SYNC), at(0))
    now = update_health(first, report(DRIFTED, FOREIGN), at(5))
    shown = with_health(report(DRIFTED, FOREIGN), now, unless=at(5))
    assert [(entry.condition, entry.since) for entry in shown.providers] == [("Drifted", None), ("Foreign", None)]
    told = with_health(report(IN_SYNC), first, unless=at(5)).as_json()["providers"][0]
    assert (told["condition"], told["since"]) == ("InSync", "2026-11-22T03:00:00+00:00")


#: What a sync has found, and what a look finds of the same configuration and the same Letta.
OUTCOMES = {
    "refused": replace(
        REFUSED, basis="b", remedy="Another key.", vendor_status=VendorObservation(BAD, "401: no", START)
    ),
    "failed": replace(MENDED, basis="b", proof=Proof.FAILED, reason="Letta is full", remedy="Sync again."),
    "unproven": replace(MENDED, basis="b", proof=Proof.UNPROVEN, reason="not to be read back"),
    "misconfigured": replace(REFUSED, basis="b", refused_by_vendor=False, reason="Letta refuses it"),
}
LOOKED = replace(DRIFTED, basis="b")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_how_a_sync_went_stays_while_nothing_changes(outcome: str, tmp_path: Path) -> None:
    """A look tells it as the sync has told it, in whichever process, but for what would be done."""
    synced = report(OUTCOMES[outcome])
    first = update_health({}, synced, at(0))
    health_file = HealthFile(tmp_path, "http://letta")
    health_file.write(first)
    again = update_health(health_file.read(), report(LOOKED), at(5), read_only=True)
    assert again == first
    (told,) = with_health(synced, first).providers
    (seen,) = with_health(report(LOOKED), again, unless=at(5)).providers
    assert seen == replace(told, action=LOOKED.action)


@pytest.mark.parametrize(
    "entry",
    [
        replace(LOOKED, basis="another"),
        replace(LOOKED, vendor_status=VendorObservation(VendorState.ANSWERS, "it accepts the key", at(5))),
    ],
    ids=["the configuration or Letta", "the vendor"],
)
def test_how_a_sync_went_is_past_when_something_changes(entry: ProviderReport) -> None:
    """What is configured, what Letta holds, or what the vendor says is another thing now."""
    first = update_health({}, report(OUTCOMES["refused"]), at(0))
    again = update_health(first, report(entry), at(5), read_only=True)
    assert again == {"cerebras": ProviderHealth(HealthState.DRIFTED, entry.reason, at(5))}
    mended = update_health(first, report(IN_SYNC), at(5), read_only=True)["cerebras"]
    assert (mended.condition, mended.basis) == (HealthState.IN_SYNC, None)


def test_the_ledger_keeps_them_and_is_never_in_the_way(tmp_path: Path) -> None:
    """What was written is read; a damaged or missing file is none; another Letta has another."""
    health_file = HealthFile(tmp_path, "http://letta")
    assert health_file.read() == {}
    conditions = update_health({}, report(IN_SYNC, FOREIGN), at(0))
    health_file.write(conditions)
    assert health_file.read() == conditions
    assert HealthFile(tmp_path, "http://another").read() == {}
    (file,) = (tmp_path / "conditions").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    for damaged in ("", "[]", '{"providers": {"a": {}}}', '{"providers": {"a": {"condition": "Odd"}}}'):
        file.write_text(damaged)
        assert health_file.read() == {}
    unusable = tmp_path / "file"
    unusable.write_text("")
    HealthFile(unusable, "http://letta").write(conditions)


def test_a_later_report_on_some_takes_its_place_in_the_whole() -> None:
    """Those it is about are replaced where they stand; new ones come before those that nobody declared."""
    fresh = replace(IN_SYNC, name="mistral")
    merged = report(IN_SYNC, FOREIGN).merged_with(report(REFUSED, fresh))
    assert [entry.name for entry in merged.providers] == ["cerebras", "mistral", "somebody's"]
    assert merged.providers[0] is REFUSED
