"""`isabella backup`: backups of the embedded Letta, made, listed, verified and restored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isabella.cli.commands import AsJson, EnvFile, Home, commands, configured_settings, print_json
from isabella.cli.letta import DEFAULT_INSTANCE, DEFAULT_RELEASE, Instance, Release

if TYPE_CHECKING:
    from pydantic import SecretStr

    from isabella.config.settings import Settings
    from isabella.embedded import Server
    from isabella.embedded.backups import Backup, BackupPolicy
    from isabella.embedded.restoring import Verified

app = commands(no_args_is_help=True, help="Back up the embedded Letta with its master key, and restore it.")

File = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="A backup, or its name in the folder of backups. Default: the newest."),
]
Identity = Annotated[
    list[Path] | None,
    typer.Option("--identity", "-i", metavar="FILE", help="File with the key that opens the backup. Repeatable."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="File with the passphrase of the key; - for stdin."),
]


@app.command()
def create(
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write this file. Default: one in the folder.")
    ] = None,
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a backup: database, master key and settings, in one encrypted file. Agents can have turns meanwhile."""
    from isabella.cli.progress import show_progress
    from isabella.embedded import restoring
    from isabella.embedded.backups import BackupReason

    server, policy = _server(release, instance, home, env_file)
    with show_progress() as progress:
        made = restoring.back_up(server, policy, BackupReason.MANUAL, progress, to=to and to.absolute())
    if as_json:
        print_json(_as_json(made))
    else:
        typer.echo(f"{made.path}  {_size(made.size)}")
    _warn_only_here(policy)


