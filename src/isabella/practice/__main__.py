"""The process of the practice vendors: `python -m isabella.practice FOLDER`, started by `daemon`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from isabella.errors import PracticeError
from isabella.practice.server import PracticeApp, listen
from isabella.practice.vendor import load_keys, save_keys
from isabella.system.terminal import guard_output


def main(folder: Path) -> None:
    """Serve until stopped; port, token and keys are in files that only the owner may read.

    Raises:
        PracticeError: the port is taken, or the keys cannot be read.
    """
    state = json.loads((folder / "state.json").read_text())
    accepted = load_keys(folder / "keys.json")
    if accepted is None:
        raise PracticeError(f"There is no {folder / 'keys.json'}.")
    app = PracticeApp(accepted, state["token"], lambda keys: save_keys(folder / "keys.json", keys))
    app.server().run([listen(state["port"])])


if __name__ == "__main__":
    guard_output()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        main(Path(sys.argv[1]))
    except PracticeError as error:
        sys.exit(str(error))
