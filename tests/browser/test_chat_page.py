"""The page of conversations."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.sync_api import expect

from isabella.server.answer_log import AnswerLog
from tests.support.browser_user import BrowserUser


def test_a_talk_with_tool_steps(user: BrowserUser, agent: str) -> None:
    """What she does to remember folds, the answer streams in, and after a reload the history has the same."""
    user.open(f"chat/{agent}")
    user.say("Please remember that my dog is called Rex.")
    live = user.page.locator("#live")
    tool = live.locator("details", has_text="memory_insert")
    expect(tool).to_be_visible()
    user.wait_for_answer()
    assert tool.get_attribute("open") is None
    tool.locator("summary").click()
    expect(tool).to_contain_text("Rex")
    line = live.locator(".facts").inner_text()
    assert re.fullmatch(
        r"cerebras/gpt-oss-120b, first token after \d.*, \d.* in total, [\d,]+ tokens read, \d+ written, 1 tool call",
        line,
    )
    user.open(f"chat/{agent}")
    expect(live.locator(".exchange")).to_have_count(0)
    history = user.page.locator("#history")
    expect(history.locator(".message.user .words")).to_have_text("Please remember that my dog is called Rex.")
    expect(history.locator("details", has_text="memory_insert")).to_have_count(1)
    expect(history.locator(".facts").last).to_have_text(line)


def test_stop(user: BrowserUser, agent: str) -> None:
    """The stop button ends an answer in the middle: what came is kept, and the next message is answered."""
    user.served.vendors.fault("cerebras", on="chat", between=0.05)
    user.open(f"chat/{agent}")
    user.say("Count to 400")
    expect(user.page.locator("#live .message.agent .words")).to_contain_text("5 6 7")
    user.page.get_by_role("button", name="Stop").click()
    expect(user.page.locator("#live")).to_contain_text("Stopped; the answer so far is kept.")
    assert "400" not in user.page.locator("#live .message.agent").inner_text()
    user.served.vendors.clear()
    user.say("Say good morning")
    user.wait_for_answer()
    expect(user.page.locator("#live .message.agent").last).to_contain_text("good morning")


def test_a_message_waits_its_turn(user: BrowserUser, agent: str) -> None:
    """What is typed while she answers waits and is answered in order; it can be taken back, and sent after all."""
    user.served.vendors.fault("cerebras", on="chat", between=0.3, times=1)
    user.open(f"chat/{agent}")
    user.say("Count to 100")
    expect(user.page.get_by_role("button", name="Stop")).to_be_visible()
    user.say("Say the second")
    user.say("Say the third")
    waiting = user.page.locator(".exchange", has_text="Queued.")
    expect(waiting).to_have_count(2)
    waiting.last.get_by_role("button", name="Cancel").click()
    expect(user.page.locator("#live")).to_contain_text("nothing was kept")
    user.served.vendors.clear()
    user.wait_for_answer()
    answers = user.page.locator("#live .message.agent")
    expect(answers).to_have_count(2)
    expect(answers.last).to_contain_text("the second")
    assert user.served.said_to(agent_name(user, agent)) == ["Count to 100", "Say the second"]
    # What was stopped can be sent again.
    user.page.get_by_role("button", name="Retry").click()
    expect(answers).to_have_count(3)
    expect(answers.last).to_contain_text("the third")


def test_a_switch_of_vendor(user: BrowserUser, agent: str) -> None:
    """The menu offers models of vendors in order only; a switch takes effect with the next message."""
    user.open(f"chat/{agent}")
    user.page.locator("#model summary").click()
    choice = user.page.get_by_label("Model", exact=True)
    expect(choice).to_be_visible()
    offered = choice.locator("option").all_inner_texts()
    assert {one.split("/")[0] for one in offered} == {"cerebras", "byok-groq", "byok-mistral", "longcat"}
    choice.select_option("longcat/LongCat-2.0")
    user.page.get_by_role("button", name="Switch", exact=True).click()
    expect(user.page.locator("#model summary")).to_have_text("longcat/LongCat-2.0")
    user.say("Say hello")
    user.wait_for_answer()
    expect(user.page.locator("#live .progress")).to_contain_text("longcat/LongCat-2.0, first token after")


def test_failover_is_shown_where_it_happened(user: BrowserUser, agent: str) -> None:
    """A vendor that does not answer is named with its reason, above the next one's answer; also after a reload."""
    user.served.vendors.fault("cerebras", on="chat", status=503)
    user.open(f"chat/{agent}")
    user.say("Say good evening")
    user.wait_for_answer()
    live = user.page.locator("#live")
    expect(live.locator(".failover")).to_contain_text("cerebras/gpt-oss-120b did not answer")
    expect(live.locator(".progress")).to_contain_text("byok-mistral/mistral-medium-latest")
    user.open(f"chat/{agent}")
    expect(user.page.locator("#history .failover")).to_contain_text("did not answer")
    user.open("activity")
    expect(user.page.locator("#events")).to_contain_text("Failover")
    expect(user.page.locator("#answers li", has_text="cerebras")).to_contain_text("1 refused")


