"""The page of activity: its charts can be read, and behind each is a table of its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.practice.wire import profiles
from tests.support.backend_server import Backend, backend
from tests.support.browser_user import BrowserUser, aside
from tests.support.further_vendors import FURTHER

OPENROUTER = "openrouter/openai/gpt-oss-120b"
GROQ, CEREBRAS = "byok-groq/openai/gpt-oss-120b", "cerebras/gpt-oss-120b"
#: What cannot be read: small words, labels that overlap, marks outside of their drawing, what is beside the window.
UNREADABLE = """() => {
  const found = [];
  const box = (one) => one.getBoundingClientRect();
  const name = (one) => `${one.tagName} ${one.getAttribute("class") ?? ""} ${one.textContent.trim().slice(0, 40)}`;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  for (const figure of [...document.querySelectorAll("figure")].filter((one) => one.checkVisibility())) {
    const outer = box(figure);
    if (outer.left < 0 || outer.right > innerWidth) found.push(`beside the window: ${name(figure)}`);
    for (const one of figure.querySelectorAll("p, span, strong, figcaption, summary, td, th")) {
      if (!one.checkVisibility() || one.matches(".hidden, .hidden *")) continue;
      if (parseFloat(getComputedStyle(one).fontSize) < 12) found.push(`small: ${name(one)}`);
      if (!one.closest(".scrolls") && box(one).right > outer.right + 1) found.push(`beside its chart: ${name(one)}`);
    }
    const labels = [...figure.querySelectorAll(".scale span, .times span")];
    for (const [index, one] of labels.entries())
      for (const other of labels.slice(index + 1))
        if (meet(box(one), box(other))) found.push(`overlap: ${name(one)} / ${name(other)}`);
    for (const mark of figure.querySelectorAll("svg .mark")) {
      const [place, drawing] = [box(mark), box(mark.ownerSVGElement)];
      const [x, y] = [(place.left + place.right) / 2, (place.top + place.bottom) / 2];
      if (x < drawing.left || x > drawing.right || y < drawing.top || y > drawing.bottom)
        found.push(`outside of its drawing: ${mark.getAttribute("class")}`);
    }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def served(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with a gateway, which reads the limits that vendors tell, and a vendor that lists its prices."""
    home: Path = tmp_path_factory.mktemp("home")
    with PracticeVendors(vendors={**profiles(), "openrouter": FURTHER["openrouter"]}) as vendors:
        environment = {
            "OPENROUTER_BASE_URL": vendors.base_url("openrouter"),
            "OPENROUTER_API_KEY": vendors.key("openrouter").get_secret_value(),
        }
        with backend(letta_server, home, vendors, environment, gateway="on") as running:
            yield running


def test_every_chart_can_be_read(user: BrowserUser) -> None:
    """Times, answers, tokens, limits and changes: each drawn within its place, with a table behind it."""
    served, page = user.served, user.page
    served.vendors.limit("groq", tokens=50_000)
    agents = [
        aside(served.agent, name, handle)
        for name, handle in (("charts", GROQ), ("limits", CEREBRAS), ("costs", OPENROUTER))
    ]
    for agent in agents:
        aside(served.say, agent, "Say hello")
    served.vendors.fault("cerebras", on="chat", status=402, times=1)
    aside(served.say, agents[1], "Say hello again")
    (row,) = served.letta.get("/v1/providers/", params={"name": "byok-mistral"}).json()
    stale = {"api_key": "stale00000000000000000000", "base_url": row["base_url"]}
    served.letta.patch(f"/v1/providers/{row['id']}", json=stale).raise_for_status()
    user.open("providers")
    page.get_by_role("button", name="Sync byok-mistral").click()
    expect(page.locator("#job.done")).to_contain_text("proven")

    # A form that offers all models asks the vendors for them, and so for their prices.
    user.open("agents")
    page.locator("#new summary").click()
    expect(page.locator("#new-handle option", has_text="openai/gpt-oss-120b").first).to_be_attached()
    user.open("activity")
    expect(page.locator("#first-tokens figure")).to_have_count(3)
    expect(page.locator("#answers li", has_text="cerebras")).to_contain_text("1 answered, 1 refused")
    # Of these vendors one lists its prices.
    for handle, cost in ((GROQ, ""), (CEREBRAS, ""), (OPENROUTER, r", \$0\.000[1-9]")):
        expect(page.locator("#tokens li", has_text=handle)).to_have_text(re.compile(rf"[\d,]+ in, \d+ out{cost}$"))
    left = page.locator("#limits li", has_text="byok-groq").filter(has_text="tokens per minute")
    expect(left).to_contain_text("of 50,000 left")
    expect(page.locator("#changes svg .mark.synced").first).to_be_visible()
    assert page.evaluate(UNREADABLE) == []

    charts = page.locator("figure:visible")
    expect(charts.locator("summary")).to_have_count(charts.count())
    for chart in charts.all():
        chart.locator("summary").click()
        expect(chart.locator("table")).to_be_visible()
        expect(chart.locator("tbody tr")).not_to_have_count(0)
    assert page.evaluate(UNREADABLE) == []
    # A provider that nobody has set up is neither an answer nor a refusal.
    expect(page.locator("#answers li", has_text="longcat")).to_have_count(0)
    # Nothing found means something: what is made unreadable is found.
    page.locator(".times").first.evaluate("one => (one.style.fontSize = '8px')")
    page.locator("#first-tokens svg .mark").first.evaluate("one => (one.style.transform = 'translate(3000px)')")
    assert {one.partition(":")[0] for one in page.evaluate(UNREADABLE)} == {"small", "outside of its drawing"}
