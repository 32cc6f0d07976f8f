"""The assistant in the practice vendors: what it does with memory, tools and questions, request by request."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isabella.practice import assistant, strictness
from isabella.practice.prompt import Reply, ToolCall, read_prompt
from tests.support.further_vendors import PROFILES

NOTE = "# NOTE: Line numbers shown below (with arrows like '1→') are to help during editing."


def block(label: str, value: str, *, numbered: bool = False, read_only: bool = False) -> str:
    """A memory block as Letta renders it into the system message."""
    flag = "\n- read_only=true" if read_only else ""
    lines = value.split("\n") if value else []
    shown = "".join(f"{number}→ {line}\n" for number, line in enumerate(lines, 1)) if numbered else f"{value}\n"
    warning = f"<warning>\n{NOTE}\n</warning>\n" if numbered else ""
    return (
        f"<{label}>\n<description>\nAbout {label}.\n</description>\n<metadata>{flag}\n- chars_current={len(value)}\n"
        f"- chars_limit=5000\n</metadata>\n{warning}<value>\n{shown}</value>\n</{label}>\n"
    )


def system(*blocks: str) -> dict[str, str]:
    """A system message with these blocks."""
    return {
        "role": "system",
        "content": "You are an agent.\n<memory_blocks>\n" + "\n".join(blocks) + "\n</memory_blocks>",
    }


PERSONA = block("persona", "I am Isabella. I like lighthouses.")


def tool(name: str, *required: str, **properties: Any) -> dict[str, Any]:
    """A tool as Letta offers it."""
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "…", "parameters": schema}}


TEXT = {"type": "string"}
INSERT = tool("memory_insert", "label", "new_string", label=TEXT, new_string=TEXT, insert_line={"type": "integer"})
REPLACE = tool("memory_replace", "label", "old_string", "new_string", label=TEXT, old_string=TEXT, new_string=TEXT)
SEARCH = tool("conversation_search", "query", query=TEXT)
ARCHIVE = tool("archival_memory_insert", "content", content=TEXT)
LOOK_UP = tool("archival_memory_search", "query", query=TEXT)
SEND = tool("send_message", "message", message=TEXT, request_heartbeat={"type": "boolean"})
FINISH = tool("memory_finish_edits")


def ask(text: Any, *tools: dict[str, Any], before: list[Any] | None = None, **fields: Any) -> Reply:
    """The assistant's reply to a text after a system message and other messages."""
    messages = before if before is not None else [system(PERSONA, block("human", ""))]
    request = {"messages": [*messages, {"role": "user", "content": text}], "tools": list(tools)} | fields
    return assistant.reply(read_prompt(request), identity="gpt-oss-120b at Cerebras")


