"""`isabella letta rekey`: list the encrypted values, re-encrypt them, and prove the providers."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer
from pydantic import SecretStr

from isabella.api import compare_providers, ensure_providers
from isabella.cli.progress import show_progress
from isabella.cli.tables import show_report
from isabella.config.api_keys import is_master_key
from isabella.config.settings import Settings
from isabella.connect import embedded_connection, embedded_server
from isabella.embedded.encrypted_columns import StoredValue, ValueState
from isabella.errors import ConfigurationError
from isabella.letta.client import Connection
from isabella.providers.report import Report
from isabella.system import files


def rekey(
    settings: Settings,
    release: str,
    instance: str,
    *,
    from_env: bool = False,
    former_key_file: Path | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> bool:
    """Change the master key of the embedded Letta. Return whether all of its providers are proven."""
    key = _configured_key(settings, from_env)
    server = embedded_server(settings, release=release, instance=instance, master_key=key)
    former = [] if former_key_file is None else [_read_key(former_key_file)]
    with show_progress() as progress:
        values = server.encrypted_values(former, progress)
    _show(values, key)
    if dry_run:
        typer.echo("Nothing was changed.")
        return True
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError(
            "The change needs confirmation, and standard input is not a terminal.",
            remedy="Run it with --yes, or first with --dry-run.",
        )
    if not yes:
        typer.confirm("Letta is stopped for about half a minute. Change the master key?", abort=True)
    was_running = server.status().running
    with show_progress() as progress:
        letta = server.rekey(former, progress)
        report = asyncio.run(_proven(settings, embedded_connection(settings, letta)))
        if report is None or report.all_proven:
            # The previous key is deleted only after everything is proven under the new one.
            server.up(progress)
        if not was_running:
            server.down(progress)
    if report is not None:
        show_report(report)
    typer.echo("The master key was changed; no value is encrypted with the previous one.")
    return report is None or report.all_proven


def _configured_key(settings: Settings, from_env: bool) -> SecretStr | None:
    """Return the new key from the configuration; None if one is to be generated."""
    configured = settings.letta_encryption_key
    if from_env and configured is None:
        raise ConfigurationError(
            "--from-env requires the new master key in LETTA_ENCRYPTION_KEY, which is not set.",
            remedy="Set it, or omit --from-env: then a key is generated and stored where only you can read it.",
        )
    if configured is not None and not from_env:
        raise ConfigurationError(
            f"LETTA_ENCRYPTION_KEY is set ({settings.origin('letta_encryption_key')}), "
            "so a generated master key would not be used.",
            remedy="Set it to the new key, write the previous key to a file, and run: "
            "isabella letta rekey --from-env --former-key-file FILE",
        )
    return configured


def _read_key(path: Path) -> SecretStr:
    text = files.read(path).text.strip()
    if not is_master_key(text):
        raise ConfigurationError(
            f"{path}: this is not a master key.", remedy="A master key has 64 hexadecimal characters."
        )
    return SecretStr(text)


def _show(values: Sequence[StoredValue], key: SecretStr | None) -> None:
    if not values:
        typer.echo("Letta holds no encrypted values.")
        return
    typer.echo(f"Letta holds {len(values)} secrets:")
    for (table, column), count in Counter((value.table, value.column) for value in values).items():
        typer.echo(f"  {count:>5}  {table}.{column}")
    if plaintext := sum(value.state is ValueState.PLAINTEXT for value in values):
        typer.echo(f"{plaintext} of them are stored in plaintext, and will be encrypted.")
    if done := sum(key is not None and value.key == key for value in values):
        typer.echo(f"{done} of them are encrypted with the new key already.")
    if lost := [value for value in values if value.state is ValueState.UNREADABLE]:
        typer.echo("No known master key decrypts these, so they are left as they are:")
        for value in lost:
            typer.echo(f"         {value.place}")
        typer.echo("Name the key they are encrypted with by --former-key-file, or enter them again afterwards.")


async def _proven(settings: Settings, connection: Connection) -> Report | None:
    """Sync and prove the configured providers that Letta has; return None if it has none of them."""
    compared = await compare_providers(settings, connection=connection)
    names = [entry.name for entry in compared.configured if entry.in_letta]
    return await ensure_providers(settings, connection=connection, only=names) if names else None
