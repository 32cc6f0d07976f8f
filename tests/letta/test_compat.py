"""The cases of `make compat`, on the release that the other tests run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compat import table
from compat.cases import OPEN, SEALING
from compat.target import Target, open_target
from isabella.embedded import Letta
from isabella.practice import PracticeVendors


@pytest.fixture(scope="module")
def opened(empty_letta: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The session's Letta as a target, emptied: the doctor checks everything in it."""
    with PracticeVendors() as vendors, open_target(empty_letta, vendors, tmp_path_factory.mktemp("compat")) as found:
        yield found


@pytest.mark.parametrize("title", SEALING)
def test_a_case_comes_out_as_the_table_says(opened: Target, title: str) -> None:
    """What Letta holds is proven or explained, and the docs tell the same of this release."""
    assert SEALING[title](opened) == table.read()[opened.letta.version][title]


def test_the_table_is_whole() -> None:
    """It has every case on every release, and none that failed."""
    from compat.__main__ import RELEASES

    results = table.read()
    assert tuple(results) == RELEASES
    for release, came in results.items():
        assert list(came) == [*SEALING, *OPEN], release
        assert not [title for title, what in came.items() if what.startswith(table.FAILED)], release
