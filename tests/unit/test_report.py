"""Reports: what they say as a whole, and the JSON form that programs rely on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from isabella.cli.tables import report_table, show_report
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Receipt, Report
from isabella.server.api.status import Provider
from isabella.system.terminal import console
from tests.support.sample_reports import DRIFTED, FOREIGN, IN_SYNC, REFUSED

ENTRY = replace(IN_SYNC, models=3)
NO_KEY = replace(
    ENTRY,
    key=None,
    stored=ProviderState.ABSENT,
    action=Action.NONE,
    proof=Proof.NOT_ASKED,
    in_letta=False,
    configured=False,
)
HELPED = replace(REFUSED, remedy="Put a valid key there.")

#: The promise of the interface; other fields may be added.
FIELDS = {
    "name",
    "vendor",
    "type",
    "base_url",
    "key",
    "key_source",
    "stored",
    "action",
    "proof",
    "models",
    "reason",
}


def report(*entries: ProviderReport) -> Report:
    """A report about a Letta."""
    return Report("http://127.0.0.1:8283", "0.16.8", entries)


def test_json_has_what_was_promised() -> None:
    """One object: `letta` with address and version, `providers` with the promised fields; texts and a number."""
    document = json.loads(json.dumps(report(ENTRY, FOREIGN).as_json()))
    assert document["letta"] == {"base_url": "http://127.0.0.1:8283", "version": "0.16.8"}
    for entry in document["providers"]:
        assert set(entry) >= FIELDS
        assert "receipt" not in entry
    first = document["providers"][0]
    assert {name: first[name] for name in FIELDS} == {
        "name": "cerebras",
        "vendor": "cerebras",
        "type": "cerebras",
        "base_url": "https://api.cerebras.ai/v1",
        "key": "csk-…0001",
        "key_source": "CEREBRAS_API_KEY (.env)",
        "stored": "in_sync",
        "action": "keep",
        "proof": "proven",
        "models": 3,
        "reason": "read back and equal",
    }


def test_receipts_appear_where_they_were_asked_for() -> None:
    """`verify` adds `receipt`; the other commands do not have it."""
    assert replace(ENTRY, receipt=Receipt.ACCEPTED).as_json()["receipt"] == "accepted"
    assert "receipt" not in ENTRY.as_json()


def test_the_words_are_those_that_were_promised() -> None:
    """States, actions, proofs and receipts have exactly the promised values."""
    assert {state.value for state in ProviderState} == {
        "in_sync",
        "stale",
        "absent",
        "unreadable",
        "plaintext",
        "mistyped",
        "moved",
        "foreign",
        "hidden",
    }
    assert {action.value for action in Action} == {"keep", "update", "recreate", "create", "refuse", "none"}
    assert {proof.value for proof in Proof} == {"proven", "unproven", "failed", "not_asked"}
    assert {receipt.value for receipt in Receipt} == {"accepted", "refused", "failed"}


@pytest.mark.parametrize("state", ProviderState)
@pytest.mark.parametrize("action", Action)
def test_the_http_api_takes_whatever_a_report_says(state: ProviderState, action: Action) -> None:
    """Every state and action passes through the model of the HTTP API."""
    entry = replace(ENTRY, stored=state, action=action).as_json()
    assert TypeAdapter(Provider).validate_python(entry).stored == state.value


@pytest.mark.parametrize(
    ("entries", "proven", "in_sync", "pending"),
    [
        ((), True, True, False),
        ((ENTRY,), True, True, False),
        ((ENTRY, FOREIGN, NO_KEY), True, True, False),
        ((FOREIGN, NO_KEY), True, True, False),
        ((ENTRY, DRIFTED), False, False, True),
        ((ENTRY, REFUSED), False, False, True),
        ((replace(DRIFTED, proof=Proof.PROVEN),), True, False, True),
        ((replace(ENTRY, proof=Proof.UNPROVEN),), False, True, False),
    ],
)
def test_as_a_whole(entries: tuple[ProviderReport, ...], proven: bool, in_sync: bool, pending: bool) -> None:
    """Only what the configuration wants counts: foreign providers and vendors without a key neither help nor harm."""
    whole = report(*entries)
    assert (whole.all_proven, whole.in_sync, whole.pending) == (proven, in_sync, pending)


def test_all_accepted_wants_a_receipt_of_each() -> None:
    """A provider without a receipt is not accepted."""
    accepted = replace(ENTRY, receipt=Receipt.ACCEPTED)
    assert report(accepted, NO_KEY).all_accepted
    assert not report(accepted, ENTRY).all_accepted
    assert not report(replace(ENTRY, receipt=Receipt.REFUSED)).all_accepted


@pytest.mark.parametrize("receipt", [None, *Receipt])
def test_the_table_has_a_row_for_each_and_what_it_says(receipt: Receipt | None) -> None:
    """Provider, type, stored, action, proof, receipt where asked for, and reason stand in the table."""
    out = console()
    with out.capture() as captured:
        out.print(report_table(report(replace(DRIFTED, receipt=receipt), replace(FOREIGN, receipt=None)), 200))
    text = captured.get()
    for word in (
        "cerebras",
        "csk-…0001",
        "stale",
        "update",
        "read back and equal",
        "somebody's",
        "foreign",
        "0.16.8",
    ):
        assert word in text
    assert ("receipt" in text) == (receipt is not None)
    assert "\x1b" not in text


def test_remedies_notes_and_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Remedies stand below the table; notes and warnings go to standard error."""
    entry = replace(HELPED, notes=("CEREBRAS_API_KEY: surrounding quotes were removed",))
    show_report(replace(report(entry), notices=("GROQ_API_KEY is set twice.",)))
    out, err = capsys.readouterr()
    assert "cerebras: Put a valid key there." in out
    assert "surrounding quotes" in err
    assert "warning: GROQ_API_KEY is set twice." in err
    assert "surrounding quotes" not in out


def test_markup_in_what_others_say_is_shown_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets in a name or a reason are no markup."""
    show_report(report(replace(FOREIGN, name="[bold]odd[/bold]", reason="[red]said[/nonsense]")))
    out, _ = capsys.readouterr()
    assert "[bold]odd[/bold]" in out
    assert "[red]said[/nonsense]" in out


def test_without_any_key_the_next_step_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty configuration is told what to put where."""
    show_report(report(NO_KEY))
    assert "Put one into .env" in capsys.readouterr().out
