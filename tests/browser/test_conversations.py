"""Conversations beside the chat, and files attached to messages."""

from __future__ import annotations

import base64
import re
from functools import partial
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.browser_user import BrowserUser, aside

#: A picture of one pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def names(page: Page) -> list[str]:
    """The names in the list, in order."""
    return page.locator("#talks-list > ul > li .talk").all_text_contents()


def show_list(page: Page) -> None:
    """Open the drawer that the list is in if the window is narrow."""
    if page.locator("#talks-open").is_visible():
        page.locator("#talks-open").click()


def test_several_conversations(user: BrowserUser, agent: str) -> None:
    """A new one is named by its first message; rename, search, archive; what was said stays where it was said."""
    page = user.page
    user.open(f"chat/{agent}")
    user.say("Say hello from the first")
    user.wait_for_answer()
    show_list(page)
    page.get_by_role("button", name="New", exact=True).click()
    expect(page).to_have_url(re.compile(":conv-"))
    expect(page.locator("#main[data-connected]")).to_be_attached()
    expect(page.locator("#empty")).to_be_visible()
    user.say("Please remember that my dog is called Rex.")
    user.wait_for_answer()
    expect(page.locator("#talks-list a[aria-current] .talk")).to_have_text(
        "Please remember that my dog is called Rex."
    )
    expect(page.locator("#talk-menu summary")).to_contain_text("my dog is called Rex")
    page.locator("#talk-menu summary").click()
    page.get_by_label("Name", exact=True).fill("About <b>pets</b>")
    page.get_by_role("button", name="Rename").click()
    expect(page.locator("#talk-menu summary")).to_have_text("About <b>pets</b>")
    assert names(page) == ["Default conversation", "About <b>pets</b>"]
    # Found by what was said, with a link to the message.
    show_list(page)
    page.locator("#talks-q").fill("dog Rex")
    page.locator("#talks-q").press("Enter")
    expect(page.locator("#talks-list")).to_contain_text("1 conversation with “dog Rex”")
    page.locator(".talks-found a", has_text="Please remember").click()
    expect(page.locator("#history .message.found")).to_contain_text("Please remember that my dog is called Rex.")
    # One memory.
    show_list(page)
    page.get_by_role("link", name="Default conversation").click()
    expect(page.locator("#history")).to_contain_text("Say hello from the first")
    expect(page.locator("#history")).not_to_contain_text("Rex")
    expect(page.locator("#main[data-connected]")).to_be_attached()
    user.say("What is my dog called?")
    user.wait_for_answer()
    expect(page.locator("#live .message.agent").last).to_contain_text("Rex")
    # Archived, and taken out again.
    show_list(page)
    page.get_by_role("link", name="About <b>pets</b>").click()
    page.locator("#talk-menu summary").click()
    page.get_by_role("button", name="Archive", exact=True).click()
    expect(page.locator("#talk-heading")).to_contain_text("(archived)")
    expect(page.locator("#talks-archived")).to_contain_text("Archived (1)")
    assert names(page) == ["Default conversation"]
    user.open(f"chat/{agent}")
    show_list(page)
    page.locator("#talks-archived summary").click()
    page.locator("#talks-archived a").click()
    page.locator("#talk-menu summary").click()
    page.get_by_role("button", name="Unarchive").click()
    expect(page.locator("#talks-archived")).to_have_count(0)
    assert names(page) == ["Default conversation", "About <b>pets</b>"]


