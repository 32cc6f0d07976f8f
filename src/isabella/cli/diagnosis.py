"""The doctor's findings as people read them: the verdict first, then the evidence, then what was fine."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from isabella.cli.tables import console
from isabella.doctor.diagnosis import Diagnosis, RootCause
from isabella.doctor.findings import Finding, Layer, Severity
from isabella.doctor.log_messages import RecognisedMessage, scrub

_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def show_diagnosis(verdict: Diagnosis) -> None:
    """Print a verdict. Nothing in it is secret: it can be pasted into a public issue."""
    _say(_headline(verdict), "bold green" if verdict.healthy else "bold")
    for cause in verdict.causes:
        finding = cause.finding
        _say(f"{_mark(finding)} {finding.sentence} {finding.remedy.text}", _STYLES[finding.severity])
    if verdict.practice:
        _say("(These are practice vendors.)", "dim")
    if verdict.causes:
        _say("\nEvidence", "bold")
    for cause in verdict.causes:
        _show_cause(cause)
    if verdict.unknowns:
        _say("\nCould not be found out", "bold")
    for unknown in verdict.unknowns:
        subject = "" if unknown.provider is None else f"{unknown.provider}: "
        _say(f"  ? {subject}{unknown.what}, because {unknown.because}", "magenta")
    if verdict.notes:
        _say("\nWorth knowing", "bold")
    for note in verdict.notes:
        _say(f"  - {note.sentence} {note.remedy.text}{_facts(note)}", "cyan")
    if verdict.passed:
        _say("\nFine", "bold")
    for layer in Layer:
        for fine in verdict.passed:
            if fine.layer is layer:
                _say(f"  {layer.heading}: {fine.text}", "green")


def show_messages(found: Iterable[RecognisedMessage], heading: str | None = None) -> None:
    """Print what messages mean."""
    some = False
    if heading is not None:
        _say(f"\n{heading}", "bold")
    for one in found:
        some = True
        times = "" if one.count == 1 else f" ({one.count} times)"
        _say(f"{one.message.title}{times}", "bold")
        _say(f"  seen:     {one.line}", "dim")
        _say(f"  means:    {one.meaning}")
        _say(f"  releases: {one.message.releases}")
        _say(f"  do:       {one.remedy}")
        if one.message.correction is not None:
            _say(f"  note:     {one.message.correction}")
        if one.message.facts:
            _say(f"  facts:    {', '.join(one.message.facts)}", "dim")
    if not some:
        _say("Nothing here is a message that is known. `isabella doctor` looks at the system itself.")


def _headline(verdict: Diagnosis) -> str:
    where = "" if verdict.base_url is None else f"  (Letta {verdict.release or '?'} at {verdict.base_url})"
    if verdict.healthy:
        return f"Healthy: nothing was found.{where}"
    count = len(verdict.causes)
    return f"{count} finding{'' if count == 1 else 's'}{where}"


def _show_cause(cause: RootCause) -> None:
    finding = cause.finding
    _say(f"  [{finding.code}] {finding.layer.heading}{_facts(finding)}")
    _say(f"    why:  {finding.cause}")
    for line in finding.evidence:
        _say(f"    seen: {line}", "dim")
    for consequence in cause.consequences:
        _say(f"    so:   {consequence.sentence}", "dim")


def _facts(finding: Finding) -> str:
    return f" ({', '.join(finding.facts)})" if finding.facts else ""


def _mark(finding: Finding) -> str:
    return "✗" if finding.severity is Severity.ERROR else "!"


def _say(text: str, style: str = "") -> None:
    console().print(Text(scrub(text), style=style), soft_wrap=True)
