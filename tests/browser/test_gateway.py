"""The console of a backend whose vendors are behind the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.system.urls import GATEWAY_PATH
from tests.support.backend_server import Backend, backend
from tests.support.browser_user import BrowserUser, aside

GROQ = "byok-groq/openai/gpt-oss-120b"


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with a gateway."""
    home: Path = tmp_path_factory.mktemp("home")
    with PracticeVendors() as vendors, backend(letta_server, home, vendors, gateway="on") as running:
        yield running


def test_what_passed_through_the_gateway_is_shown(user: BrowserUser) -> None:
    """Base URLs, whether it runs, and per vendor the last answer, the last refusal, tokens, and a stopped key."""
    served = user.served
    user.open("providers")
    groq = user.page.locator(".row").filter(has=user.page.get_by_role("heading", name="byok-groq", exact=True))
    expect(groq).to_contain_text(f"{GATEWAY_PATH}byok-groq/v1")
    expect(groq).to_contain_text(served.vendors.base_url("groq"))
    expect(user.page.locator("#overview")).to_contain_text("gateway runs at http://127.0.0.1:")

    user.open("activity")
    shown = user.page.locator("#gateway .row").filter(has=user.page.get_by_role("heading", name="byok-groq"))
    expect(shown).to_contain_text("0 accepted")
    agent = aside(served.agent, "seen-through-the-gateway", GROQ)
    assert aside(served.say, agent, "Say hello").text == "hello"
    expect(shown).to_contain_text("1 accepted")
    expect(shown.locator("dl")).to_contain_text(" out")
    expect(shown.locator("dl")).to_contain_text(" ms")
    served.vendors.fault("groq", on="chat", status=402)
    aside(served.say, agent, "Say hello again")
    expect(shown.locator("div", has_text="Last refused")).to_contain_text("402: ")

    served.vendors.clear()
    (row,) = served.letta.get("/v1/providers/", params={"name": "byok-groq"}).json()
    stale = {"api_key": "gsk_stale000000000000000000", "base_url": row["base_url"]}
    served.letta.patch(f"/v1/providers/{row['id']}", json=stale).raise_for_status()
    served.call(served.runtime.turns.deps.breaker.forgive, "byok-groq")
    assert aside(served.say, agent, "Say good morning").text == "good morning"
    expect(shown).to_contain_text("1 other key stopped")
    stopped = user.page.locator("#events li").filter(has_text="outdated key")
    expect(stopped).to_contain_text("byok-groq")
    expect(stopped).to_contain_text("gsk_…0000")
    assert "stale0000" not in user.page.content()


def test_a_gateway_that_does_not_run_leads(user: BrowserUser) -> None:
    """The headline and the activity page say that agents get no answer. The last test of this module."""
    user.open("providers")
    overview = user.page.locator("#overview")
    expect(overview).to_contain_text("gateway runs at")
    assert user.served.gateway is not None
    user.served.gateway.stop()
    status = user.page.locator("#status")
    expect(status).to_contain_text("The gateway is not running.")
    expect(status).to_contain_text("agents get no answer")
    expect(status.locator(".dot")).to_have_class("dot bad")
    user.open("activity")
    expect(user.page.locator("#gateway")).to_contain_text("agents get no answer")
