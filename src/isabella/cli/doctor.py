"""`isabella doctor`, and `isabella doctor explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.commands import commands
from isabella.cli.options import AsJson, EnvFile
from isabella.errors import IsabellaError

if TYPE_CHECKING:
    from isabella.doctor.diagnosis import Diagnosis
    from isabella.doctor.log_messages import RecognisedMessage
    from isabella.doctor.run import DoctorOptions, DoctorRun

app = commands(
    invoke_without_command=True,
    help='From a 401 to the cause and the cure; `doctor explain "TEXT"` says what a message means.',
)

FINDINGS, COULD_NOT_LOOK = 2, 1
_LONGEST_PASTE = 200_000

LogFile = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Recognise messages in this log, for instance Letta's.")
]


@app.callback()
def doctor(
    context: typer.Context,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="NAME", help="Only this agent, and what it stands on.")
    ] = None,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", metavar="NAME", help="Only this provider; repeatable.")
    ] = None,
    log: LogFile = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Have an agent on each provider say one line through Letta, too.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Treat what was found, as far as that needs no person.")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Find out which layer is at fault, why, and what to type next. Changes nothing without --fix.

    Exit code: 0 healthy, 2 findings, 1 could not look.
    """
    if context.invoked_subcommand is not None:
        return
    import asyncio

    from isabella.doctor.run import DoctorOptions
    from isabella.system.logging import configure_logs

    configure_logs()
    options = DoctorOptions(tuple(provider or ()), agent, probe)
    try:
        seen_in_log = _in_log(log) if log is not None else []
        verdict = asyncio.run(_examine(env_file, options, fix, as_json))
    except IsabellaError as error:
        if as_json:
            print(json.dumps({"error": {"what": error.what, "remedy": error.remedy}}))
        raise
    _show(verdict, seen_in_log, as_json)
    raise typer.Exit(0 if verdict.healthy else FINDINGS)


@app.command()
def explain(
    text: Annotated[list[str] | None, typer.Argument(help="What it says; from a pipe where left out.")] = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what a message means, on which releases, and what to do about it.

    Exit code: 0 recognised, 1 not recognised.
    """
    from isabella.doctor.log_messages import recognise

    if log is not None and text:
        raise typer.BadParameter("give either a text or a log with --log, not both")
    if log is not None:
        found = _in_log(log)
    elif text:
        found = recognise(" ".join(text))
    elif not sys.stdin.isatty():
        found = recognise(sys.stdin.read(_LONGEST_PASTE))
    else:
        raise typer.BadParameter("give a text, a log with --log, or something through a pipe")
    if as_json:
        print(json.dumps({"symptoms": [one.as_json() for one in found]}, indent=2, ensure_ascii=False))
    else:
        from isabella.cli.diagnosis import show_messages

        show_messages(found)
    raise typer.Exit(0 if found else COULD_NOT_LOOK)


async def _examine(env_file: Path | None, options: DoctorOptions, fix: bool, as_json: bool) -> Diagnosis:
    from dataclasses import replace

    from isabella.doctor.run import run_doctor

    doctor_run: DoctorRun = await run_doctor(env_file, options=options)
    if not fix or doctor_run.diagnosis.healthy:
        return doctor_run.diagnosis
    from isabella.doctor.log_messages import scrub
    from isabella.doctor.run import apply_fixes

    treated = []
    async for line in apply_fixes(doctor_run):
        treated.append(line)
        if not as_json:
            typer.echo(f"fixed: {scrub(line)}")
    again = await run_doctor(env_file, options=options)
    return replace(again.diagnosis, fixed=tuple(treated))


def _in_log(path: Path) -> list[RecognisedMessage]:
    from isabella.doctor.log_messages import recognise_in
    from isabella.system import files

    with files.lines(path) as lines:
        return recognise_in(lines)


def _show(verdict: Diagnosis, seen_in_log: list[RecognisedMessage], as_json: bool) -> None:
    if as_json:
        document = verdict.as_json() | {"log": [one.as_json() for one in seen_in_log]}
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    from isabella.cli.diagnosis import show_diagnosis, show_messages

    show_diagnosis(verdict)
    if seen_in_log:
        show_messages(seen_in_log, heading="In the log")
