"""The status line of the console: how long after a fault, and after its end, an open page tells it."""

from __future__ import annotations

import os
import signal
import time

import anyio.to_thread
import httpx2 as httpx
from playwright.sync_api import Page, sync_playwright
from pydantic import SecretStr

from bench.backend import TOKEN, serving
from bench.console import chromium
from bench.conversation import write_agents
from bench.gateway import home_with_releases
from bench.operator import Operator
from bench.results import Results
from bench.setup import Servers, Setup
from isabella.embedded import Server
from isabella.practice import PracticeVendors
from isabella.server.sessions import login_link

_PATIENCE = 120.0
#: Faults of vendors, one after the other, and the words of the status line for each.
_FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "cerebras": ({"status": 401}, "the vendor refuses the key"),
    "groq": ({"status": 402}, "the vendor refuses requests"),
    "mistral": ({"status": 503}, "the vendor fails"),
    "longcat": ({"reset": True}, "the vendor cannot be reached"),
}
_SHOWN = "([selector, words]) => document.querySelector(selector)?.textContent.includes(words)"


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure each fault once: refusals of four vendors, deaths of three processes, the end of a session."""
    results = Results()
    if (program := chromium()) is None:
        print("  no Chromium is on the PATH, so the status line is not measured")
        return results
    # Playwright's sync API runs its own event loop.
    await anyio.to_thread.run_sync(_measure, servers, program, quick, results)
    return results


def _measure(servers: Servers, program: str, quick: bool, results: Results) -> None:
    server = Server(servers.home / "bench-headline")
    with home_with_releases(servers.home, server), PracticeVendors() as vendors:
        letta = server.up()
        setup = Setup.in_home(letta, server.home)
        Operator(vendors, setup.folder / ".env")
        variables = write_agents(setup.folder) | {"ISABELLA_GATEWAY": "on"}
        with serving(setup, variables, embedded=True) as (address, _process), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = browser.new_context().new_page()
            page.goto(login_link(address, SecretStr(TOKEN)))
            page.goto(f"{address}/console/providers")
            page.wait_for_selector("#main[data-connected]")
            _until(page, "#status", "Everything is in order")
            seconds = _of_vendors(page, address, vendors) | _of_processes(page, server, quick)
            seconds["session ended"] = _of_session(page, address)
            browser.close()
    detail = "; ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    results.add("headline_seconds", max(seconds.values()), detail, [*seconds.values()])


def _of_vendors(page: Page, address: str, vendors: PracticeVendors) -> dict[str, float]:
    """Have every vendor fail in its way; time runs from the end of a turn that has met the fault."""
    seconds = {}
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=_PATIENCE) as client:
        for name, (fault, words) in _FAULTS.items():
            vendors.fault(name, on="chat", **fault)
            client.post(f"/api/agents/{name}/turns", json={"message": "Say hello"}).raise_for_status()
            seconds[f"{name}: {words}"] = _until(page, "#status", words)
    return seconds


def _of_processes(page: Page, server: Server, quick: bool) -> dict[str, float]:
    """Kill each supervised process; time runs from the signal."""
    seconds = {}
    status = server.status()
    pids = {"Letta": status.letta.pid, "Postgres": status.postgres.pid}
    for name, pid in list(pids.items())[: 1 if quick else None]:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        seconds[f"{name} killed"] = _until(page, "#status", f"{name} does not work")
        _until(page, "#status", "providers")
    return seconds


def _of_session(page: Page, address: str) -> float:
    """Sign out in another tab."""
    tab = page.context.new_page()
    tab.goto(f"{address}/console/sessions")
    tab.get_by_role("button", name="Sign out").click()
    return _until(page, "#lost", "Your session has expired")


def _until(page: Page, selector: str, words: str) -> float:
    """Return the seconds until an element has these words."""
    began = time.monotonic()
    page.wait_for_function(_SHOWN, arg=[selector, words], timeout=_PATIENCE * 1000)
    return time.monotonic() - began
