"""Tables of providers, agents and settings for people. Warnings go to standard error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from isabella.providers.health import Level, gateway_level, headline, report_document, vendor_level, vendor_words
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Receipt, Report
from isabella.system.terminal import console, print_message

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
_LEVEL_STYLES = {Level.OK: "green", Level.UNKNOWN: "", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
_OUTCOME_STYLES = {"kept": "dim", "created": "green", "changed": "yellow", "failed": "red"}


def show_report(report: Report, *, conditions: bool = False) -> None:
    """Print a report: warnings, the table, and remedies.

    Args:
        report: the report.
        conditions: also show the headline, and the condition of each provider with the last answer of its vendor.
    """
    show_notices(report.notices)
    out = console()
    if conditions:
        lead = headline(report)
        out.print(Text(f"{lead.title} {lead.text}".strip(), style=_LEVEL_STYLES[lead.level]))
    out.print(report_table(report, conditions=conditions))
    if report.gateway is not None and report.configured:
        out.print(Text(report.gateway.sentence, style=_LEVEL_STYLES[gateway_level(report.gateway)]))
        if conditions:
            out.print(base_url_table(report))
    for provider in report.configured if conditions else ():
        seen = provider.vendor_status
        if seen is not None and not provider.refused_by_vendor and vendor_level(seen) > Level.UNKNOWN:
            out.print(
                Text(f"{provider.name}: the vendor {vendor_words(seen)}, seen {_local_time(seen.at)}: {seen.reason}")
            )
    for provider in report.providers:
        for note in provider.notes:
            print_message(f"{provider.name}: {note}")
    for provider in report.providers:
        if provider.remedy:
            out.print(Text(f"{provider.name}: {provider.remedy}"))
    if not report.configured:
        out.print("No vendor key is configured. Put one into .env, for instance: CEREBRAS_API_KEY=csk-...")


def log_report(report: Report) -> None:
    """Print a report as messages on standard error, for the JSON format of the logs."""
    show_notices(report.notices)
    lead = headline(report)
    level = "warning" if lead.level >= Level.WARNING else "info"
    print_message(f"{lead.title} {lead.text}".strip(), level=level, report=report_document(report))


def report_table(report: Report, *, conditions: bool = False) -> Table:
    """Return the table of providers, one row each."""
    with_receipts = any(provider.receipt is not None for provider in report.providers)
    table = Table(
        title=Text(f"Letta {report.version} at {report.base_url}"), title_justify="left", box=None, pad_edge=False
    )
    headings = ["provider", "type", "key", "stored", "action", "proof"]
    headings += ["receipt"] if with_receipts else []
    headings += ["condition", "since", "vendor", "seen"] if conditions else []
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for provider in report.providers:
        table.add_row(*_cells(provider, with_receipts, conditions))
    return table


def base_url_table(report: Report) -> Table:
    """Return the table of base URLs: in Letta, and the vendor's own."""
    table = _plain_table("provider", "base URL in Letta", "vendor's own")
    for provider in report.configured:
        table.add_row(*(Text(cell or "-") for cell in (provider.name, provider.stored_base_url, provider.upstream)))
    return table


def _cells(provider: ProviderReport, with_receipts: bool, conditions: bool) -> list[Text]:
    words: list[str] = [
        provider.name,
        provider.type,
        provider.key or "-",
        "no key" if not provider.configured and provider.stored is ProviderState.ABSENT else provider.stored,
        "-" if provider.action is Action.NONE else provider.action,
        "-" if provider.proof is Proof.NOT_ASKED else provider.proof,
    ]
    if with_receipts:
        words.append(provider.receipt or "-")
    if conditions:
        since, seen = provider.since, provider.vendor_status
        words += [provider.condition or "-", "-" if since is None else _local_time(since)]
        words += (
            [vendor_words(seen), "-" if seen is None else _local_time(seen.at)] if provider.configured else ["-", "-"]
        )
    cells = [Text(word.replace("_", " ") if word in _STYLES else word, style=_STYLES.get(word, "")) for word in words]
    return [*cells, Text(provider.reason)]


def show_notices(notices: Iterable[str]) -> None:
    """Print warnings about the configuration on standard error."""
    for notice in notices:
        print_message(notice, level="warning")


def show_settings(rows: Iterable[tuple[str, str, str]]) -> None:
    """Print settings: name, value, origin."""
    table = _plain_table("setting", "value", "from")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def show_agents(agents: Sequence[dict[str, Any]]) -> None:
    """Print the table of agents, one row each."""
    out = console()
    if not agents:
        out.print("There are no agents yet. Create them with `isabella agents ensure`.")
        return
    table = _plain_table("agent", "managed by", "model", "window", "problem")
    for agent in agents:
        table.add_row(
            Text(agent["name"]),
            Text("Isabella" if agent["ours"] else "others", style="" if agent["ours"] else "dim"),
            Text(agent["handle"]),
            Text(str(agent["window"])),
            Text(agent["problem"] or "-", style="red" if agent["problem"] else "dim"),
        )
    out.print(table)
    if any(agent["problem"] for agent in agents):
        out.print("`isabella agents repair` shows how these problems would be repaired.")


def show_ensured(outcomes: Sequence[dict[str, Any]]) -> None:
    """Print the outcome of `isabella agents ensure`, one row for each agent."""
    out = console()
    table = _plain_table("agent", "outcome", "model", "details")
    for outcome in outcomes:
        table.add_row(
            Text(outcome["name"]),
            Text(outcome["done"], style=_OUTCOME_STYLES.get(outcome["done"], "")),
            Text(outcome["handle"] or "-"),
            Text("; ".join(outcome["changes"]) or outcome["reason"] or "-"),
        )
    out.print(table)
    for outcome in outcomes:
        if outcome["remedy"]:
            out.print(Text(f"{outcome['name']}: {outcome['remedy']}"))


def show_agent(agent: dict[str, Any]) -> None:
    """Print one agent with its core memory."""
    out = console()
    out.print(Text(agent["name"], style="bold"), Text(agent["description"]))
    out.print(Text(f"  id      {agent['id']}"))
    out.print(Text(f"  model   {agent['handle']}, {agent['window']} tokens"))
    if agent["handles"]:
        out.print(Text(f"  prefers {', '.join(agent['handles'])}"))
    out.print(Text(f"  tools   {', '.join(agent['tools']) or '-'}"))
    if agent["problem"]:
        out.print(Text(f"  problem {agent['problem']}", style="red"))
    for block in agent["blocks"]:
        out.print(Text(f"\n{block['label']}  ({len(block['value'])} of {block['limit']} characters)", style="bold"))
        out.print(Text(block["value"].strip() or "(empty)", style="" if block["value"].strip() else "dim"))


def show_repairs(repairs: Sequence[dict[str, Any]], *, done: bool) -> None:
    """Print broken agents, and how they were (`done`) or would be repaired."""
    out = console()
    if not repairs:
        out.print("No agent is broken.")
        return
    table = _plain_table("agent", "model", "repaired to" if done else "would become", "reason")
    for repair in repairs:
        table.add_row(
            Text(repair["name"]),
            Text(repair["before"]),
            Text(repair["after"] or "-", style="green" if repair["done"] else "yellow"),
            Text(
                repair["problem"] or ". ".join([repair["why"], *repair["notes"]]),
                style="red" if repair["problem"] else "",
            ),
        )
    out.print(table)
    if not done:
        out.print("Nothing was changed. `isabella agents repair --yes` re-binds them; memory and history stay.")


def _plain_table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _local_time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
