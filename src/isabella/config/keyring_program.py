"""The process that reads or stores an entry of the keyring: `python -m isabella.config.keyring_program`.

It gets a JSON object with `service`, `username` and, to store it, `key`; and prints one with `keyring` and `key`, or
with `failure`, the end of a sentence, and `remedy`, both packed.
"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from isabella.system.english import english, packed

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

UNLOCK = english("Unlock the keyring in your desktop session; Isabella asks it again by itself.")
DIAGNOSE = english("Check it with `keyring diagnose`.")
_LONGEST = 200


class _Failure(Exception):
    """There is no key. The first argument is the end of a sentence, the second the remedy."""


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    # A backend may print; the answer must be the only text on standard output.
    with redirect_stdout(sys.stderr):
        try:
            answer = _answer(request["service"], request["username"], request.get("key"))
        except _Failure as failure:
            answer = dict(zip(("failure", "remedy"), map(packed, failure.args), strict=True))
    json.dump(answer, sys.stdout)


def _answer(service: str, username: str, key: str | None) -> dict[str, object]:
    try:
        import keyring
        from keyring import errors
    except ModuleNotFoundError as error:
        raise _Failure(
            english("the package %(name)s is not installed", name=error.name),
            english("Run: %(command)s", command="pip install 'isabella[keyring]'"),
        ) from None
    try:
        backend = keyring.get_keyring()
    except Exception as error:  # noqa: BLE001 - a backend is any code that the user has named
        remedy = english("Correct PYTHON_KEYRING_BACKEND or keyringrc.cfg; `keyring diagnose` names that file.")
        raise _Failure(english("its backend cannot be loaded (%(why)s)", why=_shown(error)), remedy) from None
    try:
        if key is not None:
            backend.set_password(service, username, key)
        found = backend.get_password(service, username)
    except errors.NoKeyringError:
        remedy = english(
            "Start GNOME Keyring, KWallet or another Secret Service, or keep the key in a file or a vault."
        )
        raise _Failure(english("this machine has no keyring that a program can use here"), remedy) from None
    except (errors.KeyringLocked, errors.InitError, EOFError) as error:
        why = english("the keyring is locked and was not unlocked (%(why)s)", why=_shown(error))
        raise _Failure(why, UNLOCK) from None
    except Exception as error:  # noqa: BLE001 - as above
        why = english("%(keyring)s failed (%(why)s)", keyring=_name(backend), why=_shown(error))
        raise _Failure(why, DIAGNOSE) from None
    if found is None:
        remedy = english("Store it: %(command)s", command=shlex.join(["keyring", "set", service, username]))
        why = english(
            "%(keyring)s has no entry of service %(service)s and user name %(username)s",
            keyring=_name(backend),
            service=repr(service),
            username=repr(username),
        )
        raise _Failure(why, remedy)
    if key is not None and found != key:
        raise _Failure(
            english("%(keyring)s returns a key other than the one that was stored", keyring=_name(backend)), DIAGNOSE
        )
    return {"keyring": _name(backend), "key": found}


def _name(backend: KeyringBackend) -> str:
    """Return the name of a keyring; several in a chain have none of their own."""
    return english("the desktop's keyring") if hasattr(backend, "backends") else backend.name


def _shown(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"[:_LONGEST].removesuffix(": ")


if __name__ == "__main__":
    main()
