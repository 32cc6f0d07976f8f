"""The page of conversations."""

from __future__ import annotations

import re

from playwright.sync_api import expect

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
        r"cerebras/gpt-oss-120b, first token after \d.*, \d.* in all, [\d,]+ tokens read, \d+ written, 1 tool call",
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
    """What is typed while she answers is shown as waiting, can be taken back, and is answered in order."""
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
    """What comes below moves nobody who reads above, until they go down to the end again."""
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
    scroll.evaluate("one => (one.scrollTop = one.scrollHeight)")
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
        user.page.get_by_role("link", name="The agent with its memory").click()
    assert "messages" in started.value.path().read_text()


def agent_name(user: BrowserUser, agent: str) -> str:
    """What an agent is called."""
    return str(user.served.letta.get(f"/v1/agents/{agent}").json()["name"])
