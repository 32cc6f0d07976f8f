"""Rules for every answer of the backend, also while it starts: security headers, and the hosts that it answers to.

This module imports little beyond the standard library: the backend answers before its application is imported.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from isabella.system.english import english

#: Pages load only what this backend serves, and nothing inline.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: The pages of the API documentation have an inline script and inline styles.
_DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src blob:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_DOCS = ("/docs", "/redoc")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With `no-referrer`, browsers would send `Origin: null` with the console's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

NO_STORE = "no-store"

#: The code, the message and the remedy of the answer to a request for another host.
UNKNOWN_HOST = (
    "unknown_host",
    english("The Host header does not name this backend."),
    english("Add its name to ISABELLA_ALLOWED_HOSTS, or use its IP address."),
)

#: Characters that end or split the host of a URL.
_DELIMITERS = frozenset("@/?#\\")


def security_headers(path: str) -> Mapping[str, str]:
    """Return the headers of the answer to a request for a path, beside `Cache-Control`."""
    return {**_HEADERS, "Content-Security-Policy": _DOCS_POLICY if path.startswith(_DOCS) else POLICY}


def is_host(header: str | None, hosts: Collection[str]) -> bool:
    """Return whether a request names this backend. Another name is one of a site that resolves to this address.

    `hosts` are the names of this backend, in lower case, beside IP addresses and `localhost`.
    """
    if header is None:
        # Browsers always send it.
        return True
    if _DELIMITERS.intersection(header):
        return False
    try:
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        if name not in ("localhost", *hosts):
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
