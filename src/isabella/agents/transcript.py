"""Conversations as Markdown, for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from isabella.agents.history import HistoryEntry
from isabella.system.redaction import redact


def transcript(
    entries: Iterable[HistoryEntry],
    agent: str,
    *,
    handle: Callable[[HistoryEntry], str | None] = lambda _: None,
    whole: bool = False,
) -> Iterator[str]:
    """Yield the messages of a conversation with an agent as Markdown, one at a time, with known secrets masked.

    `handle` returns the model that gave an answer, if it is known. `whole` adds reasoning, the arguments and results
    of tools, and summaries.
    """
    for entry in entries:
        at, text = entry.at[:16].replace("T", " "), redact(entry.text)
        match entry.kind:
            case "user":
                images = f"\n*Images: {entry.images}*\n" if whole and entry.images else ""
                yield f"\n**You** ({at})\n\n{text}\n{images}"
            case "assistant":
                model = handle(entry)
                yield f"\n**{agent}** ({at}{', ' + model if model else ''})\n\n{text}\n"
            case "tool_call":
                yield f"\n*Tool call: {entry.tool or 'unknown'}*\n" + (fenced(text) if whole else "")
            case "summary":
                yield "\n*Older messages were summarised.*\n" + (quoted(text) if whole else "")
            case "tool_return" if whole:
                failed = ", failed" if entry.failed else ""
                yield f"\n*Result of {entry.tool or 'a tool'}{failed}*\n{fenced(text)}"
            case "reasoning" if whole:
                yield f"\n*Reasoning*\n{quoted(text)}"
            case _ if whole:
                yield f"\n*{entry.kind}*\n{fenced(text)}"


def fenced(text: str) -> str:
    """Return a text as a code block, whose fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])
    return f"\n{fence}\n{text}\n{fence}\n"


def quoted(text: str) -> str:
    """Return a text as a quotation."""
    return "\n" + "".join(f"> {line}\n" for line in text.splitlines())
