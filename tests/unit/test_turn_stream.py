"""What Letta's stream says, and what its errors mean: lines as they were recorded on 0.16.8."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import isabella.gateway
from isabella.gateway.traffic import Outcome
from isabella.system import redaction
from isabella.turns.events import (
    AnswerText,
    EndReason,
    ErrorCode,
    Failover,
    HistorySummarized,
    ReasoningText,
    ToolReturned,
    TurnFailed,
    Usage,
    as_json,
)
from isabella.turns.stream import (
    RunStarted,
    StopNotice,
    ToolCallDelta,
    VendorRefusal,
    classify_refusal,
    is_of_vendor,
    parse_line,
    refusal_of,
    retry_delay,
)
from isabella.turns.turn import unanswered_turn
from isabella.vendors.client import VendorState
from tests.support.recorded_messages import REFUSALS


def line(**fields: Any) -> str:
    """A line of the stream."""
    return f"data: {json.dumps(fields)}"


@pytest.mark.parametrize(
    ("given", "piece"),
    [
        (line(message_type="ping", run_id="run-1"), RunStarted("run-1")),
        (line(message_type="assistant_message", id="message-1", content=" will"), AnswerText(" will", "message-1")),
        (
            line(message_type="assistant_message", id="m", content=[{"type": "text", "text": "Hi"}]),
            AnswerText("Hi", "m"),
        ),
        (line(message_type="assistant_message", id="m", content=""), None),
        (line(message_type="reasoning_message", id="m", reasoning="Hm"), ReasoningText("Hm", "m")),
        (line(message_type="hidden_reasoning_message", id="m", state="omitted"), None),
        (
            line(message_type="tool_call_message", id="m", tool_call={"name": "memory_insert", "tool_call_id": "c"}),
            ToolCallDelta("c", "memory_insert", ""),
        ),
        (
            line(message_type="tool_call_message", id="m", tool_call={"arguments": '{"a"', "tool_call_id": "c"}),
            ToolCallDelta("c", "", '{"a"'),
        ),
        (
            line(message_type="tool_return_message", name="t", tool_call_id="c", tool_return="ok", status="success"),
            ToolReturned("c", "t", True, "ok"),
        ),
        (line(message_type="stop_reason", stop_reason="end_turn"), StopNotice(EndReason.COMPLETED, "end_turn")),
        (line(message_type="stop_reason", stop_reason="cancelled"), StopNotice(EndReason.STOPPED, "cancelled")),
        (
            line(message_type="stop_reason", stop_reason="llm_api_error"),
            StopNotice(EndReason.BROKEN, "llm_api_error"),
        ),
        (
            line(message_type="stop_reason", stop_reason="something_new"),
            StopNotice(EndReason.BROKEN, "something_new"),
        ),
        (
            line(message_type="usage_statistics", prompt_tokens=4, completion_tokens=2, total_tokens=6, step_count=1),
            Usage(4, 2, 6, 1),
        ),
        (line(message_type="summary_message", summary="…"), HistorySummarized()),
        (line(message_type="something_new"), None),
        ("data: [DONE]", None),
        ("event: error", None),
        (": comment", None),
        ("data: {not json", None),
        ("data: [1]", None),
        ("", None),
    ],
)
def test_lines(given: str, piece: object) -> None:
    """Each line is the piece that it holds, and what is not known is passed over."""
    assert parse_line(given) == piece


@pytest.mark.parametrize(
    ("kind", "detail", "code", "status", "counts"),
    [
        (
            "llm_authentication",
            "UNAUTHENTICATED: Authentication failed with OpenAI: Error code: 401 - {'error': {'message': 'Invalid'}}",
            ErrorCode.KEY_REFUSED,
            401,
            True,
        ),
        (
            "llm_error",
            "PAYMENT_REQUIRED: Insufficient credits (BYOK): Error code: 402 - {'error': {'message': 'No funds'}}",
            ErrorCode.OUT_OF_FUNDS,
            402,
            True,
        ),
        (
            "llm_error",
            "PERMISSION_DENIED: …: Error code: 403 - {'error': {'message': 'No'}}",
            ErrorCode.FORBIDDEN,
            403,
            True,
        ),
        ("llm_error", "NOT_FOUND: …: Error code: 404 - {}", ErrorCode.MODEL_UNKNOWN, 404, False),
        ("llm_rate_limit", "RATE_LIMIT_EXCEEDED: …: Error code: 429 - {}", ErrorCode.RATE_LIMITED, 429, True),
        ("llm_error", "INTERNAL_SERVER_ERROR: …: Error code: 503 - {}", ErrorCode.VENDOR_FAILING, 503, True),
        (
            "llm_error",
            "INTERNAL_SERVER_ERROR: OpenAI API error: <html>\r\n<head><title>502 Bad Gateway</title></head>",
            ErrorCode.VENDOR_FAILING,
            502,
            True,
        ),
        (
            "llm_error",
            "INTERNAL_SERVER_ERROR: Failed to connect to OpenAI: Connection error. [BYOK]",
            ErrorCode.VENDOR_UNREACHABLE,
            None,
            True,
        ),
        ("llm_timeout", "TIMEOUT: Request to OpenAI timed out", ErrorCode.VENDOR_SILENT, None, True),
        (
            "internal_error",
            "Unhandled LLM error: Unterminated string starting at: line 1 column 56 (char 55) [BYOK]",
            ErrorCode.VENDOR_GARBLED,
            None,
            True,
        ),
        (
            "internal_error",
            "Unhandled LLM error: (sqlalchemy.dialects.postgresql.asyncpg.Error) "
            "<class 'asyncpg.exceptions.ConnectionDoesNotExistError'>: connection was closed\n"
            "[SQL: SELECT providers.organization_id FROM providers]",
            ErrorCode.LETTA_FAILING,
            None,
            False,
        ),
        (
            "llm_error",
            "Unhandled LLM error: [Errno 111] Connect call failed ('127.0.0.1', 5432) [BYOK]",
            ErrorCode.LETTA_FAILING,
            None,
            False,
        ),
        (
            "llm_error",
            "Unhandled LLM error: QueuePool limit of size 25 overflow 10 reached, connection timed out, timeout 30 "
            "(Background on this error at: https://sqlalche.me/e/20/3o7r) [BYOK]",
            ErrorCode.LETTA_FAILING,
            None,
            False,
        ),
        (
            "internal_error",
            "Database connection temporarily unavailable. Please retry your request.",
            ErrorCode.LETTA_FAILING,
            None,
            False,
        ),
        ("llm_error", "INVALID_ARGUMENT: Bad request …: Error code: 400 - {}", ErrorCode.REQUEST_REFUSED, 400, False),
        ("internal_error", "Message content is empty or invalid", ErrorCode.LETTA_FAILING, None, False),
        ("context_window_overflow_in_system_prompt", "too large", ErrorCode.CONTEXT_FULL, None, False),
    ],
)
def test_errors(kind: str, detail: str, code: ErrorCode, status: int | None, counts: bool) -> None:
    """An error is judged by the vendor's status, and only without one by its wording."""
    refusal = classify_refusal(kind, detail)
    assert (refusal.code, refusal.status, refusal.counts) == (code, status, counts)
    assert "OpenAI" not in refusal.message or status is None


