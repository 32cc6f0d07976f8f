"""The assistant of the practice vendors: a small, deterministic script that uses tools the way a model does.

It stores what it is asked to remember word for word, answers from the memory in the request, says so if it knows
nothing, and otherwise gives a short friendly answer. The same request always gets the same reply.
"""

from __future__ import annotations

import re

from isabella.practice.prompt import ChatPrompt, Reply, ToolCall, best_match, same_words, sentences

_LONGEST_COUNT = 5_000
#: The patterns are for what people say; on a megabyte of text some of them take minutes.
_LONGEST_MESSAGE = 4_000
_LONGEST_FACT = 300
_ASK_WHAT = "What would you like me to remember?"

_REMEMBER = re.compile(
    # The order begins a clause: "I remember" and "the store" are not orders.
    r"(?is)(?P<lead>^|[.!?,;:–—\n-]\s*|\b(?:please|and|also|now|hello|hi|isabella|(?<!do )(?<!what )you|you to)\s+)"
    r"(?:remember|memori[sz]e|note|keep (?:(?:this|that|it) )?in mind|(?:do not|don['’]t|never) forget|store|save|"
    r"write(?=(?: \w+)? down\b)|archive)\b"
    # Words that point to a fact or say where to store it.
    r"(?:\s+(?:(?:this|these|that|it)(?=\s*(?:[:,.!?]|(?:down|in|to|into|for)\b|$))|down|for me|for later))*"
    r"(?:\s+(?:in|to|into|for)\s+(?:your|the|my)?\s*[\w' -]{0,40}?(?:memory|archive|block))?"
    r"\s*[:,]?\s*(?:that\b)?[:,]?\s*(?P<fact>(?P<clause>[^.!?\n]*)(?P<after>.*))"
)
_LEAD_IN = re.compile(
    r"(?i)(?:[\s,;–—-]*\b(?:please|and|also|now|(?:could |can |would |I want )?you(?: to)?))*[\s,;–—-]*$"
)
_POINTER = re.compile(
    r"(?i)(?:(?:all|both)\b(?: of)?)?\s*(?:that|this|it|these|those|them)?(?:[\s,]*\b(?:please|for (?:me|later)))*"
)
_POLITE_QUESTION = re.compile(r"(?i)\b(?:can|could|will|would) you (?:please )?\w+")
_COURTESY = re.compile(r"(?i)^(?:(?:hello|hi|hey|thanks?(?: you)?|ok(?:ay)?|yes|no)\b[\s,.!]*)+")
_OTHER_ORDER = re.compile(
    r"(?i)^\s*(?:please )?(?:search|look|find|check|say|repeat|reply|answer|count|tell|forget|change)\b"
)
_FORGET = re.compile(r"(?i)^\s*(?:please )?forget\b(?: about| that)?\s+(?P<what>.+)")
_CHANGE = re.compile(r"(?i)^\s*(?:please )?change\s+(?P<old>.+?)\s+(?:to|into)\s+(?P<new>.+?)[.!]?$")
_PERSONAL = re.compile(r"(?i)\b(?:my|I)\b")

_ARCHIVAL = re.compile(r"(?i)\barchiv(?:e|al)\b|\blong[- ]term memory\b")
_SEARCH = re.compile(
    r"(?is)\b(?:search|look (?:in|through|up)|find|check)\b.*?\b(?P<where>archive|archival|conversations?|history)\b"
    r"(?: memory)?\s*(?:for|about|:)?\s*(?P<query>.*)"
)
_ECHO = re.compile(r"(?is)\b(?:say|repeat|reply|answer)\b(?: (?:with|only|just|exactly))*[:,]?\s+(?P<words>\S.*)")
_QUOTED = re.compile(r"(?s)[\"'“](.+)[\"'”][.!]?")
_COUNT = re.compile(r"(?i)\bcount (?:up )?to (?P<number>\d+)")
_ALL_KNOWN = re.compile(r"(?i)\bwhat (?:do|can) you (?:know|remember)\b(?: about (?:me|us))?\s*\??\s*$")
_IDENTITY = re.compile(r"(?i)\b(?:who are you|your name|(?:which|what) model)\b")
_QUESTION = re.compile(r"(?i)\?\s*$|^\s*(?:what|who|whose|where|when|which|why|how|do|is|are|can|tell me)\b")
_GREETING = re.compile(r"(?i)^\s*(?:hello|hi|hey|good (?:morning|afternoon|evening))\b|^$")