def test_nobody_answers(user: BrowserUser, agent: str) -> None:
    """When no vendor answers, the page says why and what to do, and the message can be written again."""
    for vendor in ("cerebras", "mistral"):
        user.served.vendors.fault(vendor, on="chat", status=500)
    user.open(f"chat/{agent}")
    user.say("Say anything")
    expect(user.page.locator("#live .problem")).to_contain_text("None of the agent's vendors answers.")
    # Letta calls every vendor by the name of its client.
    expect(user.page.locator("#live")).not_to_contain_text("OpenAI")
    user.page.get_by_role("button", name="Edit and resend").click()
    expect(user.page.locator("#message")).to_have_value("Say anything")
    user.page.get_by_role("button", name="Dismiss").click()
    expect(user.page.locator("#live .exchange")).to_have_count(0)


EVIL = (
    "<script>document.title='owned'</script><img src=x onerror=document.title='owned'> "
    "[click](javascript:alert(1)) ![](http://127.0.0.1:9/track.png) **bold** \u202eabc " + "x" * 3000
)


def test_foreign_words_are_only_words(user: BrowserUser, agent: str) -> None:
    """Markup, scripts, pictures, huge lines and right-to-left text are shown as text, live and in the history."""
    asked: list[str] = []
    user.page.on("request", lambda request: asked.append(request.url))
    user.open(f"chat/{agent}")
    user.say(f"Say {EVIL}")
    user.wait_for_answer()
    user.say("Say \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd")
    user.wait_for_answer()
    for _ in range(2):
        said = user.page.locator(".message .words")
        expect(said.filter(has_text="<script>document.title='owned'</script>").first).to_be_visible()
        assert user.page.locator("main img, main script, main a[href^='javascript']").count() == 0
        assert "owned" not in user.page.title()
        assert user.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        user.open(f"chat/{agent}")
    assert all(one.startswith(user.served.url) for one in asked)


def test_with_the_keyboard_alone(user: BrowserUser, agent: str) -> None:
    """Pages, conversation, stop and switch are reached and used without a pointer."""
    user.served.vendors.fault("cerebras", on="chat", between=0.05, times=1)
    user.open(f"chat/{agent}")
    page = user.page
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.type("Count to 300")
    page.keyboard.press("Enter")
    expect(page.locator("#live .message.agent .words")).to_contain_text("3 4")
    page.keyboard.press("Escape")
    expect(page.locator("#live")).to_contain_text("Stopped")
    page.locator("#model summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Model", exact=True)).to_be_visible()
    page.reload()
    page.locator("body").press("Tab")


TALL = "\n".join(f"line {number} of a tall message" for number in range(120))
#: How far the end is below what is seen, in pixels.
BELOW = "one => one.scrollHeight - one.scrollTop - one.clientHeight"


def test_who_is_at_the_end_stays_there(user: BrowserUser, agent: str) -> None:
    """However tall a message and its answer are, the end of the answer is seen without a hand being moved."""
    user.open(f"chat/{agent}")
    scroll = user.page.locator("#scroll")
    for width, height in ((1280, 900), (360, 640)):
        user.page.set_viewport_size({"width": width, "height": height})
        for message in (f"Say {TALL}", TALL, "Count to 400"):
            user.say(message)
            user.wait_for_answer()
            expect(user.page.locator("#live .progress").last).to_be_in_viewport()
            assert scroll.evaluate(BELOW) < 8, message


