"""`isabella practice`: practice vendors on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isabella.cli.commands import (
    NOT_RUNNING,
    AsJson,
    EnvFile,
    Home,
    as_usage,
    commands,
    configured_settings,
    print_json,
)
from isabella.system.terminal import print_message

if TYPE_CHECKING:
    from isabella.practice.daemon import Running

app = commands(
    no_args_is_help=True,
    help="Run practice vendors on this machine, which answer in place of Cerebras, Groq, Mistral and LongCat.",
)


def _known_vendor(vendor: str) -> str:
    from isabella.errors import PracticeError
    from isabella.practice.wire import NAMES

    with as_usage():
        if vendor not in NAMES:
            raise PracticeError(f"There is no practice vendor {vendor!r}.", remedy=f"There are {', '.join(NAMES)}.")
    return vendor


Vendor = Annotated[
    str, typer.Argument(metavar="VENDOR", help="cerebras, groq, mistral or longcat.", callback=_known_vendor)
]


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The loopback port. Default: the last one, or a free one.")
    ] = None,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Start the practice vendors, and print their base URLs and the keys they accept, masked."""
    from isabella.practice import daemon

    _show(daemon.up(_home(home, env_file), port, print_message))


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen on.")] = 8090,
    env_file: EnvFile = None,
) -> None:
    """Run the practice vendors in the foreground, with the keys of the configuration, for instance in a container.

    Each vendor accepts the key that is configured for it (CEREBRAS_API_KEY, …), which must be set.
    """
    from isabella.practice.foreground import serve as serve_in_foreground

    settings = configured_settings(env_file, service=True)
    serve_in_foreground(settings, host, port, print_message)


@app.command()
def down(home: Home = None, env_file: EnvFile = None) -> None:
    """Stop the practice vendors. Their keys and their port stay the same."""
    from isabella.practice import daemon

    stopped = daemon.down(_home(home, env_file))
    typer.echo("Stopped." if stopped else "Nothing was running.")


