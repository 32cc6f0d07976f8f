"""Keys in the desktop's keyring, by the package `keyring`, which the extra `isabella[keyring]` installs.

A locked keyring may open a dialog and wait for it, so an entry is read and stored by a separate process
(`keyring_program`), which is ended at its time limit. A key passes through pipes, never through an argument.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from isabella.config.key_commands import SECONDS, Failed, TimedOut, output
from isabella.config.keyring_program import DIAGNOSE, UNLOCK
from isabella.system.english import english, unpacked
from isabella.system.redaction import remember

_STORING_SECONDS = 120.0  # a person may have to type the password of the keyring
_PROGRAM = [sys.executable, "-P", "-m", "isabella.config.keyring_program"]


@dataclass(frozen=True)
class KeyringEntry:
    """An entry of the keyring, as `SERVICE/USERNAME`."""

    service: str
    username: str

    @classmethod
    def parse(cls, text: str) -> KeyringEntry:
        """Return the entry of a setting; raise `ValueError`. A service may have slashes in it."""
        service, _, username = text.strip().rpartition("/")
        if not service or not username:
            raise ValueError(english("it must be SERVICE/USERNAME, such as isabella/groq"))
        return cls(service, username)

    def __str__(self) -> str:
        return f"{self.service}/{self.username}"

    def key(self) -> str:
        """Return the key; raise `Failed`."""
        return str(self._ask({}, SECONDS)["key"])

    def store(self, key: str) -> str:
        """Store a key, read it back, and return the name of the keyring; raise `Failed`."""
        remember(key)
        return str(self._ask({"key": key}, _STORING_SECONDS)["keyring"])

    def _ask(self, request: dict[str, str], seconds: float) -> dict[str, Any]:
        request = {"service": self.service, "username": self.username, **request}
        try:
            printed = output(
                _PROGRAM, name=english("the keyring"), given=json.dumps(request).encode(), seconds=seconds
            )
        except TimedOut:
            reason = english(
                "the keyring has not answered within %(seconds)s s; it may be locked and wait for its password",
                seconds=format(seconds, "g"),
            )
            raise Failed(reason, UNLOCK) from None
        except Failed as failed:
            raise Failed(failed.reason, DIAGNOSE) from None
        answer: dict[str, Any] = json.loads(printed)
        if "failure" in answer:
            raise Failed(unpacked(answer["failure"]), unpacked(answer["remedy"]))
        return answer
