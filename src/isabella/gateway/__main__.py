"""The process of the gateway: `python -m isabella.gateway HOME [--env-file FILE] [--practice MODE] --fd N`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from pydantic import SecretStr

from isabella.config.gateway_address import state_file
from isabella.config.settings import Settings, load_settings
from isabella.errors import GatewayError, IsabellaError
from isabella.gateway.server import GatewayServer
from isabella.practice import daemon
from isabella.practice.overlay import ConfigSnapshot, with_practice_vendors
from isabella.system import tracing
from isabella.system.garbage import collect_rarely
from isabella.system.logging import configure_logs
from isabella.system.processes import interrupt_on_sigterm
from isabella.system.sockets import ListeningSocket
from isabella.system.terminal import guard_output


def main() -> None:
    """Serve on the listening socket that was passed on, until a signal.

    Raises:
        IsabellaError: the configuration cannot be read.
    """
    parser = argparse.ArgumentParser(prog="isabella.gateway")
    parser.add_argument("home", type=Path)
    parser.add_argument("--env-file", type=Path)
    parser.add_argument("--practice", choices=("always", "until-key"))
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args()
    settings = load_settings(arguments.env_file)
    configure_logs(settings.log_format)
    # A client that disconnects is not an event worth a line for each chunk that it does not take.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    tracing.configure("isabella-gateway", settings.sources.dotenv)
    if arguments.practice is not None:
        settings = _with_practice(settings, until_key=arguments.practice == "until-key")
    token = SecretStr(json.loads(state_file(arguments.home).read_text())["token"])
    folder = state_file(arguments.home).parent
    # uvicorn raises a signal again when it has served, and the default action of SIGTERM would end the process before
    # the traffic is saved.
    with interrupt_on_sigterm():
        GatewayServer(ConfigSnapshot.of(settings), ListeningSocket(fileno=arguments.fd), token, folder).run()


def _with_practice(settings: Settings, *, until_key: bool) -> Settings:
    running = daemon.status(settings.home)
    if running is None:
        raise GatewayError("The practice vendors are not running.", remedy="Start them: isabella practice up")
    return with_practice_vendors(settings, running, until_key=until_key)


if __name__ == "__main__":
    collect_rarely()
    guard_output()
    try:
        main()
    except IsabellaError as error:
        sys.exit(str(error))
