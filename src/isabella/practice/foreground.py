"""The practice vendors as the process of a container, with the keys of the configuration."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from isabella.config.settings import Settings
from isabella.errors import ConfigurationError
from isabella.practice.server import PracticeApp
from isabella.practice.wire import NAMES
from isabella.providers.desired import desired_providers
from isabella.system.sockets import listening_socket


def serve(settings: Settings, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until a signal. Nobody knows the token of the control API.

    Raises:
        ConfigurationError: no practice vendor has a key, or the address cannot be used.
    """
    keys = {
        one.vendor.name: [one.key.get_secret_value()]
        for one in desired_providers(settings)
        if one.vendor.name in NAMES and one.key is not None and not one.keyless
    }
    if not keys:
        raise ConfigurationError(
            "No practice vendor has a key.",
            remedy="Set CEREBRAS_API_KEY, GROQ_API_KEY, MISTRAL_API_KEY or LONGCAT_API_KEY.",
        )
    try:
        listener = listening_socket(host, port)
    except OSError as error:
        raise ConfigurationError(
            f"The practice vendors cannot listen on port {port} of {host}: {error.strerror}.",
            remedy="Choose another --port.",
        ) from None
    say(f"Practice vendors ({', '.join(sorted(keys))}) listen on port {port}  (stop: Ctrl-C)")
    PracticeApp(keys, secrets.token_urlsafe(24)).server().run([listener])
