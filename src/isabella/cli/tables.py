"""Reports as people read them: a table, what to do below it, and warnings on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime

from rich.table import Table
from rich.text import Text

from isabella.providers.headline import Level, headline, vendor_level, vendor_words
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Receipt, Report
from isabella.system.console import GuardedConsole

_WIDTH_WHEN_PIPED = 200

_STYLES: dict[str, str] = {
    ProviderState.IN_SYNC: "green",
    ProviderState.STALE: "yellow",
    ProviderState.ABSENT: "yellow",
    ProviderState.MOVED: "yellow",
    ProviderState.MISTYPED: "yellow",
    ProviderState.PLAINTEXT: "yellow",
    ProviderState.UNREADABLE: "red",
    ProviderState.HIDDEN: "magenta",
    ProviderState.FOREIGN: "dim",
    Action.REFUSE: "red",
    Proof.PROVEN: "green",
    Proof.FAILED: "red",
    Proof.UNPROVEN: "magenta",
    Receipt.ACCEPTED: "green",
    Receipt.REFUSED: "red",
}
_OF_LEVEL = {Level.OK: "green", Level.UNKNOWN: "", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def console(*, stderr: bool = False) -> GuardedConsole:
    """A console that colours only a terminal, and leaves lines whole when its output is piped."""
    plain = GuardedConsole(stderr=stderr)
    return plain if plain.is_terminal else GuardedConsole(stderr=stderr, width=_WIDTH_WHEN_PIPED)


def show_report(report: Report, *, conditions: bool = False) -> None:
    """Print a report: warnings first, then the table, then what the operator can do."""
    show_notices(report.notices)
    out = console()
    if conditions:
        lead = headline(report)
        out.print(Text(f"{lead.title} {lead.text}".strip(), style=_OF_LEVEL[lead.level]))
    out.print(report_table(report, conditions=conditions))
    for provider in report.ours if conditions else ():
        seen = provider.vendor_status
        if seen is not None and not provider.refused_by_vendor and vendor_level(seen) > Level.UNKNOWN:
            out.print(
                Text(f"{provider.name}: the vendor {vendor_words(seen)}, seen {_moment(seen.at)}: {seen.reason}")
            )
    for provider in report.providers:
        for note in provider.notes:
            console(stderr=True).print(Text(f"{provider.name}: {note}", style="yellow"))
    for provider in report.providers:
        if provider.remedy:
            out.print(Text(f"{provider.name}: {provider.remedy}"))
    if not report.ours:
        out.print("No vendor key is configured. Put one into .env, for instance: CEREBRAS_API_KEY=csk-...")


def report_table(report: Report, *, conditions: bool = False) -> Table:
    """The providers, a row each; with how they stand and since when, where that is wanted."""
    with_receipts = any(provider.receipt is not None for provider in report.providers)
    table = Table(
        title=Text(f"Letta {report.version} at {report.base_url}"), title_justify="left", box=None, pad_edge=False
    )
    for heading in ("provider", "type", "key", "stored", "action", "proof"):
        table.add_column(heading, no_wrap=True)
    if with_receipts:
        table.add_column("receipt", no_wrap=True)
    if conditions:
        for heading in ("condition", "since", "vendor", "seen"):
            table.add_column(heading, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for provider in report.providers:
        table.add_row(*_cells(provider, with_receipts, conditions))
    return table


def show_notices(notices: Iterable[str]) -> None:
    """Print warnings about the configuration on standard error."""
    for notice in notices:
        console(stderr=True).print(Text(f"warning: {notice}", style="bold yellow"))


def show_settings(rows: Iterable[tuple[str, str, str]]) -> None:
    """Print settings: name, value, origin."""
    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def _cells(provider: ProviderReport, with_receipts: bool, conditions: bool) -> list[Text]:
    words: list[str] = [
        provider.name,
        provider.type,
        provider.key or "-",
        "no key" if not provider.ours and provider.stored is ProviderState.ABSENT else provider.stored,
        "-" if provider.action is Action.NONE else provider.action,
        "-" if provider.proof is Proof.NOT_ASKED else provider.proof,
    ]
    if with_receipts:
        words.append(provider.receipt or "-")
    if conditions:
        since, seen = provider.since, provider.vendor_status
        words += [provider.condition or "-", "-" if since is None else _moment(since)]
        words += [vendor_words(seen), "-" if seen is None else _moment(seen.at)] if provider.ours else ["-", "-"]
    cells = [Text(word.replace("_", " ") if word in _STYLES else word, style=_STYLES.get(word, "")) for word in words]
    return [*cells, Text(provider.reason)]


def _moment(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def say(text: str) -> None:
    """One plain line on standard error."""
    print(text, file=sys.stderr, flush=True)