def test_what_is_typed_covers_nothing(user: BrowserUser, agent: str) -> None:
    """While the place to write in grows with a tall message, the end of what was said stays in sight."""
    user.open(f"chat/{agent}")
    user.say(f"Say {TALL}")
    user.wait_for_answer()
    user.page.locator("#message").fill(TALL)
    scroll = user.page.locator("#scroll")
    expect(user.page.locator("#live .progress").last).to_be_in_viewport(ratio=1)
    assert scroll.evaluate(BELOW) < 8


def test_who_has_scrolled_up_is_not_moved(user: BrowserUser, agent: str) -> None:
    """What comes below moves nobody who reads above; a button leads to the end, where the page follows again."""
    user.open(f"chat/{agent}")
    scroll = user.page.locator("#scroll")
    user.say(f"Say {TALL}")
    user.wait_for_answer()
    user.served.vendors.fault("cerebras", on="chat", between=0.05, times=1)
    user.say("Count to 300")
    words = user.page.locator("#live .message.agent .words").last
    expect(words).to_contain_text("5 6 7")
    before = scroll.evaluate("one => (one.scrollTop -= 60)")
    expect(words).to_contain_text("60 61 62")
    assert scroll.evaluate("one => one.scrollTop") == before
    back = user.page.get_by_role("button", name="To the newest")
    back.click()
    expect(back).to_be_hidden()
    user.wait_for_answer()
    assert scroll.evaluate(BELOW) < 8


def test_history_loads_backwards(user: BrowserUser, agent: str) -> None:
    """Only the newest stretch is loaded at first; going up loads what was before, and what is read stays in place."""
    said = [{"role": "user", "content": f"Question {number}"} for number in range(60)]
    body = {"provider": "test", "model": "test", "request_messages": said, "response_dict": {"content": "Answer"}}
    user.served.letta.post(f"/v1/agents/{agent}/messages/capture", json=body).raise_for_status()
    user.open(f"chat/{agent}")
    shown = user.page.locator("#history .message")
    expect(shown.last).to_contain_text("Answer")
    expect(user.page.get_by_text("Question 0", exact=True)).to_have_count(0)
    user.page.locator("#scroll").hover()
    user.page.mouse.wheel(0, -20000)
    expect(user.page.get_by_text("Question 0", exact=True)).to_have_count(1)
    expect(user.page.get_by_role("button", name="Earlier messages")).to_have_count(0)
    assert user.page.locator("#scroll").evaluate("one => one.scrollTop") > 0


def test_export(user: BrowserUser, agent: str) -> None:
    """The conversation can be taken away as Markdown, and the agent as a file."""
    user.open(f"chat/{agent}")
    user.say("Say farewell")
    user.wait_for_answer()
    user.page.locator("#export summary").click()
    with user.page.expect_download() as started:
        user.page.get_by_role("link", name="The conversation, as Markdown").click()
    text = started.value.path().read_text()
    assert "**You**" in text
    assert "Say farewell" in text
    with user.page.expect_download() as started:
        user.page.get_by_role("link", name="The conversation with tool calls").click()
    messages = json.loads(started.value.path().read_text())["messages"]
    assert [(one["kind"], one["text"]) for one in messages if one["kind"] != "reasoning"] == [
        ("user", "Say farewell"),
        ("assistant", "farewell"),
    ]
    assert messages[-1]["model"] == "cerebras/gpt-oss-120b"
    with user.page.expect_download() as started:
        user.page.get_by_role("link", name="The agent with its memory").click()
    assert "messages" in started.value.path().read_text()


def agent_name(user: BrowserUser, agent: str) -> str:
    """What an agent is called."""
    return str(user.served.letta.get(f"/v1/agents/{agent}").json()["name"])


MARKDOWN = """**First** paragraph.

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x):
    return x  # same
```

The `last` paragraph."""
#: Keeps every announcement.
WATCH = """() => {
  window.announced = [];
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes) if (node.textContent.trim()) announced.push(node.textContent);
  }).observe(document.getElementById("announcer"), { childList: true });
}"""


