"""The process of the practice vendors: `python -m isabella.practice FOLDER`, started by `daemon`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from isabella.errors import PracticeError
from isabella.practice import keyring
from isabella.practice.server import Practice, listen
from isabella.system.terminal import guard_output


def main(folder: Path) -> None:
    """Serve until told to stop; the port, the token and the keys stand in files that only the owner may read.

    Raises:
        PracticeError: the port is taken, or the keys cannot be read.
    """
    state = json.loads((folder / "state.json").read_text())
    accepted = keyring.load(folder / "keys.json")
    if accepted is None:
        raise PracticeError(f"There is no {folder / 'keys.json'}.")
    practice = Practice(accepted, state["token"], lambda keys: keyring.save(folder / "keys.json", keys))
    practice.server().run([listen(state["port"])])


if __name__ == "__main__":
    guard_output()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        main(Path(sys.argv[1]))
    except PracticeError as error:
        sys.exit(str(error))
