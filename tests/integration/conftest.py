"""What the walks share: the real Letta, and the trail that they go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from planting import ground
from walking import Trail

from isabella.embedded import Letta
from isabella.practice import PracticeVendors


@pytest.fixture(scope="module")
def trail(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trail]:
    """The real Letta, and where a walk leaves its traces."""
    with PracticeVendors() as vendors, ground(letta_server) as opened:
        found = Trail(opened, vendors, tmp_path_factory.mktemp("walk"))
        found.clear()
        yield found
        found.clear()
