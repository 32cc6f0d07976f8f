"""The process of the practice vendors: `python -m isabella.practice FOLDER N`, on the listening socket N."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path

from isabella.errors import PracticeError
from isabella.practice.server import PracticeApp
from isabella.practice.vendor import load_or_make_keys, save_keys
from isabella.system.garbage import collect_rarely
from isabella.system.terminal import guard_output


def main(folder: Path, descriptor: int) -> None:
    """Serve until stopped; token and keys are in files that only the owner may read.

    Raises:
        PracticeError: the keys cannot be read.
    """
    state = json.loads((folder / "state.json").read_text())
    accepted = load_or_make_keys(folder / "keys.json")
    app = PracticeApp(accepted, state["token"], lambda keys: save_keys(folder / "keys.json", keys))
    app.server().run([socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    collect_rarely()
    guard_output()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except PracticeError as error:
        sys.exit(str(error))
