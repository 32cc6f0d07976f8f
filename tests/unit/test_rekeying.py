"""Putting away the journal of a changed master key: which key is kept then, and which is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.embedded import key_rotation, secrets
from isabella.embedded.key_rotation import RotationJournal
from isabella.embedded.paths import InstancePaths, make_private
from isabella.embedded.progress import no_progress

KEPT, CONFIGURED = SecretStr("a1" * 32), SecretStr("b2" * 32)


@pytest.fixture
def layout(tmp_path: Path) -> InstancePaths:
    """An instance with a kept key, whose change to a configured one was cut off."""
    layout = InstancePaths(tmp_path)
    make_private(layout.folder)
    layout.master_key_file.write_text(KEPT.get_secret_value() + "\n")
    key_rotation.begin(layout, CONFIGURED, [KEPT], kept=False)
    return layout


def test_a_configured_key_that_was_taken_back_leaves_the_kept_one(layout: InstancePaths) -> None:
    """Letta was started under the kept key again, so that key stays known when the journal is put away."""
    key_rotation.settle(layout, KEPT, no_progress, started=True)
    assert RotationJournal.load(layout) is None
    assert secrets.load_secret(layout.master_key_file) == KEPT
    assert key_rotation.known_keys(layout) == [KEPT]


@pytest.mark.parametrize("started", [True, False])
def test_under_the_configured_key_the_kept_one_goes(layout: InstancePaths, started: bool) -> None:
    """When the change is done, the configuration has the key, and the kept one opens nothing any more."""
    key_rotation.settle(layout, CONFIGURED, no_progress, started=started)
    assert RotationJournal.load(layout) is None
    assert not layout.master_key_file.exists()
    assert key_rotation.known_keys(layout, CONFIGURED) == [CONFIGURED]


def test_a_change_that_had_not_begun_is_dropped_with_its_key(layout: InstancePaths) -> None:
    """Letta ran under the kept key all the time: nothing is sealed under the other one."""
    key_rotation.settle(layout, KEPT, no_progress, started=False)
    assert RotationJournal.load(layout) is None
    assert key_rotation.known_keys(layout) == [KEPT]