def used(call: ToolCall, result: Any, *, status: str = "OK") -> list[dict[str, Any]]:
    """The messages of a tool's use: the call, and its result as Letta wraps it."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    packed = json.dumps({"status": status, "message": result, "time": "2026-05-03 10:00:00 AM UTC+0000"})
    return [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "x", "content": packed},
    ]


REMEMBERED = [
    ("Remember that my dog is called Rex", "My dog is called Rex."),
    ("please remember: I live in Oslo.", "I live in Oslo."),
    ("Don't forget that I'm allergic to nuts!", "I'm allergic to nuts."),
    ("Hi Isabella, could you note down that I have two cats", "I have two cats."),
    ("Could you please remember that I play chess?", "I play chess."),
    ("Keep in mind that tea is better than coffee", "Tea is better than coffee."),
    (
        "Remember this: my sister studies physics and I study law",
        "My sister studies physics and I study law.",
    ),
]


@pytest.mark.parametrize(("said", "written"), REMEMBERED)
def test_writes_down_what_it_is_asked_to_remember(said: str, written: str) -> None:
    """It calls `memory_insert` on the human block, with the fact word for word."""
    reply = ask(said, INSERT, REPLACE, SEARCH)
    assert reply.calls == (ToolCall("memory_insert", {"label": "human", "new_string": written}),)
    assert reply.text == ""


POINTED_AT = [
    ("My name is Ada. Please remember that.", "", "My name is Ada."),
    ("my name is Ada, please remember that!", "", "My name is Ada."),
    ("Hi! I play chess. Could you please remember this for later?", "", "I play chess."),
    ("I live in Oslo. I want you to remember that.", "", "I live in Oslo."),
    ("I like tea. Note it down.", "", "I like tea."),
    ("I like tea. Keep that in mind.", "", "I like tea."),
    ("I like tea. Don't forget!", "", "I like tea."),
    ("I like tea and milk. Remember both of these.", "", "I like tea and milk."),
    ("Remember this. My name is Ada.", "", "My name is Ada."),
    ("Remember that", "My name is Ada.", "My name is Ada."),
    ("Yes, please remember that. Thanks!", "Hello! My name is Ada.", "My name is Ada."),
    ("Remember that", "My name is Ada. Please remember that.", "My name is Ada."),
    ("Save that in your memory.", "Remember that my dog is called Rex", "My dog is called Rex."),
]


@pytest.mark.parametrize(("said", "former", "written"), POINTED_AT)
def test_writes_down_the_sentence_that_is_pointed_at(said: str, former: str, written: str) -> None:
    """Where the order names no fact, it means the sentence before it, or else what the user said before."""
    before = [system(PERSONA, block("human", ""))]
    before += [{"role": "user", "content": former}, {"role": "assistant", "content": "Thank you."}] if former else []
    assert ask(said, INSERT, before=before).calls == (
        ToolCall("memory_insert", {"label": "human", "new_string": written}),
    )


@pytest.mark.parametrize(
    ("said", "former"),
    [
        ("Remember that", ""),
        ("Please remember.", "Thank you!"),
        ("Remember this: ...", ""),
        ('Remember ""', ""),
        ("Remember that.", "What is my name?"),
        ("Is it raining? Remember that.", ""),
        ("Remember that.", "Search your archive for tea"),
        ("Remember that.", "Remember that."),
        ("Remember that.", "I know. " + "tea " * 200),
    ],
)
def test_asks_what_to_remember_where_nothing_was_told(said: str, former: str) -> None:
    """It writes nothing down, least of all nothing; what the user then tells is written down."""
    before: list[Any] = [system(PERSONA, block("human", ""))]
    before += [{"role": "user", "content": former}, {"role": "assistant", "content": "Yes."}] if former else []
    reply = ask(said, INSERT, before=before)
    assert (reply.text, reply.calls) == ("What would you like me to remember?", ())
    before += [{"role": "user", "content": said}, {"role": "assistant", "content": reply.text}]
    told = ask("My name is Ada.", INSERT, before=before)
    assert told.calls == (ToolCall("memory_insert", {"label": "human", "new_string": "My name is Ada."}),)


@pytest.mark.parametrize("said", ["I remember that.", "I went to the store. It was closed.", "Thanks for the note."])
def test_what_is_no_order_is_not_written_down(said: str) -> None:
    """A verb that the user does not address to the assistant orders nothing."""
    assert ask(said, INSERT).calls == ()


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["My name is Ada", "please", "remember", "that", "this", "it", ".", ":", "!", "?", '""', "for me"]
        )
    )
)
def test_never_writes_down_an_empty_text(words: list[str]) -> None:
    """However the order is put, what is written down says something."""
    for call in ask(" ".join(words), INSERT).calls:
        assert re.search(r"\w", call.arguments["new_string"])


def test_says_so_when_it_is_written_down() -> None:
    """After the tool's result it answers in plain text."""
    call = ToolCall("memory_insert", {"label": "human", "new_string": "My dog is called Rex."})
    request = {
        "messages": [
            system(PERSONA, block("human", "")),
            {"role": "user", "content": "Remember that my dog is called Rex"},
            *used(call, "My dog is called Rex."),
        ],
        "tools": [INSERT],
    }
    reply = assistant.reply(read_prompt(request), identity="x")
    assert (reply.text, reply.calls) == ("I will remember that.", ())
    request["messages"][-1]["content"] = json.dumps({"status": "Failed", "message": "Error: over its limit"})
    assert "over its limit" in assistant.reply(read_prompt(request), identity="x").text


