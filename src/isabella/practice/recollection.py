"""The assistant's memory: which tool writes a fact down, and where the answer to a question stands."""

from __future__ import annotations

import ast
import json
import re
from contextlib import suppress

from isabella.practice import speech
from isabella.practice.situation import Call, PromptBlock, Situation

_NOTING = ("memory_insert", "core_memory_append", "archival_memory_insert")
_EDITING = ("memory_replace", "core_memory_replace", "memory_rethink", "memory", "memory_apply_patch")
# Blocks that say who the agent is and how it works, not what it knows of the user.
_SELF = ("persona", "self", "memory_persona", "instructions", "guidelines", "policies")

_SUMMARY_REQUEST = re.compile(
    r"<start_transcript>|^\s*(?:The (?:previous|following) messages are being evicted|"
    r"Your task is to create a detailed summary|You.re a memory-recall helper)",
)
_TRANSCRIPT_LINE = re.compile(
    r"^[ \t]*(?:\d+\.[ \t]*)?\[?(?:MessageRole\.)?user\]?:?\s+(?P<text>.+)$", re.IGNORECASE | re.MULTILINE
)
_SAID_BEFORE = re.compile(r"- The user said: ([^\n\"]+)")
_WORTH_KEEPING = re.compile(
    r"\bmy [\w' -]+? (?:is|are|was|lives?|works?|likes?)\b|"
    r"\bI(?:'m| am| live| work| like| love| prefer| have| study)\b|"
    r"\b(?:remember|don't forget|keep in mind)\b",
    re.IGNORECASE,
)
_REMEMBER = re.compile(
    # An order begins a clause: "I remember" and "the store" are none.
    r"(?P<lead>^|[.!?,;:–—\n-]\s*|\b(?:please|kindly|so|and|also|just|now|then|always|ok(?:ay)?|yes|hello|hi|hey|isabella|"
    r"you|(?:you|sure) to|should|must)\s+)"
    r"(?:remember|memori[sz]e|note|keep (?:(?:this|that|it) )?in mind|(?:do not|don['’]t|never) forget|store|save|"
    r"write(?=(?: \w+)? down\b)|archive)\b"
    r"(?:\s+(?:(?:this|these|that|it)(?=\s*(?:[:,.!?]|(?:down|in|to|into|for)\b|$))|"
    r"down|the following|the fact|for me|for later))*"
    r"(?:\s+(?:in|to|into|for)\s+(?:your|the|my)?\s*[\w' -]{0,40}?(?:memory|archive|block))?"
    r"\s*[:,]?\s*(?:that\b)?[:,]?\s*(?P<what>(?P<own>[^.!?\n]*)(?P<after>.*))",
    re.IGNORECASE | re.DOTALL,
)
# What stands before an order in its sentence and belongs to it.
_LEAD_IN = re.compile(
    r"(?:[\s,;–—-]*\b(?:please|kindly|so|and|also|just|now|then|always|(?:(?:can|could|will|would) )?you|"
    r"I(?: want| need|['’]d like| would like) you to|make sure (?:you )?to|you (?:should|must)))*[\s,;–—-]*$",
    re.IGNORECASE,
)
_POINTS_BACK = re.compile(
    r"(?:(?:all|both)\b(?: of)?)?\s*(?:that|this|it|these|those|them)?"
    r"(?:[\s,]*\b(?:please|for (?:me|later)|too|well))*",
    re.IGNORECASE,
)
_ASKS_WHAT_IT_KNOWS = re.compile(
    r"\b(?:do|did|don['’]t) you (?:still )?(?:remember|recall|know)\b|"
    r"\bwhat\b.*\b(?:you|I)\b.*\b(?:remember|told|tell|save|store|note)",
    re.IGNORECASE,
)
_ASKS_KINDLY = re.compile(r"\b(?:can|could|will|would) you (?:please |kindly )?\w+", re.IGNORECASE)
_COURTESY = re.compile(
    r"^(?:(?:hello|hi|hey|good (?:morning|afternoon|evening)|thanks?(?: you)?|ok(?:ay)?|yes|no)\b[\s,.!]*)+",
    re.IGNORECASE,
)
# Orders are not facts: having been told to forget something is not knowing it.
_ORDER = re.compile(
    r"^\s*(?:please\s+)?(?:search|look|find|check|say|repeat|reply|answer|respond|count|tell)\b", re.IGNORECASE
)
_FORGET = re.compile(
    r"^\s*(?:please\s+)?(?:forget|erase|delete)\b(?:\s+(?:about|that))?\s+(?P<what>.+)", re.IGNORECASE
)
_CHANGE = re.compile(
    r"^\s*(?:please\s+)?(?:change|replace|update|correct)\s+[\"'“]?(?P<old>.+?)[\"'”]?\s+(?:to|with|by|into)\s+"
    r"[\"'“]?(?P<new>.+?)[\"'”]?(?:\s+in (?:your|the) memory)?[.!]?$",
    re.IGNORECASE,
)
_LONGEST_SUMMARY_LINE = 200
_LONGEST_ORDER = 4_000
_LONGEST_STATEMENT = 300
_LONGEST_READ = 20_000


