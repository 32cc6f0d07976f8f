"""Text form of a diagnosis: the root causes first, then the evidence, then the checks that passed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from isabella.doctor.findings import Diagnosis, Finding, Layer, RootCause, Severity
from isabella.doctor.log_messages import RecognisedMessage, scrub
from isabella.system.terminal import console

_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print a diagnosis. It contains no secrets and can be pasted into a public issue."""
    _print(_headline(diagnosis), "bold green" if diagnosis.healthy else "bold")
    for cause in diagnosis.causes:
        finding = cause.finding
        mark = "✗" if finding.severity is Severity.ERROR else "!"
        _print(f"{mark} {finding.sentence} {finding.remedy.text}", _STYLES[finding.severity])
    if diagnosis.practice:
        _print("(These are practice vendors.)", "dim")
    if diagnosis.causes:
        _print("\nEvidence", "bold")
    for cause in diagnosis.causes:
        _print_cause(cause)
    if diagnosis.unknowns:
        _print("\nNot checked", "bold")
    for unknown in diagnosis.unknowns:
        subject = "" if unknown.provider is None else f"{unknown.provider}: "
        _print(f"  ? {subject}{unknown.what}, because {unknown.because}", "magenta")
    if diagnosis.notes:
        _print("\nNotes", "bold")
    for note in diagnosis.notes:
        _print(f"  - {note.sentence} {note.remedy.text}{_facts(note)}", "cyan")
    if diagnosis.passed:
        _print("\nPassed checks", "bold")
    for layer in Layer:
        for fine in diagnosis.passed:
            if fine.layer is layer:
                _print(f"  {layer.heading}: {fine.text}", "green")


def show_messages(messages: Sequence[RecognisedMessage], heading: str | None = None) -> None:
    """Print the explanations of log messages."""
    if heading is not None:
        _print(f"\n{heading}", "bold")
    for message in messages:
        known = message.message
        times = "" if message.count == 1 else f" ({message.count} times)"
        _print(f"{known.title}{times}", "bold")
        _print(f"  seen:     {message.line}", "dim")
        _print(f"  means:    {message.meaning}")
        _print(f"  releases: {known.releases}")
        _print(f"  do:       {message.remedy}")
        if known.correction is not None:
            _print(f"  note:     {known.correction}")
        if known.facts:
            _print(f"  facts:    {', '.join(known.facts)}", "dim")
    if not messages:
        _print("No known message was recognised. `isabella doctor` checks the system itself.")


def _headline(diagnosis: Diagnosis) -> str:
    letta = ""
    if diagnosis.base_url is not None:
        letta = f"  (Letta {diagnosis.release or '?'} at {diagnosis.base_url})"
    if diagnosis.healthy:
        return f"Healthy: nothing was found.{letta}"
    count = len(diagnosis.causes)
    return f"{count} finding{'' if count == 1 else 's'}{letta}"


def _print_cause(cause: RootCause) -> None:
    finding = cause.finding
    _print(f"  [{finding.code}] {finding.layer.heading}{_facts(finding)}")
    _print(f"    why:  {finding.cause}")
    for line in finding.evidence:
        _print(f"    seen: {line}", "dim")
    for consequence in cause.consequences:
        _print(f"    so:   {consequence.sentence}", "dim")


def _facts(finding: Finding) -> str:
    return f" ({', '.join(finding.facts)})" if finding.facts else ""


def _print(text: str, style: str = "") -> None:
    console().print(Text(scrub(text), style=style), soft_wrap=True)
