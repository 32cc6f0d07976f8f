"""The random part of the keys that Isabella makes up, for tests that repeat a sync and need the same requests."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

TokenHex = Callable[[int], str]


@contextmanager
def use_tokens(token_hex: TokenHex) -> Iterator[None]:
    """Have a sync call this in place of `secrets.token_hex`."""
    source = SimpleNamespace(token_hex=token_hex)
    with (
        patch("isabella.providers.apply.secrets", source),
        patch("isabella.providers.safe_writes.secrets", source),
    ):
        yield


def tokens_from(seed: str) -> TokenHex:
    """Return a source of tokens that yields the same ones, in the same order, for the same seed."""
    numbers = itertools.count()

    def token_hex(size: int) -> str:
        return hashlib.sha256(f"{seed} {next(numbers)}".encode()).hexdigest()[: 2 * size]

    return token_hex