_SUMMARY_REQUEST = re.compile(
    r"<start_transcript>|^\s*(?:The (?:previous|following) messages are being evicted|"
    r"Your task is to create a detailed summary|You.re a memory-recall helper)"
)
_SUMMARISED = "- The user said: "

#: The tools that add a text to a block, with the argument for the text.
_ADD = {"memory_insert": "new_string", "core_memory_append": "content"}
#: The tools that replace a text in a block, with the arguments for the old text and the new one.
_REPLACE = {"memory_replace": ("old_string", "new_string"), "core_memory_replace": ("old_content", "new_content")}
_SEARCH_TOOLS = ("archival_memory_search", "conversation_search")
_RECEIPTS = {
    **dict.fromkeys((*_ADD, "archival_memory_insert"), "I will remember that."),
    **dict.fromkeys(_REPLACE, "I have changed that in my memory."),
}


def reply(prompt: ChatPrompt, *, identity: str) -> Reply:
    """Return the assistant's next step; `identity` is who it is, such as "gpt-oss-120b at Cerebras"."""
    planned = _plan(prompt, identity)
    calls = planned.calls
    if prompt.forced is not None and [call.name for call in calls] != [prompt.forced]:
        calls = (ToolCall(prompt.forced, {}),)
    elif not calls and "send_message" in prompt.tools:
        calls = (ToolCall("send_message", {}),)
    elif not calls and prompt.must_call:
        calls = (ToolCall(next(iter(prompt.tools)), {}),)
    if not calls:
        return planned
    return Reply(planned.reasoning, calls=tuple(_completed(call, planned, prompt) for call in calls))


def stuck_reply(prompt: ChatPrompt) -> Reply | None:
    """Return the reply of a model that wants to change a text that is not in its memory; None without such a tool."""
    tool = next((tool for tool in _REPLACE if tool in prompt.tools), None)
    if tool is None or not prompt.blocks:
        return None
    texts = zip(_REPLACE[tool], ("A text that is not there.", "Another text."), strict=True)
    call = ToolCall(tool, {"label": prompt.blocks[0].label, **dict(texts)})
    planned = Reply("I have to change my memory.", calls=(call,))
    return Reply(planned.reasoning, calls=(_completed(call, planned, prompt),))


def _completed(call: ToolCall, planned: Reply, prompt: ChatPrompt) -> ToolCall:
    """Return a call with all arguments that its tool asks for."""
    if call.name not in prompt.tools:
        return call
    arguments = {"message": planned.text or "Done."} if call.name == "send_message" else {}
    filler = prompt.user_text[:_LONGEST_MESSAGE]
    return prompt.tools[call.name].call(arguments | {**call.arguments}, reasoning=planned.reasoning, filler=filler)


def _plan(prompt: ChatPrompt, identity: str) -> Reply:
    if _SUMMARY_REQUEST.search(prompt.user_text):
        return Reply("I am asked for a summary.", _summary(prompt))
    if "memory_finish_edits" in prompt.tools:
        return _tidy_memory(prompt)
    if any(message.role == "tool" for message in prompt.after_user):
        return _report_result(prompt)
    text = prompt.user_text[:_LONGEST_MESSAGE].strip()
    planned = _search(text, prompt) or _edit(text, prompt) or _remember(text, prompt)
    return planned or _converse(text, prompt, identity)


def _search(text: str, prompt: ChatPrompt) -> Reply | None:
    match = _SEARCH.search(text)
    if match is None:
        return None
    query = match["query"].strip(" .?!\"'") or text
    tool = _SEARCH_TOOLS[0] if _ARCHIVAL.search(match["where"]) else _SEARCH_TOOLS[1]
    if tool in prompt.tools:
        return Reply(f"I should look that up with {tool}.", calls=(ToolCall(tool, {"query": query}),))
    return _recall(query, prompt)


def _edit(text: str, prompt: ChatPrompt) -> Reply | None:
    """Change a text in a block, or take out the line that the user wants forgotten."""
    change, forget = _CHANGE.match(text), _FORGET.match(text)
    tool = next((tool for tool in _REPLACE if tool in prompt.tools), None)
    for block in prompt.blocks if tool and (change or forget) else ():
        old = None
        if change and (found := re.search(re.escape(change["old"]), block.value, re.IGNORECASE)):
            old = found[0]
        elif forget and not block.about_agent:
            old = best_match(forget["what"], block.value.splitlines())
        if tool and old and not block.read_only:
            texts = zip(_REPLACE[tool], (old, change["new"] if change else ""), strict=True)
            call = ToolCall(tool, {"label": block.label, **dict(texts)})
            return Reply("I have to change my memory.", calls=(call,))
    return Reply("I find no such thing.", "I have nothing like that in my memory.") if forget else None


