"""Putting away the journal of a changed master key: which key is kept then, and which is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.embedded import rekeying, vault
from isabella.embedded.layout import InstancePaths, make_private
from isabella.embedded.rekeying import RotationJournal
from isabella.embedded.steps import no_progress

KEPT, CONFIGURED = SecretStr("a1" * 32), SecretStr("b2" * 32)


@pytest.fixture
def layout(tmp_path: Path) -> InstancePaths:
    """An instance with a kept key, whose change to a configured one was cut off."""
    layout = InstancePaths(tmp_path)
    make_private(layout.folder)
    layout.master_key_file.write_text(KEPT.get_secret_value() + "\n")
    rekeying.begin(layout, CONFIGURED, [KEPT], kept=False)
    return layout


def test_a_configured_key_that_was_taken_back_leaves_the_kept_one(layout: InstancePaths) -> None:
    """Letta was started under the kept key again, so that key stays known when the journal is put away."""
    rekeying.settle(layout, KEPT, no_progress, started=True)
    assert RotationJournal.load(layout) is None
    assert vault.load_secret(layout.master_key_file) == KEPT
    assert rekeying.known_keys(layout) == [KEPT]


@pytest.mark.parametrize("started", [True, False])
def test_under_the_configured_key_the_kept_one_goes(layout: InstancePaths, started: bool) -> None:
    """When the change is done, the configuration has the key, and the kept one opens nothing any more."""
    rekeying.settle(layout, CONFIGURED, no_progress, started=started)
    assert RotationJournal.load(layout) is None
    assert not layout.master_key_file.exists()
    assert rekeying.known_keys(layout, CONFIGURED) == [CONFIGURED]


def test_a_change_that_had_not_begun_is_dropped_with_its_key(layout: InstancePaths) -> None:
    """Letta ran under the kept key all the time: nothing is sealed under the other one."""
    rekeying.settle(layout, KEPT, no_progress, started=False)
    assert RotationJournal.load(layout) is None
    assert rekeying.known_keys(layout) == [KEPT]