def test_a_screen_reader_hears_an_answer_block_by_block(user: BrowserUser, agent: str) -> None:
    """The accessibility tree has a polite log: a block is there once it is complete, while the answer goes on."""
    user.served.vendors.fault("cerebras", on="chat", between=0.05, times=1)
    user.open(f"chat/{agent}")
    user.page.evaluate(WATCH)
    user.say(f"Say {MARKDOWN}")
    expect(user.page.locator("#announcer p")).to_have_count(1)
    expect(user.page.locator("#live .working")).to_have_count(1)
    assert heard(user) == ["First paragraph."]
    user.wait_for_answer()
    code = "Code: def f(x):\n    return x  # same"
    assert user.page.evaluate("announced") == ["First paragraph.", "a\nb\n1\n2", code, "The last paragraph."]
    assert heard(user)[0] == "First paragraph."
    assert heard(user)[-1] == "The last paragraph."
    for vendor in ("cerebras", "mistral"):
        user.served.vendors.fault(vendor, on="chat", status=500)
    user.say("Say nothing")
    expect(user.page.locator("#live .problem")).to_be_visible()
    assert "None of the agent's vendors answers." in heard(user)[-1]


def heard(user: BrowserUser) -> list[str]:
    """The paragraphs of the polite log in the accessibility tree, as a screen reader gets them."""
    session = user.context.new_cdp_session(user.page)
    nodes = {node["nodeId"]: node for node in session.send("Accessibility.getFullAXTree")["nodes"]}
    (log,) = (node for node in nodes.values() if node.get("role", {}).get("value") == "log")
    properties = {one["name"]: one["value"].get("value") for one in log["properties"]}
    assert (properties["live"], properties["relevant"]) == ("polite", "additions")

    def text(node: dict[str, Any]) -> str:
        if node.get("role", {}).get("value") == "StaticText":
            return str(node["name"]["value"])
        return "".join(text(nodes[id]) for id in node.get("childIds", ()))

    return [text(nodes[id]) for id in log["childIds"]]


def longest_tasks(trace: bytes) -> list[float]:
    """The milliseconds of processor time of the longest tasks of the page: other processes make none longer."""
    events = json.loads(trace)["traceEvents"]
    pages = {(one["pid"], one["tid"]) for one in events if one.get("args", {}).get("name") == "CrRendererMain"}
    tasks = [one["tdur"] / 1000 for one in events if "tdur" in one and (one["pid"], one["tid"]) in pages]
    return sorted(tasks, reverse=True)[:10]


def test_markdown_while_it_arrives(user: BrowserUser, agent: str) -> None:
    """What is complete stays the same element, no task of the page is long, and a reload shows the same."""
    user.context.grant_permissions(["clipboard-read", "clipboard-write"])
    user.open(f"chat/{agent}")
    tracing = user.context.browser
    assert tracing is not None
    user.served.vendors.fault("cerebras", on="chat", between=0.02, times=1)
    # The browser's editor is busy with a long text, and Playwright's first step with its own script.
    user.page.locator("#message").fill("Say " + "\n\n".join([MARKDOWN] * 12))
    tracing.start_tracing(page=user.page, categories=["toplevel"])
    user.page.locator("#message").press("Enter")
    words = user.page.locator("#live .message.agent .words").last
    expect(words.locator("table")).not_to_have_count(0)
    expect(words.locator(".code .hk").first).to_have_text("def")
    words.locator("p").first.evaluate("one => (one.kept = true)")
    user.wait_for_answer()
    assert words.locator("p").first.evaluate("one => one.kept")
    tasks = longest_tasks(tracing.stop_tracing())
    assert 0 < tasks[0] <= 100, tasks
    live = re.sub(r' id="[^"]*"', "", words.inner_html()).strip()
    words.locator("[data-copy]").first.click()
    expect(words.locator("[data-copy]").first).to_have_text("Copied")
    assert user.page.evaluate("navigator.clipboard.readText()") == "def f(x):\n    return x  # same\n"
    copy = user.page.locator("#live .progress").last.get_by_role("button", name="Copy the answer")
    copy.click()
    expect(copy).to_have_text("Copied")
    assert user.page.evaluate("navigator.clipboard.readText()") == "\n\n".join([MARKDOWN] * 12)
    user.open(f"chat/{agent}")
    assert (
        user.page.locator("#history .message.agent .words").last.inner_html().strip().replace("Copied", "Copy")
        == live
    )
    right = user.page.locator("#history td.right").first
    assert right.evaluate("one => getComputedStyle(one).textAlign") == "right"


