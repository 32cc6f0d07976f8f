"""Providers, agents, settings and diagnoses for people. Warnings go to standard error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from isabella.providers.health import Level, gateway_level, headline, report_document, vendor_level, vendor_words
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.system.terminal import console, print_message

if TYPE_CHECKING:
    from isabella.doctor.findings import Diagnosis, Finding, RootCause
    from isabella.doctor.log_messages import RecognisedMessage
    from isabella.vendors.model_lists import ListedModel

_WORDS = {
    "green": ("in_sync", "proven", "accepted"),
    "yellow": ("stale", "absent", "moved", "mistyped", "plaintext"),
    "red": ("unreadable", "refuse", "failed", "refused"),
    "magenta": ("hidden", "unproven"),
    "dim": ("foreign",),
}
_STYLES = {word: style for style, words in _WORDS.items() for word in words}
_LEVEL_STYLES = {Level.OK: "green", Level.UNKNOWN: "", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
_SEVERITY_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
#: A column of sentences gets at least so many characters before other columns are left out for it.
_LEAST_FOLDED = 16
_OUTCOME_STYLES = {"kept": "dim", "created": "green", "changed": "yellow", "failed": "red"}


def show_report(report: Report, *, conditions: bool = False) -> None:
    """Print a report; with `conditions`, also the headline, the conditions, and the vendors' last answers."""
    show_notices(report.notices)
    out = console()
    if conditions:
        lead = headline(report)
        out.print(Text(f"{lead.title} {lead.text}".strip(), style=_LEVEL_STYLES[lead.level]))
        if lead.remedy:
            out.print(Text(lead.remedy))
    out.print(report_table(report, out.width, conditions=conditions))
    if report.gateway is not None and report.configured:
        out.print(Text(report.gateway.sentence, style=_LEVEL_STYLES[gateway_level(report.gateway)]))
        if conditions:
            rows = [(one.name, one.stored_base_url or "-", one.upstream or "-") for one in report.configured]
            _print_table(("provider", "base URL in Letta", "vendor's own"), rows)
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
        # That of the worst finding is above.
        if provider.remedy and not (conditions and provider.remedy == headline(report).remedy):
            out.print(Text(f"{provider.name}: {provider.remedy}"))
    if not report.configured:
        out.print("No vendor key is configured. Put one into .env, for instance: CEREBRAS_API_KEY=csk-...")


def log_report(report: Report) -> None:
    """Print a report as messages on standard error, for the JSON format of the logs."""
    show_notices(report.notices)
    lead = headline(report)
    level = "warning" if lead.level >= Level.WARNING else "info"
    print_message(f"{lead.title} {lead.text}".strip(), level=level, report=report_document(report))


def report_table(report: Report, width: int, *, conditions: bool = False) -> Table:
    """Return the table of providers for a terminal of this width, one row each."""
    with_receipts = any(provider.receipt is not None for provider in report.providers)
    headings = ["provider", "type", "key", "stored", "action", "proof"]
    headings += ["receipt"] if with_receipts else []
    headings += ["condition", "since", "vendor", "seen"] if conditions else []
    return _table(
        [*headings, "reason"],
        [_cells(provider, with_receipts, conditions) for provider in report.providers],
        width,
        optional=("type", "key", "since", "seen", "action", *(("proof", "stored") if conditions else ())),
        title=f"Letta {report.version} at {report.base_url}",
    )


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
    _print_table(("setting", "value", "from"), rows)