def test_knows_what_it_was_told_already() -> None:
    """A fact that a block holds is not written down twice."""
    before = [system(PERSONA, block("human", "My dog is called Rex."))]
    reply = ask("Remember that my dog is called Rex!", INSERT, before=before)
    assert reply.calls == ()
    assert reply.text == "I know that already: My dog is called Rex."


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is my dog called?", "I remember: My dog is called Rex."),
        ("Do you remember the name of my dog?", "I remember: My dog is called Rex."),
        ("Where do I live?", "I remember: I live in Oslo."),
        ("tell me where I live", "I remember: I live in Oslo."),
        ("What do you like?", "I remember: I like lighthouses."),
        ("What do you know about me?", "I remember: My dog is called Rex. I live in Oslo."),
        ("Which car do I drive?", "I do not know that yet. You can ask me to remember it."),
    ],
)
def test_answers_from_its_blocks(question: str, answer: str, numbered: bool) -> None:
    """Whatever Letta's way to render blocks, what stands in them answers; what does not is not made up."""
    facts = "My dog is called Rex.\nI live in Oslo."
    reply = ask(question, INSERT, before=[system(PERSONA, block("human", facts, numbered=numbered))])
    assert (reply.text, reply.calls) == (answer, ())


@pytest.mark.parametrize("question", ["What is my name?", "Do you know my name?", "Who am I?"])
def test_knows_the_name_of_the_user(question: str) -> None:
    """It is the user's own, whoever else has one."""
    facts = "My dog is called Rex.\nMy name is Ada.\nMy cat has a name."
    assert ask(question, before=[system(PERSONA, block("human", facts))]).text == "I remember: My name is Ada."
    nobody = ask(question, before=[system(PERSONA, block("human", "My dog is called Rex."))])
    assert nobody.text == "I do not know that yet. You can ask me to remember it."


def test_answers_from_the_conversation() -> None:
    """What was said without being written down is known too; the newest counts."""
    before = [
        system(PERSONA, block("human", "")),
        {"role": "user", "content": "My cat is called Tom."},
        {"role": "assistant", "content": "Thank you."},
        {"role": "user", "content": [{"type": "text", "text": "My cat is called Kit now."}]},
        {"role": "assistant", "content": "Thank you."},
    ]
    assert ask("What is my cat called?", before=before).text == "I remember: My cat is called Kit now."


def test_empty_memory_says_so() -> None:
    """Nothing known, nothing told."""
    assert ask("What do you know about me?").text == "I do not know anything about you yet."
    assert "do not know" in ask("What is my dog called?", INSERT).text


def test_chooses_a_block_that_fits() -> None:
    """The block that the user names, else human, else one that is no persona; never a read-only one."""
    named = [system(PERSONA, block("human", ""), block("projects", ""))]
    call = ask("Remember in your projects block that Isabella ships in May", INSERT, before=named).calls[0]
    assert call.arguments == {"label": "projects", "new_string": "Isabella ships in May."}
    no_human = [system(PERSONA, block("guest", "", read_only=True), block("notes", ""))]
    assert ask("Remember that it rains", INSERT, before=no_human).calls[0].arguments["label"] == "notes"
    nothing = [system(block("human", "", read_only=True))]
    reply = ask("Remember that it rains", INSERT, before=nothing)
    assert (reply.calls, "no memory that I could write to" in reply.text) == ((), True)


def test_uses_the_tools_that_it_is_offered() -> None:
    """Older and other tools are used as they are meant."""
    append = tool("core_memory_append", "label", "content", label=TEXT, content=TEXT)
    said = "Remember that it rains"
    assert ask(said, append).calls[0].arguments == {"label": "human", "content": "It rains."}
    assert ask(said, ARCHIVE).calls[0].arguments == {"content": "It rains."}
    archival = ask("Store in your archival memory that it rained on 3 May", INSERT, ARCHIVE).calls[0]
    assert (archival.name, archival.arguments) == ("archival_memory_insert", {"content": "It rained on 3 May."})


