"""The backend in its own process, as operators run it."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil

from bench.setup import Setup
from isabella.config.vendors import usual_vendors
from isabella.practice import PracticeVendors
from isabella.server.running_backend import published_address

#: The token of the backends.
TOKEN = "a-token-for-the-bench"
_UP_SECONDS = 180.0
_DOWN_SECONDS = 30.0


@contextmanager
def serving(
    setup: Setup, variables: Mapping[str, str], *, embedded: bool = False
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a backend in the folder of the setup, with the `.env` there; yield its address and process.

    Args:
        setup: the Letta behind it, and the folder.
        variables: what its environment has beside the address of that Letta; it wins over `.env`.
        embedded: whether that Letta is the embedded one of the folder, which the backend finds by itself.
    """
    said = setup.folder / "backend.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [Path(sysconfig.get_path("scripts")) / "isabella", "up", "--no-practice"],
            env=_environment(setup) | ({} if embedded else _letta(setup)) | dict(variables),
            cwd=setup.folder,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + _UP_SECONDS
            while (address := published_address(setup.folder)) is None or _is_starting(address):
                assert process.poll() is None, said.read_text()[-2000:]
                assert time.monotonic() < deadline, "the backend did not come up"
                time.sleep(0.05)
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_DOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _is_starting(address: str) -> bool:
    """Return whether the backend has no agents yet."""
    try:
        return bool(httpx.get(f"{address}/ready", trust_env=False).json()["status"] == "starting")
    except httpx.TransportError:
        return True


def vendor_variables(vendors: PracticeVendors) -> dict[str, str]:
    """Return keys and base URLs of the practice vendors as environment variables."""
    variables = {}
    for vendor in usual_vendors():
        variables[vendor.api_key_env] = vendors.key(vendor.name).get_secret_value()
        if vendor.base_url_env:
            variables[vendor.base_url_env] = vendors.base_url(vendor.name)
    return variables


def _environment(setup: Setup) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(setup.folder),
        "ISABELLA_HOME": str(setup.folder),
        "ISABELLA_PORT": "0",
        "ISABELLA_TOKEN": TOKEN,
    }


def _letta(setup: Setup) -> dict[str, str]:
    """Return the variables that name the Letta, as if it were one of the operator's own."""
    variables = {
        "LETTA_BASE_URL": setup.letta.base_url,
        "LETTA_API_KEY": setup.letta.password.get_secret_value(),
        "ISABELLA_DATABASE_URL": setup.letta.database_url.get_secret_value(),
    }
    if setup.letta.master_key is not None:
        variables["LETTA_ENCRYPTION_KEY"] = setup.letta.master_key.get_secret_value()
    return variables
