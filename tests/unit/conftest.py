"""Fixtures that several modules of unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isabella.practice import PracticeVendors


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """Practice vendors for all tests of the module."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture
def without_faults(vendors: PracticeVendors) -> None:
    """Switch off what the test before has switched on; for `usefixtures`."""
    vendors.clear()
    vendors.forget()