def test_an_error_of_the_database_tells_no_statement() -> None:
    """Its statement has parameters, such as what was said."""
    detail = "Unhandled LLM error: (sqlalchemy.exc.DBAPIError) deadlock\n[SQL: SELECT $1]\n[parameters: ('secret',)]"
    message = classify_refusal("internal_error", detail).message
    assert message == "Letta cannot use its database: (sqlalchemy.exc.DBAPIError) deadlock"


@pytest.mark.parametrize("name", REFUSALS)
def test_recorded_refusals(name: str) -> None:
    """What people recorded is judged by its words where its status says less, and no code is taken for another."""
    recorded = REFUSALS[name]
    refusal = classify_refusal("llm_error", f"INVALID_ARGUMENT: {recorded.quoted} [BYOK]")
    assert (refusal.code, refusal.status) == (ErrorCode(recorded.code), recorded.status)


@pytest.mark.parametrize(
    ("name", "retry_after"), [("Z.ai", None), ("Z.ai", 30.0), ("Groq, a malformed tool call", None)]
)
def test_the_gateway_changes_no_reason_that_the_words_tell(name: str, retry_after: float | None) -> None:
    """The gateway tells the vendor's sentence without its code, which Letta quotes."""
    recorded = REFUSALS[name]
    reported = classify_refusal("llm_error", f"{recorded.quoted} [BYOK]")
    outcome = Outcome(1, 0.0, "p", "agent-1", "m", "refused", "No.", status=recorded.status, retry_after=retry_after)
    assert refusal_of(outcome, reported).code is ErrorCode(recorded.code)


def test_a_request_that_the_vendor_quotes_decides_nothing() -> None:
    """Only the vendor's own sentence and code count, not the rest of its answer."""
    error = {"message": "Extra inputs are not permitted", "input": "My card has insufficient funds."}
    refusal = classify_refusal("llm_error", f"INVALID_ARGUMENT: …: Error code: 422 - {{'error': {error}}}")
    assert refusal.code is ErrorCode.REQUEST_REFUSED


