"""What the walks share: the real Letta, and the trail that they go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isabella.embedded import Letta
from tests.support.fault_injection import Trail, open_trail


@pytest.fixture(scope="module")
def trail(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trail]:
    """The real Letta, and where a walk leaves its traces."""
    with open_trail(letta_server, tmp_path_factory.mktemp("walk")) as opened:
        yield opened
