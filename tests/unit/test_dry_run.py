"""The outcome for a new key, by the answers of the vendor to it and to the stored one; and the model refresh."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import anyio
import pytest
from pydantic import SecretStr

from isabella.config.vendors import known_vendors
from isabella.letta.encryption import KeyMatch, KeyReading
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Desired
from isabella.providers.plan import Action, PlannedChange, ProviderState
from isabella.providers.report import Report
from isabella.providers.sync import predict_sync
from isabella.server.api.status import LostModel
from isabella.server.readiness import Readiness
from isabella.vendors.client import KeyVerdict, VendorAnswer, accepted_answer
from isabella.vendors.model_lists import ListedModel
from isabella.watch.events import ModelsRefreshed, log_sentences
from isabella.watch.model_refresh import BoundAgent, ModelRefresh, ProviderModels, compare_models
from tests.support.sample_reports import IN_SYNC

NEW, OLD = SecretStr("csk-canary-rotation-0001"), SecretStr("csk-canary-rotation-0000")
DESIRED = Desired(known_vendors()[0], "cerebras", "cerebras", "http://a/v1", NEW, "CEREBRAS_API_KEY (.env)")
ROW = StoredProvider("provider-1", "cerebras", "cerebras", "http://a/v1", "text")
CHANGE = PlannedChange(
    DESIRED,
    ROW,
    KeyReading(KeyMatch.DIFFERENT, sealed=True, key=OLD),
    ProviderState.STALE,
    Action.UPDATE,
    "Letta holds another key",
    ask_vendor=True,
)
ACCEPTED, REFUSED = (
    VendorAnswer(KeyVerdict.ACCEPTED, "ok", 200),
    VendorAnswer(KeyVerdict.REFUSED, "Wrong API Key", 401),
)
SILENT = VendorAnswer(KeyVerdict.UNREACHABLE, "no answer within 10 s")


def rehearsed(
    change: PlannedChange, new: VendorAnswer, old: VendorAnswer = ACCEPTED
) -> tuple[PlannedChange, list[str]]:
    """What a rehearsal makes of a change, and the keys that were asked about."""
    asked: list[str] = []

    async def ask(base_url: str, key: SecretStr) -> VendorAnswer:
        asked.append(key.get_secret_value())
        return new if key == NEW else old

    (result,) = anyio.run(predict_sync, [change], ask)
    return result, asked


@pytest.mark.parametrize(
    ("new", "old", "action", "said"),
    [
        (ACCEPTED, ACCEPTED, Action.UPDATE, "the vendor accepts both keys: no gap"),
        (ACCEPTED, REFUSED, Action.UPDATE, "which the vendor already refuses; it accepts the configured one"),
        (ACCEPTED, SILENT, Action.UPDATE, "the vendor accepts the configured key"),
        (REFUSED, ACCEPTED, Action.REFUSE, "the stored key stays, and the vendor accepts it"),
        (REFUSED, REFUSED, Action.REFUSE, "the stored key stays, but the vendor refuses it too"),
        (SILENT, ACCEPTED, Action.UPDATE, "does not confirm the configured key (no answer within 10 s)"),
    ],
)
def test_each_kind_of_rotation_is_told_before_it_is_done(
    new: VendorAnswer, old: VendorAnswer, action: Action, said: str
) -> None:
    """By the vendor's word about both keys; no key is in what is said."""
    result, _ = rehearsed(CHANGE, new, old)
    assert result.action is action
    assert said in result.reason
    assert result.refused_by_vendor is (new is REFUSED)
    assert "canary" not in f"{result.reason} {result.remedy}"


def test_a_vendor_is_never_shown_a_stored_key_that_may_be_another_s() -> None:
    """Only one of its own form, and only where Letta would send it to the same address."""
    foreign = replace(
        CHANGE, reading=KeyReading(KeyMatch.DIFFERENT, sealed=True, key=SecretStr("gsk_canary-elsewhere"))
    )
    moved = replace(CHANGE, stored=replace(ROW, base_url="http://b/v1"))
    for change in (foreign, moved, replace(CHANGE, reading=KeyReading(KeyMatch.UNREADABLE, sealed=True))):
        assert rehearsed(change, ACCEPTED)[1] == [NEW.get_secret_value()]


