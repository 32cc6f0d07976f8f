"""Which messages leave an agent's context for a vendor, and which tool results need an answer: pure decisions."""

from __future__ import annotations

import pytest

from isabella.agents.context import STRICTEST, ContextMessage, foreign_calls, required_id_form, unanswered_results
from isabella.letta.llm_config import Binding

USER, ANSWER = ContextMessage("u", by_user=True), ContextMessage("a")


def call(*ids: str) -> ContextMessage:
    """A message with tool calls."""
    return ContextMessage("call " + " ".join(ids), calls=frozenset(ids))


def result(*ids: str) -> ContextMessage:
    """A message with results of tools."""
    return ContextMessage("result " + " ".join(ids), results=frozenset(ids))


@pytest.mark.parametrize("id", ["call_1234567890", "fc_123456", "short", "has-hyph1", "", "ten1234567"])
def test_a_call_with_another_id_leaves_with_its_result(id: str) -> None:
    """Neither a call without its result stays, nor a result without its call."""
    context = [USER, call(id), result(id), ANSWER, USER, call("abcDEF123"), result("abcDEF123")]
    assert foreign_calls(context, STRICTEST) == {call(id).id, result(id).id}


def test_several_calls_of_one_message_leave_together() -> None:
    """One odd id among several takes the whole message along, and all of its results."""
    context = [USER, call("abcDEF123", "odd"), result("abcDEF123"), result("odd"), ANSWER]
    assert foreign_calls(context, STRICTEST) == {context[1].id, context[2].id, context[3].id}


def test_a_call_that_waits_for_an_approval_stays() -> None:
    """Without it, nobody could approve it any more."""
    assert foreign_calls([USER, call("odd"), result("odd"), ANSWER, call("call_2")], STRICTEST) == {
        "call odd",
        "result odd",
    }


def test_a_context_that_fits_stays_as_it_is() -> None:
    """Where every id has the form and every result an answer, there is nothing to do."""
    context = [USER, call("abcDEF123"), result("abcDEF123"), ANSWER, USER, ANSWER]
    assert foreign_calls(context, STRICTEST) == frozenset()
    assert unanswered_results(context) == ()


def test_results_before_a_message_of_the_user_or_at_the_end_need_an_answer() -> None:
    """So do those after which the next turn comes; those of parallel calls need one answer after the last."""
    first, last = result("abcDEF123"), result("abcDEF999")
    assert unanswered_results([call("abcDEF123"), first, USER, ANSWER, call("abcDEF999"), last]) == (
        first.id,
        last.id,
    )
    assert unanswered_results([first, last, ANSWER]) == ()


@pytest.mark.parametrize(
    ("provider", "url", "particular"),
    [
        ("byok-mistral", "http://127.0.0.1:9/mistral/v1", True),
        ("a-name-of-ones-own", "https://api.mistral.ai/v1", True),
        ("cerebras", "https://api.cerebras.ai/v1", False),
        ("byok-groq", "http://127.0.0.1:9/groq/openai/v1", False),
    ],
)
def test_which_vendor_is_particular(provider: str, url: str, particular: bool) -> None:
    """Mistral is, by the name of its provider or by its address; others are not."""
    assert (required_id_form(Binding(provider, "m", url, 8192)) is not None) is particular
