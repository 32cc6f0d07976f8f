"""Redaction: no secret that this process knows gets through texts, events or log lines."""

from __future__ import annotations

import io
import json
import logging
import uuid
from urllib.parse import quote

import pytest
import structlog

from isabella.cli.progress import show_progress
from isabella.embedded import Step
from isabella.system import redaction
from isabella.system.logging import configure_logs
from isabella.system.redaction import redact, redact_event
from isabella.system.terminal import LogFormat, print_message


def fresh(prefix: str = "csk-canary-", ending: str = "") -> str:
    """A secret that no other test knows, and that is remembered from now on."""
    secret = f"{prefix}{uuid.uuid4().hex}{ending}"
    redaction.remember(secret)
    return secret


def test_a_secret_is_replaced_by_its_mask() -> None:
    """Every occurrence of a known secret becomes its masked form."""
    secret = fresh()
    assert redact(f"{secret} and again {secret}.") == f"csk-…{secret[-4:]} and again csk-…{secret[-4:]}."


def test_a_secret_in_a_url_is_found() -> None:
    """A secret that was percent-encoded for a URL is found as well."""
    secret = fresh(ending="+/=&")
    text = redact(f"http://127.0.0.1/?key={quote(secret, safe='')}")
    assert secret[:40] not in text


def test_a_secret_in_json_is_found() -> None:
    """A secret with characters that JSON escapes is found in JSON as well."""
    secret = fresh(ending='"\\tail-of-it')
    text = redact(json.dumps({"detail": f"the key {secret} is wrong"}))
    assert secret[:40] not in text
    assert "tail-of-it" not in text


def test_the_longer_secret_goes_first() -> None:
    """Where one secret is the beginning of another, nothing of the longer one is left behind."""
    short = fresh()
    long = f"{short}-and-its-longer-tail"
    redaction.remember(long)
    assert "longer" not in redact(f"<{long}>")


@pytest.mark.parametrize("text", ["", "abc", "abcde", None])
def test_a_few_characters_are_no_secret(text: str | None) -> None:
    """A secret so short that it would blot out innocent words is not searched for."""
    redaction.remember(text)
    assert redact(f"the word {text} stays") == f"the word {text} stays"


def test_an_event_is_redacted_however_deep() -> None:
    """Texts in mappings, lists, tuples and exceptions of a log event are redacted; numbers stay."""
    secret = fresh()
    event = {
        "event": f"it was {secret}",
        "deep": {"list": [secret, (secret, 7)]},
        "error": ValueError(secret),
        "number": 7,
    }
    clean = redact_event(None, "info", event)
    assert secret not in repr(clean)
    assert clean["number"] == 7


def test_log_lines_and_their_tracebacks_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither our own logs nor those of libraries, tracebacks included, let a secret through; all go to stderr."""
    secret = fresh()
    configure_logs()
    structlog.get_logger().warning("ours", key=secret, deep=[{"key": secret}])
    logging.getLogger("some.library").warning("theirs: %s", secret)
    try:
        raise RuntimeError(f"it was {secret}")
    except RuntimeError:
        logging.getLogger("some.library").exception("a failure")
        structlog.get_logger().exception("our failure")
    out, err = capsys.readouterr()
    assert out == ""
    assert "ours" in err
    assert "theirs" in err
    assert err.count("Traceback") == 2
    assert secret not in err
    assert f"{secret[-4:]}" in err


def test_a_line_that_cannot_be_written_is_not_told_in_another_way(capsys: pytest.CaptureFixture[str]) -> None:
    """A library that gets its own format wrong, or a stream that is closed: what was to be said is not repeated."""
    secret = fresh()
    configure_logs()
    logging.getLogger("some.library").warning("%d", secret)
    err = capsys.readouterr().err
    assert err == "a log line of some.library was lost: TypeError\n"
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(closed := io.StringIO())
    closed.close()
    logging.getLogger("some.library").warning(secret)
    assert capsys.readouterr() == ("", "")


def test_logs_that_go_to_a_file_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard error is no terminal, each event is one JSON object on a line of its own."""
    configure_logs()
    structlog.get_logger().info("an event", number=7)
    event = json.loads(capsys.readouterr().err)
    assert (event["event"], event["number"], event["level"]) == ("an event", 7, "info")


@pytest.mark.parametrize(
    ("log_format", "auto", "as_json"),
    [
        (LogFormat.AUTO, LogFormat.JSON, True),
        (LogFormat.AUTO, LogFormat.TEXT, False),
        (LogFormat.TEXT, LogFormat.JSON, False),
        (LogFormat.JSON, LogFormat.TEXT, True),
    ],
)
def test_log_lines_and_messages_have_one_format(
    log_format: LogFormat, auto: LogFormat, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Log lines, messages of commands and progress lines are all JSON, or all text; secrets are in neither."""
    secret = fresh()
    configure_logs(log_format, auto=auto)
    structlog.get_logger().warning("a log line", number=7)
    print_message(f"a message with {secret}" if as_json else "a message", level="warning", number=7)
    with show_progress() as progress:
        progress(Step("postgres", "done", "started", 1.5))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    if as_json:
        events = [json.loads(line) for line in lines]
        assert all({"event", "level", "timestamp"} <= set(event) for event in events)
        assert (events[1]["level"], events[1]["number"]) == ("warning", 7)
        assert (events[2]["step"], events[2]["state"], events[2]["seconds"]) == ("postgres", "done", 1.5)
        assert secret not in "".join(lines)
    else:
        assert "a log line" in lines[0]
        assert not lines[0].startswith("{")
        assert lines[1:] == ["warning: a message", "Postgres  started  1.5 s"]