def show_vendors(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of vendors, one row each; those that are set up first."""
    shown = [
        (
            row["name"],
            _set_up(row),
            row["provider"],
            row["default_model"] or "-",
            row["base_url"] if row["set_up"] or row["key_optional"] else row["keys_page"] or row["base_url"],
        )
        for row in sorted(rows, key=lambda row: not row["set_up"])
    ]
    _print_table(("vendor", "set up", "provider", "default model", "address, or where to get a key"), shown)


def _set_up(row: dict[str, Any]) -> tuple[str, str]:
    if row["problem"]:
        return row["problem"], "red"
    if not row["set_up"]:
        return "no", "dim"
    return f"key {row['key']}" if row["key"] != "none needed" else "no key needed", "green"


def show_models(provider: str, listed: Sequence[ListedModel]) -> None:
    """Print the models of a vendor, one row each, the best first."""
    rows = [
        (
            f"{provider}/{model.id}",
            f"{model.window:,}" if model.window else "-",
            "-" if model.input_price is None else f"{model.input_price:g}",
            "-" if model.output_price is None else f"{model.output_price:g}",
            {True: "yes", False: "no", None: "-"}[model.tools],
            (_end(model), "yellow") if model.ending else "-",
        )
        for model in listed
    ]
    _print_table(("model", "window", "$ in", "$ out", "tools", "ends"), rows)
    if any(model.input_price is not None or model.output_price is not None for model in listed):
        console().print("Prices are US dollars for a million tokens.")


def _end(model: ListedModel) -> str:
    end = "soon" if model.end is None else model.end.isoformat()
    return end if model.replacement is None else f"{end}, then {model.replacement}"


def show_agents(agents: Sequence[dict[str, Any]]) -> None:
    """Print the table of agents, one row each."""
    out = console()
    if not agents:
        out.print("There are no agents yet. Create them with `isabella agents ensure`.")
        return
    rows = [
        (
            agent["name"],
            ("Isabella", "") if agent["ours"] else ("others", "dim"),
            agent["handle"],
            str(agent["window"]),
            (agent["problem"], "red") if agent["problem"] else ("-", "dim"),
        )
        for agent in agents
    ]
    _print_table(
        ("agent", "managed by", "model", "window", "problem"), rows, optional=("managed by", "window", "model")
    )
    if any(agent["problem"] for agent in agents):
        out.print("`isabella agents repair` shows how these problems would be repaired.")


def show_ensured(outcomes: Sequence[dict[str, Any]]) -> None:
    """Print the outcome of `isabella agents ensure`, one row for each agent."""
    rows = [
        (
            outcome["name"],
            (outcome["done"], _OUTCOME_STYLES.get(outcome["done"], "")),
            outcome["handle"] or "-",
            "; ".join(outcome["changes"]) or outcome["reason"] or "-",
        )
        for outcome in outcomes
    ]
    _print_table(("agent", "outcome", "model", "details"), rows, optional=("model",))
    for outcome in outcomes:
        if outcome["remedy"]:
            console().print(Text(f"{outcome['name']}: {outcome['remedy']}"))


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
    if prompt := agent.get("prompt"):
        out.print(
            Text(f"\nprompt  (about {prompt['tokens']} tokens of a window of {prompt['window']})", style="bold")
        )
        _print_table(("part", "tokens"), [(part, str(tokens)) for part, tokens in prompt["parts"].items()])


def show_repairs(repairs: Sequence[dict[str, Any]], *, done: bool) -> None:
    """Print broken agents, and how they were (`done`) or would be repaired."""
    out = console()
    if not repairs:
        out.print("No agent is broken.")
        return
    rows = [
        (
            repair["name"],
            repair["before"],
            (repair["after"] or "-", "green" if repair["done"] else "yellow"),
            (repair["problem"], "red") if repair["problem"] else ". ".join([repair["why"], *repair["notes"]]),
        )
        for repair in repairs
    ]
    headings = ("agent", "model", "repaired to" if done else "would become", "reason")
    _print_table(headings, rows, optional=("model",))
    if not done:
        out.print("Nothing was changed. `isabella agents repair --yes` re-binds them; memory and history stay.")


def show_backups(backups: Iterable[tuple[str, datetime, str, str]]) -> None:
    """Print backups: name, time, reason and size."""
    _print_table(
        ("file", "made", "reason", "size"), [(n, _local_time(at), why, size) for n, at, why, size in backups]
    )


def _print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]], *, optional: Sequence[str] = ()
) -> None:
    """Print a table whose cells are texts, or texts with their styles; `_table` explains `optional`."""
    out = console()
    cells = [[Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row] for row in rows]
    out.print(_table(headings, cells, out.width, optional=optional))


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Text]],
    width: int,
    *,
    optional: Sequence[str] = (),
    title: str | None = None,
) -> Table:
    """Return a table for a terminal of this width.

    The last column is folded. `optional` are headings of columns that are left out if the others do not fit, the
    first ones first.
    """
    widths = [
        max(map(cell_len, (heading, *(row[index].plain for row in rows)))) for index, heading in enumerate(headings)
    ]
    shown = list(range(len(headings)))

    def fits() -> bool:
        *others, last = (widths[index] for index in shown)
        return sum(others) + len(others) + min(last, _LEAST_FOLDED) <= width

    for heading in optional:
        if heading in headings and not fits():
            shown.remove(headings.index(heading))
    table = Table(title=None if title is None else Text(title), title_justify="left", box=None, pad_edge=False)
    for index in shown:
        # What still does not fit is folded, a name only if it would take more than half of the width.
        whole = index != shown[-1] and (fits() or (index == 0 and widths[0] <= width // 2))
        table.add_column(headings[index], no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    return table


def _local_time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print a diagnosis. It contains no secrets and can be pasted into a public issue."""
    from isabella.doctor.layers import Layer

    _print_scrubbed(_diagnosis_headline(diagnosis), "bold green" if diagnosis.healthy else "bold")
    for cause in diagnosis.causes:
        finding = cause.finding
        mark = "✗" if finding.severity == "error" else "!"
        _print_scrubbed(f"{mark} {finding.sentence} {finding.remedy.text}", _SEVERITY_STYLES[finding.severity])
    if diagnosis.practice:
        _print_scrubbed("(These are practice vendors.)", "dim")
    if diagnosis.causes:
        _print_scrubbed("\nEvidence", "bold")
    for cause in diagnosis.causes:
        _print_cause(cause)
    if diagnosis.unknowns:
        _print_scrubbed("\nNot checked", "bold")
    for unknown in diagnosis.unknowns:
        subject = "" if unknown.provider is None else f"{unknown.provider}: "
        _print_scrubbed(f"  ? {subject}{unknown.what}, because {unknown.because}", "magenta")
    if diagnosis.notes:
        _print_scrubbed("\nNotes", "bold")
    for note in diagnosis.notes:
        _print_scrubbed(f"  - {note.sentence} {note.remedy.text}{_facts(note)}", "cyan")
    if diagnosis.passed:
        _print_scrubbed("\nPassed checks", "bold")
    for layer in Layer:
        for fine in diagnosis.passed:
            if fine.layer is layer:
                _print_scrubbed(f"  {layer.heading}: {fine.text}", "green")


def show_messages(messages: Sequence[RecognisedMessage], heading: str | None = None) -> None:
    """Print the explanations of log messages."""
    if heading is not None:
        _print_scrubbed(f"\n{heading}", "bold")
    for message in messages:
        known = message.message
        times = "" if message.count == 1 else f" ({message.count} times)"
        _print_scrubbed(f"{known.title}{times}", "bold")
        rows = {
            "layer": known.layer.heading,
            "means": message.meaning,
            "releases": known.releases,
            "do": message.remedy,
            "note": known.correction,
        }
        _print_scrubbed(f"  seen:     {message.line}", "dim")
        for label, text in rows.items():
            if text is not None:
                _print_scrubbed(f"  {label + ':':<9} {text}")
        if known.facts:
            _print_scrubbed(f"  facts:    {', '.join(known.facts)}", "dim")
    if not messages:
        _print_scrubbed("No known message was recognised. `isabella doctor` checks the system itself.")


def _diagnosis_headline(diagnosis: Diagnosis) -> str:
    letta = ""
    if diagnosis.base_url is not None:
        letta = f"  (Letta {diagnosis.release or '?'} at {diagnosis.base_url})"
    if diagnosis.healthy:
        return f"Healthy: nothing was found.{letta}"
    count = len(diagnosis.causes)
    return f"{count} finding{'' if count == 1 else 's'}{letta}"


def _print_cause(cause: RootCause) -> None:
    finding = cause.finding
    _print_scrubbed(f"  [{finding.code}] {finding.layer.heading}{_facts(finding)}")
    _print_scrubbed(f"    why:  {finding.cause}")
    for line in finding.evidence:
        _print_scrubbed(f"    seen: {line}", "dim")
    for consequence in cause.consequences:
        _print_scrubbed(f"    so:   {consequence.sentence}", "dim")


def _facts(finding: Finding) -> str:
    return f" ({', '.join(finding.facts)})" if finding.facts else ""


def _print_scrubbed(text: str, style: str = "") -> None:
    from isabella.doctor.log_messages import scrub

    console().print(Text(scrub(text), style=style), soft_wrap=True)


def show_losses(agent: Mapping[str, Any]) -> None:
    """Print what is lost if an agent is deleted."""

    def counted(count: Mapping[str, Any], one: str) -> str:
        many = "" if count["number"] == 1 and not count["more"] else "s"
        return f"{'more than ' if count['more'] else ''}{count['number']} {one}{many}"

    blocks = f"the blocks {', '.join(agent['blocks'])}" if agent["blocks"] else "no block"
    messages, passages = counted(agent["messages"], "message"), counted(agent["passages"], "passage")
    print(f"{agent['name']} ({agent['id']}) would be deleted, with {messages}, {passages} and {blocks}.")
    for label, names in agent["shared"].items():
        print(f"The block {label} stays: {', '.join(names)} {'has' if len(names) == 1 else 'have'} it, too.")
    print("`isabella agents export` saves it. Add --yes to delete it.")
