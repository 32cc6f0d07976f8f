"""The backend as a process of its own, as operators run it."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.stage import Scene
from isabella.config.vendors import known_vendors
from isabella.practice import PracticeVendors
from isabella.server.token import published_address

#: What the bench's backends ask of their clients.
TOKEN = "a-token-for-the-bench"
_UP_SECONDS = 180.0
_DOWN_SECONDS = 30.0


@contextmanager
def serving(scene: Scene, variables: Mapping[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    """A backend in the scene's folder, where it reads `.env`, too: its address, and its process.

    Args:
        scene: the Letta behind it, and the folder.
        variables: what its environment has beside the address of that Letta; it wins over `.env`.
    """
    said = scene.folder / "backend.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [Path(sysconfig.get_path("scripts")) / "isabella", "up", "--no-practice"],
            env=_environment(scene) | dict(variables),
            cwd=scene.folder,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + _UP_SECONDS
            while (address := published_address(scene.folder)) is None:
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


def vendor_variables(vendors: PracticeVendors) -> dict[str, str]:
    """Keys and addresses of the practice vendors, as they stand in an environment or in `.env`."""
    variables = {}
    for vendor in known_vendors():
        variables[vendor.api_key_env] = vendors.key(vendor.name).get_secret_value()
        if vendor.base_url_env:
            variables[vendor.base_url_env] = vendors.base_url(vendor.name)
    return variables


def _environment(scene: Scene) -> dict[str, str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(scene.folder),
        "ISABELLA_HOME": str(scene.folder),
        "ISABELLA_PORT": "0",
        "ISABELLA_TOKEN": TOKEN,
        "LETTA_BASE_URL": scene.letta.base_url,
        "LETTA_API_KEY": scene.letta.password.get_secret_value(),
        "ISABELLA_DATABASE_URL": scene.letta.database_url.get_secret_value(),
    }
    if scene.letta.master_key is not None:
        environment["LETTA_ENCRYPTION_KEY"] = scene.letta.master_key.get_secret_value()
    return environment