@app.command(name="list")
def list_(home: Home = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """List the backups of this home, the newest first."""
    from isabella.cli.tables import show_backups
    from isabella.embedded.backups import BackupPolicy, list_backups

    policy = BackupPolicy.of(configured_settings(env_file, home=home))
    found = list_backups(policy.folder)
    if as_json:
        print_json({"folder": str(policy.folder), "backups": [_as_json(one) for one in found]})
    elif found:
        show_backups([(one.path.name, one.at, one.reason.value, _size(one.size)) for one in found])
    else:
        typer.echo(f"There are no backups in {policy.folder}.")


@app.command()
def verify(
    file: File = None,
    identity: Identity = None,
    passphrase_file: PassphraseFile = None,
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Read a backup into a separate database, compare every count, and decrypt every secret in it.

    Nothing else is changed. Exit code: 0 it can be restored, otherwise 1.
    """
    from isabella.cli.progress import show_progress
    from isabella.embedded import restoring

    server, policy = _server(release, instance, home, env_file)
    path = _path(file, server, policy)
    keys = _identities(policy.settings, path, identity, passphrase_file)
    with show_progress() as progress:
        verified = restoring.verify(server, path, keys, progress)
    if as_json:
        contents = verified.contents
        print_json(
            {
                "path": str(path),
                "made_at": contents.at,
                "letta": contents.release,
                "counts": contents.counted(),
                "secrets": dict(verified.values),
            }
        )
    else:
        _show_verified(path, verified)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup, or its name in the folder of backups.")],
    identity: Identity = None,
    passphrase_file: PassphraseFile = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    release: Release = DEFAULT_RELEASE,
    instance: Instance = DEFAULT_INSTANCE,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Replace the data of the embedded Letta by those of a backup, and prove the providers with the keys of `.env`.

    The backend must not be running. The present data are backed up first, and stay if this is interrupted.
    Exit code: 0 all configured providers proven, otherwise 1.
    """
    from isabella.cli import restore as command
    from isabella.errors import ConfigurationError

    server, policy = _server(release, instance, home, env_file)
    path = _path(file, server, policy)
    keys = _identities(policy.settings, path, identity, passphrase_file)
    if not yes and not sys.stdin.isatty():
        raise ConfigurationError(
            "A restore needs confirmation, and standard input is not a terminal.", remedy="Run it with --yes."
        )
    if not yes:
        typer.confirm(f"Replace the agents, messages and memory in {server.paths.folder} by {path.name}?", abort=True)
    raise typer.Exit(0 if command.restore(server, policy.settings, path, keys) else 1)


@app.command()
def key(passphrase_file: PassphraseFile = None, home: Home = None, env_file: EnvFile = None) -> None:
    """Encrypt the key of the backups with a passphrase, and put it beside them, so that they can be opened elsewhere.

    Without `ISABELLA_BACKUP_RECIPIENTS`, the key is in this home only, and lost with it.
    """
    from isabella.embedded import backup_keys
    from isabella.embedded.backups import BackupPolicy
    from isabella.embedded.instance import make_private

    policy = BackupPolicy.of(configured_settings(env_file, home=home))
    passphrase = _passphrase(passphrase_file, "New passphrase", confirm=True)
    make_private(policy.folder)
    at = policy.settings.home.absolute()
    path = backup_keys.seal_key(at, policy.folder, passphrase)
    typer.echo(f"{path} opens the backups with the passphrase, here and elsewhere. Keep copies of both.")
    typer.echo(f"The public key: {backup_keys.own_key_or_new(at).to_public()}")


def _server(release: str, instance: str, home: Path | None, env_file: Path | None) -> tuple[Server, BackupPolicy]:
    from isabella.connect import embedded_server
    from isabella.embedded.backups import BackupPolicy
    from isabella.errors import ConfigurationError

    settings = configured_settings(env_file, home=home)
    if settings.letta_base_url is not None:
        raise ConfigurationError(
            "LETTA_BASE_URL names your own Letta server, whose database Isabella does not back up.",
            remedy="Back it up with the tools of its Postgres, and keep LETTA_ENCRYPTION_KEY with it.",
        )
    return embedded_server(settings, release=release, instance=instance), BackupPolicy.of(settings)


def _path(file: Path | None, server: Server, policy: BackupPolicy) -> Path:
    from isabella.embedded.backups import list_backups
    from isabella.errors import BackupRefused

    if file is not None:
        return file.absolute() if file.exists() or file.parent != Path() else policy.folder / file
    newest = next(iter(list_backups(policy.folder, server.paths.folder.name)), None)
    if newest is None:
        raise BackupRefused(f"There are no backups in {policy.folder}.", remedy="Name the file of a backup.")
    return newest.path


def _identities(
    settings: Settings, path: Path, named: list[Path] | None, passphrase_file: Path | None
) -> Sequence[Any]:
    """Return the keys that may open a backup: the named ones, the home's own, or the one beside the backup."""
    from isabella.embedded import archive, backup_keys

    if not named:
        own = backup_keys.own_key(settings.home.absolute())
        beside = sorted(path.parent.glob(backup_keys.SEALED_KEYS))
        if own is not None and (not beside or archive.opens(path, [own])):
            return [own]
        return _keys_beside(beside, passphrase_file)
    keys: list[Any] = []
    for file in named:
        sealed = backup_keys.is_sealed(file)
        passphrase = _passphrase(passphrase_file, f"Passphrase of {file.name}") if sealed else None
        keys += backup_keys.load_keys(file, passphrase)
    return keys


def _keys_beside(files: Sequence[Path], passphrase_file: Path | None) -> Sequence[Any]:
    """Return the keys that one passphrase opens; raise `BackupRefused` if there are files, and it opens none."""
    from isabella.embedded import backup_keys
    from isabella.errors import BackupRefused

    passphrase = _passphrase(passphrase_file, "Passphrase of the key") if files else None
    keys: list[Any] = []
    for number, file in enumerate(files, 1):
        try:
            keys += backup_keys.load_keys(file, passphrase)
        except BackupRefused:
            if number == len(files) and not keys:
                raise
    return keys


def _passphrase(file: Path | None, prompt: str, *, confirm: bool = False) -> SecretStr:
    from pydantic import SecretStr

    from isabella.errors import ConfigurationError
    from isabella.system import files, redaction

    if file is not None:
        text = files.read_or_stdin(file).text.rstrip("\n")
    elif sys.stdin.isatty():
        text = typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm)
    else:
        raise ConfigurationError(
            "A passphrase is needed, and standard input is not a terminal.",
            remedy="Pass a file with it as --passphrase-file.",
        )
    if not text:
        raise ConfigurationError("The passphrase is empty.", remedy="Give one of several words.")
    redaction.remember(text)
    return SecretStr(text)


def _warn_only_here(policy: BackupPolicy) -> None:
    from isabella.embedded import backup_keys
    from isabella.system.terminal import print_message

    if policy.only_here:
        print_message(
            f"Only {policy.settings.home / backup_keys.KEY_FILE} opens this backup: without that file it is lost. "
            "To open it elsewhere: isabella backup key",
            level="warning",
        )


def _show_verified(path: Path, verified: Verified) -> None:
    contents = verified.contents
    typer.echo(f"{path.name} can be restored: Letta {contents.release}, made {contents.at}")
    typer.echo("  " + ", ".join(f"{number} {word}" for word, number in contents.counted().items()))
    decrypted = sum(number for state, number in verified.values.items() if state != "unreadable")
    typer.echo(f"  {decrypted} secrets decrypted with its master key")
    if contents.unreadable:
        typer.echo(f"  {contents.unreadable} secrets that no known key decrypted when it was made")


def _as_json(backup: Backup) -> dict[str, Any]:
    return {
        "path": str(backup.path),
        "instance": backup.source,
        "made_at": backup.at.isoformat(),
        "reason": backup.reason.value,
        "bytes": backup.size,
    }


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
