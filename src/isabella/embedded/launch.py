"""What the interpreter of a Letta release is started with: `launch.py --instance FOLDER {migrate | server …}`.

This file runs in Letta's environment, not in Isabella's: it imports nothing of Isabella. It does what the
commands `alembic upgrade head` and `letta server` do, with these differences:

- The folder in the arguments is a mark by which Isabella finds the process again, should she have been killed
  before she could write its pid down.
- Letta prints its server password when it starts, and its migrations print the database's. What it prints is
  cleared of the secrets in its environment.
- Garbage collection rests while Letta is imported. Importing makes some million objects that all stay, and looking
  through them again and again is a third of the time.
- At its start Letta fetches data for a tokenizer that it does not use (`nltk`), from a public server and without a
  time limit. A machine without a way out would wait for it, and nobody asked for it: it is left out.
- Once the server has shut down, the process ends at once: taking a million objects apart first takes seconds.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from typing import Any
from urllib.parse import urlsplit


class RedactedStream:
    """A text stream that lets no secret through."""

    def __init__(self, stream: Any, secrets: list[str]) -> None:
        self._stream = stream
        self._secrets = secrets

    def write(self, text: str) -> int:
        """Write the text without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return int(self._stream.write(text))

    def writelines(self, lines: list[str]) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secrets() -> list[str]:
    """The secrets in this process's environment."""
    environ = os.environ
    database = urlsplit(environ.get("LETTA_PG_URI", "")).password
    found = [environ.get("LETTA_SERVER_PASSWORD"), environ.get("LETTA_ENCRYPTION_KEY"), database]
    found += [value for name, value in environ.items() if name.endswith("_API_KEY")]
    return [secret for secret in found if secret]


def main(arguments: list[str]) -> None:
    """Run one of the two programs; the arguments are those after the script's name."""
    os.umask(0o077)
    option, _folder, role, *rest = arguments
    if option != "--instance":
        sys.exit("launch.py is started by Isabella.")
    sys.stdout = RedactedStream(sys.stdout, secrets())
    sys.stderr = RedactedStream(sys.stderr, secrets())
    gc.disable()
    if role == "migrate":
        sys.argv = ["alembic", "upgrade", "head"]
        importlib.import_module("alembic.config").main()
        return
    with contextlib.suppress(ImportError):
        vars(importlib.import_module("nltk"))["download"] = lambda *_arguments, **_options: True
    # `letta server` looks at sys.argv in several places while it is imported.
    sys.argv = ["letta", "server", *rest]
    importlib.import_module("letta.server.rest_api.app")
    gc.collect()
    gc.freeze()
    gc.enable()
    code: Any = 0
    try:
        importlib.import_module("letta.main").app()
    except SystemExit as exit_:
        code = exit_.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    main(sys.argv[1:])
