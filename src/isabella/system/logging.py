"""Logs: structured, on standard error, and without any secret that this process knows."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog

from isabella.system.redaction import redact, redact_event
from isabella.system.terminal import clean, unguarded


def configure_logs(*, verbose: bool = False, quiet: bool = False) -> None:
    """Send all logs, those of libraries included, to standard error: readable on a terminal, JSON otherwise.

    Args:
        verbose: log what helps to find a fault, too.
        quiet: log only what is wrong.
    """
    shared: list[structlog.typing.Processor] = [
        *([] if verbose else [_drop_retries]),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact_event,
    ]
    terminal = sys.stderr.isatty()
    rendering: list[structlog.typing.Processor] = (
        [_clean_event, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if terminal
        else [structlog.processors.JSONRenderer(), _clean_line]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    # The renderer colours what is clean already.
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
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    for chatty in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "asyncio",
        "filelock",
        "psycopg",
        "uvicorn.access",
        "watchfiles",
    ):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _drop_retries(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A reading that is tried again is worth a line only when it fails for good, and then it has one."""
    if event.get("event") == "stamina.retry_scheduled":
        raise structlog.DropEvent
    return event


def _clean_event(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Every text in an event without control characters; the renderer shows other values by `repr`, which escapes."""
    return {clean(key): clean(value) if isinstance(value, str) else value for key, value in event.items()}


def _clean_line(_logger: Any, _method: str, line: Any) -> str:
    """JSON leaves DEL as it is."""
    return clean(str(line))


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Redacts the finished line once more: tracebacks and the messages of libraries are texts, too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Handler(logging.StreamHandler[TextIO]):
    """Says that a line could not be written, and why, but not the line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        # logging's own way prints message, arguments and call stack as they are, past all redaction.
        with suppress(Exception):
            self.stream.write(f"a log line of {record.name} was lost: {type(sys.exception()).__name__}\n")
