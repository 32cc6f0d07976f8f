"""What Isabella does on each release of Letta, tried on the real one: `make compat`.

Every release is installed, runs on a Postgres of its own, and is gone through case by case. What came out is written
into `docs/compatibility.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What the tests plant and seal with serves here, too.
_TESTS = str(ROOT / "tests")
if _TESTS not in sys.path:
    sys.path.append(_TESTS)
