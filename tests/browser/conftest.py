"""The console in a headless Chromium, in front of a backend, a real Letta and practice vendors."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from tests.support.backend_server import Backend, backend
from tests.support.browser_user import BrowserUser, aside, browsing
from tests.support.views import VIEWS

#: The headless shell comes first: a page in a browser with a window system takes several times its processor time.
_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test in the view of `--view`, else in one that depends on its name: a run covers all of them."""
    if "view" in metafunc.fixturenames:
        number = zlib.crc32(metafunc.definition.nodeid.encode()) % len(VIEWS)
        name = metafunc.config.getoption("view") or [*VIEWS][number]
        metafunc.parametrize("view", [VIEWS[name]], ids=[name])


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the system's Chromium; `make browser` installs it."""
    path = next((path for name in _PROGRAMS if (path := shutil.which(name)) is not None), None)
    if path is None:
        pytest.skip("no Chromium on the PATH; run `make browser` to install it")
    return path


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A browser for one module: while Playwright runs, no other event loop can run in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with practice vendors of its own."""
    home: Path = tmp_path_factory.mktemp("home")
    with PracticeVendors() as vendors, backend(letta_server, home, vendors) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Clear all faults after each test, and close the circuit breaker of each vendor."""
    yield
    if "served" in request.fixturenames:
        served: Backend = request.getfixturevalue("served")
        served.vendors.clear()
        for provider in ("cerebras", "byok-groq", "byok-mistral", "longcat"):
            served.call(served.runtime.turns.deps.breaker.forgive, provider)


@pytest.fixture
def anonymous(served: Backend, browser: Browser, view: dict[str, Any]) -> Iterator[BrowserUser]:
    """A user who is not signed in."""
    with browsing(served, browser, **view) as user:
        yield user


@pytest.fixture
def user(anonymous: BrowserUser) -> BrowserUser:
    """A user who is signed in."""
    anonymous.sign_in()
    return anonymous


@pytest.fixture
def agent(user: BrowserUser, request: pytest.FixtureRequest) -> str:
    """The Letta id of a new agent: first on Cerebras, then on Mistral."""
    served = user.served
    name = request.node.name.replace("_", " ").split("[")[0][5:60]
    aside(served.agent, name, "cerebras/gpt-oss-120b", "byok-mistral/mistral-medium-latest")
    return served.id_of(name)
