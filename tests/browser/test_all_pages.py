"""What holds for every page: accessible in both themes, at three widths, and without a key in it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2 as httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, Response, expect

from tests.support import catalogues
from tests.support.backend_server import TOKEN, Backend
from tests.support.browser_user import BrowserUser, aside, browsing
from tests.support.views import SIZES

#: The rules of axe by theme, without contrast: the dark theme differs from the light one in colours only.
RULES: dict[Literal["dark", "light"], str] = {
    "dark": "runOnly: ['link-in-text-block'],",
    "light": "rules: {'color-contrast': {enabled: false}},",
}
#: Contrast takes ten times as long as all other rules together, so each look of a text is judged once: its colour and
#: size, and the backgrounds of the elements that it is in. Returns the violations, and the looks on the page.
CONTRAST = """async (known) => {
  const behind = (one) => {
    const { backgroundColor, backgroundImage, opacity } = getComputedStyle(one);
    return `${backgroundColor} ${backgroundImage} ${opacity}`;
  };
  const look = (one) => {
    const { color, fontSize, fontWeight, textShadow } = getComputedStyle(one);
    const all = [color, fontSize, fontWeight, textShadow];
    for (let above = one; above; above = above.parentElement) all.push(behind(above));
    return all.join("; ").replaceAll("rgba(0, 0, 0, 0) none 1; ", "");
  };
  const hasText = (one) => one.matches("input, textarea, select")
    || [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const looks = new Map();
  for (const one of document.body.querySelectorAll("*")) {
    if (hasText(one) && one.checkVisibility({ visibilityProperty: true })) looks.set(look(one), one);
  }
  const include = [...looks].filter(([name]) => !known.includes(name)).map(([, one]) => one);
  const options = { runOnly: ["color-contrast"], preload: false, resultTypes: ["violations"] };
  const violations = include.length ? (await axe.run({ include }, options)).violations : [];
  return { violations, looks: [...looks.keys()] };
}"""


#: The code and the table are complete before the end has arrived.
STREAMED = (
    "**a** `b`\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\ndef f(): return 'a'  # b 1\n```\n\n" + "on " * 240
)


@pytest.fixture(scope="module")
def told(served: Backend) -> str:
    """Letta's id of Isabella, who has been told something, so that no page is empty."""
    served.vendors.fault("cerebras", on="chat", status=503, times=1)
    for message in ("Please remember that my dog is called Rex.", "What is my dog called?", "Say *well* done"):
        served.say("Isabella", message)
    served.client.post("/api/agents/Isabella/passages", json={"text": "Rex is a dog.", "tags": ["dog"]})
    return served.id_of("Isabella")


def everywhere(user: BrowserUser, agent: str) -> Iterator[str]:
    """Every page, in its states, one after the other."""
    page = user.page
    user.open("providers")
    # The result of a job of an earlier test may still be shown.
    if page.locator("#dismiss").count():
        page.locator("#dismiss").click()
    expect(page.locator("#job.job")).to_have_count(0)
    yield "providers"
    page.get_by_role("button", name="Verify", exact=True).click()
    expect(page.locator("#job.done")).to_be_visible()
    yield "providers, verified"
    user.open(f"chat/{agent}")
    page.locator("#history details").first.locator("summary").click()
    yield "chat"
    page.locator("#model summary").click()
    expect(page.get_by_label("Model", exact=True)).to_be_visible()
    yield "chat, switching"
    user.open(f"chat/{agent}")
    page.locator("#search summary").click()
    page.get_by_label("Words in the messages").fill("dog")
    page.get_by_label("Words in the messages").press("Enter")
    expect(page.locator("#hits mark").first).to_be_visible()
    yield "chat, searching"
    made = user.served.client.post(f"/api/agents/{agent}/conversations", json={"name": "Another one"}).json()["id"]
    user.open(f"chat/{agent}:{made}")
    page.locator("#talk-menu summary").click()
    yield "chat, a conversation"
    if page.locator("#talks-open").is_visible():
        page.locator("#talks-open").click()
        yield "chat, the drawer"
    yield from talking(user)
    user.open(f"memory/{agent}")
    yield "memory"
    page.get_by_role("button", name="Edit human").click()
    expect(page.locator("form.editing textarea")).to_be_focused()
    page.locator("#add summary").click()
    page.get_by_role("button", name="Delete …").first.click()
    expect(page.get_by_text("Delete this passage permanently?")).to_be_visible()
    yield "memory, editing"
    page.locator("#bulk-bar").get_by_role("button", name="Select all shown").click()
    page.get_by_role("button", name="Delete selected …").click()
    expect(page.locator("#bulk-bar")).to_contain_text("permanently?")
    yield "memory, several to delete"
    # The nearest passage is far: it is no result, and shown as what it is on request only.
    page.get_by_label("Search archival memory").fill("quantum physics")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#found")).to_contain_text("No passage in archival memory is relevant to “quantum physics”.")
    expect(page.locator(".passage")).to_have_count(0)
    page.get_by_role("link", name="Show 1 that is less relevant").click()
    expect(page.locator(".passages.far .passage")).to_have_count(1)
    yield "memory, nothing near"
    page.goto(f"{user.served.url}/console/memory/{agent}/history?label=human")
    yield "history of a block"
    page.goto(f"{user.served.url}/console/agents")
    page.locator("#new summary").click()
    expect(page.locator("#new-handle optgroup").first).to_be_attached()
    page.locator("#import summary").click()
    yield "agents, new"
    page.get_by_role("button", name="Delete Isabella").click()
    expect(page.locator(".asking")).to_contain_text("This deletes:")
    yield "agents, deleting"
    page.goto(f"{user.served.url}/console/agents/{agent}")
    yield "prompt"
    user.open("activity")
    yield "activity"
    for summary in page.locator(".behind summary:visible").all():
        summary.click()
    expect(page.locator("#answers-table table")).to_be_visible()
    yield "activity, with the tables behind the charts"
    page.goto(f"{user.served.url}/console/sessions")
    yield "sessions"
    page.goto(f"{user.served.url}/console/nothing")
    yield "no such page"
    page.route("**/health", lambda route: route.abort())
    page.goto(f"{user.served.url}/console/static/offline")
    yield "offline"
    page.unroute("**/health")


def talking(user: BrowserUser) -> Iterator[str]:
    """The chat page of an agent that has never been spoken to: empty, streaming, failed, stopped, editing."""
    page, vendors = user.page, user.served.vendors
    name = f"talker {len(user.served._made)}"
    aside(user.served.agent, name, "cerebras/gpt-oss-120b")
    user.open(f"chat/{user.served.id_of(name)}")
    expect(page.locator("#empty")).to_be_visible()
    yield "chat, empty"
    vendors.fault("cerebras", on="chat", between=0.5, times=1)
    user.say(f"Say {STREAMED}")
    expect(page.locator("#live .words table")).to_be_visible()
    yield "chat, streaming"
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#live")).to_contain_text("Stopped")
    vendors.clear()
    vendors.fault("cerebras", on="chat", status=400)
    user.say("Say anything")
    expect(page.locator("#live .problem")).to_be_visible()
    vendors.clear()
    page.locator("#live .again summary").first.click()
    expect(page.get_by_label("Model, for this answer")).to_be_visible()
    page.get_by_role("button", name="Edit", exact=True).first.click()
    expect(page.locator("#editing")).to_be_visible()
    yield "chat, failed, stopped, editing"


#: The names of pages in the navigation that do not fit into one line.
_BROKEN = """[...document.querySelectorAll(".top nav a")].filter((link) => {
  const words = document.createRange();
  words.selectNodeContents(link);
  return words.getClientRects().length > 1;
}).map((link) => link.textContent)"""


@dataclass
class Walked:
    """What a walk through all pages found.

    Attributes:
        violations: what axe reported, and what is wider than its window.
        bodies: every answer of the backend that the browser got, and every page as it was shown, by address or state.
        cookies: the browser's.
        looks: of texts whose contrast was judged, by width and theme.
    """

    violations: list[str] = field(default_factory=list)
    bodies: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    looks: defaultdict[tuple[int, str], set[str]] = field(default_factory=lambda: defaultdict(set))

    def keep(self, response: Response) -> None:
        """Keep an answer."""
        if "live" not in response.url and "/login" not in response.url:
            with suppress(Error):
                self.bodies[response.url] = response.text()

    def look(self, page: Page, state: str) -> None:
        """Run axe in both themes at every width, and keep what the page shows."""
        if not page.evaluate("'axe' in window"):
            page.evaluate(Axe().axe_script)
        for width, theme in itertools.product(SIZES, RULES):
            page.set_viewport_size(SIZES[width])
            page.emulate_media(color_scheme=theme)
            shown = f"{state}, {width}, {theme}"
            options = f"{{{RULES[theme]} preload: false, resultTypes: ['violations']}}"
            found = page.evaluate(f"axe.run({options}).then(result => result.violations)")
            known = self.looks[width, theme]
            contrast = page.evaluate(CONTRAST, [*known])
            known.update(contrast["looks"])
            self.violations += _violations([*found, *contrast["violations"]], shown, state)
            if page.evaluate("document.documentElement.scrollWidth") > width:
                self.violations.append(f"{shown}: wider than the window")
            self.violations += [f"{shown}: {word} is broken into lines" for word in page.evaluate(_BROKEN)]
        page.set_viewport_size(SIZES[360])
        self.bodies[state] = page.content()


@pytest.fixture(scope="module")
def walked(served: Backend, browser: Browser, told: str) -> Walked:
    """A walk through all pages in all states, once, because it takes half a minute."""
    walked = Walked()
    with browsing(served, browser, viewport=SIZES[360]) as user:
        user.page.goto(f"{served.url}/console/chat")
        walked.look(user.page, "sign in")
        user.page.on("response", walked.keep)
        user.enter()
        for state in everywhere(user, told):
            walked.look(user.page, state)
        user.open(f"chat/{talkative(served)}")
        expect(user.page.locator("#history")).to_contain_text("Message 9999")
        walked.look(user.page, "chat, 10,000 messages")
        walked.cookies = {one["name"]: one["value"] for one in user.context.cookies()}
    return walked


def talkative(served: Backend) -> str:
    """Letta's id of an agent with 10,000 messages."""
    aside(served.agent, "talkative", "cerebras/gpt-oss-120b")
    agent = served.id_of("talkative")
    password = served.connection.password.get_secret_value() if served.connection.password else ""
    headers = {"Authorization": f"Bearer {password}"}
    with httpx.Client(base_url=served.connection.base_url, headers=headers, timeout=120) as letta:
        for begin in range(0, 10_000, 1000):
            texts = [f"Message {number}" for number in range(begin + 1, begin + 1000)]
            said: dict[str, Any] = {"request_messages": [{"role": "user", "content": text} for text in texts]}
            said |= {"provider": "-", "model": "-", "response_dict": {"content": "Indeed."}}
            letta.post(f"/v1/agents/{agent}/messages/capture", json=said).raise_for_status()
    return agent


def test_axe_finds_nothing(walked: Walked) -> None:
    """Axe reports no violation on any page, in either theme, at any width; nothing is wider than the window."""
    assert walked.violations == []


def _violations(found: list[dict[str, Any]], shown: str, state: str) -> list[str]:
    return [
        f"{shown}: {one['id']} {node['target']}: {node['failureSummary']}"
        for one in found
        # Behind the open drawer the page is inert, its heading included.
        if (state, one["id"]) != ("chat, the drawer", "page-has-heading-one")
        for node in one["nodes"][:3]
    ]


def test_axe_finds_what_is_wrong(served: Backend, browser: Browser) -> None:
    """So that nothing found means something: text that can hardly be read is reported, in the theme that has it."""
    with browsing(served, browser) as user:
        walked = Walked()
        user.page.goto(f"{served.url}/console/chat")
        walked.look(user.page, "as it is")
        assert walked.violations == []
        user.page.evaluate("document.querySelector('h1').style.color = '#222'")
        walked.look(user.page, "sign in")
    assert {one.split(":")[0] for one in walked.violations} == {f"sign in, {width}, dark" for width in SIZES}
    assert all("color-contrast" in one for one in walked.violations)


#: What a page says by itself, hidden texts included: not what an agent, a person or a memory says.
_OWN_TEXT = """() => {
  const body = document.body.cloneNode(true);
  for (const one of body.querySelectorAll(".value, .words, code")) one.remove();
  return body.textContent;
}"""


def test_german_fits_and_leaves_no_english(served: Backend, browser: Browser, told: str) -> None:
    """At the narrowest width no page is wider than the window, and no text of the catalogue is left in English.

    The browser's preference decides until a person chooses; the choice outlives the page.
    """
    german = {text: form for text, form in catalogues.texts("de") if text != form and " " in text}
    found: list[str] = []
    with browsing(served, browser, viewport=SIZES[360], locale="de-DE") as user:
        page = user.page
        page.goto(f"{served.url}/console/chat")
        expect(page.get_by_role("button", name="Anmelden")).to_be_visible()
        user.enter()
        for state in german_pages(user, told):
            shown = page.evaluate(_OWN_TEXT)
            found += [f"{state}: {text}" for text in german if text in shown]
            width = page.evaluate("document.documentElement.scrollWidth")
            found += [f"{state} is {width} pixels wide"] * (width > 360)
            found += [f"{state}: {word} is broken into lines" for word in page.evaluate(_BROKEN)]
            assert page.locator("html").get_attribute("lang") == "de", state
        assert found == []
        user.open("activity")
        page.get_by_role("button", name="English").click()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        page.goto(f"{served.url}/console/agents")
        expect(page.get_by_role("heading", level=1)).to_have_text("Agents")
        page.get_by_role("button", name="Deutsch").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Agenten")


def german_pages(user: BrowserUser, agent: str) -> Iterator[str]:
    """Every page in German, with its forms open."""
    page = user.page
    user.open("providers")
    page.locator("#do-verify").click()
    expect(page.locator("#job.done")).to_be_visible()
    yield "providers"
    page.locator("#dismiss").click()
    expect(page.locator("#job.done")).to_have_count(0)
    page.locator("#do-doctor").click()
    expect(page.locator("#job.done")).to_be_visible()
    yield "the doctor's findings"
    user.open(f"chat/{agent}")
    user.say("Say *something* `code`")
    user.wait_for_answer()
    yield "chat"
    for menu in ("#model", "#search", "#export"):
        page.locator(f"{menu} summary").click()
        yield f"chat, {menu}"
        page.locator(f"{menu} summary").click()
    page.locator("#talks-open").click()
    yield "chat, the drawer"
    user.open(f"memory/{agent}")
    page.locator("[id^='edit-']").first.click()
    expect(page.locator("form.editing textarea")).to_be_focused()
    page.locator("#add summary").click()
    page.locator("[data-select-all]").click()
    page.locator("#bulk button").first.click()
    expect(page.locator("#bulk-bar .danger")).to_be_visible()
    yield "memory"
    page.goto(f"{user.served.url}/console/memory/{agent}/history?label=human")
    yield "history of a block"
    user.open("agents")
    page.locator("#new summary").click()
    page.locator("#import summary").click()
    page.locator(f"#{agent} .actions button").last.click()
    expect(page.locator(".asking")).to_be_visible()
    yield "agents"
    page.goto(f"{user.served.url}/console/agents/{agent}")
    yield "prompt"
    user.open("activity")
    for summary in page.locator(".behind summary:visible").all():
        summary.click()
    yield "activity"
    for path in ("sessions", "nothing"):
        page.goto(f"{user.served.url}/console/{path}")
        yield path
    page.route("**/health", lambda route: route.abort())
    page.goto(f"{user.served.url}/console/static/offline?language=de")
    yield "offline"
    page.unroute("**/health")


def test_no_key_reaches_the_browser(served: Backend, walked: Walked, told: str) -> None:
    """Neither a page, a fragment, an event stream, the API nor an error holds a key, a password or the token."""
    secrets = [served.vendors.key(vendor).get_secret_value() for vendor in ("cerebras", "groq", "mistral", "longcat")]
    connection = served.connection
    secrets += [one.get_secret_value() for one in (connection.password, connection.master_key) if one is not None]
    secrets.append(TOKEN)
    bodies = {**walked.bodies}
    with httpx.Client(base_url=served.url, cookies=walked.cookies, timeout=30) as client:
        for path in ("providers/live", f"chat/{told}/live?since=0", f"memory/{told}/live", "activity/live"):
            with client.stream("GET", f"/console/{path}") as stream:
                bodies[path] = _first_event(stream.iter_lines())
        served.vendors.fault("cerebras", on="chat", status=401, body=f"key {secrets[0]} is wrong", times=1)
        told_of = client.stream("POST", f"/api/agents/{told}/turns", json={"message": "Say hi"})
        with told_of as answer:
            bodies["a refused turn"] = answer.read().decode()
        for path in ("/api/providers", "/console/chat/agent-nobody", "/console/activity", "/console/providers"):
            bodies[f"after it {path}"] = client.get(path).text
    assert len(bodies) > 20
    assert [(where, secret[:4]) for where, body in bodies.items() for secret in secrets if secret in body] == []


def _first_event(lines: Iterator[str]) -> str:
    said: list[str] = []
    for line in lines:
        if not line and said:
            break
        if line:
            said.append(line)
    return "\n".join(said)
