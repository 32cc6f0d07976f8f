"""`isabella letta rekey`: what is sealed is shown, sealed anew, and proven."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import SecretStr

from isabella.api import compare_providers, ensure_providers
from isabella.cli.progress import shown
from isabella.cli.tables import show_report
from isabella.config.api_keys import is_master_key
from isabella.config.settings import Settings
from isabella.connect import embedded_connection
from isabella.embedded import Server
from isabella.embedded.encrypted_columns import OpenedValue, ValueState
from isabella.errors import ConfigurationError
from isabella.letta.connection import Connection
from isabella.providers.report import Report
from isabella.system import files
from isabella.system.logging import configure_logs


@dataclass(frozen=True)
class RekeyOptions:
    """What the operator wants.

    Attributes:
        release: which Letta.
        instance: which of its servers.
        from_env: the new key is the configured one.
        former_key_file: holds the master key so far.
        dry_run: only show what would be done.
        yes: do not ask.
    """

    release: str
    instance: str
    from_env: bool
    former_key_file: Path | None
    dry_run: bool
    yes: bool


def rekey(settings: Settings, wish: RekeyOptions) -> bool:
    """Change the master key of the embedded Letta. Returns whether all is well.

    Raises:
        ConfigurationError: the settings and the wish contradict each other.
        EmbeddedError: the server or its database cannot be used.
    """
    configure_logs()
    key = _new_key(settings, wish)
    server = Server(settings.home, release=wish.release, instance=wish.instance, master_key=key)
    former = [] if wish.former_key_file is None else [_read_key(wish.former_key_file)]
    with shown() as progress:
        found = server.sealed(former, progress)
    _show(found, key)
    if wish.dry_run:
        typer.echo("Nothing was changed.")
        return True
    _ask(wish)
    ran = server.status().running
    with shown() as progress:
        letta = server.rekey(former, progress)
        report = asyncio.run(_proven(settings, embedded_connection(settings, letta)))
        if report is None or report.all_proven:
            # All is well under the new key: only now is the former one forgotten.
            server.up(progress)
        if not ran:
            server.down(progress)
    if report is not None:
        show_report(report)
    typer.echo("The master key was changed; the former one opens nothing any more.")
    return report is None or report.all_proven


def _new_key(settings: Settings, wish: RekeyOptions) -> SecretStr | None:
    configured = settings.letta_encryption_key
    if wish.from_env and configured is None:
        raise ConfigurationError(
            "--from-env wants the new master key in LETTA_ENCRYPTION_KEY, which is not set.",
            remedy="Put it there, or leave --from-env: a key is made, and kept where only you can read it.",
        )
    if configured is not None and not wish.from_env:
        raise ConfigurationError(
            f"LETTA_ENCRYPTION_KEY is set ({settings.origin('letta_encryption_key')}): Letta would take no other.",
            remedy="Put the new key there, the one so far into a file, and run: "
            "isabella letta rekey --from-env --former-key-file FILE",
        )
    return configured


def _read_key(path: Path) -> SecretStr:
    text = files.read(path).text.strip()
    if not is_master_key(text):
        raise ConfigurationError(f"{path}: a master key has 64 hexadecimal characters.")
    return SecretStr(text)


def _show(found: Sequence[OpenedValue], key: SecretStr | None) -> None:
    if not found:
        typer.echo("Letta holds nothing that is sealed.")
        return
    done = sum(key is not None and one.key == key for one in found)
    typer.echo(f"Letta holds {len(found)} secrets:")
    for (table, column), number in Counter((one.value.table, one.value.column) for one in found).items():
        typer.echo(f"  {number:>5}  {table}.{column}")
    if plain := [one for one in found if one.how is ValueState.PLAINTEXT]:
        typer.echo(f"{len(plain)} of them stand in plaintext, and will be sealed.")
    if done:
        typer.echo(f"{done} of them are under the new key already.")
    if lost := [one for one in found if one.how is ValueState.UNREADABLE]:
        typer.echo("No known master key opens these, so they cannot be carried over; they are left as they are:")
        for one in lost:
            typer.echo(f"         {one.value.place}")
        typer.echo("Give the key they are sealed under with --former-key-file, or enter them again afterwards.")


def _ask(wish: RekeyOptions) -> None:
    if wish.yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError("Nobody can be asked here.", remedy="Run it with --yes, or first with --dry-run.")
    typer.confirm("Letta is stopped for about half a minute. Change the master key?", abort=True)


async def _proven(settings: Settings, connection: Connection) -> Report | None:
    """Bring those in line that Letta has, and prove them; None where it has none of ours."""
    seen = await compare_providers(settings, connection=connection)
    names = [entry.name for entry in seen.ours if entry.in_letta]
    return await ensure_providers(settings, connection=connection, only=names) if names else None
