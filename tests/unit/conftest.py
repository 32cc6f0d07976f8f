"""Fixtures that several modules of unit tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isabella.practice import PracticeVendors


@pytest.fixture(autouse=True, scope="session")
def _home_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings without a home use one that is empty: that of the user may have a gateway that runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


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
