"""Sessions of browsers, and the links that begin one. Both belong to one token: a new token ends them all."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr, TypeAdapter, ValidationError

from isabella.system import audit, state

ID_SHOWN = 8  #: characters of a session's id in the audit log
SESSION_SECONDS = 90 * 24 * 3600.0
LINK_SECONDS = 600.0
FIRST_LINK_SECONDS = 3600.0  #: of the link that is printed with a new token

_MOST_SESSIONS = 50
_LONGEST_TEXT = 200
#: A later use is not recorded before so many seconds have passed.
_SEEN_SECONDS = 300.0


@dataclass(frozen=True)
class Session:
    """A signed-in browser. Times are seconds since the epoch.

    Attributes:
        id: the digest of its cookie.
        browser: what the browser calls itself.
        address: the address that it signed in from.
    """

    id: str
    browser: str
    address: str
    created: float
    seen: float
    expires: float


@dataclass(frozen=True)
class _Stored:
    """The content of the file: `key` identifies the token, `used` has the expiry of each link that was used."""

    key: str
    sessions: list[Session]
    used: dict[str, float]


_STORED = TypeAdapter(_Stored)


class Sessions:
    """The sessions under a token.

    Args:
        token: the token.
        file: keeps the sessions across restarts; None keeps them in memory only.
        now: the clock.
    """

    def __init__(self, token: SecretStr, file: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._token = token
        self._file = file
        self._now = now
        self._key = _signature(token, "sessions")
        stored = _load(file) if file is not None else None
        if stored is None or not hmac.compare_digest(stored.key.encode(), self._key.encode()):
            stored = _Stored(self._key, [], {})
        self._sessions = {session.id: session for session in stored.sessions}
        self._used = dict(stored.used)
        self.on_end: Callable[[str], None] = lambda _id: None  #: is called with the id of a session that has ended

    def begin(self, browser: str, address: str) -> str:
        """Begin a session and return the value of its cookie, which is not stored."""
        cookie, now = secrets.token_urlsafe(32), self._now()
        session = Session(
            _digest(cookie), browser[:_LONGEST_TEXT], address[:_LONGEST_TEXT], now, now, now + SESSION_SECONDS
        )
        self._sessions[session.id] = session
        with self._recorded("session.begun", session):
            for oldest in self.all()[_MOST_SESSIONS:]:
                self.end(oldest.id)
            self._save()
        return cookie

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if there is none, or it is over."""
        session, now = self._sessions.get(_digest(cookie)), self._now()
        if session is None:
            return None
        if session.expires <= now:
            self._remove(session.id)
            return None
        if now - session.seen >= _SEEN_SECONDS:
            session = self._sessions[session.id] = replace(session, seen=now)
            self._save()
        return session

    def all(self) -> list[Session]:
        """Return the sessions, the last used one first."""
        now = self._now()
        current = [session for session in self._sessions.values() if session.expires > now]
        return sorted(current, key=lambda session: (session.seen, session.created), reverse=True)

    def end(self, id: str) -> None:
        """End a session, if there is one of this id."""
        if (session := self._sessions.get(id)) is not None:
            with self._recorded("session.ended", session):
                self._remove(id)

    def _remove(self, id: str) -> None:
        del self._sessions[id]
        self._save()
        self.on_end(id)

    def _recorded(self, change: str, session: Session) -> AbstractContextManager[Any]:
        if self._file is None:
            return nullcontext()
        about = {"browser": session.browser, "address": session.address}
        return audit.change(change, session.id[:ID_SHOWN], home=self._file.parent, **about)

    def use_link(self, code: str) -> bool:
        """Return whether a browser may sign in with the code of a link, which it can do only once."""
        now = self._now()
        expiry, _, rest = code.partition(".")
        nonce, _, signature = rest.partition(".")
        if not equal(signature, _signature(self._token, f"link {expiry}.{nonce}")) or float(expiry) <= now:
            return False
        self._used = {used: end for used, end in self._used.items() if end > now}
        if nonce in self._used:
            return False
        self._used[nonce] = float(expiry)
        self._save()
        return True

    def _save(self) -> None:
        if self._file is None:
            return
        state.keep(self._file, asdict(_Stored(self._key, [*self._sessions.values()], self._used)))


def login_link(address: str, token: SecretStr, seconds: float = LINK_SECONDS) -> str:
    """Return a link that signs one browser in to the backend at an address, once, for so many seconds."""
    code = f"{int(time.time() + seconds)}.{secrets.token_urlsafe(12)}"
    return f"{address}/login?code={code}.{_signature(token, f'link {code}')}"


def _signature(token: SecretStr, text: str) -> str:
    return hmac.new(_encoded(token.get_secret_value()), _encoded(f"isabella {text}"), hashlib.sha256).hexdigest()


def _digest(cookie: str) -> str:
    return hashlib.sha256(_encoded(cookie)).hexdigest()


def equal(candidate: str, secret: str) -> bool:
    """Compare in constant time. The candidate may be any text, half of a surrogate pair included."""
    return hmac.compare_digest(_encoded(candidate), _encoded(secret))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _load(file: Path) -> _Stored | None:
    document = state.load(file)
    if not document:
        return None
    try:
        return _STORED.validate_python(document)
    except ValidationError:
        state.report_fields(file)
        return None