@app.command()
def status(home: Home = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show whether the practice vendors are running, the keys they accept, and their active faults.

    Exit code: 0 they are running, 3 they are not, 1 error.
    """
    from isabella.practice import daemon

    running = daemon.status(_home(home, env_file))
    if as_json:
        print_json(_as_json(running))
    elif running is None:
        typer.echo("The practice vendors are not running.")
    else:
        _show(running)
    raise typer.Exit(0 if running is not None else NOT_RUNNING)


@app.command()
def keys(
    vendor: Vendor,
    accept: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Accept the keys of this file, one per line; - for standard input."),
    ] = None,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Show the keys that a vendor accepts, masked, or replace them with --accept."""
    from isabella.practice import daemon
    from isabella.system.redaction import mask

    folder = _home(home, env_file)
    if accept is not None:
        from isabella.system import files

        lines = files.read_or_stdin(Path(accept)).text.splitlines()
        daemon.accept(folder, vendor, [line.strip() for line in lines if line.strip()])
    for key in daemon.accepted_keys(folder)[vendor]:
        typer.echo(mask(key))


@app.command()
def rotate(
    vendor: Vendor,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Also accept the previous keys.")] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Make a vendor accept a new key, and reject the previous ones."""
    from isabella.practice import daemon
    from isabella.system.redaction import mask

    folder = _home(home, env_file)
    key = daemon.rotate(folder, vendor, keep_old=keep_old)
    typer.echo(f"{mask(key.get_secret_value())}  written to {daemon.keys_file(folder)}")


@app.command()
def fault(
    vendor: Vendor,
    on: Annotated[str | None, typer.Option(help="Only for requests of models, chat or embeddings.")] = None,
    times: Annotated[int | None, typer.Option(min=1, help="For this many requests. Default: until cleared.")] = None,
    share: Annotated[float, typer.Option(help="The share of requests that fail, above 0, at most 1.")] = 1.0,
    latency: Annotated[float, typer.Option(help="Seconds to wait before the response.")] = 0.0,
    between: Annotated[float, typer.Option(help="Seconds to wait between the chunks of a stream.")] = 0.0,
    http_status: Annotated[int | None, typer.Option("--status", help="Respond with this status: 429, 500, …")] = None,
    retry_after: Annotated[float | None, typer.Option(help="Value of the Retry-After header, in seconds.")] = None,
    hang: Annotated[float | None, typer.Option(help="Send nothing for this many seconds, then close.")] = None,
    reset: Annotated[str | None, typer.Option(help="Reset the connection: at_once or midway.")] = None,
    truncated: Annotated[bool, typer.Option("--truncated", help="End the response in the middle.")] = False,
    html: Annotated[int | None, typer.Option(help="Respond with a proxy's HTML page and this status.")] = None,
    malformed: Annotated[bool, typer.Option("--malformed", help="Send broken JSON.")] = False,
    endless: Annotated[bool, typer.Option("--endless", help="Repeat the answer until the limit of tokens.")] = False,
    stuck: Annotated[bool, typer.Option("--stuck", help="Repeat a call of a tool that fails.")] = False,
    window: Annotated[int | None, typer.Option(min=1, help="Refuse prompts of more tokens than this.")] = None,
    overflow: Annotated[
        str | None, typer.Option(help="Refuse them in the words of this server: llama.cpp, vllm, ollama, …")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all faults and limits of the vendor first.")] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Make the requests of a vendor fail, or remove its faults with --clear. Shows the active faults."""
    from isabella.practice.vendor import VendorFault

    kinds: dict[str, Any] = {"latency": latency, "between": between, "status": http_status, "hang": hang}
    kinds |= {"reset": reset, "truncated": truncated, "html": html, "malformed": malformed}
    kinds |= {"endless": endless, "stuck": stuck, "window": window, "overflow": overflow}
    new = None
    if any(kinds.values()) or on is not None or times is not None or retry_after is not None or share != 1.0:
        with as_usage():
            new = VendorFault(**kinds, on=on, times=times, share=share, retry_after=retry_after)  # type: ignore[arg-type]
    control = _running(home, env_file).control
    if clear:
        control.clear(vendor)
    if new is not None:
        control.fault(vendor, new)
    for line in _fault_lines(control.faults(vendor)) or ["No fault is active."]:
        typer.echo(line)


@app.command()
def limit(
    vendor: Vendor,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests per minute. Default: the usual.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per minute. Default: the usual.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove the limits.")] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Limit a vendor's requests and tokens per minute. It refuses more with 429 (Groq: 413 if it can never pass)."""
    control = _running(home, env_file).control
    if off:
        control.lift(vendor)
    elif requests is not None or tokens is not None:
        control.limit(vendor, requests=requests, tokens=tokens)
    state = control.limits(vendor)
    if state is None:
        typer.echo("No limit is active.")
        return
    for name in ("requests", "tokens"):
        typer.echo(f"{name} per minute: {state[name]}, left: {state[f'{name}_left']}")


@app.command()
def log(
    vendor: Vendor,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="The number of last requests to show.")] = 50,
    home: Home = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the last requests to a vendor: status, key (masked), method and path."""
    from dataclasses import asdict
    from datetime import datetime

    entries = _running(home, env_file).control.requests(vendor)[-lines:]
    if as_json:
        print_json({"requests": [asdict(entry) for entry in entries]})
        return
    for entry in entries:
        when = datetime.fromtimestamp(entry.at).strftime("%H:%M:%S.%f")[:-3]
        outcome, key = "accepted" if entry.accepted else "REFUSED", entry.key_masked or "no key"
        tokens = f"{entry.generated} tokens" if entry.generated else None
        ended = None if entry.ended == "completed" else entry.ended or "in progress"
        told = (entry.model, "stream" if entry.stream else None, entry.fault, tokens, ended)
        notes = " ".join(note for note in told if note)
        request = f"{entry.status:>3}  {outcome:<8}  {key:<12}  {entry.method} {entry.path}"
        typer.echo(f"{when}  {request}  {notes}".rstrip())


@app.command()
def env(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, readable only by you.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Write the keys and base URLs of the practice vendors to a file, as lines of .env."""
    from isabella.errors import PracticeError
    from isabella.practice.wire import NAMES
    from isabella.system.files import write_private

    running = _running(home, env_file)
    if file.exists() and not force:
        raise PracticeError(f"{file} exists.", remedy="Name another file, or add --force to replace it.")
    text = ["# Practice vendors on this machine. No real vendor accepts these keys."]
    for name in NAMES:
        text.append(f"{name.upper()}_API_KEY={running.key(name).get_secret_value()}")
        text.append(f"{name.upper()}_BASE_URL={running.base_url(name)}")
    try:
        write_private(file, "\n".join(text) + "\n")
    except OSError as error:
        raise PracticeError(f"{file} cannot be written: {error.strerror}.", remedy="Name another file.") from None
    typer.echo(f"Wrote {file}")


def _home(home: Path | None, env_file: Path | None) -> Path:
    if home is not None:
        return home.absolute()
    return configured_settings(env_file).home


def _running(home: Path | None, env_file: Path | None) -> Running:
    from isabella.errors import PracticeError
    from isabella.practice import daemon

    running = daemon.status(_home(home, env_file))
    if running is None:
        raise PracticeError("The practice vendors are not running.", remedy="Start them with `isabella practice up`.")
    return running


def _show(running: Running) -> None:
    from isabella.practice.wire import NAMES
    from isabella.system.redaction import mask

    for name in NAMES:
        accepted = ", ".join(mask(key.get_secret_value()) for key in running.keys(name)) or "no key"
        typer.echo(f"{name:<9} {running.base_url(name):<45} {accepted}")
        for line in _fault_lines(running.control.faults(name)):
            typer.echo(f"{'':<9} fault: {line}")


def _as_json(running: Running | None) -> dict[str, Any]:
    from isabella.practice.wire import NAMES
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


def _fault_lines(faults: list[dict[str, Any]]) -> list[str]:
    def described(fault: dict[str, Any]) -> str:
        shown = (item for item in fault.items() if item[1] and item[0] != "times" and item != ("share", 1.0))
        return ", ".join(f"{name} {value}" for name, value in shown)

    return [described(fault) for fault in faults]
