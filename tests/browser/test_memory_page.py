"""The page of memory."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, Route, TimeoutError, expect

from isabella.agents.block_history import by_reflection
from tests.support.browser_user import BrowserUser


def block(page: Page, label: str) -> Locator:
    """A memory block, whether it is read or edited."""
    return page.locator(".block").filter(has=page.get_by_role("heading", name=label, exact=True))


def edit(page: Page, label: str, text: str) -> None:
    """Open a block's editor, and put a text into it."""
    page.get_by_role("button", name=f"Edit {label}").click()
    block(page, label).locator("textarea").fill(text)


class Held:
    """A page's requests to an address, kept from being sent until somebody lets go of them."""

    def __init__(self, page: Page, pattern: str) -> None:
        self._page = page
        self._held: list[Route] = []
        page.route(pattern, self._keep)

    def _keep(self, route: Route) -> None:
        self._held.append(route)

    @property
    def count(self) -> int:
        """How many are held now."""
        return len(self._held)

    def take(self) -> Route:
        """The next one, as soon as there is one."""
        while not self._held:
            self._page.wait_for_timeout(20)
        return self._held.pop(0)


def test_she_knows_what_was_edited(user: BrowserUser, agent: str) -> None:
    """A line that is written into her memory on the page is known to her in the next turn; Undo takes it back."""
    user.open(f"memory/{agent}")
    page = user.page
    edit(page, "human", "The user's cat is called Miezi.")
    expect(page.locator(".count")).to_have_text("31 of 100,000 characters")
    page.get_by_role("button", name="Save").click()
    expect(block(page, "human")).to_contain_text("Saved.")
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    user.open(f"chat/{agent}")
    user.say("What is my cat called?")
    user.wait_for_answer()
    expect(page.locator("#live .message.agent")).to_contain_text("Miezi")
    user.open(f"memory/{agent}")
    edit(page, "human", "Nothing is known.")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Undo").click()
    expect(block(page, "human")).to_contain_text("Undone.")
    expect(block(page, "human")).to_contain_text("Miezi")


def test_a_conflict_of_two_tabs(user: BrowserUser, agent: str) -> None:
    """Two tabs edit the same block: the second save is refused, shows both texts, and goes through once seen."""
    first, second = user.page, user.tab()
    for page, text in ((first, "From the first tab."), (second, "From the second tab.")):
        user.open(f"memory/{agent}", page)
        edit(page, "persona", text)
    first.get_by_role("button", name="Save").click()
    expect(block(first, "persona")).to_contain_text("Saved.")
    second.get_by_role("button", name="Save").click()
    editor = block(second, "persona")
    expect(editor.locator(".theirs")).to_have_text("From the first tab.")
    expect(editor.locator("textarea")).to_have_value("From the second tab.")
    second.get_by_role("button", name="Save").click()
    expect(block(second, "persona").locator(".value")).to_have_text("From the second tab.")


def test_the_limit_is_kept(user: BrowserUser, agent: str) -> None:
    """A text above the limit is refused with the reason, and stays in the editor."""
    user.served.letta.patch(f"/v1/agents/{agent}/core-memory/blocks/human", json={"limit": 40}).raise_for_status()
    user.open(f"memory/{agent}")
    edit(user.page, "human", "y" * 41)
    expect(user.page.locator(".count")).to_have_class("quiet count bad")
    user.page.get_by_role("button", name="Save").click()
    expect(user.page.get_by_role("alert").filter(has_text="holds 40")).to_be_visible()
    expect(block(user.page, "human").locator("textarea")).to_have_value("y" * 41)


def test_what_caused_a_memory(user: BrowserUser, agent: str) -> None:
    """What she wrote down shows by itself on an open page, and leads to the line of the conversation behind it."""
    reader = user.tab()
    user.open(f"memory/{agent}", reader)
    reader.bring_to_front()
    user.served.say(agent, "Please remember that my boat is called Aurora.")
    expect(block(reader, "human").locator(".value")).to_contain_text("Aurora")
    block(reader, "human").locator(".why summary").click()
    cause = reader.get_by_role("link", name="Please remember that my boat is called Aurora.")
    cause.click()
    expect(reader.locator(".message.found")).to_contain_text("my boat is called Aurora")