def test_changes_and_forgets() -> None:
    """A correction replaces the text that stands in a block; forgetting takes the line out."""
    before = [system(PERSONA, block("human", "My dog is called Rex.\nI live in Oslo."))]
    change = ask("Please change Rex to Max", INSERT, REPLACE, before=before).calls[0]
    assert change == ToolCall("memory_replace", {"label": "human", "old_string": "Rex", "new_string": "Max"})
    forget = ask("Forget where I live.", INSERT, REPLACE, before=before).calls[0]
    assert forget.arguments == {"label": "human", "old_string": "I live in Oslo.", "new_string": ""}
    assert "nothing like that" in ask("Forget my shoe size", INSERT, REPLACE, before=before).text


def test_the_conversation_is_corrected_too() -> None:
    """What was told, then changed or forgotten, is not known as it was; orders are not facts."""
    told = [{"role": "user", "content": text} for text in ("Remember that my dog is called Rex", "I live in Oslo.")]
    changed = [system(PERSONA), *told, {"role": "user", "content": "Please change Rex to Max"}]
    assert ask("What is my dog called?", before=changed).text == "I remember: My dog is called Max."
    forgotten = [system(PERSONA), *told, {"role": "user", "content": "Forget my dog"}]
    assert "do not know" in ask("What is my dog called?", before=forgotten).text
    assert ask("Where do I live?", before=forgotten).text == "I remember: I live in Oslo."


def test_searches_when_asked_to() -> None:
    """It searches the archive or the conversation, and answers from what came back."""
    call = ask("Search your archival memory for the trip to Rome", LOOK_UP).calls[0]
    assert call == ToolCall("archival_memory_search", {"query": "the trip to Rome"})
    assert ask("look through our conversation for Rome", SEARCH).calls[0].arguments == {"query": "Rome"}
    asked = {"role": "user", "content": "Search your archival memory for the trip to Rome"}
    for result, expected in (
        (
            [{"content": "The trip to Rome was in May."}, {"content": "Taxes."}],
            "I found this: The trip to Rome was in May.",
        ),
        ([], "I looked, but I found nothing about that."),
    ):
        messages = [system(PERSONA), asked, *used(call, result)]
        reply = assistant.reply(read_prompt({"messages": messages, "tools": [LOOK_UP]}), identity="x")
        assert reply.text == expected


def test_speaks_by_send_message_where_that_is_the_way() -> None:
    """Agents of the older types speak through a tool; their heartbeats and wrapped messages are understood."""
    wrapped = json.dumps({"type": "user_message", "message": "What is my dog called?", "time": "…"})
    before = [system(block("human", "My dog is called Rex."))]
    reply = ask(wrapped, SEND, INSERT, before=before, tool_choice="required")
    assert reply.calls == (
        ToolCall("send_message", {"message": "I remember: My dog is called Rex.", "request_heartbeat": False}),
    )
    insert = tool(
        "memory_insert", "label", "new_string", label=TEXT, new_string=TEXT, request_heartbeat={"type": "boolean"}
    )
    call = ask("Remember that it rains", SEND, insert).calls[0]
    assert call.arguments["request_heartbeat"] is True
    heartbeat = {"role": "user", "content": json.dumps({"type": "heartbeat", "reason": "Function called"})}
    messages = [*before, {"role": "user", "content": "Remember that it rains"}, *used(call, "It rains."), heartbeat]
    after = assistant.reply(read_prompt({"messages": messages, "tools": [SEND, insert]}), identity="x")
    assert after.calls[0].arguments["message"] == "I will remember that."


def test_obeys_a_forced_tool() -> None:
    """A forced tool is called with all that it requires; `none` calls nothing."""
    forced = {"type": "function", "function": {"name": "conversation_search"}}
    assert ask("Hello", INSERT, SEARCH, tool_choice=forced).calls == (
        ToolCall("conversation_search", {"query": "Hello"}),
    )
    assert ask("Hello", SEARCH, INSERT, tool_choice="required").calls[0].name == "conversation_search"
    assert ask("Remember that it rains", INSERT, tool_choice="none").calls == ()


def test_fills_in_what_strict_schemas_require() -> None:
    """With every argument required, the ones without a value get a harmless one."""
    strict = tool(
        "memory_insert",
        "label",
        "new_string",
        "insert_line",
        "thinking",
        label=TEXT,
        new_string=TEXT,
        insert_line={"type": ["integer", "null"]},
        thinking=TEXT,
    )
    arguments = ask("Remember that it rains", strict).calls[0].arguments
    assert arguments["insert_line"] == -1
    assert arguments["thinking"]


