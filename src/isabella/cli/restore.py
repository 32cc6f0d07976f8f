"""`isabella backup restore`: replace the data, prove the providers, and say what is missing here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from isabella.api import ensure_providers
from isabella.cli.progress import show_progress
from isabella.cli.tables import show_report
from isabella.config.settings import Settings, load_settings
from isabella.connect import embedded_connection
from isabella.embedded import Server, restoring
from isabella.embedded.backups import Contents
from isabella.embedded.instance import DEFAULT_INSTANCE, DEFAULT_RELEASE, histories_folder
from isabella.embedded.restoring import Restored
from isabella.errors import FileUnreadable
from isabella.gateway import process as gateway
from isabella.providers.desired import desired_providers
from isabella.providers.report import Report
from isabella.server.running_backend import only_backend
from isabella.system import files, state


def restore(server: Server, settings: Settings, path: Path, keys: Sequence[Any]) -> bool:
    """Restore a backup, and sync the configured providers; return whether all of them are proven."""
    was_running = server.status().running
    with only_backend(settings), show_progress() as progress:
        restored = restoring.restore(server, path, keys, progress)
        try:
            notes = [
                *_put_files(settings, restored.verified.contents),
                *_put_histories(settings, restored.verified.contents),
                *_missing(settings, restored.verified.contents),
            ]
            report = _proven(server, settings, restored)
        finally:
            if not was_running:
                server.down(progress)
                gateway.daemon(server.home).stop()
    show_report(report)
    counted = restored.verified.contents.counted()
    typer.echo(f"Restored {path.name}: " + ", ".join(f"{number} {word}" for word, number in counted.items()))
    if restored.reencrypted:
        typer.echo("Its secrets are encrypted with the master key of this home now.")
    if restored.before is not None:
        typer.echo(f"The data that were here before: {restored.before.path}")
    for note in notes:
        typer.echo(note)
    return report.all_proven


def _proven(server: Server, settings: Settings, restored: Restored) -> Report:
    """Sync and prove the providers that are configured here."""
    # The files of the backup may declare vendors.
    settings = load_settings(settings.sources.file if settings.sources.file.exists() else None, home=settings.home)
    if (server.release, server.instance) == (DEFAULT_RELEASE, DEFAULT_INSTANCE) and gateway.starts_here(settings):
        gateway.start(settings)
    return asyncio.run(ensure_providers(settings, connection=embedded_connection(settings, restored.letta)))


def _put_files(settings: Settings, contents: Contents) -> Iterator[str]:
    """Write the files of the backup that are missing here, and name those that differ."""
    for name, path in (("isabella.toml", settings.config_file), ("agents.toml", settings.agents_file)):
        text = contents.files.get(name)
        if text is None:
            continue
        if path is None:
            yield f"The backup has a file of agents, and ISABELLA_AGENTS_FILE is not set here: {name} was left out."
            continue
        try:
            if files.read(path).text != text:
                yield f"{path} differs from the one in the backup, and was left as it is."
        except FileUnreadable:
            if not path.exists():
                files.write_private(path, text)
                yield f"{path} was missing, and is that of the backup now."


def _put_histories(settings: Settings, contents: Contents) -> Iterator[str]:
    """Write the former texts of memory blocks that are missing here."""
    folder = histories_folder(settings.home)
    missing = {folder / f"{name}.json": history for name, history in contents.histories.items()}
    written = [state.keep(path, history) for path, history in missing.items() if not path.exists()]
    if written:
        yield f"Memory blocks whose former texts were missing, and are those of the backup now: {sum(written)}."


def _missing(settings: Settings, contents: Contents) -> Iterator[str]:
    """Name the keys and settings that were set where the backup was made, and are not set here."""
    configured = {one.vendor.api_key_env for one in desired_providers(settings) if one.configured}
    names = [str(name) for name in contents.settings.get("keys", [])]
    missing = [name for name in names if name not in configured and settings.sources.get(name) is None]
    if missing:
        yield f"Set where the backup was made, and not here: {', '.join(missing)}. Put them into .env."
    for name, value in contents.settings.get("values", {}).items():
        if settings.sources.get(name) is None:
            yield f"{name} was {value!r} where the backup was made, and is not set here."