def to_remember(said: str, former: str = "") -> str | None:
    """What the user wants remembered; None where that is not what was said, empty where nobody can tell what.

    Args:
        said: the message.
        former: the user's message before, which "remember that" may mean.
    """
    # Patterns that look back take their time on long texts, and nobody says one.
    order = _REMEMBER.search(said := said[:_LONGEST_ORDER])
    if order is None or _ASKS_WHAT_IT_KNOWS.search(said):
        return None
    if said.endswith("?") and not _ASKS_KINDLY.search(said[: order.start("what")]):
        return None
    before = _LEAD_IN.sub("", said[: order.end("lead")])
    return _object(order) or next(filter(None, map(statement, (before, order["after"], former))), "")


def statement(said: str) -> str:
    """The last sentence of a text that is no courtesy, where it tells something; otherwise nothing."""
    for sentence in reversed(speech.sentences(said)):
        last = _COURTESY.sub("", sentence.strip(" ,;–—-"))
        order = _REMEMBER.match(last)
        told = last if order is None else _object(order)
        if len(re.findall(r"\w+", told)) > 1:
            is_order = any(pattern.match(told) for pattern in (_ORDER, _FORGET, _CHANGE))
            return "" if is_order or told.endswith("?") or len(told) > _LONGEST_STATEMENT else told
    return ""


def to_forget(said: str) -> str | None:
    """What the user wants forgotten; None where that is not what was said."""
    order = _FORGET.match(said)
    return None if order is None else order["what"].strip(" .!")


def to_change(said: str) -> tuple[str, str] | None:
    """What the user wants changed, and into what; None where that is not what was said."""
    order = _CHANGE.match(said)
    return None if order is None else (order["old"].strip(), order["new"].strip())


def is_summary_request(situation: Situation) -> bool:
    """Whether Letta asks for a summary of what is about to leave the context window."""
    return bool(_SUMMARY_REQUEST.search(situation.asked))


def summary(situation: Situation) -> str:
    """What the user has said so far, in short; facts are kept word for word."""
    said = [found["text"] for found in _TRANSCRIPT_LINE.finditer(situation.asked)]
    if not said:
        said = [turn.text for turn in situation.before if turn.role == "user"]
    lines = []
    for line in said:
        # An earlier summary comes wrapped in JSON; what it kept is kept again.
        kept = _SAID_BEFORE.findall(line.replace("\\n", "\n")) if line.startswith("{") else [line]
        lines += [f"- The user said: {one[:_LONGEST_SUMMARY_LINE]}" for one in kept]
    return "Summary of the conversation so far.\n" + ("\n".join(lines) or "- Nothing of note was said.")


def note(situation: Situation, fact: str, *, label: str | None = None, archival: bool = False) -> Call | None:
    """The call that writes a fact down; None where it is known already or no tool for it is on offer.

    Args:
        situation: what the assistant was sent.
        fact: the sentence to write down.
        label: the block that the user named.
        archival: whether the user asked for archival memory.
    """
    tools = situation.tools
    if archival and "archival_memory_insert" in tools:
        return Call("archival_memory_insert", {"content": fact})
    if any(speech.same(fact, known) for block in situation.blocks for known in speech.sentences(block.value)):
        return None
    block = _block_for(situation.blocks, label)
    if block is not None:
        if "memory_insert" in tools:
            return Call("memory_insert", {"label": block.label, "new_string": fact})
        if "core_memory_append" in tools:
            return Call("core_memory_append", {"label": block.label, "content": fact})
        if "memory" in tools:
            path = f"/memories/{block.label}"
            return Call("memory", {"command": "insert", "path": path, "insert_line": -1, "insert_text": fact})
    if "archival_memory_insert" in tools:
        return Call("archival_memory_insert", {"content": fact})
    return None


def replacement(situation: Situation, old: str, new: str) -> Call | None:
    """The call that puts `new` where `old` stands in a block; None where it stands nowhere."""
    for block in situation.blocks:
        position = block.value.lower().find(old.lower())
        if position >= 0 and not block.read_only:
            return _replace(situation, block, block.value[position : position + len(old)], new)
    return None


