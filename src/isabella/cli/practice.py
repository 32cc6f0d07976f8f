"""`isabella practice`: stand-ins for the four vendors on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isabella.cli.commands import commands
from isabella.cli.options import AsJson, EnvFile, as_usage

if TYPE_CHECKING:
    from isabella.practice.daemon import Running
    from isabella.practice.requests import Request

app = commands(
    no_args_is_help=True,
    help="Run practice vendors: stand-ins for Cerebras, Groq, Mistral and LongCat on this machine.",
)

NOT_RUNNING = 3

Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="FOLDER", help="Where everything is kept. Default: ISABELLA_HOME, or user data."),
]


def _known(vendor: str) -> str:
    from isabella.practice.profiles import profile

    with as_usage():
        return profile(vendor).name


Vendor = Annotated[str, typer.Argument(metavar="VENDOR", help="cerebras, groq, mistral or longcat.", callback=_known)]


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The loopback port. Default: the former one, or a free one.")
    ] = None,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Have the practice vendors running; prints their base URLs and the keys they accept, masked."""
    from isabella.practice import daemon

    running = daemon.up(_home(home, env_file), port, lambda line: print(line, file=sys.stderr, flush=True))
    _show(running)


@app.command()
def down(home: Home = None, env_file: EnvFile = None) -> None:
    """Stop the practice vendors. Their keys and their port are kept."""
    from isabella.practice import daemon

    stopped = daemon.down(_home(home, env_file))
    typer.echo("Stopped." if stopped else "Nothing was running.")


