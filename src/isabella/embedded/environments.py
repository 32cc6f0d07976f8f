"""What child processes see of the operator's environment: what is listed here, and nothing else.

A vendor key in Letta's environment would make a base provider of it, and Letta would send it to whatever
address an agent is bound to (fact P7). So the lists say what may pass, not what may not.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

_ORDINARY = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "SYSTEMROOT")
# How to reach the vendors from this machine.
_NETWORK = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
# How to fetch and, for the few packages without wheels, build on this machine.
_INSTALLING = ("HOME", "USER", "LOGNAME", "NETRC", "CC", "CXX", "CFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH")
_INSTALLING_PREFIXES = ("UV_", "PIP_", "XDG_")
_CERTIFICATE_STORES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_LOOPBACK = "127.0.0.1,localhost,::1"


def offline_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For programs that need no network."""
    return {name: environ[name] for name in _ORDINARY if name in environ}


def network_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For programs that speak to the world, by the operator's proxy if there is one, and to loopback."""
    allowed = offline_environment(environ) | {name: environ[name] for name in _NETWORK if name in environ}
    for name in ("NO_PROXY", "no_proxy"):
        allowed[name] = f"{allowed[name]},{_LOOPBACK}" if allowed.get(name) else _LOOPBACK
    return allowed


def install_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For uv and pip, which honour the machine's own configuration of indexes, caches and compilers."""
    allowed = {name: environ[name] for name in (*_ORDINARY, *_NETWORK, *_INSTALLING) if name in environ}
    allowed |= {name: value for name, value in environ.items() if name.startswith(_INSTALLING_PREFIXES)}
    # uv trusts its own list of authorities; a machine with a certificate store may know more of them.
    if ssl.get_default_verify_paths().cafile is not None or any(
        Path(store).exists() for store in _CERTIFICATE_STORES
    ):
        allowed.setdefault("UV_SYSTEM_CERTS", "true")
    return allowed