def test_a_cause_that_does_not_come_is_asked_for_again(user: BrowserUser, agent: str) -> None:
    """Where something between answers instead, the fold closes, and opening it anew asks anew."""
    user.served.say(agent, "Please remember that my boat is called Aurora.")
    user.open(f"memory/{agent}")
    page = user.page
    fold = block(page, "human").locator(".why")
    held = Held(page, "**/provenance*")
    fold.locator("summary").click()
    held.take().fulfill(status=503, content_type="text/html", body="<h1>Not now</h1>")
    expect(page.locator("#notice")).to_contain_text("answered with 503")
    expect(fold).not_to_have_attribute("open", "")
    # Nothing is asked before somebody opens it: that would have taken the notice away.
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))")
    expect(page.locator("#notice")).to_contain_text("answered with 503")
    assert held.count == 0
    page.unroute("**/provenance*")
    fold.locator("summary").click()
    expect(page.get_by_role("link", name="Please remember that my boat is called Aurora.")).to_be_visible()


def test_the_archive(user: BrowserUser, agent: str) -> None:
    """Passages are added, found, and deleted after a question."""
    user.open(f"memory/{agent}")
    page = user.page
    for text in ("The garden gate squeaks.", "Tuesday is market day."):
        if page.locator("#add").get_attribute("open") is None:
            page.locator("#add summary").click()
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_label("Tags").fill("home, notes")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator(".passage.fresh", has_text=text)).to_be_visible()
    page.get_by_label("Search archival memory").fill("garden gate")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#found")).to_contain_text("1 result for “garden gate”")
    expect(page.locator(".passage")).to_have_text([re.compile("The garden gate squeaks")])
    # The query is in the address: it can be reloaded, and the browser goes back to it.
    assert "q=garden+gate" in page.url
    page.get_by_label("Search archival memory").fill("quantum physics")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#found")).to_contain_text("No passage in archival memory is relevant to “quantum physics”.")
    expect(page.locator(".passage")).to_have_count(0)
    page.go_back()
    expect(page.locator("#found")).to_contain_text("1 result for “garden gate”")
    expect(page.get_by_label("Search archival memory")).to_have_value("garden gate")
    page.get_by_role("link", name="Show all").click()
    expect(page.locator(".passage")).to_have_count(2)
    gate = page.locator(".passage", has_text="The garden gate squeaks.")
    gate.get_by_role("button", name="Delete …").click()
    expect(gate).to_contain_text("Delete this passage permanently?")
    gate.get_by_role("button", name="Cancel").click()
    gate.get_by_role("button", name="Delete …").click()
    gate.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#passages")).to_contain_text("Deleted.")
    user.open(f"memory/{agent}")
    expect(page.locator(".passage")).to_have_count(1)


def test_what_is_about_to_be_replaced_takes_no_clicks(user: BrowserUser, agent: str) -> None:
    """A question would go with what is replaced: until the answer is there, nothing in it can be pressed."""
    user.open(f"memory/{agent}")
    page = user.page
    human = block(page, "human")
    held = Held(page, "**/edit*")
    page.get_by_role("button", name="Edit human").click()
    route = held.take()
    assert human.evaluate("one => one.inert")
    with pytest.raises(TimeoutError):
        human.get_by_role("button", name="Edit human").click(timeout=500)
    route.continue_()
    expect(human.locator("textarea")).to_be_focused()
    expect(page.locator(".block[inert]")).to_have_count(0)


