"""`isabella gateway`: the gateway between Letta and the vendors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isabella.cli.commands import NOT_RUNNING, AsJson, EnvFile, Home, commands, configured_settings, print_json
from isabella.system.terminal import print_message

if TYPE_CHECKING:
    from isabella.gateway.client import GatewayTraffic

app = commands(
    no_args_is_help=True,
    help="Run the gateway through which Letta reaches the vendors. With the embedded Letta, `isabella up` runs it.",
)


@app.command()
def up(home: Home = None, env_file: EnvFile = None) -> None:
    """Start the gateway in the background, and print its address."""
    from isabella.gateway import process

    running = process.start(configured_settings(env_file, served=True, home=home))
    typer.echo(f"The gateway is up at {running.address}")


@app.command()
def down(home: Home = None, env_file: EnvFile = None) -> None:
    """Stop the gateway. Its port stays the same. Agents get no answer until it is restarted."""
    from isabella.gateway import process

    stopped = process.daemon(configured_settings(env_file, home=home).home).stop()
    typer.echo("Stopped." if stopped else "Nothing was running.")


@app.command()
def status(home: Home = None, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show the gateway's address, the vendors behind it, and what passed since its first start.

    Exit code: 0 it runs, 3 it does not, 1 error.
    """
    from isabella.gateway import process
    from isabella.gateway.client import read_traffic

    settings = configured_settings(env_file, home=home)
    running = process.daemon(settings.home).status()
    traffic = None if running is None else read_traffic(settings.home, running)
    if as_json:
        document = None if traffic is None else traffic.model_dump(mode="json")
        print_json({"running": running is not None, "address": running and running.address, "traffic": document})
    elif running is None or traffic is None:
        typer.echo("The gateway is not running.")
    else:
        _show(running.address, traffic)
    raise typer.Exit(0 if running is not None else NOT_RUNNING)


@app.command()
def run(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen on.")] = 8284,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", metavar="FILE", help="A certificate, in PEM format.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen on the network without TLS: keys pass it in plaintext."),
    ] = False,
    home: Home = None,
    env_file: EnvFile = None,
) -> None:
    """Run the gateway in the foreground, beside your own Letta server, until Ctrl-C.

    ISABELLA_GATEWAY, in the configuration of Isabella and of the gateway, is its URL as Letta reaches it.
    """
    from isabella.gateway.server import Tls, run_in_foreground

    settings = configured_settings(env_file, service=True, served=True, home=home)
    tls = None if tls_certificate is None or tls_key is None else Tls(tls_certificate, tls_key)
    if tls is None and (tls_certificate or tls_key):
        raise typer.BadParameter("--tls-certificate and --tls-key are given together.")
    run_in_foreground(settings, host, port, tls, insecure=insecure, say=print_message)


def _show(address: str, traffic: GatewayTraffic) -> None:
    typer.echo(f"The gateway runs at {address}")
    for name, provider in traffic.providers.items():
        vendor = traffic.vendors.get(name)
        typer.echo(f"{name}: {provider.upstream}, key {provider.key or '-'}")
        if vendor is not None:
            typer.echo(
                f"  {vendor.answers} answers, {vendor.refusals} refusals, {vendor.failures} failures, "
                f"{vendor.stopped_keys} other keys stopped; first byte after {vendor.first_byte_ms or 0:g} ms"
            )
        if vendor is not None and vendor.refused_message:
            typer.echo(f"  last refusal: {vendor.refused_status or 'no answer'} {vendor.refused_message}")
