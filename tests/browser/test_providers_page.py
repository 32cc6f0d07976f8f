"""The page of providers: what is wrong is seen, mended and proven, while the page is open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import anyio
import pytest
from playwright.sync_api import Locator, expect

from isabella.api import ensure_providers
from isabella.config.settings import Settings
from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.practice.daemon import keys_file
from isabella.practice.overlay import ORIGIN
from isabella.practice.vendor import save_keys
from isabella.practice.wire import NAMES
from isabella.providers.desired import desired_providers
from isabella.server.runtime import run_watcher
from isabella.watch.watcher import LettaActions
from tests.support.browser_user import BrowserUser


@pytest.fixture(scope="module", autouse=True)
def _alone(empty_letta: Letta) -> None:
    """The page shows everything in Letta, and a provider with an agent is not offered for removal."""


def row(user: BrowserUser, name: str) -> Locator:
    """The row of a provider."""
    return user.page.locator(".row").filter(has=user.page.get_by_role("heading", name=name, exact=True))


def stored(user: BrowserUser, name: str) -> dict[str, Any]:
    """What Letta holds of a provider."""
    (found,) = user.served.letta.get("/v1/providers/", params={"name": name}).json()
    return dict(found)


def test_a_stale_key_is_seen_synced_and_proven(user: BrowserUser) -> None:
    """A key that is changed behind Isabella's back shows by itself, with what to do; Sync mends it, and proves it."""
    user.open("providers")
    groq = row(user, "byok-groq")
    expect(groq).to_contain_text("proven")
    expect(user.page.locator("#status")).to_contain_text("Everything is in order")
    # In one line, with its time, at every width.
    bar = user.page.locator("#status-bar").bounding_box()
    assert bar is not None
    assert bar["height"] < 40
    user.served.letta.patch(
        f"/v1/providers/{stored(user, 'byok-groq')['id']}", json={"api_key": "gsk_stale000000000000000000"}
    ).raise_for_status()
    expect(groq).to_contain_text("differs")
    expect(groq.locator(".why")).to_contain_text("Press Sync")
    expect(user.page.locator("#status")).to_contain_text("1 of 4 providers is not in order")
    expect(user.page.locator("#status .next")).to_contain_text("Press Sync, or run")
    expect(user.page.locator("#status-seen")).to_contain_text("seen ")
    user.page.get_by_role("button", name="Plan", exact=True).click()
    plan = user.page.locator("#job.done .diff")
    expect(plan).to_contain_text("Letta holds another key")
    expect(plan).to_contain_text("update in place")
    expect(user.page.locator("#job h2 time")).to_be_visible()
    groq.get_by_role("button", name="Sync").click()
    expect(user.page.locator("#job.done")).to_contain_text("updated in place, proven")
    expect(groq).to_contain_text("proven")
    expect(user.page.locator("#status")).to_contain_text("Everything is in order")
    # What the plan said has been done: only the outcome of the sync is left, until Letta holds another key again.
    user.served.letta.patch(
        f"/v1/providers/{stored(user, 'byok-groq')['id']}", json={"api_key": "gsk_stale000000000000000001"}
    ).raise_for_status()
    expect(user.page.locator("#job.job")).to_have_count(0)
    groq.get_by_role("button", name="Sync").click()
    expect(groq).to_contain_text("proven")
    user.open("activity")
    expect(user.page.locator("#events li").first).to_contain_text("cause: Sync button")
    expect(user.page.locator("#status")).to_contain_text("Everything is in order")


def test_what_is_dangerous_asks_first(user: BrowserUser) -> None:
    """If a provider would have to be recreated, Sync says so and waits for a yes."""
    letta, name = user.served.letta, "longcat"
    before = stored(user, name)
    letta.delete(f"/v1/providers/{before['id']}").raise_for_status()
    letta.post(
        "/v1/providers/",
        json={
            "name": name,
            "provider_type": "mistral",
            "api_key": "ak_0000000000000000000000",
            "base_url": before["base_url"],
        },
    ).raise_for_status()
    user.open("providers")
    expect(row(user, name)).to_contain_text("another provider type")
    row(user, name).get_by_role("button", name="Sync").click()
    asking = user.page.locator("#job.asking")
    expect(asking).to_contain_text("longcat will be recreated in Letta")
    assert stored(user, name)["provider_type"] == "mistral"
    user.page.get_by_role("button", name="Cancel").click()
    expect(user.page.locator("#job.job")).to_have_count(0)
    assert stored(user, name)["provider_type"] == "mistral"
    row(user, name).get_by_role("button", name="Sync").click()
    user.page.get_by_role("button", name="Recreate").click()
    expect(user.page.locator("#job.done")).to_contain_text("recreated, proven")
    assert stored(user, name)["provider_type"] == "openai"


