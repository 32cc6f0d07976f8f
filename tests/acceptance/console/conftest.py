"""The console in a headless Chromium, in front of a backend, a real Letta and practice vendors."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from backend_server import Backend, backend
from playwright.sync_api import Browser, sync_playwright
from visitor import Visitor, aside, visiting

from isabella.embedded import Letta
from isabella.practice import PracticeVendors

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's own Chromium; Debian's is installed where that can be, and nothing is downloaded otherwise."""
    found = _on_path()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get") is not None:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *command], capture_output=True, check=False, timeout=240)
        found = _on_path()
    if found is None:
        pytest.skip("no Chromium on the PATH, and none could be installed: the console was not tried in a browser")
    return found


def _on_path() -> str | None:
    return next((found for name in _PROGRAMS if (found := shutil.which(name)) is not None), None)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A browser for one module: as long as playwright runs, nothing else can run a loop in this thread."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with practice vendors of its own."""
    home: Path = tmp_path_factory.mktemp("home")
    with PracticeVendors() as vendors, backend(letta_server, home, vendors) as running:
        yield running


@pytest.fixture(autouse=True)
def fair_weather(request: pytest.FixtureRequest) -> Iterator[None]:
    """No fault outlives its test, and nothing is held against a vendor."""
    yield
    if "served" in request.fixturenames:
        served: Backend = request.getfixturevalue("served")
        served.vendors.clear()
        for provider in ("cerebras", "byok-groq", "byok-mistral", "longcat"):
            served.call(served.runtime.turns.deps.breaker.forgive, provider)


@pytest.fixture
def stranger(served: Backend, browser: Browser) -> Iterator[Visitor]:
    """Somebody who has not come in."""
    with visiting(served, browser) as visitor:
        yield visitor


@pytest.fixture
def visitor(stranger: Visitor) -> Visitor:
    """Somebody who has come in."""
    stranger.enter()
    return stranger


@pytest.fixture
def agent(visitor: Visitor, request: pytest.FixtureRequest) -> str:
    """Letta's id of an agent of the test's own: first on Cerebras, then on Mistral."""
    served = visitor.served
    name = request.node.name.replace("_", " ").split("[")[0][5:60]
    aside(served.agent, name, "cerebras/gpt-oss-120b", "byok-mistral/mistral-medium-latest")
    return served.id_of(name)
