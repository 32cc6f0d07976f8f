"""What the walks share: the real Letta, and the env that they go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isabella.embedded import Letta
from tests.support.fault_injection import WalkEnv, open_walk_env
from tests.support.letta_encryption import derived_once


@pytest.fixture(autouse=True, scope="module")
def _derived_once() -> Iterator[None]:
    """A walk decrypts the same values hundreds of times."""
    with derived_once():
        yield


@pytest.fixture(scope="module")
def env(empty_letta: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalkEnv]:
    """The real Letta without anything of other tests, and where a walk leaves its traces."""
    with open_walk_env(empty_letta, tmp_path_factory.mktemp("walk")) as opened:
        yield opened
