"""Letta goes away while the page is open, and comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

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


#: Notes every new headline of a page: what the browser has found comes before the status line.
RECORD = """() => {
  window.headlines = [];
  const lost = document.getElementById("lost");
  const note = () => {
    const status = document.getElementById("status");
    const now = lost.hidden ? `${status.dataset.tone}: ${status.textContent}` : `lost: ${lost.textContent}`;
    if (window.headlines.at(-1) !== now) window.headlines.push(now);
  };
  new MutationObserver(note).observe(document.body, {
    subtree: true, childList: true, characterData: true, attributes: true,
  });
  note();
}"""


def headlines(page: Page) -> list[str]:
    """The headlines that a page has shown, in order."""
    return [*page.evaluate("window.headlines")]


async def end_sessions(served: Backend) -> None:
    """Sign every browser out."""
    for session in served.runtime.sessions.all():
        served.runtime.sessions.end(session.id)


def test_what_letta_refuses_is_no_answer_of_a_vendor(user: BrowserUser, agent: str, way: Proxy) -> None:
    """A turn that Letta itself refuses blames no vendor: not in the status, not in a row, not in a chart."""
    way.fault(r"POST /v1/(agents|conversations)/[^/]+/messages", 500, times=None)
    user.open(f"chat/{agent}")
    user.say("Say hello")
    expect(user.page.locator("#live .problem")).to_contain_text("Letta")
    way.clear()
    user.open("providers")
    expect(user.page.locator("#status")).to_contain_text("Everything is in order")
    expect(user.page.locator(".row .why")).to_have_count(0)
    user.open("activity")
    expect(user.page.locator("#answers")).to_contain_text("No vendor was asked in the last hour.")


def test_letta_goes_away_and_comes_back(user: BrowserUser, way: Proxy) -> None:
    """The open page says that Letta does not answer, keeps what it knew, and goes on by itself when it is back."""
    user.open("providers")
    page = user.page
    expect(page.locator("#status")).to_contain_text("Everything is in order")
    rows = page.locator(".row").count()
    way.fault(r".*", "drop", times=None)
    expect(page.locator("#status")).to_contain_text("Letta does not answer")
    expect(page.locator(".row")).to_have_count(rows)
    page.get_by_role("button", name="Sync", exact=True).click()
    expect(page.locator("#job.failed")).to_contain_text("Letta")
    agents = user.tab()
    agents.goto(f"{user.served.url}/console/chat")
    expect(agents.get_by_role("heading", name="This did not work")).to_be_visible()
    # The same on a page without anything else that changes.
    expect(agents.locator("#status")).to_contain_text("Letta does not answer")
    agents.close()
    way.clear()
    expect(page.locator("#status")).to_contain_text("Everything is in order")
    # It was about a Letta that did not answer.
    expect(page.locator("#job.job")).to_have_count(0)


def test_the_headline_is_right_in_every_fault_and_flips_only_with_a_change(
    user: BrowserUser, agent: str, way: Proxy
) -> None:
    """Two tabs on different pages show each state once, in its order: as many headlines as there were changes."""
    served, vendors, breaker = user.served, user.served.vendors, user.served.runtime.turns.deps.breaker
    tabs = {"providers": user.page, f"chat/{agent}": user.tab()}
    for path, page in tabs.items():
        user.open(path, page)
        expect(page.locator("#status")).to_contain_text("Everything is in order")
        page.evaluate(RECORD)
    expected = ["good: Everything is in order"]

    def changed(headline: str) -> None:
        expected.append(headline)
        tone, _, text = headline.partition(": ")
        for page in tabs.values():
            where = page.locator("#lost") if tone == "lost" else page.locator(f"#status[data-tone='{tone}']")
            expect(where).to_contain_text(text)
            expect(page.locator("#lost")).to_be_visible(visible=tone == "lost")

    def talk() -> None:
        served.call(breaker.forgive, "cerebras")
        served.say(agent, "Say hello")

    way.fault(r".*", "drop", times=None)
    changed("bad: Letta does not answer.")
    way.clear()
    changed("good: Everything is in order")
    faults: dict[str, dict[str, Any]] = {
        "bad: 1 of 4 providers is not in order. cerebras: the vendor refuses the key": {"status": 401},
        "warn: 1 of 4 providers is not in order. cerebras: the vendor refuses requests": {"status": 402},
        "bad: 1 of 4 providers is not in order. cerebras: the vendor fails": {"status": 503},
        "bad: 1 of 4 providers is not in order. cerebras: the vendor cannot be reached": {"reset": True},
    }
    for headline, fault in faults.items():
        vendors.fault("cerebras", on="chat", **fault)
        talk()
        changed(headline)
        vendors.clear()
        talk()
        changed("good: Everything is in order")
    cookies = user.context.cookies()
    served.call(end_sessions, served)
    changed("lost: Your session has expired")
    other = user.tab()
    other.goto(user.link())
    other.close()
    assert user.context.cookies() != cookies
    changed("good: Everything is in order")
    for page in tabs.values():
        shown = headlines(page)
        assert len(shown) == len(expected), shown
        assert [one for one, start in zip(shown, expected, strict=True) if not one.startswith(start)] == []


def test_offline_a_page_opens_as_soon_as_isabella_answers(user: BrowserUser) -> None:
    """The service worker has the offline page and its files, and nothing else, whatever was looked at before."""
    page = user.page
    for path in ("providers", "activity"):
        user.open(path)
    page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    user.open("activity")
    kept = page.evaluate(
        "caches.keys().then((names) => Promise.all(names.map((name) => caches.open(name).then((one) => one.keys()))))"
        ".then((all) => all.flat().map((request) => new URL(request.url).pathname.split('/').pop()).sort())"
    )
    assert kept == ["console.css", "icon.svg", "offline", "offline.js"]
    user.context.set_offline(True)
    page.goto(f"{user.served.url}/console/activity")
    expect(page.get_by_role("heading", name="Isabella does not answer")).to_be_visible()
    user.context.set_offline(False)
    expect(page.get_by_role("heading", name="Activity")).to_be_visible()
