"""The console with ten thousand messages in fifty conversations and two hundred providers.

Measured are the time until pages are usable, their size, and the longest task of a page while an answer arrives.
"""

from __future__ import annotations

import secrets
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import anyio.to_thread
import httpx2 as httpx
import psycopg
from playwright.sync_api import Browser, Page, Request, sync_playwright
from pydantic import SecretStr

from bench.backend import TOKEN, serving, vendor_variables
from bench.provider_rows import BASE_URL, delete_providers, insert_providers
from bench.results import Results
from bench.setup import Servers, Setup
from isabella.practice import PracticeVendors
from isabella.server.sessions import login_link

PROVIDERS, MESSAGES, CONVERSATIONS = 200, 10_000, 50
_AT_ONCE = 500
_PAGES = ("providers", "chat", "agents", "memory", "activity")
#: An answer with everything that is costly to render.
_STREAMED = "\n\n".join(
    f"## Part {number}\n\n{'Some *words* with `code` and a [link](https://example.org). ' * 6}\n\n"
    f"| a | b |\n|---|--:|\n| {number} | 2 |\n\n```python\ndef part_{number}():\n    return {number}\n```"
    for number in range(40)
)
_WATCH = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
  }).observe({ type: "longtask" });
}"""
#: Moves the oldest messages of an agent that belong to no conversation yet into one.
_MOVE = """
    UPDATE messages SET conversation_id = %(conversation)s
    WHERE id IN (SELECT id FROM messages WHERE agent_id = %(agent)s AND conversation_id IS NULL AND role <> 'system'
                 ORDER BY sequence_id LIMIT %(count)s)
"""
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure all pages, each in a browser with an empty cache."""
    results = Results()
    if (program := chromium()) is None:
        print("  no Chromium is on the PATH, so the console is not measured")
        return results
    # Playwright's sync API runs its own event loop.
    await anyio.to_thread.run_sync(_measure, servers, program, 5 if quick else 9, results)
    return results


def chromium() -> str | None:
    """Return the path of Chromium; None if there is none."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name)) is not None), None)


def _measure(servers: Servers, program: str, rounds: int, results: Results) -> None:
    keys = {f"b-{number:03}": f"console-{number:03}-{secrets.token_hex(12)}" for number in range(PROVIDERS)}
    declared = "\n".join(
        f'[[providers]]\nname = "{name}"\nbase_url = "{BASE_URL}"\napi_key_env = "{_variable(name)}"\n'
        for name in keys
    )
    letta = servers.letta(sealed=True)
    insert_providers(letta, keys)
    try:
        with PracticeVendors() as vendors, servers.setup({}, sealed=True, declared=declared) as setup:
            lines = (f"{_variable(name)}={key}\n" for name, key in keys.items())
            (setup.folder / ".env").write_text("".join(lines))
            with serving(setup, vendor_variables(vendors)) as (address, _process), _browser(program) as browser:
                agent = _converse(setup)
                _spread(setup, agent)
                slowest: tuple[float, ...] = (0.0,)
                heaviest = 0.0
                said: list[str] = []
                for name in _PAGES:
                    below = f"{name}/{agent}" if name in ("chat", "memory") else name
                    seconds, weights = zip(*(_visit(browser, address, below) for _ in range(rounds)), strict=True)
                    slowest, heaviest = max(slowest, seconds, key=statistics.median), max(heaviest, *weights)
                    said.append(f"{name} {statistics.median(seconds) * 1000:.0f} ms, {max(weights):.0f} kB")
                results.add("console_seconds", statistics.median(slowest), "; ".join(said), slowest)
                results.add("console_kb", heaviest)
                tasks = [_longest_task(browser, address, f"Streaming {number}") for number in range(5)]
                results.add("console_task_ms", max(tasks), "the longest of all; 0 for below 50", tasks)
    finally:
        with psycopg.connect(letta.database_url.get_secret_value()) as database:
            delete_providers(database)


@contextmanager
def _browser(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def _visit(browser: Browser, address: str, page_name: str) -> tuple[float, float]:
    """Return the seconds until a page is usable, and its transferred size in kB."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    # Copy the cookie only, so that the next page starts with an empty cache.
    context.request.get(login_link(address, SecretStr(TOKEN)), max_redirects=0)
    requests: list[Request] = []
    page.on("requestfinished", lambda one: requests.append(one))
    page.goto(f"{address}/console/{page_name}", wait_until="load")
    seconds = _interactive(page)
    page.wait_for_selector("#main[data-connected]")
    weight = sum(one.sizes()["responseBodySize"] + one.sizes()["responseHeadersSize"] for one in requests)
    context.close()
    return seconds, weight / 1000


def _longest_task(browser: Browser, address: str, name: str) -> float:
    """Return the longest task, in milliseconds, of the chat page's thread while an answer arrives; 0 below 50 ms."""
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        agent = client.post("/api/agents", json={"name": name}).raise_for_status().json()["id"]
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    context.request.get(login_link(address, SecretStr(TOKEN)), max_redirects=0)
    page.goto(f"{address}/console/chat/{agent}")
    page.wait_for_selector("#main[data-connected]")
    page.locator("#message").fill(f"Say {_STREAMED}")
    page.evaluate(_WATCH)
    page.locator("#message").press("Enter")
    page.locator("#live .facts").wait_for(timeout=120_000)
    longest = float(page.evaluate("window.longest"))
    context.close()
    return longest


def _interactive(page: Page) -> float:
    """Return the seconds until the page's scripts had run; from then on buttons work."""
    milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    return float(milliseconds) / 1000


def _converse(setup: Setup) -> str:
    """Return the Letta id of an agent with that many messages in its history."""
    password = setup.letta.password.get_secret_value()
    headers = {"Authorization": f"Bearer {password}"}
    with httpx.Client(base_url=setup.letta.base_url, headers=headers, timeout=120) as letta:
        (found,) = letta.get("/v1/agents/", params={"name": "Isabella"}).raise_for_status().json()
        for begin in range(0, MESSAGES, _AT_ONCE):
            said = [
                {"role": "user", "content": f"Message {number}: what a long conversation this has become."}
                for number in range(begin, begin + _AT_ONCE - 1)
            ]
            body = {"provider": "bench", "model": "bench", "request_messages": said}
            answer = {"response_dict": {"content": "It has indeed. " * 8}}
            letta.post(f"/v1/agents/{found['id']}/messages/capture", json=body | answer).raise_for_status()
        return str(found["id"])


def _spread(setup: Setup, agent: str) -> None:
    """Move half of the messages, the oldest ones, into conversations of their own."""
    each = MESSAGES // 2 // (CONVERSATIONS - 1)
    password = setup.letta.password.get_secret_value()
    headers = {"Authorization": f"Bearer {password}"}
    with (
        httpx.Client(base_url=setup.letta.base_url, headers=headers, timeout=120) as letta,
        psycopg.connect(setup.letta.database_url.get_secret_value()) as database,
    ):
        for number in range(CONVERSATIONS - 1):
            body = {"summary": f"Conversation {number}"}
            made = letta.post("/v1/conversations/", params={"agent_id": agent}, json=body).raise_for_status().json()
            moved = database.execute(_MOVE, {"conversation": made["id"], "agent": agent, "count": each})
            assert moved.rowcount == each, moved.rowcount


def _variable(provider: str) -> str:
    return provider.upper().replace("-", "_") + "_KEY"
