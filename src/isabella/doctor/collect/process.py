"""Looks at Letta's process, where it runs on this machine and belongs to the same user. It only looks."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

import psutil
from pydantic import SecretStr

from isabella.doctor.evidence import LettaProcess

_MASTER_KEY = "LETTA_ENCRYPTION_KEY"
#: Keys in Letta's environment that are no vendor's.
_OWN = ("LETTA_API_KEY",)


def find_process(base_url: str, master_key: SecretStr | None) -> LettaProcess | None:
    """The Letta that listens at this address; None where it is elsewhere, or this user may not look at it."""
    parts = urlsplit(base_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if not _is_here(host):
        return None
    try:
        listening = [
            found
            for found in psutil.net_connections(kind="tcp")
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port
        ]
        pid = next((found.pid for found in listening if found.pid is not None), None)
        if pid is None:
            return None
        process = psutil.Process(pid)
        if not any("letta" in argument for argument in process.cmdline()):
            return None
        environ = process.environ()
    except (psutil.Error, OSError):
        return None
    own = environ.get(_MASTER_KEY, "")
    same = None
    if own and master_key is not None:
        same = hmac.compare_digest(own.encode(), master_key.get_secret_value().encode())
    return LettaProcess(
        pid=pid,
        listens=tuple(sorted({found.laddr.ip for found in listening if found.laddr and found.pid == pid})),
        has_master_key=bool(own),
        same_master_key=same,
        base_keys=tuple(
            sorted(name for name, text in environ.items() if name.endswith("_API_KEY") and text and name not in _OWN)
        ),
    )


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