def test_sleeptime_agent_tidies_up_and_finishes() -> None:
    """It writes down what the transcript tells, a fact a step, and then ends its edits."""
    text = (
        "<system-reminder>\nYou are a sleeptime agent.\n</system-reminder>\n\nMessages:\n"
        "user: My dog is called Rex.\nassistant: How nice.\nuser: What is the time?\n"
        "user: Remember that I live in Oslo\nuser: My name is Ada. Please remember that.\nuser: Remember this.\n"
    )
    messages: list[dict[str, Any]] = [system(PERSONA, block("human", "")), {"role": "user", "content": text}]
    tools = [INSERT, REPLACE, FINISH]
    written = []
    for _ in range(6):
        reply = assistant.reply(read_prompt({"messages": messages, "tools": tools}), identity="x")
        if not reply.calls:
            break
        written.append(reply.calls[0])
        messages += used(reply.calls[0], "OK")
    assert [call.name for call in written] == ["memory_insert"] * 3 + ["memory_finish_edits"]
    facts = [call.arguments.get("new_string") for call in written]
    assert facts == ["My dog is called Rex.", "I live in Oslo.", "My name is Ada.", None]


def test_sums_up_when_letta_makes_room() -> None:
    """A request for a summary is answered with one that keeps what the user said, and calls no tool."""
    earlier = json.dumps({"type": "system_alert", "message": "- The user said: I live in Oslo.\n- The user said: Hi"})
    transcript = (
        f"<start_transcript>\n[MessageRole.user] {earlier}\n[MessageRole.user] Remember that my dog is called Rex\n"
        "[assistant] Yes.\n<end_transcript>\n. Generate the summary."
    )
    reply = ask(transcript, INSERT)
    assert reply.calls == ()
    assert "my dog is called Rex" in reply.text
    assert "I live in Oslo." in reply.text
    summary = {"role": "user", "content": json.dumps({"type": "system_alert", "message": reply.text})}
    assert (
        ask("What is my dog called?", before=[system(PERSONA), summary]).text == "I remember: My dog is called Rex."
    )


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Reply with exactly: pong 17", "pong 17"),
        ('Say "ready".', "ready"),
        ("count to 5", "1 2 3 4 5"),
        ("Who are you?", "I am gpt-oss-120b at Cerebras, here to practise with."),
    ],
)
def test_small_talk_that_tests_rely_on(said: str, answer: str) -> None:
    """Echoes, counting for long answers, and who it is."""
    assert ask(said).text == answer


def test_long_answers_have_a_limit() -> None:
    """Nobody can make it count for ever."""
    assert ask("count to 999999999").text.split()[-1] == "5000"


FIELDS = """
messages role content text tools function name parameters properties required tool_calls arguments tool_choice
type message status enum model
"""


@pytest.mark.parametrize(
    "word", ["find ", "remember ", "my ", "change x to ", "say say ", "what you I ", "{", "<a>", "\n"]
)
def test_huge_messages_take_no_time(word: str) -> None:
    """A megabyte of anything, now or earlier in the conversation, is answered; time squared in it would be hours."""
    huge = word * (1_000_000 // len(word))
    started = time.monotonic()
    ask(huge, INSERT)
    ask("What is my dog called?", before=[system(PERSONA), {"role": "user", "content": huge}])
    ask("What is my dog called?", before=[{"role": "system", "content": huge}])
    ask(f"<start_transcript>{huge}")
    assert time.monotonic() - started < 60


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                FIELDS.split(),
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "tools", "tool_choice", "model"]), JSON, max_size=4))
def test_no_request_confuses_it(request: dict[str, Any]) -> None:
    """Whatever JSON object comes in, there is a reply, the same each time, and it can be sent."""
    found = assistant.reply(read_prompt(request), identity="x")
    assert found == assistant.reply(read_prompt(request), identity="x")
    json.dumps([call.arguments for call in found.calls])
    for vendor in PROFILES.values():
        strictness.objections(vendor, request)
