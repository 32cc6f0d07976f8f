"""`isabella audit`: who changed a key, an agent or a setting."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.commands import AsJson, EnvFile, Home, configured_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from isabella.system.audit import Record

_UNITS = {"m": 60, "h": 3600, "d": 86400}


def audit(
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="A time (ISO 8601), or 30m, 12h, 7d for an age.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="TEXT", help="Kind, name, address or command of who did it.")
    ] = None,
    change: Annotated[
        str | None, typer.Option("--change", metavar="KIND", help="agent, or agent.created, for instance.")
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", metavar="TEXT", help="What was changed.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed or were interrupted.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="The last so many; 0: all.")] = 50,
    home: Home = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed a key, an agent or a setting, the newest change last.

    With --json, each change is one line. The log itself is in ISABELLA_HOME/audit.
    """
    from isabella.system import audit as log

    folder = configured_settings(env_file, home=home).home.absolute()
    begin = None if since is None else _time(since)
    found = [one for one in _records(folder, begin) if _matches(one, by, change, subject, failed=failed)]
    shown = found[-limit:] if limit else found
    if as_json:
        import json

        for one in shown:
            outcome = "interrupted" if one.interrupted else one.entry.outcome.value
            typer.echo(json.dumps(one.entry.as_json() | {"outcome": outcome}))
        return
    if not shown:
        typer.echo(f"There is no such change in {folder / log.FOLDER}.")
    for one in shown:
        typer.echo(_line(one))


def _time(text: str) -> datetime:
    """Return the time that an option names."""
    from datetime import UTC, datetime, timedelta

    if (age := re.fullmatch(r"(\d{1,6})([mhd])", text.strip())) is not None:
        return datetime.now(UTC) - timedelta(seconds=int(age[1]) * _UNITS[age[2]])
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a time nor an age such as 7d", param_hint="--since") from None


def _records(home: Path, begin: datetime | None) -> Iterator[Record]:
    from datetime import datetime

    from isabella.system.audit import records

    return (one for one in records(home) if begin is None or datetime.fromisoformat(one.entry.at) >= begin)


def _matches(one: Record, by: str | None, change: str | None, subject: str | None, *, failed: bool) -> bool:
    from isabella.system.audit import ChangeOutcome

    entry, actor = one.entry, one.entry.actor
    who = " ".join((actor.kind.value, actor.name, actor.address, actor.via)).casefold()
    return (
        (by is None or by.casefold() in who)
        and (change is None or entry.change == change or entry.change.startswith(f"{change}."))
        and (subject is None or subject.casefold() in entry.subject.casefold())
        and (not failed or entry.outcome is not ChangeOutcome.DONE)
    )


def _line(one: Record) -> str:
    """Return a change as one line."""
    from datetime import datetime

    entry, actor = one.entry, one.entry.actor
    at = datetime.fromisoformat(entry.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    who = " ".join(filter(None, (actor.kind.value, actor.name, actor.address and f"from {actor.address}")))
    facts = ", ".join(f"{name} {_shown(value)}" for name, value in entry.details.items())
    end = "interrupted" if one.interrupted else f"failed: {entry.error}" if entry.error else ""
    text = f"{at}  {entry.change}  {entry.subject}  by {who}" + (f" ({actor.via})" if actor.via else "")
    return "  ".join(filter(None, (text, facts, end)))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
