"""URLs: comparison, loopback addresses, and the client options that a URL calls for."""

from __future__ import annotations

import ipaddress
import ssl
from functools import cache
from typing import TypedDict
from urllib.parse import quote, urlsplit

#: Placeholder base URL of a provider whose move is incomplete; nothing listens there.
PLACEHOLDER_URL = "http://127.0.0.1:9/nowhere/v1"

#: The path of the gateway's base URLs; the provider's name and `/v1` follow.
GATEWAY_PATH = "/isabella-gateway/"


#: The `type` in the gateway's own errors.
GATEWAY_ERROR = "isabella-gateway"
#: A header of Isabella's own requests through the gateway: the vendor is to see the key that they carry.
AS_SENT_HEADER = "x-isabella-key-as-sent"


class ClientOptions(TypedDict):
    """The options of an HTTP client that depend on its base URL."""

    verify: ssl.SSLContext | bool
    trust_env: bool


def is_loopback(address: str) -> bool:
    """Return whether a URL or a host name means this machine, without asking a name server."""
    host = (urlsplit(address).hostname if "://" in address else address) or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def same_address(one: str | None, other: str | None) -> bool:
    """Return whether two base URLs are equal apart from trailing slashes."""
    return (one or "").rstrip("/") == (other or "").rstrip("/")


def is_placeholder_url(base_url: str | None) -> bool:
    """Return whether a base URL is `PLACEHOLDER_URL`."""
    return same_address(base_url, PLACEHOLDER_URL)


def gateway_base_url(address: str, provider: str) -> str:
    """Return the base URL of a provider at the gateway that runs at this address."""
    return f"{address}{GATEWAY_PATH}{quote(provider, safe='')}/v1"


def is_gateway_url(base_url: str | None) -> bool:
    """Return whether a base URL is one of a gateway."""
    path = urlsplit(base_url or "").path.rstrip("/")
    return path.startswith(GATEWAY_PATH) and path.endswith("/v1") and path.count("/") == GATEWAY_PATH.count("/") + 1


def client_options(base_url: str) -> ClientOptions:
    """Return the options of an HTTP client for this base URL.

    The proxies of the environment are not used for servers on this machine. The certificate store, which takes longer
    to load than a whole warm start, is loaded once, and only for https.
    """
    return {
        "verify": _certificates() if base_url.startswith("https:") else False,
        "trust_env": not is_loopback(base_url),
    }


@cache
def _certificates() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()
