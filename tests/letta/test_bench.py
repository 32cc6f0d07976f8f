"""`make bench`: that it measures, and writes what it measured under the promised names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def bench(subject: str, home: Path, kept: Path, *, seconds: float) -> subprocess.CompletedProcess[str]:
    """Measure a subject quickly, as `make bench` does, and have the figures kept in a file."""
    return subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--only", subject, "--home", home, "--output", kept],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_a_subject_writes_its_figures_under_their_names(tmp_path: Path) -> None:
    """The cheapest subject, quickly: its figure stands in the table and in the file. How fast is not asked here."""
    kept = tmp_path / "bench.json"

    ran = bench("help", tmp_path, kept, seconds=120)

    assert ran.returncode in (0, 1), ran.stderr
    assert "help_over_bare" in ran.stdout
    figures = json.loads(kept.read_text())
    assert list(figures) == ["help_over_bare"]
    assert figures["help_over_bare"] > 0


@pytest.mark.timeout(900)
def test_keys_are_rotated_under_load(tmp_path: Path, letta_home: Path) -> None:
    """In the short form, too: no turn fails, and no vendor is sent a key that is not its own."""
    kept = tmp_path / "bench.json"

    ran = bench("rotation", letta_home, kept, seconds=880)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads(kept.read_text())
    assert (figures["rotation_failed_turns"], figures["rotation_foreign_keys"]) == (0, 0)
    assert {"loop_failed_turns", "loop_foreign_keys"} <= figures.keys()


@pytest.mark.timeout(900)
def test_the_gateway_is_measured(tmp_path: Path, letta_home: Path) -> None:
    """In the short form: with it no turn fails and no foreign key arrives; every kind of refusal is measured."""
    kept = tmp_path / "bench.json"

    ran = bench("gateway", letta_home, kept, seconds=880)

    # How fast it is, is not asked here.
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    figures = json.loads(kept.read_text())
    assert (figures["gateway_failed_turns"], figures["gateway_foreign_keys"]) == (0, 0), ran.stdout
    assert {"direct_failed_turns", "direct_foreign_keys", "gateway_unpaced_ratio"} <= figures.keys()
    assert 0 < figures["failover_seconds"] < 10
    assert 0 < figures["ending_seconds"] < 10
    assert figures["gateway_throughput_ratio"] > 0
    assert "gateway_ttft_ms" in figures
    assert not (letta_home / "bench-gateway").exists()