def test_the_drawer_of_a_phone(user: BrowserUser, agent: str) -> None:
    """At 360 pixels the list is a drawer: opened by a button, closed by Escape, which stops no answer."""
    page = user.page
    page.set_viewport_size({"width": 360, "height": 740})
    made = user.served.client.post(f"/api/agents/{agent}/conversations", json={"name": "Another one"}).json()["id"]
    user.open(f"chat/{agent}:{made}")
    talks = page.locator("#talks")
    expect(talks).to_be_hidden()
    user.served.vendors.fault("cerebras", on="chat", between=0.05, times=1)
    user.say("Count to 200")
    expect(page.locator("#live .message.agent .words")).to_contain_text("1 2 3")
    page.get_by_role("button", name="Conversations").click()
    expect(talks).to_be_visible()
    expect(page.locator("#talks-q")).to_be_focused()
    page.locator("#talks-q").press_sequentially("def")
    expect(page.locator("#talks-list li:visible")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(talks).to_be_hidden()
    expect(page.get_by_role("button", name="Conversations")).to_be_focused()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    user.served.vendors.clear()
    user.wait_for_answer()
    expect(page.locator("#live .message.agent")).to_contain_text("200")
    page.get_by_role("button", name="Conversations").click()
    page.locator("#talks-list").get_by_role("link", name="Default conversation").click()
    expect(page.locator("#history")).not_to_contain_text("Count to 200")


def test_only_one_conversation(user: BrowserUser) -> None:
    """An agent of an older type has no list."""
    name = "only one conversation"
    aside(partial(user.served.agent, name, "cerebras/gpt-oss-120b", agent_type="memgpt_v2_agent"))
    user.open(f"chat/{user.served.id_of(name)}")
    expect(user.page.locator("#talks, #talk-heading")).to_have_count(0)
    answer = user.page.goto(f"{user.served.url}/console/chat/{user.served.id_of(name)}:conv-{'0' * 36}")
    assert answer is not None
    assert answer.status in (404, 422)


def test_attachments(user: BrowserUser, agent: str, tmp_path: Path) -> None:
    """A picture and a text file are shown before they are sent, live, and after a reload; a seeing model answers."""
    page = user.page
    picture, notes, pdf = tmp_path / "dot.png", tmp_path / "notes.txt", tmp_path / "paper.pdf"
    picture.write_bytes(PIXEL)
    notes.write_text("The key is below the stone.\n")
    pdf.write_bytes(b"%PDF-1.7\n\0")
    user.open(f"chat/{agent}")
    chooser = page.locator("#attach-files")
    chooser.set_input_files([picture, notes, pdf])
    listed = page.locator("#attach-list li")
    expect(listed).to_have_count(2)
    expect(listed.first.locator("canvas")).to_have_count(1)
    expect(listed.last).to_contain_text("notes.txt")
    # The model that the agent is bound to does not see; another one of its models does.
    expect(page.locator("#attach-note")).to_contain_text(
        "cerebras/gpt-oss-120b does not accept pictures: byok-mistral/mistral-medium-latest answers this message."
    )
    user.say("Say what is here")
    user.wait_for_answer()
    expect(page.locator("#live .message.agent").last).to_contain_text("image/png")
    expect(listed).to_have_count(0)
    for place in ("#live", "#history"):
        message = page.locator(f"{place} .message.user")
        image = message.locator("img.picture")
        expect(image).to_be_visible()
        page.wait_for_function("image => image.complete && image.naturalWidth === 1", arg=image.element_handle())
        message.locator("details.attached summary").click()
        expect(message.locator("details.attached")).to_contain_text("The key is below the stone.")
        expect(message.locator(".words")).to_have_text("Say what is here")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        user.open(f"chat/{agent}")


def test_a_model_that_does_not_see(user: BrowserUser, tmp_path: Path) -> None:
    """It is said before the message is sent, and the picture can be left out."""
    name = "does not see"
    aside(user.served.agent, name, "cerebras/gpt-oss-120b")
    picture = tmp_path / "dot.png"
    picture.write_bytes(PIXEL)
    user.open(f"chat/{user.served.id_of(name)}")
    page = user.page
    page.locator("#attach-files").set_input_files(picture)
    expect(page.locator("#attach-note")).to_contain_text("No model of does not see is known to accept images")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.get_by_role("button", name="Remove dot.png").click()
    expect(page.locator("#attach-note")).to_be_empty()
    user.say("Say hello")
    user.wait_for_answer()
    expect(page.locator("#live .message.agent").last).to_contain_text("hello")
