"""Coming in, and being out again."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
from playwright.sync_api import Browser, expect

from tests.support.backend_server import TOKEN
from tests.support.browser_user import BrowserUser, browsing


def test_the_first_login(anonymous: BrowserUser) -> None:
    """A anonymous is told how to come in; the link lets him in and leaves no token behind; the cookie is safe."""
    page = anonymous.page
    refused = page.goto(f"{anonymous.served.url}/")
    assert refused is not None
    assert refused.status == 401
    expect(page.get_by_text("isabella login")).to_be_visible()
    anonymous.enter()
    expect(page.get_by_role("heading", name="Providers")).to_be_visible()
    assert "code" not in page.url
    (cookie,) = [one for one in anonymous.context.cookies() if one["name"] == "isabella"]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert TOKEN not in cookie["value"]


def test_the_token_is_pasted(anonymous: BrowserUser) -> None:
    """The page that was asked for follows; a wrong token is told, and a link that was used leads nowhere."""
    page, link = anonymous.page, anonymous.link()
    page.goto(f"{anonymous.served.url}/console/activity")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("The token is wrong.")).to_be_visible()
    page.goto(f"{anonymous.served.url}/console/activity")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_label("Token").press("Enter")
    expect(page.get_by_role("heading", name="Activity")).to_be_visible()
    assert page.url.endswith("/console/activity")
    assert TOKEN not in page.content()
    anonymous.context.clear_cookies()
    page.goto(link)
    expect(page.get_by_role("heading", name="Providers")).to_be_visible()
    anonymous.context.clear_cookies()
    page.goto(link)
    expect(page.get_by_text("This link has been used, or has expired.")).to_be_visible()


def test_signing_out(user: BrowserUser) -> None:
    """The session ends, and the cookie with it; going back shows no page from memory."""
    page = user.page
    user.open("activity")
    (cookie,) = [one for one in user.context.cookies() if one["name"] == "isabella"]
    page.get_by_role("link", name="Sessions").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert [one for one in user.context.cookies() if one["name"] == "isabella"] == []
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    user.context.add_cookies([cookie])  # type: ignore[list-item]
    page.goto(f"{user.served.url}/console/activity")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_session_is_ended_from_another_browser(user: BrowserUser, browser: Browser, view: dict[str, Any]) -> None:
    """It is in the list, and ends at once: the open page of the other browser gets nothing more, and says so."""
    with browsing(user.served, browser, **view, user_agent="Phone 1.0") as other:
        other.enter()
        other.open("activity")
        user.page.goto(f"{user.served.url}/console/sessions")
        row = user.page.locator(".row", has_text="Phone 1.0")
        expect(user.page.locator(".row", has_text="This browser")).to_have_count(1)
        row.get_by_role("button").click()
        expect(row).to_have_count(0)
        expect(other.page.locator("#lost")).to_contain_text("Your session has expired")
        other.page.reload()
        expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
    user.open("providers")


def test_the_page_of_the_api_works(user: BrowserUser) -> None:
    """The documentation runs under its policy, in no frame, and its requests carry the session."""
    page = user.page
    page.goto(f"{user.served.url}/docs")
    expect(page.get_by_text("/api/providers", exact=True)).to_be_visible()
    answer = page.evaluate("fetch('/api/providers').then((answer) => answer.status)")
    assert answer == 200


def test_a_session_that_expires(user: BrowserUser, agent: str) -> None:
    """When the session expires the open page says so and keeps what was typed; after a new login it goes on."""
    user.open(f"chat/{agent}")
    user.context.clear_cookies()
    user.say("Say hello to me")
    expect(user.page.get_by_text("Your session has expired")).to_be_visible()
    expect(user.page.locator("#message")).to_have_value("Say hello to me")
    other = user.tab()
    other.goto(user.link())
    other.close()
    expect(user.page.locator("#lost")).to_be_hidden()
    user.page.locator("#message").press("Enter")
    expect(user.page.locator("#live .message.agent")).to_contain_text("hello")


def test_the_notice_of_an_expired_session_goes_with_the_next_answer(user: BrowserUser, agent: str) -> None:
    """Where no other page tells of the new login, the first answer to this one does."""
    user.open(f"chat/{agent}")
    good = user.context.cookies()
    user.context.clear_cookies()
    user.say("Say hello to me")
    expect(user.page.locator("#lost")).to_contain_text("Your session has expired")
    user.context.add_cookies(good)  # type: ignore[arg-type]
    user.page.locator("#message").press("Enter")
    expect(user.page.locator("#live .message.agent")).to_contain_text("hello")
    expect(user.page.locator("#lost")).to_be_hidden()


def test_the_notice_goes_from_every_tab(user: BrowserUser, agent: str) -> None:
    """Two tabs that say that the session has expired stop saying so when somebody signs in in a third one."""
    tabs = [user.page, user.tab()]
    for tab in tabs:
        user.open(f"chat/{agent}", tab)
    user.context.clear_cookies()
    for tab in tabs:
        tab.locator("#message").fill("Say hello to me")
        tab.locator("#message").press("Enter")
        expect(tab.locator("#lost")).to_contain_text("Your session has expired")
    user.tab().goto(user.link())
    for tab in tabs:
        expect(tab.locator("#lost")).to_be_hidden()


def test_the_policy_of_every_answer(user: BrowserUser) -> None:
    """Nothing inline and nothing from elsewhere may run, in pages and refusals; pages are kept by nobody."""
    for path in ("/console/providers", "/console/nothing", "/console/static/console.css"):
        answer = user.context.request.get(f"{user.served.url}{path}")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'"), path
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = user.context.request.get(f"{user.served.url}/console/providers")
    assert page.headers["cache-control"] == "no-store"
    assert " style=" not in page.text()
    assert "<script>" not in page.text()


def test_a_refusal_replaces_nothing(user: BrowserUser) -> None:
    """To a page that asked for a fragment, whatever is refused is a notice, never a page in the middle of a page."""
    for method, path, status in (("GET", "/console/nothing", 404), ("DELETE", "/console/providers", 405)):
        for headers in ({}, {"HX-Request": "true"}):
            answer = user.context.request.fetch(f"{user.served.url}{path}", method=method, headers=headers)
            assert answer.status == status
            assert ("<html" in answer.text()) is not bool(headers), path
            assert answer.headers.get("hx-retarget") == ("#notice" if headers else None), path


def test_forms_of_other_sites(user: BrowserUser) -> None:
    """A form without this page's token, or from another port of the same machine, does nothing; nor does the API."""
    url = user.served.url
    cookies = {one["name"]: one["value"] for one in user.context.cookies()}
    user.open("providers")
    given = user.page.locator("[name=csrf]").first.input_value()
    token = {"X-Isabella-Csrf": given}
    foreign = {"Origin": "http://127.0.0.1:9"}
    with httpx.Client(base_url=url, cookies=cookies) as client:
        assert client.post("/console/providers/dismiss", headers={"Origin": url}).status_code == 403
        assert client.post("/console/providers/dismiss", headers=token | foreign).status_code == 403
        assert client.post("/console/providers/dismiss", headers=token | {"Origin": url}).status_code == 200
        assert client.post("/console/providers/dismiss", headers=token).status_code == 200
        assert client.post("/api/agents/nobody/turns", json={"message": "x"}, headers=foreign).status_code == 403
        site = {"Sec-Fetch-Site": "same-site"}
        assert client.post("/console/providers/dismiss", headers=token | site).status_code == 403


def test_the_theme_is_kept(user: BrowserUser) -> None:
    """The switch of the theme goes round, stays on the page it was used on, and holds on the next one."""
    user.open("activity")
    html, switch = user.page.locator("html"), user.page.locator(".theme button")
    for wanted in ("light", "dark"):
        switch.click()
        expect(html).to_have_attribute("data-theme", wanted)
        assert user.page.url.endswith("/console/activity")
    user.open("providers")
    expect(html).to_have_attribute("data-theme", "dark")