@app.command()
def status(home: Home = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show whether the practice vendors run, what they accept, and what goes wrong at them.

    Exit code: 0 they run, 3 they do not, 1 error.
    """
    from isabella.practice import daemon

    running = daemon.status(_home(home, env_file))
    if as_json:
        typer.echo(json.dumps(_as_json(running), indent=2))
    elif running is None:
        typer.echo("The practice vendors do not run.")
    else:
        _show(running)
    raise typer.Exit(0 if running is not None else NOT_RUNNING)


@app.command()
def keys(
    vendor: Vendor,
    accept: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Accept the keys in this file instead, one a line; - for standard input."),
    ] = None,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Show the keys that a vendor accepts, masked, or replace them."""
    from isabella.practice import daemon
    from isabella.system.redaction import mask

    folder = _home(home, env_file)
    if accept is not None:
        daemon.accept(folder, vendor, _keys_in(accept))
    for key in daemon.accepted_keys(folder)[vendor]:
        typer.echo(mask(key))


@app.command()
def rotate(
    vendor: Vendor,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Go on accepting the former keys as well.")] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Have a vendor accept a new key, and no longer the former ones."""
    from isabella.practice import daemon, keyring
    from isabella.system.redaction import mask

    folder = _home(home, env_file)
    former = daemon.accepted_keys(folder)[vendor]
    key = keyring.new_key(vendor)
    daemon.accept(folder, vendor, [key, *(former if keep_old else ())])
    typer.echo(f"{mask(key)}  written to {daemon.keys_file(folder)}")


@app.command()
def fault(
    vendor: Vendor,
    on: Annotated[str | None, typer.Option(help="Only at models, chat or embeddings.")] = None,
    times: Annotated[int | None, typer.Option(min=1, help="For so many requests; default: until cleared.")] = None,
    share: Annotated[float, typer.Option(help="The part of the requests, above 0, up to 1.")] = 1.0,
    latency: Annotated[float, typer.Option(help="Seconds to wait before the answer.")] = 0.0,
    between: Annotated[float, typer.Option(help="Seconds to wait between the pieces of a stream.")] = 0.0,
    http_status: Annotated[int | None, typer.Option("--status", help="Refuse with this status: 429, 500, …")] = None,
    retry_after: Annotated[float | None, typer.Option(help="Seconds that the refusal asks to wait.")] = None,
    hang: Annotated[float | None, typer.Option(help="Say nothing for so many seconds, then hang up.")] = None,
    reset: Annotated[str | None, typer.Option(help="Reset the connection: at_once or midway.")] = None,
    truncated: Annotated[bool, typer.Option("--truncated", help="Break the answer off in the middle.")] = False,
    html: Annotated[int | None, typer.Option(help="Send a proxy's HTML page with this status.")] = None,
    malformed: Annotated[bool, typer.Option("--malformed", help="Send broken JSON.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Switch off what is on before.")] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Make a vendor fail, or let it work again: --clear switches all its faults off. Shows what is on."""
    from isabella.practice.faults import VendorFault

    wanted: dict[str, Any] = {
        "latency": latency,
        "between": between,
        "status": http_status,
        "hang": hang,
        "reset": reset,
        "truncated": truncated,
        "html": html,
        "malformed": malformed,
    }
    made = None
    if any(wanted.values()) or on is not None or times is not None or retry_after is not None or share != 1.0:
        with as_usage():
            made = VendorFault(**wanted, on=on, times=times, share=share, retry_after=retry_after)  # type: ignore[arg-type]
    control = _running(home, env_file).control
    if clear:
        control.clear(vendor)
    if made is not None:
        control.fault(vendor, made)
    for line in _faults(control.faults(vendor)) or ["No fault is on."]:
        typer.echo(line)


@app.command()
def log(
    vendor: Vendor,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last requests.")] = 50,
    home: Home = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what arrived at a vendor, with which key (masked), and what it was answered."""
    from dataclasses import asdict

    entries = _running(home, env_file).control.requests(vendor)[-lines:]
    if as_json:
        typer.echo(json.dumps({"requests": [asdict(entry) for entry in entries]}, indent=2))
        return
    for entry in entries:
        typer.echo(_line(entry))


@app.command()
def env(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; only you may read it.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Write keys and base URLs of the practice vendors as .env lines, to try things by hand."""
    from isabella.errors import PracticeError
    from isabella.practice.profiles import NAMES
    from isabella.system.files import write_private

    running = _running(home, env_file)
    if file.exists() and not force:
        raise PracticeError(f"{file} exists.", remedy="Name another file, or add --force to replace it.")
    text = ["# The practice vendors: stand-ins on this machine, with keys that nobody else accepts."]
    for name in NAMES:
        text.append(f"{name.upper()}_API_KEY={running.key(name).get_secret_value()}")
        text.append(f"{name.upper()}_BASE_URL={running.base_url(name)}")
    try:
        write_private(file, "\n".join(text) + "\n")
    except OSError as error:
        raise PracticeError(f"{file} cannot be written: {error.strerror}.") from None
    typer.echo(f"Written to {file}")


def _home(home: Path | None, env_file: Path | None) -> Path:
    if home is not None:
        return home.absolute()
    from isabella.config.settings import load_settings

    return load_settings(env_file).home


def _running(home: Path | None, env_file: Path | None) -> Running:
    from isabella.errors import PracticeError
    from isabella.practice import daemon

    running = daemon.status(_home(home, env_file))
    if running is None:
        raise PracticeError("The practice vendors do not run.", remedy="Start them: isabella practice up")
    return running


def _keys_in(source: str) -> list[str]:
    from isabella.system import files

    text = files.read_or_stdin(Path(source)).text
    return [line.strip() for line in text.splitlines() if line.strip()]


def _show(running: Running) -> None:
    from isabella.practice.profiles import NAMES
    from isabella.system.redaction import mask

    for name in NAMES:
        accepted = ", ".join(mask(key.get_secret_value()) for key in running.keys(name)) or "no key"
        typer.echo(f"{name:<9} {running.base_url(name):<45} {accepted}")
        for line in _faults(running.control.faults(name)):
            typer.echo(f"{'':<9} fault: {line}")


def _as_json(running: Running | None) -> dict[str, Any]:
    from isabella.practice.profiles import NAMES
    from isabella.system.redaction import mask

    if running is None:
        return {"running": False}
    vendors = {
        name: {
            "base_url": running.base_url(name),
            "keys": [mask(key.get_secret_value()) for key in running.keys(name)],
            "faults": running.control.faults(name),
        }
        for name in NAMES
    }
    return {"running": True, "pid": running.process.pid, "port": running.port, "vendors": vendors}


def _faults(faults: list[dict[str, Any]]) -> list[str]:
    lines = []
    for one in faults:
        unset = {"times": None, "share": 1.0}
        told = {name: value for name, value in one.items() if value and value != unset.get(name) and name != "times"}
        lines.append(", ".join(f"{name} {value}" for name, value in told.items()))
    return lines


def _line(entry: Request) -> str:
    from datetime import datetime

    when = datetime.fromtimestamp(entry.at).strftime("%H:%M:%S.%f")[:-3]
    key = entry.key_masked or "no key"
    notes = [note for note in (entry.model, "stream" if entry.stream else None, entry.fault) if note]
    verdict = "accepted" if entry.accepted else "REFUSED"
    return (
        f"{when}  {entry.status:>3}  {verdict:<8}  {key:<12}  {entry.method} {entry.path}  {' '.join(notes)}".rstrip()
    )