GATEWAY = (
    "UNAUTHENTICATED: Authentication failed with OpenAI: Error code: {status} - {{'error': {{'message': \"Isabella's "
    "gateway said no.\", 'type': 'isabella-gateway', 'param': None, 'code': '{code}'}}}} [BYOK]"
)


@pytest.mark.parametrize(
    ("status", "refused", "code", "counts", "elsewhere"),
    [
        (401, "invalid_api_key", ErrorCode.GATEWAY_REFUSED, False, True),
        (404, "provider_unknown", ErrorCode.GATEWAY_REFUSED, False, True),
        (404, "not_found", ErrorCode.GATEWAY_REFUSED, False, True),
        (503, "provider_not_configured", ErrorCode.GATEWAY_REFUSED, False, True),
        (400, "request_too_large", ErrorCode.GATEWAY_REFUSED, False, True),
        (408, "request_timeout", ErrorCode.GATEWAY_REFUSED, False, True),
        (503, "turn_over", ErrorCode.GATEWAY_REFUSED, False, False),
        (502, "vendor_unreachable", ErrorCode.VENDOR_UNREACHABLE, True, True),
        (504, "vendor_unreachable", ErrorCode.VENDOR_UNREACHABLE, True, True),
    ],
)
def test_refusals_of_the_gateway_are_not_the_vendor_s(
    status: int, refused: str, code: ErrorCode, counts: bool, elsewhere: bool
) -> None:
    """Whatever status the gateway itself answers, the vendor has refused nothing; its words are told as they are."""
    kind = "llm_authentication" if status == 401 else "llm_error"
    refusal = classify_refusal(kind, GATEWAY.format(status=status, code=refused))
    assert (refusal.code, refusal.counts, refusal.elsewhere) == (code, counts, elsewhere)
    assert refusal.message == "Isabella's gateway said no."
    assert refusal.vendor is (VendorState.UNREACHABLE if counts else None)


def test_every_error_of_the_gateway_is_one_of_its_own() -> None:
    """The codes above are those that the gateway's source has."""
    folder = Path(isabella.gateway.__file__).parent
    source = "".join((folder / name).read_text() for name in ("app.py", "keys.py"))
    codes = set(re.findall(r'(?:40\d|50\d|status), \s*"([a-z_]+)",', source.replace("\n", " ")))
    assert codes == {
        "invalid_api_key",
        "provider_unknown",
        "provider_not_configured",
        "not_found",
        "request_too_large",
        "request_timeout",
        "turn_over",
        "vendor_unreachable",
        "vendor_answer_unusable",
        "method_not_allowed",
        "internal_error",
        "unauthorized",  # the control routes, which Letta never calls
    }


def test_a_vendor_that_speaks_of_the_gateway_is_still_the_vendor() -> None:
    """Only the type of the error counts, not a word in the vendor's text."""
    refusal = classify_refusal(
        "llm_authentication", "Error code: 401 - {'error': {'message': 'no isabella-gateway here', 'type': 'x'}}"
    )
    assert refusal.code is ErrorCode.KEY_REFUSED


@pytest.mark.parametrize("code", [ErrorCode.GATEWAY_UNREACHABLE, ErrorCode.GATEWAY_REFUSED])
def test_a_turn_that_the_gateway_refused_blames_no_vendor(code: ErrorCode) -> None:
    """If it refused at every vendor, the error is the gateway's, once, and says what to run."""
    refusal = VendorRefusal(code, "The gateway is not running.", counts=False)
    for refusals in ([refusal], [refusal, refusal]):
        failed = unanswered_turn(refusals)
        assert (failed.code, failed.message) == (code, "The gateway is not running.")
        assert "isabella doctor" in (failed.remedy or "")
    vendor = VendorRefusal(ErrorCode.KEY_REFUSED, "401: no")
    assert unanswered_turn([refusal, vendor]).code is ErrorCode.NO_VENDOR


@pytest.mark.parametrize("name", [name for name, one in REFUSALS.items() if one.code == "tool_call_malformed"])
def test_a_malformed_tool_call_is_the_model_s_fault(name: str) -> None:
    """Neither Letta nor the vendor is blamed, whatever the status; another model may do better."""
    refusal = classify_refusal("llm_error", f"INTERNAL_SERVER_ERROR: OpenAI API error: {REFUSALS[name].quoted}")
    assert (refusal.counts, refusal.elsewhere, refusal.vendor) == (False, True, None)
    failed = unanswered_turn([refusal])
    assert failed.code is ErrorCode.TOOL_CALL_MALFORMED
    assert failed.message.startswith("The model made a malformed tool call: ")
    assert "another model" in (failed.remedy or "")


