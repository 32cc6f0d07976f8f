"""Child processes of the embedded server: their environment, their logs, and those that lost their parent.

A child process gets only the listed variables of the operator's environment. Letta would create a base provider from
a vendor key in its environment, and send that key to the base URL of any agent that is bound to it (fact P7).
"""

from __future__ import annotations

import os
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import psutil

from isabella.system.processes import ChildProcess
from isabella.system.redaction import redact

_COMMON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "SYSTEMROOT")
# How this machine reaches the vendors.
_NETWORK = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
# How this machine downloads packages and builds those without wheels.
_INSTALLATION = ("HOME", "USER", "LOGNAME", "NETRC", "CC", "CXX", "CFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH")
_INSTALLATION_PREFIXES = ("UV_", "PIP_", "XDG_")
_CERTIFICATE_STORES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_LOOPBACK_HOSTS = "127.0.0.1,localhost,::1"

_TOO_LARGE = 20 * 1024 * 1024


def offline_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a program that needs no network."""
    return {name: environ[name] for name in _COMMON if name in environ}


def network_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a program that uses the operator's proxy, except for loopback."""
    allowed = offline_environment(environ) | {name: environ[name] for name in _NETWORK if name in environ}
    for name in ("NO_PROXY", "no_proxy"):
        allowed[name] = f"{allowed[name]},{_LOOPBACK_HOSTS}" if allowed.get(name) else _LOOPBACK_HOSTS
    return allowed


def install_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of uv and pip, with the machine's configuration of indexes, caches and compilers."""
    allowed = {name: environ[name] for name in (*_COMMON, *_NETWORK, *_INSTALLATION) if name in environ}
    allowed |= {name: value for name, value in environ.items() if name.startswith(_INSTALLATION_PREFIXES)}
    # uv trusts its own list of authorities; the machine's certificate store may have more.
    if ssl.get_default_verify_paths().cafile is not None or any(
        Path(store).exists() for store in _CERTIFICATE_STORES
    ):
        allowed.setdefault("UV_SYSTEM_CERTS", "true")
    return allowed


def tail_log(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log, redacted; empty if the log does not exist."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [redact(line.rstrip("\n")) for line in deque(file, maxlen=max(lines, 0))]
    except FileNotFoundError:
        return []


def follow_log(path: Path, *, every: float = 0.3) -> Iterator[str]:
    """Iterate for ever over the lines that are appended to a log after this call, redacted. It need not exist."""
    return _lines_after(path, path.stat().st_size if path.exists() else 0, every)


def _lines_after(path: Path, offset: int, every: float) -> Iterator[str]:
    rest = ""
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            offset, rest = 0, ""
        if size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size - offset)
            offset += len(data)
            *complete, rest = (rest + data.decode(errors="replace")).split("\n")
            yield from (redact(line) for line in complete)
        else:
            time.sleep(every)


def rotate_log(path: Path) -> None:
    """Rename a log of more than 20 MiB; the log that was renamed before is replaced."""
    if path.exists() and path.stat().st_size > _TOO_LARGE:
        path.replace(path.with_name(f"{path.name}.1"))


def quote_log(path: Path) -> str:
    """Return the path and the last 15 lines of a log, as the end of an error message."""
    last = "".join(f"\n    {line}" for line in tail_log(path, 15))
    return f"Its log is {path}{':' if last else ' (empty).'}{last}"


def stop_orphans(option: str, path: Path) -> int:
    """Stop the processes that have `option` followed by `path` among their arguments, and return their number.

    Every child process that must not be lost has such a pair in its arguments, so that it is found even if its parent
    was killed before it recorded the child. Only processes of this user are stopped; for root, those of all users.
    """
    orphans: list[ChildProcess] = []
    user = os.geteuid()
    for process in psutil.process_iter():
        try:
            if user in (0, process.uids().real) and (option, str(path)) in pairwise(process.cmdline()):
                orphans.append(ChildProcess(process.pid, process.create_time()))
        except psutil.Error:
            continue
    return sum(process.stop() for process in orphans)
