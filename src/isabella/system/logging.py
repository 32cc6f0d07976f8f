"""Log lines on standard error: structured, in one format, and without any secret that this process knows."""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

import structlog

from isabella.system.redaction import redact, redact_event
from isabella.system.terminal import LogFormat, clean, is_json, set_message_format, unguarded

#: Libraries whose log lines below a warning are left out.
_LIBRARIES = (
    "asyncio",
    "filelock",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "psycopg",
    "uvicorn.access",
    "watchfiles",
)


#: What a line of text has beside its sentence.
_OF_EVERY_LINE = ("timestamp", "level", "exception", "left_out")
#: The number of lines for one kind of Isabella's warnings per minute; a library or low memory gets one.
_OWN_LINES, _LIMIT_SECONDS, _KINDS_KEPT = 30, 60.0, 1000


def configure_logs(
    log_format: LogFormat = LogFormat.AUTO, *, auto: LogFormat = LogFormat.JSON, quiet: bool = False
) -> None:
    """Send all log lines, those of libraries included, to standard error, and set the format of messages there.

    If standard error is not a terminal, `LogFormat.AUTO` means `auto`. With `quiet`, only warnings and errors appear.
    """
    terminal = sys.stderr.isatty()
    as_json = is_json(log_format, auto)
    set_message_format(as_json=as_json)
    shared: list[structlog.typing.Processor] = [
        _drop_retries,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact_event,
    ]
    rendering: list[structlog.typing.Processor] = [structlog.processors.JSONRenderer(), _clean_line]
    if not as_json:
        traceback = structlog.dev.plain_traceback
        rendering = [
            _sentence_only,
            _clean_event,
            structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=traceback),
        ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    # The renderer colours text that is clean already.
    handler = _Handler(unguarded(sys.stderr))
    handler.setFormatter(
        _RedactingFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *rendering,
            ],
        )
    )
    handler.addFilter(_Limit())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def _drop_retries(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Drop the log lines of retries: a request that fails for good has its own log line."""
    if event.get("event") == "stamina.retry_scheduled":
        raise structlog.DropEvent
    return event


def _sentence_only(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Reduce an event that has a sentence for people to the sentence; its other fields are for machines."""
    sentence = event.get("sentence")
    if not isinstance(sentence, str):
        return event
    return {"event": sentence} | {name: event[name] for name in _OF_EVERY_LINE if name in event}


def _clean_event(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Remove control characters from every text of an event; the renderer shows other values by `repr`."""
    return {clean(key): clean(value) if isinstance(value, str) else value for key, value in event.items()}


def _clean_line(_logger: Any, _method: str, line: Any) -> str:
    """Escape DEL, which JSON does not escape."""
    return clean(str(line))


class _Limit(logging.Filter):
    """Passes so many warnings and errors of one kind in a minute, and reports how many more there were.

    The kind of a line is its logger, the first line of its text, and the class of its exception.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._kinds: OrderedDict[tuple[str, str, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written."""
        if record.levelno < logging.WARNING:
            return True
        event = record.msg if isinstance(record.msg, dict) else None
        text = str(record.msg if event is None else event.get("event"))
        # A processor has made a text of an exception in an event.
        raised = repr(record.exc_info[1]) if record.exc_info else str((event or {}).get("exc_info", ""))
        raised = raised.partition("(")[0]
        kind = record.name, text.partition("\n")[0], raised
        now = self._now()
        began, count = self._kinds.pop(kind, (now, 0))
        most = 1 if raised == MemoryError.__name__ or not record.name.startswith("isabella") else _OWN_LINES
        left_out = count - most
        if now - began >= _LIMIT_SECONDS:
            began, count = now, 0
            if left_out > 0 and event is not None:
                event["left_out"] = left_out
            elif left_out > 0:
                record.msg = f"{record.msg} ({left_out} more lines like this in the last minutes)"
        self._kinds[kind] = began, count + 1
        while len(self._kinds) > _KINDS_KEPT:
            self._kinds.popitem(last=False)
        return count < most


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Redacts the finished line, with its traceback and the messages of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Handler(logging.StreamHandler[TextIO]):
    """Reports a line that could not be written by its logger and error, without its content."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name given by logging
        # The method of logging prints message, arguments and call stack unredacted.
        with suppress(Exception):
            self.stream.write(f"a log line of {record.name} was lost: {type(sys.exception()).__name__}\n")
