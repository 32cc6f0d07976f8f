"""Putting away the journal of a changed master key: which key is kept then, and which is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.embedded import instance, key_rotation
from isabella.embedded.instance import InstancePaths, make_private
from isabella.embedded.key_rotation import RotationJournal
from isabella.embedded.progress import no_progress

KEPT, CONFIGURED = SecretStr("a1" * 32), SecretStr("b2" * 32)


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    """An instance with a kept key, whose change to a configured one was cut off."""
    paths = InstancePaths(tmp_path)
    make_private(paths.folder)
    paths.master_key_file.write_text(KEPT.get_secret_value() + "\n")
    key_rotation.begin(paths, CONFIGURED, [KEPT], kept=False)
    return paths


def test_a_configured_key_that_was_taken_back_leaves_the_kept_one(paths: InstancePaths) -> None:
    """Letta was started under the kept key again, so that key stays known when the journal is put away."""
    key_rotation.finish(paths, KEPT, no_progress, started=True)
    assert RotationJournal.load(paths) is None
    assert instance.load_secret(paths.master_key_file) == KEPT
    assert key_rotation.known_keys(paths) == [KEPT]


@pytest.mark.parametrize("started", [True, False])
def test_under_the_configured_key_the_kept_one_goes(paths: InstancePaths, started: bool) -> None:
    """When the change is done, the configuration has the key, and the kept one opens nothing any more."""
    key_rotation.finish(paths, CONFIGURED, no_progress, started=started)
    assert RotationJournal.load(paths) is None
    assert not paths.master_key_file.exists()
    assert key_rotation.known_keys(paths, CONFIGURED) == [CONFIGURED]


def test_a_change_that_had_not_begun_is_dropped_with_its_key(paths: InstancePaths) -> None:
    """Letta ran under the kept key all the time: nothing is sealed under the other one."""
    key_rotation.finish(paths, KEPT, no_progress, started=False)
    assert RotationJournal.load(paths) is None
    assert key_rotation.known_keys(paths) == [KEPT]
