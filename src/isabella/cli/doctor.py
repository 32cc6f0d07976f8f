"""`isabella doctor`, and `isabella doctor explain`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.commands import (
    ERROR,
    PENDING,
    AsJson,
    EnvFile,
    commands,
    complete_agent,
    complete_provider,
    configured_settings,
    print_json,
    run,
)
from isabella.errors import IsabellaError

if TYPE_CHECKING:
    from isabella.doctor.findings import Diagnosis
    from isabella.doctor.log_messages import RecognisedMessage
    from isabella.doctor.run import DoctorOptions

app = commands(
    invoke_without_command=True,
    help='Find the cause of a failure and its remedy; `doctor explain "TEXT"` explains a log message.',
)

_LONGEST_PASTE = 200_000

LogFile = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Explain the messages in this log, for instance Letta's.")
]


@app.callback()
def doctor(
    context: typer.Context,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="NAME",
            help="Only this agent, and what it depends on.",
            autocompletion=complete_agent,
        ),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider",
            metavar="NAME",
            help="Only this provider, or this vendor's; repeatable.",
            autocompletion=complete_provider,
        ),
    ] = None,
    log: LogFile = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also have each provider complete one line through Letta.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Fix the findings that can be fixed automatically.")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Find the layer that is at fault, the cause, and the next command. Changes nothing without --fix.

    Exit code: 0 healthy, 2 findings, 1 the doctor could not run.
    """
    if context.invoked_subcommand is not None:
        return
    from isabella.doctor.run import DoctorOptions

    with contextlib.suppress(IsabellaError):
        # The doctor loads the settings itself, and reports their errors as findings.
        configured_settings(env_file)
    options = DoctorOptions(tuple(provider or ()), agent, probe)

    async def diagnosed() -> tuple[Diagnosis, list[RecognisedMessage]]:
        messages = _messages_in(log) if log is not None else []
        return await _diagnose(env_file, options, fix, as_json), messages

    diagnosis, messages = run(diagnosed, as_json)
    if as_json:
        print_json(diagnosis.as_json() | {"log": [message.as_json() for message in messages]}, ensure_ascii=False)
    else:
        from isabella.cli.tables import show_diagnosis, show_messages

        show_diagnosis(diagnosis)
        if messages:
            show_messages(messages, heading="In the log")
    raise typer.Exit(0 if diagnosis.healthy else PENDING)


@app.command()
def explain(
    text: Annotated[list[str] | None, typer.Argument(help="The message. Default: standard input.")] = None,
    log: LogFile = None,
    as_json: AsJson = False,
) -> None:
    """Explain a log message: its meaning, the releases that have it, and its remedy.

    Exit code: 0 recognised, 1 not recognised.
    """
    from isabella.doctor.log_messages import recognise

    if log is not None and text:
        raise typer.BadParameter("give either a text or a log with --log, not both")
    if log is not None:
        messages = _messages_in(log)
    elif text:
        messages = recognise(" ".join(text))
    elif not sys.stdin.isatty():
        messages = recognise(sys.stdin.read(_LONGEST_PASTE))
    else:
        raise typer.BadParameter("give a text, a log with --log, or a text on standard input")
    if as_json:
        print_json({"symptoms": [message.as_json() for message in messages]}, ensure_ascii=False)
    else:
        from isabella.cli.tables import show_messages

        show_messages(messages)
    raise typer.Exit(0 if messages else ERROR)


async def _diagnose(env_file: Path | None, options: DoctorOptions, fix: bool, as_json: bool) -> Diagnosis:
    from isabella.doctor.run import apply_fixes, run_doctor

    doctor_run = await run_doctor(env_file, options=options)
    if not fix or doctor_run.diagnosis.healthy:
        return doctor_run.diagnosis
    from isabella.doctor.log_messages import scrub

    fixes = []
    async for line in apply_fixes(doctor_run):
        fixes.append(line)
        if not as_json:
            typer.echo(f"fixed: {scrub(line)}")
    again = await run_doctor(env_file, options=options)
    return replace(again.diagnosis, fixed=tuple(fixes))


def _messages_in(path: Path) -> list[RecognisedMessage]:
    from isabella.doctor.log_messages import recognise_in
    from isabella.system import files

    with files.lines(path) as lines:
        return recognise_in(lines)