def _remember(text: str, prompt: ChatPrompt) -> Reply | None:
    fact = _fact_to_remember(text, prompt.previous_user_text)
    if fact is None and prompt.before_user and prompt.before_user[-1].text == _ASK_WHAT:
        fact = _statement(text) or None
    if fact is None:
        return None
    if not fact:
        return Reply("I cannot tell what is meant.", _ASK_WHAT)
    call = _add(prompt, _as_sentence(fact), text)
    if call is not None:
        return Reply("The user wants me to remember this; I will store it.", calls=(call,))
    if _is_known(fact, prompt):
        return Reply("That is in my memory already.", f"I know that already: {_as_sentence(fact)}")
    return Reply("I have no tool for this.", "I have no memory that I could write to.")


def _converse(text: str, prompt: ChatPrompt, identity: str) -> Reply:
    if match := _COUNT.search(text):
        numbers = range(1, min(int(match["number"]), _LONGEST_COUNT) + 1)
        return Reply("I will count.", " ".join(str(number) for number in numbers))
    if _ALL_KNOWN.search(text):
        facts = " ".join(map(_as_sentence, prompt.facts))
        text = f"I remember: {facts}" if facts else "I do not know anything about you yet."
        return Reply("I will say what is in my memory.", text)
    if _IDENTITY.search(text):
        return Reply("The user asks who I am.", f"I am {identity}, here to practise with.")
    if (match := _ECHO.search(text)) and not text.endswith("?"):
        quoted = _QUOTED.fullmatch(match["words"])
        return Reply("I am to say something.", quoted[1] if quoted else match["words"])
    if _QUESTION.search(text):
        return _recall(text, prompt)
    if _GREETING.search(text):
        return Reply("The user greets me.", "Hello! It is good to hear from you. What is on your mind?")
    return Reply("I am told something.", "Thank you for telling me. Is there anything you would like me to remember?")


def _recall(question: str, prompt: ChatPrompt) -> Reply:
    """Answer from the blocks about the user, from what the user said, or from the blocks about the agent."""
    for facts in (prompt.facts, _told(prompt), prompt.own_facts):
        if fact := best_match(question, facts):
            return Reply("I find that in my memory.", f"I remember: {_as_sentence(fact)}")
    return Reply("I find nothing about that.", "I do not know that yet. You can ask me to remember it.")


def _report_result(prompt: ChatPrompt) -> Reply:
    """Say how the last tool call ended."""
    result = [message for message in prompt.after_user if message.role == "tool"][-1]
    calls = [call for message in prompt.after_user for call in message.calls]
    call = calls[-1] if calls else ToolCall("", {})
    if call.name == "send_message":
        return Reply("I have answered already.", str(call.arguments.get("message", "Done.")))
    if result.failed:
        return Reply("The tool failed.", f"That did not work: {result.text[:300]}")
    if call.name in _SEARCH_TOOLS:
        # A search finds the question itself, too.
        facts = [text for text in result.found_texts() if not text.endswith("?") and text != prompt.user_text.strip()]
        fact = best_match(str(call.arguments.get("query", "")), facts)
        return Reply("I searched.", f"I found this: {fact}" if fact else "I looked, but I found nothing about that.")
    return Reply("The tool is done.", _RECEIPTS.get(call.name, "Done."))


def _tidy_memory(prompt: ChatPrompt) -> Reply:
    """As a sleep-time agent, store what the user told in the transcript, one fact in each step, then finish."""
    calls = [call for message in prompt.after_user for call in message.calls]
    if any(call.name == "memory_finish_edits" for call in calls):
        return Reply("The memory is in order.", "The memory is up to date.")
    stored = [str(value) for call in calls for value in call.arguments.values()]
    for previous, line in zip(["", *prompt.transcript], prompt.transcript, strict=False):
        fact = _fact_to_remember(line, previous)
        if fact is None and _PERSONAL.search(line) and not line.endswith("?"):
            fact = line
        if fact and not any(same_words(fact, other) for other in stored):
            call = _add(prompt, _as_sentence(fact), "")
            if call is not None:
                return Reply("This is worth keeping.", calls=(call,))
    return Reply("There is nothing more to store.", calls=(ToolCall("memory_finish_edits", {}),))


