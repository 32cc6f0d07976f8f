"""Letta goes away while the page is open, and comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.system import processes
from isabella.system.processes import ChildProcess
from tests.support.backend_server import Backend, backend
from tests.support.browser_user import BrowserUser
from tests.support.fault_proxy import Proxy


@pytest.fixture(scope="module")
def way(letta_server: Letta) -> Iterator[Proxy]:
    """The way to Letta, which can be cut."""
    with Proxy(letta_server.base_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def served(letta_server: Letta, way: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend that reaches Letta through that way."""
    home: Path = tmp_path_factory.mktemp("home")
    # The proxy listens in this process, which the backend verifies in place of Letta's.
    record = home / "proxy.json"
    processes.save(record, ChildProcess.of(os.getpid()))
    letta = replace(letta_server, base_url=way.url, peer=replace(letta_server.peer, record=record, verified=None))
    with PracticeVendors() as vendors, backend(letta, home, vendors) as running:
        yield running


def test_letta_goes_away_and_comes_back(user: BrowserUser, way: Proxy) -> None:
    """The open page says that Letta does not answer, keeps what it knew, and goes on by itself when it is back."""
    user.open("providers")
    page = user.page
    expect(page.locator("#overview")).to_contain_text("Everything is in order")
    rows = page.locator(".row").count()
    way.fault(r".*", "drop", times=None)
    expect(page.get_by_role("alert").filter(has_text="Letta does not answer")).to_be_visible()
    expect(page.locator(".row")).to_have_count(rows)
    page.get_by_role("button", name="Sync", exact=True).click()
    expect(page.locator("#job.failed")).to_contain_text("Letta")
    agents = user.tab()
    agents.goto(f"{user.served.url}/console/chat")
    expect(agents.get_by_role("heading", name="This did not work")).to_be_visible()
    agents.close()
    way.clear()
    expect(page.get_by_text("Letta does not answer")).to_have_count(0)
    expect(page.locator("#overview")).to_contain_text("Everything is in order")
