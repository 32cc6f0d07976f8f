"""`make bench`: that it measures, and writes what it measured under the promised names. All of it runs nightly."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import rotation
from bench.setup import Servers
from tests.support import migrated_database

PROJECT = Path(__file__).resolve().parents[2]


def test_a_subject_writes_its_figures_under_their_names(tmp_path: Path) -> None:
    """The cheapest subject, quickly: its figure stands in the table and in the file. How fast is not asked here."""
    kept = tmp_path / "bench.json"

    ran = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--only", "help", "--home", tmp_path, "--output", kept],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ran.returncode in (0, 1), ran.stderr
    assert "help_over_bare" in ran.stdout
    figures = json.loads(kept.read_text())
    assert list(figures) == ["help_over_bare"]
    assert figures["help_over_bare"] > 0


@pytest.mark.timeout(900)
def test_keys_are_rotated_under_load(letta_home: Path) -> None:
    """In the short form, too: no turn fails, and no vendor is sent a key that is not its own."""
    measured = asyncio.run(rotation.measure(Servers(letta_home, migrated_database.place), quick=True)).figures

    assert (measured["rotation_failed_turns"].value, measured["rotation_foreign_keys"].value) == (0, 0), measured
    assert {"loop_failed_turns", "loop_foreign_keys"} <= measured.keys()
