"""How the providers stood when somebody looked last: a small file, so that every command can tell since when."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from isabella.files import write_private
from isabella.providers.condition import Conditions, HealthState, ProviderHealth


class HealthFile:
    """The conditions of one Letta's providers on the disk. There is no key in it.

    Args:
        home: Isabella's home.
        base_url: which Letta.
    """

    def __init__(self, home: Path, base_url: str) -> None:
        self._path = home / "conditions" / f"{hashlib.sha256(base_url.encode()).hexdigest()[:16]}.json"

    def read(self) -> dict[str, ProviderHealth]:
        """What was written last; nothing where there is no file, or it is damaged."""
        try:
            document = json.loads(self._path.read_text())
            return {
                str(name): ProviderHealth(
                    HealthState(entry["condition"]),
                    str(entry["reason"]),
                    datetime.fromisoformat(entry["since"]),
                    remedy=entry.get("remedy"),
                    basis=entry.get("basis"),
                    asked=datetime.fromisoformat(entry["asked"]) if entry.get("asked") else None,
                )
                for name, entry in document["providers"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def write(self, conditions: Conditions) -> None:
        """Write them down. Where that cannot be, only times and what the last sync has found out are lost."""
        document = {name: _written(one) for name, one in conditions.items()}
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, json.dumps({"version": 1, "providers": document}))


def _written(one: ProviderHealth) -> dict[str, str]:
    outcome = {
        "remedy": one.remedy,
        "basis": one.basis,
        "asked": None if one.asked is None else one.asked.isoformat(),
    }
    found = {"condition": one.kind.value, "reason": one.reason, "since": one.since.isoformat()}
    return found | {name: value for name, value in outcome.items() if value is not None}
