"""The keys that the practice vendors accept: obvious fakes, of the vendors' own forms."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from isabella.errors import PracticeError
from isabella.practice.profiles import NAMES, profile
from isabella.system.files import write_private

_ALPHABET = string.ascii_lowercase + string.digits
_RANDOM_CHARACTERS = 32


def new_key(vendor: str) -> str:
    """A key that looks like the vendor's, and that no vendor outside this program accepts."""
    characters = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    return profile(vendor).key_form.replace("%", characters)


def new_keys() -> dict[str, list[str]]:
    """One new key for each vendor."""
    return {name: [new_key(name)] for name in NAMES}


def load(path: Path) -> dict[str, list[str]] | None:
    """The accepted keys of each vendor from a file; None where there is no file.

    Raises:
        PracticeError: the file cannot be read or is damaged.
    """
    try:
        data = json.loads(path.read_text())
        return {name: [str(key) for key in data["accepted"][name]] for name in NAMES}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PracticeError(
            f"The practice vendors' keys in {path} cannot be read ({type(error).__name__}).",
            remedy="Delete the file; new practice keys are made at the next start.",
        ) from None


def save(path: Path, accepted: Mapping[str, Sequence[str]]) -> None:
    """Write the accepted keys of each vendor to a file that only its owner may read."""
    write_private(path, json.dumps({"accepted": {name: list(accepted[name]) for name in NAMES}}, indent=2) + "\n")
