"""The page of providers: what is wrong is seen, mended and proven, while the page is open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, expect
from visitor import Visitor

from isabella.practice.overlay import ORIGIN
from isabella.server.runtime import run_watcher
from isabella.watch.watcher import LettaActions


def row(visitor: Visitor, name: str) -> Locator:
    """The row of a provider."""
    return visitor.page.locator(".row").filter(has=visitor.page.get_by_role("heading", name=name, exact=True))


def stored(visitor: Visitor, name: str) -> dict[str, Any]:
    """What Letta holds of a provider."""
    (found,) = visitor.served.letta.get("/v1/providers/", params={"name": name}).json()
    return dict(found)


def test_a_stale_key_is_seen_synced_and_proven(visitor: Visitor) -> None:
    """A key that is changed behind Isabella's back shows by itself, with what to do; Sync mends it, and proves it."""
    visitor.open("providers")
    groq = row(visitor, "byok-groq")
    expect(groq).to_contain_text("proven")
    expect(visitor.page.locator("#overview")).to_contain_text("Everything is in order")
    visitor.served.letta.patch(
        f"/v1/providers/{stored(visitor, 'byok-groq')['id']}", json={"api_key": "gsk_stale000000000000000000"}
    ).raise_for_status()
    expect(groq).to_contain_text("differs")
    expect(groq.locator(".why")).to_contain_text("Press Sync")
    expect(visitor.page.locator("#overview")).to_contain_text("1 of 4 providers is not in order")
    visitor.page.get_by_role("button", name="Plan", exact=True).click()
    plan = visitor.page.locator("#job.done .diff")
    expect(plan).to_contain_text("Letta holds another key")
    expect(plan).to_contain_text("update in place")
    groq.get_by_role("button", name="Sync").click()
    expect(visitor.page.locator("#job.done")).to_contain_text("updated in place, proven")
    expect(groq).to_contain_text("proven")
    expect(visitor.page.locator("#overview")).to_contain_text("Everything is in order")
    visitor.open("activity")
    expect(visitor.page.locator("#events li").first).to_contain_text("cause: Sync button")


def test_what_is_dangerous_asks_first(visitor: Visitor) -> None:
    """If a provider would have to be recreated, Sync says so and waits for a yes."""
    letta, name = visitor.served.letta, "longcat"
    before = stored(visitor, name)
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
    visitor.open("providers")
    expect(row(visitor, name)).to_contain_text("another provider type")
    row(visitor, name).get_by_role("button", name="Sync").click()
    asking = visitor.page.locator("#job.asking")
    expect(asking).to_contain_text("longcat will be recreated in Letta")
    assert stored(visitor, name)["provider_type"] == "mistral"
    visitor.page.get_by_role("button", name="Cancel").click()
    expect(visitor.page.locator("#job.job")).to_have_count(0)
    assert stored(visitor, name)["provider_type"] == "mistral"
    row(visitor, name).get_by_role("button", name="Sync").click()
    visitor.page.get_by_role("button", name="Recreate").click()
    expect(visitor.page.locator("#job.done")).to_contain_text("recreated, proven")
    assert stored(visitor, name)["provider_type"] == "openai"


def test_verify_refresh_and_doctor(visitor: Visitor) -> None:
    """Verify gets a receipt of every vendor, which its row then shows; refresh and doctor say what they found."""
    visitor.open("providers")
    job = visitor.page.locator("#job")
    visitor.page.get_by_role("button", name="Verify", exact=True).click()
    expect(job).to_contain_text("a message through Letta was accepted")
    expect(row(visitor, "cerebras")).to_contain_text("a line through Letta was accepted")
    visitor.page.get_by_role("button", name="Refresh models").click()
    expect(job).to_contain_text("No changes in the model lists")
    visitor.page.locator("#do-doctor").click()
    expect(job.get_by_role("heading", name="Doctor")).to_be_visible()
    # Other tests have left agents in this Letta that may well be ill.
    expect(job.locator(".finding").or_(job.get_by_text("Healthy: no findings.")).first).to_be_visible()
    visitor.page.get_by_role("button", name="Dismiss").click()
    expect(visitor.page.locator("#job.job")).to_have_count(0)


def test_a_refused_key_says_why(visitor: Visitor) -> None:
    """Where a vendor refuses, the receipt says so in the row, in one sentence."""
    visitor.served.vendors.fault("mistral", on="chat", status=401)
    visitor.open("providers")
    row(visitor, "byok-mistral").get_by_role("button", name="Verify").click()
    expect(visitor.page.locator("#job.done")).to_contain_text("a message through Letta was refused")
    expect(row(visitor, "byok-mistral").locator("dd .dot.bad")).to_be_visible()


def test_a_key_arrives_in_the_env_file(visitor: Visitor, tmp_path: Path) -> None:
    """Without keys the page says that these are practice vendors and which line to write; written, it shows up."""
    served, runtime = visitor.served, visitor.served.runtime
    file = tmp_path / ".env"
    file.write_text("")
    settings = served.settings.model_copy(update={"sources": replaced(served.settings.sources, file=file)})
    assert any(value.origin == ORIGIN for value in settings.sources.overlay.values())
    up, over = threading.Event(), threading.Event()

    async def keep() -> None:
        import anyio

        async def find(_settings: Any) -> Any:
            return served.connection

        work = LettaActions(served.locks.gate, find=find)
        async with run_watcher(
            runtime.readiness, settings, work, runtime.agents.models, on_event=runtime.event_log.on_watch_event
        ) as runtime.watcher:
            up.set()
            await anyio.to_thread.run_sync(over.wait)
        runtime.watcher = None

    kept = _in_background(served.portal, keep)
    assert up.wait(30)
    try:
        visitor.open("providers")
        expect(visitor.page.locator("#overview")).to_contain_text("These are practice vendors")
        expect(visitor.page.locator("#overview pre")).to_contain_text("CEREBRAS_API_KEY=")
        file.write_text("CEREBRAS_API_KEY=csk-arrived0000000000000000000000\n")
        expect(visitor.page.locator(".added")).to_contain_text("CEREBRAS_API_KEY found")
        assert "csk-arrived" not in visitor.page.content()
    finally:
        over.set()
        kept()


def _in_background(portal: Any, function: Callable[..., Any]) -> Callable[[], Any]:
    return portal.start_task_soon(function).result  # type: ignore[no-any-return]
