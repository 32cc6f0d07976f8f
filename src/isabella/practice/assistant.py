"""The assistant in the practice vendors: a small, deterministic script that uses tools the way a model does.

It writes down what it is asked to remember, answers from the memory that it was sent, says so when it knows
nothing, and otherwise gives a short friendly answer. The same request always gets the same reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isabella.practice import recollection, speech
from isabella.practice.situation import Call, PromptBlock, Situation, Tool

_LONGEST_COUNT = 5_000
_LONGEST_READ = 4_000
_WHAT = "What would you like me to remember?"

_QUOTED = re.compile(r"[\"'“](.+)[\"'”][.!]?", re.DOTALL)
_ARCHIVAL = re.compile(r"\barchiv(?:e|al)\b|\blong[- ]term memory\b", re.IGNORECASE)
_SEARCH_ARCHIVE = re.compile(
    r"\b(?:search|look (?:in|through|up)|find|check|query)\b.*?\barchiv(?:e|al)\b(?: memory)?\s*"
    r"(?:for|about|:)?\s*(?P<query>.*)",
    re.IGNORECASE | re.DOTALL,
)
_SEARCH_CONVERSATION = re.compile(
    r"\b(?:search|look (?:in|through)|find|check)\b.*?\b(?:conversations?|history|messages|chats?)\b\s*"
    r"(?:for|about|:)?\s*(?P<query>.*)",
    re.IGNORECASE | re.DOTALL,
)
_ECHO = re.compile(
    r"\b(?:say|repeat|reply|answer|respond)\b"
    r"(?:\s+(?:with|after me|back|only|just|exactly|the words?|one line|in one line|the following|this))*"
    r"\s*[:,]?\s+(?P<words>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_COUNT = re.compile(r"\bcount (?:up )?to (?P<number>\d+)", re.IGNORECASE)
_ALL_KNOWN = re.compile(
    r"\bwhat (?:do|can|did) you (?:know|remember|recall)\b(?:\s+about (?:me|us|the user))?\s*\??\s*$|"
    r"\btell me (?:what|everything|all) (?:that )?you (?:know|remember)|\bwhat(?:'s| is) in your memory\b",
    re.IGNORECASE,
)
_IDENTITY = re.compile(
    r"\b(?:who are you|what are you|your name|which model|what model|introduce yourself)\b", re.IGNORECASE
)
_QUESTION = re.compile(
    r"\?\s*$|^\s*(?:so |and |please |hey |hi |hello |isabella |[,. ])*"
    r"(?:what|who|whom|whose|where|when|which|why|how|do|does|did|is|are|was|were|can|could|will|would|tell me)\b",
    re.IGNORECASE,
)
_GREETING = re.compile(r"^\s*(?:hello|hi|hey|good (?:morning|afternoon|evening)|greetings)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """What the assistant says or does in one step.

    Attributes:
        reasoning: what it thinks before.
        text: what it says; empty where it only calls tools.
        calls: the tools that it calls.
    """

    reasoning: str
    text: str = ""
    calls: tuple[Call, ...] = ()


def reply(situation: Situation, *, speaker: str) -> Reply:
    """The assistant's next step.

    Args:
        situation: what it was sent.
        speaker: who it is when asked, such as "gpt-oss-120b at Cerebras".
    """
    planned = _plan(situation, speaker)
    return _within_the_rules(planned, situation)


def _plan(situation: Situation, speaker: str) -> Reply:
    if recollection.is_summary_request(situation):
        return Reply("I am asked to sum up.", recollection.summary(situation))
    if "memory_finish_edits" in situation.tools:
        return _tend_memory(situation)
    done = [turn for turn in situation.since if turn.role == "tool"]
    if done:
        return _after_tools(situation)
    # The patterns are for what people say; on a megabyte of text some would take minutes.
    asked = situation.asked[:_LONGEST_READ].strip()
    if not asked:
        return Reply("Nobody has said anything yet.", "Hello! I am listening.")
    return (
        _search(asked, situation)
        or _change(asked, situation)
        or _remember(asked, situation)
        or _converse(asked, situation, speaker)
    )


def _search(asked: str, situation: Situation) -> Reply | None:
    for pattern, tool in ((_SEARCH_ARCHIVE, "archival_memory_search"), (_SEARCH_CONVERSATION, "conversation_search")):
        found = pattern.search(asked)
        if found is None:
            continue
        query = found["query"].strip(" .?!\"'") or asked
        if tool in situation.tools:
            return Reply(f"I should look that up with {tool}.", calls=(Call(tool, {"query": query}),))
        return _from_memory(situation, query)
    return None


def _change(asked: str, situation: Situation) -> Reply | None:
    if change := recollection.to_change(asked):
        edit = recollection.replacement(situation, *change)
        if edit is not None:
            return Reply("The user corrects something that I know.", calls=(edit,))
    if unwanted := recollection.to_forget(asked):
        edit = recollection.removal(situation, unwanted)
        if edit is not None:
            return Reply("The user wants me to forget something.", calls=(edit,))
        return Reply("There is nothing like that in my memory.", "I have nothing like that in my memory.")
    return None


def _remember(asked: str, situation: Situation) -> Reply | None:
    what = recollection.to_remember(asked, situation.former)
    if what is None and situation.before and situation.before[-1].text == _WHAT:
        what = recollection.statement(asked) or None
    if what is None:
        return None
    if not what:
        return Reply("I cannot tell what is meant.", _WHAT)
    fact = speech.about_the_user(what)
    call = recollection.note(
        situation, fact, label=_named_block(asked, situation.blocks), archival=bool(_ARCHIVAL.search(asked))
    )
    if call is not None:
        return Reply("The user wants me to remember this; I will write it down.", calls=(call,))
    if any(speech.same(fact, known) for block in situation.blocks for known in speech.sentences(block.value)):
        return Reply("That is in my memory already.", f"I know that already: {speech.to_the_user(fact)}")
    return Reply(
        "I have no tool to write this down.",
        "I have no memory that I could write to, but I will keep it in mind while we talk.",
    )


def _named_block(asked: str, blocks: tuple[PromptBlock, ...]) -> str | None:
    if "block" not in asked.lower():
        return None
    named = (block.label for block in blocks if re.search(rf"\b{re.escape(block.label)}\b", asked, re.IGNORECASE))
    return next(named, None)


def _converse(asked: str, situation: Situation, speaker: str) -> Reply:
    if found := _COUNT.search(asked):
        numbers = range(1, min(int(found["number"]), _LONGEST_COUNT) + 1)
        return Reply("I will count.", " ".join(str(number) for number in numbers))
    if _ALL_KNOWN.search(asked):
        facts = [speech.to_the_user(fact) for fact in recollection.about_user(situation)]
        text = "This is what I know: " + " ".join(facts) if facts else "I do not know anything about you yet."
        return Reply("I will say what is in my memory.", text)
    if _IDENTITY.search(asked):
        return Reply("The user asks who I am.", f"I am {speaker}, here to practise with.")
    if (found := _ECHO.search(asked)) and not asked.endswith("?"):
        words = found["words"].strip()
        quoted = _QUOTED.fullmatch(words)
        return Reply("I am to say something.", quoted[1] if quoted else words)
    if _QUESTION.search(asked):
        return _from_memory(situation, asked)
    if _GREETING.search(asked):
        return Reply("The user greets me.", "Hello! It is good to hear from you. What is on your mind?")
    return Reply(
        "The user tells me something.", "Thank you for telling me. Is there anything you would like me to remember?"
    )


def _from_memory(situation: Situation, question: str) -> Reply:
    fact = recollection.answer(situation, question)
    if fact is not None:
        return Reply("I find that in my memory.", speech.to_the_user(fact))
    return Reply(
        "There is nothing about that in my memory.", "I do not know that yet. You can ask me to remember it."
    )


def _after_tools(situation: Situation) -> Reply:
    last = situation.since[-1] if situation.since[-1].role == "tool" else None
    result = last or next(turn for turn in reversed(situation.since) if turn.role == "tool")
    calls = [call for turn in situation.since for call in turn.calls]
    call = calls[-1] if calls else Call("", {})
    if call.name == "send_message":
        return Reply("I have answered already.", str(call.arguments.get("message", "Done.")))
    if result.failed:
        return Reply("The tool failed.", f"That did not work: {result.text[:300]}")
    if call.name in ("archival_memory_search", "conversation_search"):
        found = recollection.from_results(result.text, str(call.arguments.get("query", "")), asked=situation.asked)
        if found is None:
            return Reply("The search found nothing.", "I looked, but I found nothing about that.")
        return Reply("The search found something.", f"I found this: {speech.to_the_user(found)}")
    if recollection.is_noting(call):
        return Reply("It is written down.", "I will remember that.")
    if recollection.is_editing(call):
        return Reply("My memory is up to date.", "I have changed that in my memory.")
    return Reply("The tool is done.", "Done.")


def _tend_memory(situation: Situation) -> Reply:
    """The sleep-time agent: write down what the transcript tells, one fact a step, then finish."""
    if any(call.name == "memory_finish_edits" for turn in situation.since for call in turn.calls):
        return Reply("The memory is in order.", "The memory is up to date.")
    written = [str(value) for turn in situation.since for call in turn.calls for value in call.arguments.values()]
    for fact in recollection.from_transcript(situation.asked):
        if not any(speech.same(fact, earlier) for earlier in written):
            call = recollection.note(situation, fact)
            if call is not None:
                return Reply("This is worth keeping.", calls=(call,))
    return Reply("There is nothing more to write down.", calls=(Call("memory_finish_edits", {}),))


def _within_the_rules(planned: Reply, situation: Situation) -> Reply:
    """The plan, changed where the request leaves no choice, with the arguments that the tools ask for."""
    calls = planned.calls
    if situation.forced is not None and [call.name for call in calls] != [situation.forced]:
        calls = (_made_up_call(situation.tools[situation.forced], planned.text, situation.asked),)
    elif not calls and "send_message" in situation.tools:
        calls = (Call("send_message", {"message": planned.text}),)
    elif not calls and situation.must_call:
        calls = (_made_up_call(next(iter(situation.tools.values())), planned.text, situation.asked),)
    if not calls:
        return planned
    finished = tuple(_completed(call, situation.tools.get(call.name), planned.reasoning) for call in calls)
    return Reply(planned.reasoning, "", finished)


def _made_up_call(tool: Tool, text: str, asked: str) -> Call:
    if tool.name == "send_message":
        return Call(tool.name, {"message": text or "Done."})
    return Call(tool.name, {name: _made_up(tool.properties.get(name), asked) for name in tool.required})


def _completed(call: Call, tool: Tool | None, reasoning: str) -> Call:
    if tool is None:
        return call
    arguments: dict[str, Any] = {}
    for name in ("thinking", "inner_thoughts"):
        if name in tool.properties:
            arguments[name] = reasoning
    arguments.update(call.arguments)
    if "request_heartbeat" in tool.properties:
        arguments["request_heartbeat"] = call.name not in ("send_message", "memory_finish_edits")
    for name in tool.required:
        if name not in arguments:
            arguments[name] = _default(call.name, name, tool.properties.get(name))
    return Call(call.name, arguments)


def _default(tool: str, name: str, schema: object) -> Any:
    if tool == "memory_insert" and name == "insert_line":
        return -1
    if isinstance(schema, dict):
        if "default" in schema:
            return schema["default"]
        kinds = schema.get("type")
        if (isinstance(kinds, list) and "null" in kinds) or "anyOf" in schema:
            return None
    return _made_up(schema, "")


def _made_up(schema: object, text: str) -> Any:
    if not isinstance(schema, Mapping):
        return text
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "string")
    simple = {"integer": 0, "number": 0, "boolean": False, "array": [], "object": {}}
    return simple.get(str(kind), text)
