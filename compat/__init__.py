"""Compatibility with each release of Letta, tested on the real server: `make compat`.

Each release is installed, runs on its own Postgres, and passes through all cases. The results are written into
`docs/compatibility.md`.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