def removal(situation: Situation, what: str) -> Call | None:
    """The call that takes out the line which fits a description best; None where none fits."""
    for block in situation.blocks:
        if block.label in _SELF or block.read_only:
            continue
        line = speech.best_match(what, block.value.splitlines())
        if line is not None:
            return _replace(situation, block, line, "")
    return None


def answer(situation: Situation, question: str) -> str | None:
    """The known fact that answers a question: from the blocks, from what was said, or from who the agent is."""
    found = speech.best_match(question, about_user(situation))
    if found is None:
        found = speech.best_match(question, (speech.about_the_user(fact) for fact in _said(situation)))
    if found is None:
        own = [fact for block in situation.blocks if block.label in _SELF for fact in speech.sentences(block.value)]
        found = speech.best_match(question, own)
    return found


def about_user(situation: Situation) -> list[str]:
    """All that the blocks hold, but for those that say who the agent is."""
    return [fact for block in situation.blocks if block.label not in _SELF for fact in speech.sentences(block.value)]


def from_results(results: str, query: str, *, asked: str) -> str | None:
    """The best passage in what a search tool returned; None where it found nothing."""
    texts = [text for text in _texts_in(results) if not text.endswith("?") and text.strip() != asked.strip()]
    return speech.best_match(query, texts)


def from_transcript(transcript: str) -> list[str]:
    """The facts about the user that a transcript tells."""
    facts, former = [], ""
    for found in _TRANSCRIPT_LINE.finditer(transcript):
        text = found["text"].strip()
        if _WORTH_KEEPING.search(text) and not text.endswith("?"):
            what = to_remember(text, former)
            facts.append(speech.about_the_user(text if what is None else what))
        former = text
    return [fact for fact in facts if fact]


def is_noting(call: Call) -> bool:
    """Whether a call wrote a fact down."""
    return call.name in _NOTING or (call.name == "memory" and call.arguments.get("command") == "insert")


def is_editing(call: Call) -> bool:
    """Whether a call changed what was written down."""
    return call.name in _EDITING


def _object(order: re.Match[str]) -> str:
    """What an order to remember names; empty where it only points to something."""
    own = re.sub(r"^\W+|\W+$", "", order["own"])
    return "" if _POINTS_BACK.fullmatch(own) else order["what"].rstrip(" ?")


def _block_for(blocks: tuple[PromptBlock, ...], label: str | None) -> PromptBlock | None:
    writable = [block for block in blocks if not block.read_only]
    for wanted in (label, "human", "user"):
        for block in writable:
            if block.label == wanted:
                return block
    others = [block for block in writable if block.label not in _SELF]
    candidates = others or writable
    return candidates[0] if candidates else None


def _replace(situation: Situation, block: PromptBlock, old: str, new: str) -> Call | None:
    if "memory_replace" in situation.tools:
        return Call("memory_replace", {"label": block.label, "old_string": old, "new_string": new})
    if "core_memory_replace" in situation.tools:
        return Call("core_memory_replace", {"label": block.label, "old_content": old, "new_content": new})
    if "memory" in situation.tools:
        path = f"/memories/{block.label}"
        return Call("memory", {"command": "str_replace", "path": path, "old_string": old, "new_string": new})
    return None


def _said(situation: Situation) -> list[str]:
    """What the user has told, as it stands after corrections; questions and orders are left out."""
    told: list[str] = []
    for turn in situation.before:
        if turn.role not in ("user", "system"):
            continue
        for sentence in speech.sentences(turn.text[:_LONGEST_READ]):
            said = sentence.removeprefix("- The user said: ")
            if order := _FORGET.match(said):
                dropped = speech.best_match(order["what"], told)
                told = [earlier for earlier in told if earlier != dropped]
            elif order := _CHANGE.match(said):
                told = [earlier.replace(order["old"], order["new"]) for earlier in told]
            elif not said.endswith("?") and not _ORDER.match(said):
                what = to_remember(said)
                told.append(said if what is None else what)
    return told


def _texts_in(results: str) -> list[str]:
    found = _parsed(results)
    if found is None:
        return results.splitlines()
    texts: list[str] = []
    pending = [found]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            texts += speech.sentences(value)
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += [inner for key, inner in value.items() if key in ("results", "content", "text", "message")]
    return texts


def _parsed(results: str) -> object:
    """A tool's result, which Letta sends as JSON or as Python writes its values; None where it is plain text."""
    for parse in (json.loads, ast.literal_eval):
        # Python's own parser fails in more ways than one on what is not Python.
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found: object = parse(results)
            return found
    return None
