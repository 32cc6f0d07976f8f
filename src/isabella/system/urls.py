"""What an address says about how to speak to it: whether it is on this machine, and what vouches for it."""

from __future__ import annotations

import ipaddress
import ssl
from functools import cache
from typing import TypedDict
from urllib.parse import urlsplit

#: Nothing listens there, and nothing ever answers: for a provider that nobody is meant to speak through yet.
PLACEHOLDER_URL = "http://127.0.0.1:9/nowhere/v1"


class ClientOptions(TypedDict):
    """The options of an HTTP client that depend on where it speaks to."""

    verify: ssl.SSLContext | bool
    trust_env: bool


def is_loopback(address: str) -> bool:
    """Whether a URL or a host name leads to this machine, whatever its name server says."""
    host = (urlsplit(address).hostname if "://" in address else address) or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def same_address(one: str | None, other: str | None) -> bool:
    """Whether two base URLs mean the same place."""
    return (one or "").rstrip("/") == (other or "").rstrip("/")


def is_placeholder_url(base_url: str | None) -> bool:
    """Whether a provider has the address of one that is between two."""
    return same_address(base_url, PLACEHOLDER_URL)


def client_options(base_url: str) -> ClientOptions:
    """How a client for this address is made.

    A proxy of the environment has no business between us and a server on this machine. And loading the certificate
    store takes longer than a whole warm start: it is left out for plain addresses, and done once for the others.
    """
    return {
        "verify": _certificates() if base_url.startswith("https:") else False,
        "trust_env": not is_loopback(base_url),
    }


@cache
def _certificates() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()
