"""The little language that the practice assistant knows: whose dog it is, and which fact answers a question."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_UNCHANGED_VERBS_TEXT = """
can could may might must shall should will would had did was went came said saw got made took gave found
used grew met won lost always never often usually also really just
"""
_UNCHANGED_VERBS = frozenset(_UNCHANGED_VERBS_TEXT.split())
_IRREGULAR_VERBS = {"am": "is", "'m": "is", "have": "has", "'ve": "has", "do": "does", "go": "goes"}
_IRREGULAR_BACK = {"has": "have", "does": "do", "goes": "go", "is": "are", "was": "were", "doesn't": "don't"}
_STOP_WORDS_TEXT = """
a an the and or but of to in on at for with from by as is are was were be been being am do does did done
have has had what whats which who whom whose where when why how that this these those it its i im me my mine
you your yours he she they them their his her we our us user users know remember recall tell told say said
please can could would will should called name named call about there here not no yes so if then than too
very just again now still already
"""
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
# A name by itself tells nothing of whom: it is no word to search for.
_NAME_OF_USER = re.compile(r"\b(?:my|the user's) name\b|\bwho am I\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def about_the_user(statement: str) -> str:
    """A statement of the user's as it is written down: "my dog is called Rex" is "The user's dog is called Rex."."""
    text = statement.strip().rstrip(".!")
    text = re.sub(r"\bI('m|'ve| am| have| do| go)\b", lambda m: f"the user {_verb(m[1].strip())}", text)
    text = re.sub(r"\bI (?!user)([\w']+)", lambda m: f"the user {_verb(m[1])}", text)
    text = re.sub(r"\bmine\b", "the user's", text, flags=re.IGNORECASE)
    text = re.sub(r"\bmy\b", "the user's", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(?:me|myself)\b", "the user", text)
    text = text.strip()
    if not text:
        return text
    ending = "" if text[-1] in ".!?…\"'" else "."
    return text[0].upper() + text[1:] + ending


def to_the_user(fact: str) -> str:
    """What is written down about the user as it is said to the user: "Your dog is called Rex."."""
    text = re.sub(r"^[-*•]\s*", "", fact.strip())
    text = re.sub(r"\bthe user's\b", "your", text, flags=re.IGNORECASE)
    text = re.sub(r"\bthe user ([\w']+)", lambda m: f"you {_verb_back(m[1])}", text, flags=re.IGNORECASE)
    text = re.sub(r"\bthe user\b", "you", text, flags=re.IGNORECASE)
    if not text:
        return text
    ending = "" if text[-1] in ".!?…\"'" else "."
    return text[0].upper() + text[1:] + ending


def sentences(text: str) -> list[str]:
    """The lines and sentences of a text, each of which may be a fact."""
    found = []
    for line in text.splitlines():
        found += [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[\"'A-Z0-9])", line) if part.strip()]
    return found


def best_match(question: str, facts: Iterable[str]) -> str | None:
    """The fact that shares most with a question; of equals the last, which is the newest. None where none shares."""
    wanted = _content(question)
    if not wanted:
        asks = _NAME_OF_USER.search(question)
        return next((fact for fact in reversed([*facts]) if asks and _NAME_OF_USER.search(fact)), None)
    best: str | None = None
    best_score = 0.0
    for fact in facts:
        words = _content(fact)
        shared = len(wanted & words)
        # Half a point off for words beyond the question keeps a long text from answering everything.
        score = shared - 0.01 * len(words - wanted)
        if shared and score >= best_score:
            best, best_score = fact, score
    return best


def same(one: str, other: str) -> bool:
    """Whether two statements are the same but for case, spacing and punctuation."""
    return _WORD.findall(one.lower()) == _WORD.findall(other.lower())


@lru_cache(maxsize=4096)
def _content(text: str) -> frozenset[str]:
    words = (word.removesuffix("'s") for word in _WORD.findall(text.lower()))
    return frozenset(_stem(word) for word in words if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)].removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word


def _verb(word: str) -> str:
    """The third person of a verb that stood after "I"."""
    lower = word.lower()
    if lower in _IRREGULAR_VERBS:
        return _IRREGULAR_VERBS[lower]
    if lower in _UNCHANGED_VERBS or lower.endswith(("ed", "'ll", "'d", "n't", "ly")):
        return word
    if lower.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{word}es"
    if lower.endswith("y") and lower[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def _verb_back(word: str) -> str:
    """The second person of a verb in the third."""
    lower = word.lower()
    if lower in _IRREGULAR_BACK:
        return _IRREGULAR_BACK[lower]
    if lower in _UNCHANGED_VERBS or not lower.endswith("s"):
        return word
    if lower.endswith("ies"):
        return f"{word[:-3]}y"
    if lower.endswith(("shes", "ches", "xes", "zes", "sses", "oes")):
        return word[:-2]
    return word[:-1]