def test_verify_refresh_and_doctor(user: BrowserUser) -> None:
    """Verify gets a receipt of every vendor, which its row then shows; refresh and doctor say what they found."""
    user.open("providers")
    job = user.page.locator("#job")
    user.page.get_by_role("button", name="Verify", exact=True).click()
    expect(job).to_contain_text("a message through Letta was accepted")
    expect(row(user, "cerebras")).to_contain_text("a completion through Letta was accepted")
    user.page.get_by_role("button", name="Refresh models").click()
    expect(job).to_contain_text("No changes in the model lists")
    user.page.locator("#do-doctor").click()
    expect(job.get_by_role("heading", name="Doctor")).to_be_visible()
    # Other tests have left agents in this Letta that may well be ill.
    expect(job.locator(".finding").or_(job.get_by_text("Healthy: no findings.")).first).to_be_visible()
    user.page.get_by_role("button", name="Dismiss").click()
    expect(user.page.locator("#job.job")).to_have_count(0)


def test_a_refused_key_says_why(user: BrowserUser) -> None:
    """Where a vendor refuses, the receipt says so in the row, in one sentence."""
    user.served.vendors.fault("mistral", on="chat", status=401)
    user.open("providers")
    row(user, "byok-mistral").get_by_role("button", name="Verify").click()
    expect(user.page.locator("#job.done")).to_contain_text("a message through Letta was refused")
    expect(row(user, "byok-mistral").locator("dd .dot.bad")).to_be_visible()


@contextmanager
def watching(user: BrowserUser, settings: Settings) -> Iterator[None]:
    """The backend follows these settings while the block runs, and has its own again afterwards."""
    served, runtime = user.served, user.served.runtime
    up, over = threading.Event(), anyio.Event()

    async def keep() -> None:
        async def find(_settings: Any) -> Any:
            return served.connection

        work = LettaActions(served.locks, find=find)
        async with run_watcher(
            runtime.readiness, settings, work, runtime.agents.models, on_event=runtime.on_watch_event
        ) as runtime.watcher:
            up.set()
            await over.wait()
        runtime.watcher = None
        runtime.agents.models.renew(desired_providers(served.settings))
        report = await ensure_providers(served.settings, connection=served.connection, gate=served.locks)
        runtime.readiness.record(report)

    kept = served.portal.start_task_soon(keep)
    assert up.wait(30)
    try:
        yield
    finally:
        served.portal.call(over.set)
        kept.result(60)


def test_the_first_real_key_takes_effect_while_isabella_runs(user: BrowserUser, tmp_path: Path) -> None:
    """The page names the file and the line. Written, the key replaces the practice vendors; what is left can go."""
    served, file = user.served, tmp_path / ".env"
    file.write_text("")
    with PracticeVendors() as real:
        sources = replaced(served.settings.sources, file=file, overlay_until_key=True)
        assert any(value.origin == ORIGIN for value in sources.overlay.values())
        keys = {name: [served.vendors.key(name).get_secret_value()] for name in NAMES}
        (served.settings.home / "practice").mkdir(exist_ok=True)
        save_keys(keys_file(served.settings.home), keys)
        with watching(user, served.settings.model_copy(update={"sources": sources})):
            user.open("providers")
            overview, status = user.page.locator("#overview"), user.page.locator("#status")
            expect(overview).to_contain_text("Practice vendors answer here")
            expect(overview).to_contain_text(f"into {file}; it takes effect at once")
            expect(overview.locator("code").first).to_contain_text("CEREBRAS_API_KEY=")
            file.write_text("CEREBRAS_API_KEY=your-key-here\n")
            expect(overview).to_contain_text("CEREBRAS_API_KEY cannot be used")
            key = real.key("cerebras").get_secret_value()
            file.write_text(f"CEREBRAS_API_KEY={key}\nCEREBRAS_BASE_URL={real.base_url('cerebras')}\n")
            expect(row(user, "cerebras")).to_contain_text(real.base_url("cerebras"))
            expect(row(user, "cerebras")).to_contain_text("proven")
            expect(overview).not_to_contain_text("Practice vendors answer here")
            expect(status).to_contain_text("Everything is in order")
            assert served.say("Isabella", "Say hello").handles == ["cerebras/gpt-oss-120b"]
            assert real.requests("cerebras")
            user.page.get_by_role("button", name="Remove byok-groq, byok-mistral, longcat from Letta").click()
            expect(user.page.locator("#leftovers")).to_have_count(0)
            for name in ("byok-groq", "byok-mistral", "longcat"):
                expect(row(user, name)).to_contain_text("no key")
            assert [one["name"] for one in served.letta.get("/v1/providers/").json()] == ["cerebras"]
            assert key not in user.page.content()
    user.open("providers")
    expect(row(user, "byok-groq")).to_contain_text("proven")
