"""What Isabella does on each release of Letta, tried on the real one: `make compat`.

Every release is installed, runs on a Postgres of its own, and is gone through case by case. What came out is written
into `docs/compatibility.md`.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