def _summary(prompt: ChatPrompt) -> str:
    lines: list[str] = []
    for text in prompt.transcript or [message.text for message in prompt.before_user if message.role == "user"]:
        # An earlier summary comes wrapped in JSON; its lines are kept.
        earlier = re.findall(f'{_SUMMARISED}([^\n"]+)', text.replace("\\n", "\n"))
        lines += [_SUMMARISED + line[:200] for line in (earlier if text.startswith("{") else [text])]
    return "\n".join(["Summary of the conversation so far.", *(lines or ["- Nothing of note was said."])])


def _fact_to_remember(text: str, previous: str) -> str | None:
    """Return the fact that the user wants remembered: None if there is no such order, empty if it names no fact.

    An order that only points to a fact ("remember that") means the sentence before it or after it, or one in the
    user's previous message.
    """
    text = text[:_LONGEST_MESSAGE]
    order = _REMEMBER.search(text)
    if order is None or (text.endswith("?") and not _POLITE_QUESTION.search(text[: order.start("fact")])):
        return None
    before = _LEAD_IN.sub("", text[: order.end("lead")])
    return _named_fact(order) or next(filter(None, map(_statement, (before, order["after"], previous))), "")


def _named_fact(order: re.Match[str]) -> str:
    """Return the fact in an order to remember; empty if the order only points to one."""
    return "" if _POINTER.fullmatch(re.sub(r"^\W+|\W+$", "", order["clause"])) else order["fact"].rstrip(" ?")


def _statement(text: str) -> str:
    """Return the last sentence of a text that is not a courtesy, if it states something; otherwise an empty text."""
    for sentence in reversed(list(sentences(text))):
        last = _COURTESY.sub("", sentence.strip(" ,;–—-"))
        order = _REMEMBER.match(last)
        fact = last if order is None else _named_fact(order)
        if len(re.findall(r"\w+", fact)) > 1:
            return "" if _OTHER_ORDER.match(fact) or fact.endswith("?") or len(fact) > _LONGEST_FACT else fact
    return ""


def _told(prompt: ChatPrompt) -> list[str]:
    """Return the user's facts so far, with later corrections applied."""
    facts: list[str] = []
    texts = [message.text[:20_000] for message in prompt.before_user if message.role in ("user", "system")]
    for sentence in (sentence for text in texts for sentence in sentences(text)):
        told = sentence.removeprefix(_SUMMARISED)
        if forget := _FORGET.match(told):
            forgotten = best_match(forget["what"], facts)
            facts = [fact for fact in facts if fact != forgotten]
        elif change := _CHANGE.match(told):
            facts = [fact.replace(change["old"], change["new"]) for fact in facts]
        elif not told.endswith("?") and not _OTHER_ORDER.match(told):
            ordered = _fact_to_remember(told, "")
            facts.append(told if ordered is None else ordered)
    return facts


def _is_known(fact: str, prompt: ChatPrompt) -> bool:
    return any(same_words(fact, known) for known in prompt.facts + prompt.own_facts)


def _add(prompt: ChatPrompt, fact: str, order: str) -> ToolCall | None:
    """Return the call that stores a fact where the user's order says; None if it is known or no tool can store it."""
    archive = (
        ToolCall("archival_memory_insert", {"content": fact}) if "archival_memory_insert" in prompt.tools else None
    )
    if archive and _ARCHIVAL.search(order):
        return archive
    if _is_known(fact, prompt):
        return None
    words = re.findall(r"[\w-]+", order.lower())
    writable = [block for block in prompt.blocks if not block.read_only]
    named = [block for block in writable if "block" in words and block.label.lower() in words]
    user = [block for block in writable if block.label in ("human", "user")]
    others = [block for block in writable if not block.about_agent]
    block = next(iter([*named, *user, *others, *writable]), None)
    tool = next((tool for tool in _ADD if tool in prompt.tools), None)
    return ToolCall(tool, {"label": block.label, _ADD[tool]: fact}) if block and tool else archive


def _as_sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop, without the bullet of a list."""
    text = text.strip().lstrip("-*• ").rstrip(".!")
    return text and text[0].upper() + text[1:] + ("" if text[-1] in "?…\"'" else ".")