def test_marks_in_an_answer(user: BrowserUser, agent: str) -> None:
    """Strike-through and links are marks, formulas are text, live and in the history."""
    user.open(f"chat/{agent}")
    user.say(r"Say ~~gone~~, https://example.org/a_b_c, $x_1 * y_1$ and \[z_1\]")
    user.wait_for_answer()
    for place in ("#live", "#history"):
        words = user.page.locator(f"{place} .message.agent .words")
        expect(words.locator("s")).to_have_text("gone")
        link = words.get_by_role("link", name="https://example.org/a_b_c")
        expect(link).to_have_attribute("target", "_blank")
        expect(link).to_have_attribute("rel", re.compile("noreferrer"))
        expect(words.locator(".formula")).to_have_text(["$x_1 * y_1$", r"\[z_1\]"])
        expect(words.locator("em")).to_have_count(0)
        user.open(f"chat/{agent}")


def test_an_edited_message_takes_the_place_of_the_earlier_one(user: BrowserUser, agent: str) -> None:
    """The earlier message and what followed leave the agent's context, and stay in the history, marked as such."""
    name = agent_name(user, agent)
    user.open(f"chat/{agent}")
    for message in ("Say one", "Say two", "Say three"):
        user.say(message)
        user.wait_for_answer()
    before = user.served.in_context(name)
    user.open(f"chat/{agent}")
    page = user.page
    page.locator("#history .message.user", has_text="Say two").get_by_role("button", name="Edit").click()
    expect(page.locator("#message")).to_have_value("Say two")
    expect(page.locator("#editing")).to_contain_text("leave")
    page.reload()
    expect(page.locator("#editing")).to_be_visible()
    expect(page.locator("#main[data-connected]")).to_be_attached()
    user.say("Say four")
    expect(page.locator("#editing")).to_be_hidden()
    user.wait_for_answer()
    expect(page.locator("#history .message.aside .words")).to_have_text(["Say two", "two", "Say three", "three"])
    after = user.served.in_context(name)
    assert (after[:3], len(after)) == (before[:3], 5)
    assert user.served.said_to(name) == ["Say one", "Say two", "Say three", "Say four"]
    user.open(f"chat/{agent}")
    expect(page.locator("#history .message.aside .words")).to_have_text(["Say two", "two", "Say three", "three"])
    expect(page.locator("#history .divider")).to_have_count(2)
    expect(page.locator("#history .aside [data-edit], #history .aside .again")).to_have_count(0)


def test_an_answer_again_by_another_model(user: BrowserUser, agent: str) -> None:
    """The chosen model answers the same message this time; the agent keeps its own model for the next one.

    The line under each answer is the same after a reload, and after a start of the backend.
    """
    name = agent_name(user, agent)
    user.open(f"chat/{agent}")
    user.say("Which model are you?")
    user.wait_for_answer()
    page, live = user.page, user.page.locator("#live")
    live.locator(".again summary").click()
    live.get_by_label("Model, for this answer").select_option("longcat/LongCat-2.0")
    user._shown_before = 1
    live.get_by_role("button", name="Answer again").click()
    user.wait_for_answer()
    expect(live.locator(".facts").last).to_contain_text("longcat/LongCat-2.0")
    expect(live.locator(".exchange").first).to_have_class(re.compile("aside"))
    assert len(user.served.in_context(name)) == 3
    user.say("Which model are you?")
    user.wait_for_answer()
    expect(live.locator(".facts").last).to_contain_text("cerebras/gpt-oss-120b")
    lines = live.locator(".facts").all_inner_texts()
    user.open(f"chat/{agent}")
    assert page.locator("#history .facts").all_inner_texts() == lines
    # A backend that starts knows it from its home.
    user.served.runtime.event_log.answers = AnswerLog(user.served.connection.home / "answers")
    user.open(f"chat/{agent}")
    assert page.locator("#history .facts").all_inner_texts() == lines


