"""The page of agents, and the page of an agent's prompt."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import ZipFile

import pytest
from playwright.sync_api import Locator, Page, expect

from isabella.embedded import Letta
from tests.support.browser_user import BrowserUser


def row(page: Page, name: str) -> Locator:
    """The row of an agent."""
    return page.locator("#agents .row").filter(has=page.get_by_role("heading", name=name, exact=True))


def open_agents(user: BrowserUser) -> Page:
    """Open the page."""
    user.page.goto(f"{user.served.url}/console/agents")
    return user.page


@pytest.fixture(scope="module", autouse=True)
def _alone(empty_letta: Letta) -> None:
    """Buttons are found by the names of agents, and other modules leave agents with names like these."""


def test_an_agent_from_its_creation_to_its_end(user: BrowserUser) -> None:
    """Created on a model that can be used, renamed, duplicated; deleted after a question that says what is lost."""
    page = open_agents(user)
    page.locator("#new summary").click()
    offered = page.locator("#new-handle option")
    expect(offered.first).to_have_text("The first model of the definition that works")
    assert "byok-mistral/mistral-medium-latest" in offered.all_inner_texts()
    page.get_by_label("Name", exact=True).fill("Clara")
    page.get_by_label("Model", exact=True).select_option("byok-mistral/mistral-medium-latest")
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.locator("#agents .outcome")).to_contain_text("Clara was created on byok-mistral/mistral-medium")
    expect(page.locator("#agents .outcome")).to_be_focused()
    clara = user.served.id_of("Clara")
    user.served.say(clara, "Remember that my dog is called Rex.")
    user.served.client.post(f"/api/agents/{clara}/passages", json={"text": "Rex is a dog."})

    page.get_by_role("button", name="Rename Clara", exact=True).click()
    expect(page.get_by_label("New name")).to_be_focused()
    page.get_by_label("New name").fill("Isabella")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("An agent named 'Isabella' already exists.")
    page.get_by_label("New name").fill("Clara Two")
    page.keyboard.press("Enter")
    expect(page.locator("#agents .outcome")).to_have_text("Clara is now called Clara Two.")

    page.get_by_role("button", name="Duplicate Clara Two", exact=True).click()
    expect(page.get_by_label("Name of the copy")).to_have_value("Clara Two copy")
    page.get_by_role("button", name="Duplicate", exact=True).click()
    expect(page.locator("#agents .outcome")).to_contain_text("Clara Two copy is a copy of Clara Two.")
    copy = user.served.id_of("Clara Two copy")
    assert "Rex" in user.served.say(copy, "What is my dog called?").text

    page.get_by_role("button", name="Export Clara Two", exact=True).click()
    offer = row(page, "Clara Two").locator(".asking")
    expect(offer.get_by_role("link", name="Everything (.zip)")).to_be_focused()
    with page.expect_download() as download:
        offer.get_by_role("link", name="Agent file (.af)").click()
    assert download.value.suggested_filename == "Clara Two.af"
    agent_file = Path(download.value.path()).read_bytes()
    offer.get_by_role("button", name="Cancel").click()

    page.get_by_role("button", name="Delete Clara Two", exact=True).click()
    question = row(page, "Clara Two").locator(".asking")
    expect(question).to_contain_text("2 messages")
    expect(question).to_contain_text("1 passage of archival memory")
    expect(question).to_contain_text("human, self, threads")
    question.get_by_role("button", name="Cancel").click()
    expect(row(page, "Clara Two")).to_have_count(1)
    page.get_by_role("button", name="Delete Clara Two", exact=True).click()
    with page.expect_download() as download:
        question.get_by_role("link", name="Export everything first").click()
    assert re.fullmatch(r"Clara-Two-[\d-]+\.zip", download.value.suggested_filename)
    saved = Path(download.value.path())
    with ZipFile(saved) as archive:
        (said,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/messages.md")]
    assert "Remember that my dog is called Rex." in said
    question.get_by_role("button", name="Delete Clara Two").click()
    expect(page.locator("#agents .outcome")).to_have_text("Clara Two was deleted.")
    expect(row(page, "Clara Two")).to_have_count(0)

    # The export brings it back.
    page.locator("#import summary").click()
    page.get_by_label("Agent file (.af)").set_input_files(
        {"name": "clara.zip", "mimeType": "application/zip", "buffer": saved.read_bytes()}
    )
    page.get_by_role("button", name="Import").click()
    expect(page.locator("#agents .outcome")).to_contain_text("Clara Two was imported on")
    expect(page.locator("#agents .outcome")).to_be_focused()
    (found,) = user.served.client.get(f"/api/agents/{user.served.id_of('Clara Two')}/passages").json()["passages"]
    assert found["text"] == "Rex is a dog."
    # An agent file has blocks and messages, and gets another name on request.
    page.locator("#import summary").click()
    page.get_by_label("Agent file (.af)").set_input_files(
        {"name": "clara.af", "mimeType": "application/json", "buffer": agent_file}
    )
    page.get_by_label("Name, if not the one in the file").fill("Clara Three")
    page.get_by_role("button", name="Import").click()
    expect(page.locator("#agents .outcome")).to_contain_text("Clara Three was imported on")
    assert "Rex" in user.served.say(user.served.id_of("Clara Three"), "What is my dog called?").text
    for name in ("Clara Two", "Clara Two copy", "Clara Three"):
        user.served.client.delete(f"/api/agents/{user.served.id_of(name)}").raise_for_status()


def test_the_list_changes_by_itself(user: BrowserUser) -> None:
    """What another client changes appears in its place; a form that is being filled in stays as it is."""
    api = user.served.client
    first = api.post("/api/agents", json={"name": "Dora"}).json()["id"]
    user.open("agents")
    page = user.page
    page.get_by_role("button", name="Rename Dora", exact=True).click()
    page.get_by_label("New name").fill("Dor")
    second = api.post("/api/agents", json={"name": "Dorb"}).json()["id"]
    expect(page.locator(f"#{first} + #{second}")).to_have_count(1)
    api.patch(f"/api/agents/{first}", json={"name": "Doris"}).raise_for_status()
    expect(page.locator(f"#{first} h2")).to_have_text("Doris")
    expect(page.get_by_label("New name")).to_have_value("Dor")
    api.delete(f"/api/agents/{second}").raise_for_status()
    expect(page.locator(f"#{second}")).to_have_count(0)
    # A row that the page's own request has brought comes no second time.
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Duplicate Doris", exact=True).click()
    page.get_by_role("button", name="Duplicate", exact=True).click()
    expect(page.locator("#agents .outcome")).to_contain_text("Doris copy is a copy of Doris.")
    copy = user.served.id_of("Doris copy")
    api.patch(f"/api/agents/{copy}", json={"name": "Dorothy"}).raise_for_status()
    expect(page.locator(f"#{copy} h2")).to_have_text(["Dorothy"])
    for id in (first, copy):
        api.delete(f"/api/agents/{id}").raise_for_status()


def test_a_file_that_is_no_agent_changes_nothing(user: BrowserUser) -> None:
    """The refusal says why, and the form stays as it was."""
    page = open_agents(user)
    page.locator("#import summary").click()
    page.get_by_label("Agent file (.af)").set_input_files(
        {"name": "x.af", "mimeType": "application/json", "buffer": b"{}"}
    )
    before = page.locator("#agents .row").count()
    page.get_by_role("button", name="Import").click()
    expect(page.locator("#notice")).to_contain_text("agents")
    expect(page.get_by_role("button", name="Import")).to_be_enabled()
    expect(page.locator("#agents .row")).to_have_count(before)


def test_what_an_agent_sees(user: BrowserUser, agent: str) -> None:
    """System prompt, blocks, tools and messages, each with its tokens, at a link from the list."""
    user.served.say(agent, "Remember that my boat is called Aurora.")
    # Letta compiles the memory with the next message.
    user.served.say(agent, "Say hi")
    page = open_agents(user)
    name = user.served.client.get(f"/api/agents/{agent}").json()["name"]
    page.get_by_role("link", name=f"Prompt of {name}").click()
    prompt = user.served.client.get(f"/api/agents/{agent}/prompt").json()
    expect(page.get_by_role("heading", level=2).first).to_have_text(
        f"{prompt['tokens']:,} of {prompt['window']:,} tokens"
    )
    human = page.locator(".prompt-part").filter(has=page.locator("summary .agent", has_text=re.compile("^human$")))
    expect(human.locator(".value")).to_contain_text("Aurora")
    expect(page.locator("section", has_text="Messages in the context")).to_contain_text("my boat is called Aurora")
    page.locator("summary", has_text="memory_insert").click()
    expect(page.locator(".prompt-part[open]", has_text="memory_insert")).to_contain_text('"type":"function"')