def test_several_passages_go_with_one_question(user: BrowserUser, agent: str) -> None:
    """What is selected is counted in the question; Cancel keeps it selected, and the rest stays."""
    for text in ("First.", "Second.", "Third."):
        user.served.client.post(f"/api/agents/{agent}/passages", json={"text": text}).raise_for_status()
    user.open(f"memory/{agent}")
    page, bar = user.page, user.page.locator("#bulk-bar")
    page.get_by_role("button", name="Delete selected …").click()
    expect(bar).to_contain_text("Select passages first.")
    page.get_by_role("button", name="Select all shown").click()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(3)
    page.get_by_label("Select the passage Second.").uncheck()
    page.get_by_role("button", name="Delete selected …").click()
    expect(bar).to_contain_text("Delete 2 passages permanently?")
    bar.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(2)
    page.get_by_role("button", name="Delete selected …").click()
    bar.get_by_role("button", name="Delete 2 passages").click()
    expect(bar).to_contain_text("2 passages deleted.")
    expect(page.locator(".passage")).to_have_text([re.compile("Second")])
    (left,) = user.served.client.get(f"/api/agents/{agent}/passages").json()["passages"]
    assert left["text"] == "Second."


def reflect(user: BrowserUser, agent: str, text: str) -> None:
    """Write a block as a reflection does, and note it."""
    path = f"/v1/agents/{agent}/core-memory/blocks/human"
    written = user.served.letta.patch(path, json={"value": text}).json()
    history = user.served.runtime.agents.memory.history
    history.note(written["id"], "human", text, agent, by_reflection("Isabella at night"))


def test_the_history_of_a_block(user: BrowserUser, agent: str) -> None:
    """Each version with its author and its difference, a link to the message behind it, and a way back to any."""
    user.open(f"memory/{agent}")
    page = user.page
    edit(page, "human", "The user's cat is called Miezi.")
    page.get_by_role("button", name="Save").click()
    expect(block(page, "human")).to_contain_text("Saved.")
    reflect(user, agent, "The user's cat is called Miezi. She is grey.")
    user.served.say(agent, "Please remember that my boat is called Aurora.")
    page.get_by_role("link", name="History of human").click()
    newest = page.locator(".versions > li").first
    # What the agent wrote is noted after its turn; the page shows it as soon as it is loaded.
    expect(newest).to_contain_text("Aurora")
    expect(newest.locator(".diff .plus")).to_contain_text("Aurora")
    name = user.served.client.get(f"/api/agents/{agent}").json()["name"]
    expect(newest).to_contain_text(name)
    expect(page.locator(".versions > li").nth(1)).to_contain_text("Isabella at night, reflecting")
    earlier = page.locator(".versions > li").nth(2)
    expect(earlier).to_contain_text("A person")
    expect(page.get_by_text("Complete since")).to_be_visible()
    earlier.get_by_role("button", name=re.compile("Restore version")).click()
    expect(page.locator(".versions > li").first).to_contain_text("A person restored version")
    expect(page.locator(".versions > li").first.locator(".diff .minus", has_text="Aurora")).to_have_count(1)
    assert user.served.client.get(f"/api/agents/{agent}/blocks/human").json()["value"].endswith("Miezi.")


def test_a_save_that_does_not_arrive_loses_nothing(user: BrowserUser, agent: str) -> None:
    """A save that does not reach Isabella leaves the editor, the text in it, and the keyboard where it was."""
    user.open(f"memory/{agent}")
    page = user.page
    edit(page, "human", "Kept for the next attempt.")
    editor = page.locator("form.editing")
    held = Held(page, "**/save")
    editor.get_by_role("button", name="Save").press("Enter")
    route = held.take()
    assert editor.evaluate("one => one.inert")
    route.fulfill(status=502, content_type="text/html", body="<h1>Bad gateway</h1>")
    expect(page.locator("#notice")).to_contain_text("a proxy answered with 502")
    expect(page.locator("form.editing[inert]")).to_have_count(0)
    expect(editor.locator("textarea")).to_have_value("Kept for the next attempt.")
    expect(editor.get_by_role("button", name="Save")).to_be_focused()
    page.unroute("**/save")
    editor.get_by_role("button", name="Save").press("Enter")
    expect(block(page, "human")).to_contain_text("Saved.")
