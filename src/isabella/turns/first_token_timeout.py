"""The time limit of a vendor's first token, beyond `ISABELLA_FIRST_TOKEN_TIMEOUT`.

A model reads the whole prompt before it begins. A local one may read a hundred tokens per second or fewer, so a long
prompt takes minutes. A vendor that is given up too early fails at every turn; one that is dead should not be waited
for, at least if another one could answer.
"""

from __future__ import annotations

from collections import deque

#: The assumed speeds, in tokens per second, of a vendor that was not measured: one on the internet; a server on this
#: machine or in the house if another vendor could answer; and such a server if none could.
REMOTE, LOCAL, LOCAL_ALONE = 1000.0, 100.0, 20.0
#: The longest additional wait in seconds.
LONGEST = 900.0

#: A prompt whose beginning the server still knows is read many times as fast, so the slowest of these counts.
_KEPT = 20
#: A busy machine may be this many times slower than it was.
_MARGIN = 3.0


class ReadingSpeeds:
    """The speeds at which models read their prompts, by handle, measured in the turns of this process."""

    def __init__(self) -> None:
        self._measured: dict[str, deque[float]] = {}

    def note(self, handle: str, prompt_tokens: int, seconds: float) -> None:
        """Note that a model began its answer to a prompt of this length after this time."""
        if prompt_tokens > 0 and seconds > 0:
            self._measured.setdefault(handle, deque(maxlen=_KEPT)).append(prompt_tokens / seconds)

    def longer(self, handle: str, prompt_tokens: int, *, local: bool, alone: bool) -> float:
        """Return the additional seconds to wait for a model.

        Args:
            handle: the model.
            prompt_tokens: the length of the prompt.
            local: whether it runs on this machine or in the house.
            alone: whether no other vendor could answer this turn.
        """
        measured = self._measured.get(handle)
        assumed = REMOTE if not local else (LOCAL_ALONE if alone else LOCAL)
        return min(prompt_tokens / (min(measured) / _MARGIN if measured else assumed), LONGEST)