def test_the_only_vendors_error_says_what_to_do() -> None:
    """Where its code tells it; otherwise the cause is to be fixed."""
    remedies = {
        code: unanswered_turn([VendorRefusal(code, "No.")]).remedy or ""
        for code in (ErrorCode.KEY_REFUSED, ErrorCode.OUT_OF_FUNDS, ErrorCode.MODEL_UNKNOWN, ErrorCode.VENDOR_FAILING)
    }
    words = ("variable", "credit", "isabella agents switch", "Fix the cause")
    assert all(word in remedy for word, remedy in zip(words, remedies.values(), strict=True)), remedies


def test_the_vendors_own_words() -> None:
    """People read what the vendor said, not how Letta wraps it."""
    detail = (
        "UNAUTHENTICATED: … OpenAI: Error code: 401 - {'message': 'Wrong API Key', 'code': 'wrong_api_key'} [BYOK]"
    )
    assert classify_refusal("llm_authentication", detail).message == "401: Wrong API Key"


def test_secrets_do_not_pass() -> None:
    """A vendor that quotes the key does not put it into an event."""
    redaction.remember("practice-key-0123456789")
    refusal = classify_refusal(
        "llm_error", "Error code: 403 - {'error': {'message': 'No such key: practice-key-0123456789'}}"
    )
    assert "practice-key-0123456789" not in refusal.message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 2s.", 2.0),
        ("Please try again in 7m12.5s", 432.5),
        ("try again in 250ms", 0.25),
        ("retry after 30 seconds", 30.0),
        ("please try again later", None),
        ("", None),
    ],
)
def test_wishes(text: str, seconds: float | None) -> None:
    """How long a vendor wants to be left alone is read from its words: Letta does not pass on its headers."""
    assert retry_delay(text) == seconds


def test_events_leave_out_what_is_unknown() -> None:
    """What is None is not sent."""
    failover = Failover("groq/x", ErrorCode.VENDOR_SILENT, "silent")
    assert as_json(failover) == {"handle": "groq/x", "code": ErrorCode.VENDOR_SILENT, "message": "silent"}
    assert as_json(TurnFailed(ErrorCode.BUSY, "busy", retry_after=2.0)) == {
        "code": ErrorCode.BUSY,
        "message": "busy",
        "retry_after": 2.0,
    }


def test_a_refusal_is_told_by_letta_twice() -> None:
    """The server's own error event, which ends a stream that it cannot go on with, is understood as well."""
    assert isinstance(parse_line('data: {"error": "boom", "code": "INTERNAL_SERVER_ERROR"}'), VendorRefusal)


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        (
            "INTERNAL_SERVER_ERROR: Failed to connect to OpenAI: Connection error.",
            "Failed to connect to the vendor: ",
        ),
        ("Request to OpenAI timed out: nothing came [BYOK]", "Request to the vendor timed out: nothing came"),
        ("UNAUTHENTICATED: Authentication failed with OpenAI: Error code: 401 - {'message': 'No'} [BYOK]", "401: No"),
        ("This usually indicates that the endpoint is not an OpenAI-compatible API", "not an OpenAI-compatible API"),
    ],
)
def test_no_company_is_named_that_was_not_asked(detail: str, said: str) -> None:
    """Letta names the company of its client, whoever the vendor is; the vendor's own words stay as they are."""
    refusal = classify_refusal("llm_error", detail)
    assert said in refusal.message
    assert "OpenAI" not in refusal.message.replace("OpenAI-compatible", "")


@pytest.mark.parametrize("code", ErrorCode)
def test_what_counts_as_an_answer_of_the_vendor(code: ErrorCode) -> None:
    """A status is the vendor's; without one, errors of Letta, the gateway and Isabella are nobody else's."""
    assert is_of_vendor(code, 503)
    ours = {
        *(ErrorCode.GATEWAY_REFUSED, ErrorCode.GATEWAY_UNREACHABLE, ErrorCode.LETTA_FAILING, ErrorCode.CIRCUIT_OPEN),
        *(ErrorCode.PROVIDER_CHANGING, ErrorCode.MODEL_UNKNOWN),
    }
    assert not (code in ours and is_of_vendor(code, None))
    assert is_of_vendor(ErrorCode.VENDOR_UNREACHABLE, None)
