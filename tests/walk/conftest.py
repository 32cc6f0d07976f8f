"""What the walks share: the real Letta, and the env that they go."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest

from isabella.embedded import Letta
from isabella.letta import encryption
from tests.support.fault_injection import WalkEnv, open_walk_env


@pytest.fixture(autouse=True, scope="module")
def _derived_once() -> Iterator[None]:
    """Keep derived keys: a walk decrypts the same values hundreds of times, and each key takes 15 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "_derived", lru_cache(maxsize=1000)(encryption._derived))
        yield


@pytest.fixture(scope="module")
def env(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalkEnv]:
    """The real Letta, and where a walk leaves its traces."""
    with open_walk_env(letta_server, tmp_path_factory.mktemp("walk")) as opened:
        yield opened
