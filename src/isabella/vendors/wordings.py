"""Why a vendor refuses a request, recognised by its words: the table in `wordings.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from importlib import resources


class Reason(StrEnum):
    """The reason for a refusal."""

    CONTEXT_OVERFLOW = "context_overflow"
    TOKENS_PER_PERIOD = "tokens_per_period"
    KEY_REFUSED = "key_refused"
    MODEL_UNKNOWN = "model_unknown"
    OUT_OF_FUNDS = "out_of_funds"
    TOOLS_REFUSED = "tools_refused"
    TOOL_CALL_MALFORMED = "tool_call_malformed"
    TOOL_CALL_ID_REFUSED = "tool_call_id_refused"
    MESSAGE_ORDER_REFUSED = "message_order_refused"


@cache
def wordings() -> Mapping[Reason, tuple[re.Pattern[str], ...]]:
    """Return the patterns of each reason."""
    table = tomllib.loads(resources.files(__package__).joinpath("wordings.toml").read_text("utf-8"))
    return {Reason(name): tuple(re.compile(one, re.IGNORECASE) for one in table[name]) for name in table}


def match_reason(reason: Reason, words: str) -> re.Match[str] | None:
    """Return the first match of a reason in a vendor's words."""
    return next((match for pattern in wordings()[reason] if (match := pattern.search(words))), None)
