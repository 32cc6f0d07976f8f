"""A keyring in a file that fails as `KEYRING_FAULT` says; `PYTHON_KEYRING_BACKEND` names it."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import InitError, KeyringLocked


class FaultyKeyring(KeyringBackend):
    """A keyring for one entry, the file `KEYRING_FILE`."""

    priority = 1
    name = "the faulty keyring"

    def get_password(self, service: str, username: str) -> str | None:
        """Return the entry, or fail."""
        match os.environ.get("KEYRING_FAULT"):
            case "locked":
                raise KeyringLocked("Failed to unlock the collection!")
            case "dismissed":
                raise InitError("Failed to create the collection: Prompt dismissed..")
            case "asks":
                getpass.getpass("Password of the keyring: ")
            case "hangs":
                time.sleep(600)
            case "breaks":
                raise RuntimeError("the bus is gone\nTraceback: ...")
            case "dies":
                os._exit(3)
            case "prints":
                print("Loading the keyring ...")
            case "quotes":
                raise RuntimeError(f"cannot compare {Path(os.environ['KEYRING_FILE']).read_text()}")
        try:
            return Path(os.environ["KEYRING_FILE"]).read_text()
        except FileNotFoundError:
            return None

    def set_password(self, service: str, username: str, password: str) -> None:
        """Store the entry, unless it forgets it."""
        if os.environ.get("KEYRING_FAULT") != "forgets":
            Path(os.environ["KEYRING_FILE"]).write_text(password)