def test_nobody_is_asked_about_a_key_that_letta_holds() -> None:
    """Nor where asking is switched off."""
    kept = replace(CHANGE, ask_vendor=False)
    assert rehearsed(kept, REFUSED) == (kept, [])
    assert anyio.run(predict_sync, [CHANGE], None) == [CHANGE]


def test_the_census_compares_what_letta_listed_with_what_it_lists() -> None:
    """Agents are found whose model is gone at the vendor; one that Letta merely never listed is not lost."""
    answer = VendorAnswer(KeyVerdict.ACCEPTED, "ok", 200, models={"a": None, "new": None, "unlisted": None})
    agent_refs = [
        BoundAgent("Anna", "cerebras", "gone"),
        BoundAgent("Bert", "cerebras", "unlisted"),
        BoundAgent("Carl", "cerebras", "a"),
        BoundAgent("Dora", "byok-groq", "gone"),
    ]
    found = compare_models("cerebras", frozenset({"a", "gone"}), frozenset({"a", "new"}), answer, agent_refs)
    assert found == ProviderModels("cerebras", ("new",), ("gone",), (agent_refs[0],))
    assert LostModel.model_validate(found.lost[0], from_attributes=True).agent == "Anna"
    quiet = compare_models("cerebras", frozenset({"a"}), frozenset({"a"}), answer, agent_refs[1:])
    assert not quiet.changed


def test_a_vendor_that_lists_nothing_takes_no_model_from_anybody() -> None:
    """LongCat may list little: then only what Letta itself has dropped is lost."""
    answer = VendorAnswer(KeyVerdict.ACCEPTED, "ok", 200)
    agent_ref = BoundAgent("Anna", "longcat", "LongCat-2.0")
    assert compare_models("longcat", frozenset(), frozenset(), answer, [agent_ref]).lost == ()
    assert compare_models("longcat", frozenset({"LongCat-2.0"}), frozenset(), answer, [agent_ref]).lost == (
        agent_ref,
    )


def test_models_of_agents_that_their_vendor_ends_are_announced() -> None:
    """With the day, the replacement and the command; a model that nobody uses is not."""
    listed = {
        "magistral": ListedModel("magistral", end=date(2027, 1, 31), replacement="medium"),
        "sooner": ListedModel("sooner", end=date(2026, 12, 11)),
        "unused": ListedModel("unused", deprecated=True),
        "small": ListedModel("small"),
    }
    agents = [
        BoundAgent("Anna", "byok-mistral", "magistral"),
        BoundAgent("My Bert", "byok-mistral", "sooner"),
        BoundAgent("Carl", "byok-mistral", "small"),
        BoundAgent("Dora", "elsewhere", "magistral"),
    ]
    names = frozenset(listed)
    found = compare_models("byok-mistral", names, names, accepted_answer(listed), agents)
    assert found.changed
    assert [line.text for line in log_sentences(ModelsRefreshed(ModelRefresh(datetime.now(UTC), (found,))))] == [
        "byok-mistral retires sooner on 2026-12-11. It is the model of My Bert: "
        "`isabella agents switch 'My Bert' PROVIDER/MODEL`.",
        "byok-mistral retires magistral on 2027-01-31, and names medium in its place. It is the model of Anna: "
        "`isabella agents switch Anna byok-mistral/medium`.",
    ]


def test_an_announced_end_is_a_note_of_its_provider() -> None:
    """From the lists that came since the start, and once, however often the report is asked for."""
    readiness = Readiness(report=Report("http://letta", "0.16.8", [replace(IN_SYNC, name="byok-mistral")]))
    readiness.agents = (BoundAgent("Anna", "byok-mistral", "old"),)
    readiness.record_answer("byok-mistral", accepted_answer({"old": ListedModel("old", deprecated=True)}))
    assert readiness.report is not None
    (entry,) = readiness.with_vendors(readiness.with_vendors(readiness.report)).providers
    assert [note for note in entry.notes if "before long" in note] == [
        "byok-mistral retires old before long. It is the model of Anna: `isabella agents switch Anna PROVIDER/MODEL`."
    ]