def test_a_failed_message_stays_in_its_order(user: BrowserUser, agent: str) -> None:
    """After a reload it stands before what was said later; sent again, it leaves its old place."""
    user.open(f"chat/{agent}")
    user.say("Say one")
    user.wait_for_answer()
    for vendor in ("cerebras", "mistral"):
        user.served.vendors.fault(vendor, on="chat", status=400)
    user.say("Say two")
    expect(user.page.locator("#live .problem")).to_be_visible()
    user.served.vendors.clear()
    user.say("Say three")
    user.wait_for_answer()
    user.open(f"chat/{agent}")
    page = user.page
    expect(page.locator(".message.user .words")).to_have_text(["Say one", "Say two", "Say three"])
    user._shown_before = 0
    page.get_by_role("button", name="Retry").click()
    user.wait_for_answer()
    expect(page.locator(".problem")).to_have_count(0)
    expect(page.locator(".message.user .words")).to_have_text(["Say one", "Say three", "Say two"])


def test_a_stopped_answer_has_its_line_after_a_reload(user: BrowserUser, agent: str) -> None:
    """The part that was kept names its model and time, live and in the history."""
    user.served.vendors.fault("cerebras", on="chat", between=0.05, times=1)
    user.open(f"chat/{agent}")
    user.say("Count to 400")
    expect(user.page.locator("#live .message.agent .words")).to_contain_text("5 6 7")
    user.page.get_by_role("button", name="Stop").click()
    line = user.page.locator("#live .facts")
    expect(line).to_contain_text("cerebras/gpt-oss-120b, first token after")
    said = line.inner_text()
    user.open(f"chat/{agent}")
    expect(user.page.locator("#history .facts")).to_have_text(said)


def test_a_draft_survives_a_reload(user: BrowserUser, agent: str) -> None:
    """What is typed is there again after a reload, not once it is sent, and not after signing out."""
    user.open(f"chat/{agent}")
    page = user.page
    page.locator("#message").fill("Say good\nevening")
    page.reload()
    expect(page.locator("#message")).to_have_value("Say good\nevening")
    expect(page.locator("#main[data-connected]")).to_be_attached()
    user.say("Say good evening")
    user.wait_for_answer()
    page.reload()
    expect(page.locator("#message")).to_have_value("")
    page.locator("#message").fill("a secret thought")
    page.goto(f"{user.served.url}/console/sessions")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
    assert page.evaluate("JSON.stringify(localStorage)").count("thought") == 0


def test_search_leads_to_the_place(user: BrowserUser, agent: str) -> None:
    """A hit deep in the history is shown where it was said; both sides load on, and a button leads to the newest."""
    said = [{"role": "user", "content": f"Question number{number}x"} for number in range(150)]
    body = {"provider": "test", "model": "test", "request_messages": said, "response_dict": {"content": "Answer"}}
    user.served.letta.post(f"/v1/agents/{agent}/messages/capture", json=body).raise_for_status()
    user.open(f"chat/{agent}")
    page = user.page
    page.locator("#search summary").click()
    page.get_by_label("Words in the messages").fill("NUMBER40x question")
    page.get_by_label("Words in the messages").press("Enter")
    expect(page.locator("#hits mark")).to_have_text(["Question", "number40x"])
    page.locator("#hits a").click()
    expect(page.locator(".found")).to_contain_text("Question number40x")
    expect(page.locator(".found")).to_be_in_viewport()
    expect(page.locator(".found")).to_be_focused()
    page.locator("#scroll").hover()
    page.mouse.wheel(0, 20000)
    expect(page.get_by_text("Question number70x", exact=True)).to_have_count(1)
    page.get_by_role("button", name="To the newest").click()
    expect(page.get_by_text("Question number149x", exact=True)).to_be_in_viewport()
    expect(page.get_by_role("button", name="To the newest")).to_be_hidden()
    page.mouse.wheel(0, -900)
    page.get_by_role("button", name="To the newest").click()
    assert page.locator("#scroll").evaluate(BELOW) < 8
