"""The garbage collector in Isabella's own processes.

Their imports create many objects that stay. With Python's thresholds, the collector examines them several times while
they are made, in pauses of a tenth of a second while the process serves, and again when it ends. Together, that is a
quarter of the processor time of a short command.
"""

from __future__ import annotations

import atexit
import gc

#: Thresholds of the three generations; Python's are 700, 10 and 10.
THRESHOLDS = (20_000, 10, 20)


def collect_rarely() -> None:
    """Collect garbage rarely, and not when the process ends: its memory is freed anyway."""
    gc.set_threshold(*THRESHOLDS)
    atexit.register(gc.freeze)
