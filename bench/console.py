"""The console with ten thousand messages and two hundred providers: how soon pages can be used, and their weight."""

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

from bench.backend import TOKEN, serving, vendor_variables
from bench.planting import BASE_URL, clear, plant
from bench.stage import Scene, Stage
from bench.subject import Results
from isabella.practice import PracticeVendors

PROVIDERS, MESSAGES = 200, 10_000
_AT_ONCE = 500
_PAGES = ("providers", "chat", "memory", "activity")
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


async def measure(stage: Stage, *, quick: bool) -> Results:
    """All pages, each in a browser that has never been here."""
    results = Results()
    program = next((found for name in _PROGRAMS if (found := shutil.which(name)) is not None), None)
    if program is None:
        print("  no Chromium is on the PATH, so the console is not measured")
        return results
    # The browser's driver runs a loop of its own.
    await anyio.to_thread.run_sync(_measure, stage, program, 3 if quick else 9, results)
    return results


def _measure(stage: Stage, program: str, rounds: int, results: Results) -> None:
    keys = {f"b-{number:03}": f"console-{number:03}-{secrets.token_hex(12)}" for number in range(PROVIDERS)}
    declared = "\n".join(
        f'[[providers]]\nname = "{name}"\nbase_url = "{BASE_URL}"\napi_key_env = "{_variable(name)}"\n'
        for name in keys
    )
    letta = stage.letta(sealed=True)
    plant(letta, keys)
    try:
        with PracticeVendors() as vendors, stage.scene({}, sealed=True, declared=declared) as scene:
            lines = (f"{_variable(name)}={key}\n" for name, key in keys.items())
            (scene.folder / ".env").write_text("".join(lines))
            with serving(scene, vendor_variables(vendors)) as (address, _process), _browser(program) as browser:
                agent = _converse(scene)
                slowest, heaviest = 0.0, 0.0
                said: list[str] = []
                for name in _PAGES:
                    below = f"{name}/{agent}" if name in ("chat", "memory") else name
                    seconds, weights = zip(*(_visit(browser, address, below) for _ in range(rounds)), strict=True)
                    seconds_, weight = statistics.median(seconds), max(weights)
                    slowest, heaviest = max(slowest, seconds_), max(heaviest, weight)
                    said.append(f"{name} {seconds_ * 1000:.0f} ms, {weight:.0f} kB")
                results.add("console_seconds", slowest, "; ".join(said))
                results.add("console_kb", heaviest)
    finally:
        with psycopg.connect(letta.database_url.get_secret_value()) as database:
            clear(database)


@contextmanager
def _browser(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def _visit(browser: Browser, address: str, page_name: str) -> tuple[float, float]:
    """Seconds until a page can be used, and what came over the wire for it, in kB."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    # The cookie alone: what the first page has loaded must not be there for the next.
    context.request.get(f"{address}/login?token={TOKEN}", max_redirects=0)
    requests: list[Request] = []
    page.on("requestfinished", lambda one: requests.append(one))
    page.goto(f"{address}/console/{page_name}", wait_until="load")
    seconds = _interactive(page)
    page.wait_for_selector("#main[data-connected]")
    weight = sum(one.sizes()["responseBodySize"] + one.sizes()["responseHeadersSize"] for one in requests)
    context.close()
    return seconds, weight / 1000


def _interactive(page: Page) -> float:
    """Seconds until the page's scripts had run: buttons work from then on."""
    milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    return float(milliseconds) / 1000


def _converse(scene: Scene) -> str:
    """Letta's id of Isabella, with the messages in her history."""
    password = scene.letta.password.get_secret_value()
    headers = {"Authorization": f"Bearer {password}"}
    with httpx.Client(base_url=scene.letta.base_url, headers=headers, timeout=120) as letta:
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


def _variable(provider: str) -> str:
    return provider.upper().replace("-", "_") + "_KEY"
