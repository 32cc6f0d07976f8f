"""The audit log: who changed a key, an agent or a setting, and when. JSON Lines in `ISABELLA_HOME/audit`.

A change is a block of code. The first write within it appends a line with the outcome `begun`, before anything is
sent; its end appends a second line with the same id, and the outcome `done` or `failed`. A line that was begun and
has no second one is of a process that was killed meanwhile.

A file is only appended to. A full one is renamed by its time, and the oldest ones are deleted.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog

from isabella.errors import FileAbsent
from isabella.system import files, redaction, state

log = structlog.get_logger()

Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])

FOLDER = "audit"
_CURRENT = "audit.jsonl"
_LARGEST = 8 * 1024 * 1024  # of a file, in bytes
_LARGEST_READ = 64 * 1024 * 1024
_KEPT = 12  # how many full files are kept
_LONGEST_TEXT = 500


class ActorKind(StrEnum):
    """The way a change was requested."""

    OPERATOR = "operator"  # at a terminal, with the rights of a user of this machine
    SESSION = "session"  # a browser that has signed in
    TOKEN = "token"  # noqa: S105 - a program with the backend's token
    CLIENT = "client"  # a client that has shown nothing yet: it is signing in
    JOB = "job"  # the backend by itself, at a time
    WATCHER = "watcher"  # the backend, because a file was changed or Letta held something else
    APPLICATION = "application"  # a program that embeds Isabella, and decides about access by itself


@dataclass(frozen=True)
class Actor:
    """The actor of a change.

    Attributes:
        name: the user of this machine, the beginning of a session's id, or the job.
        address: where a request came from.
        via: the command or the request.
    """

    kind: ActorKind
    name: str = ""
    address: str = ""
    via: str = ""


class ChangeOutcome(StrEnum):
    """The outcome of a change."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Entry:
    """A line of the log.

    Attributes:
        at: ISO 8601, in UTC.
        id: the same for both lines of a change.
        change: `agent.created`, for instance.
        subject: the name of the agent, the provider, or the file.
        details: facts about the change, without texts of users; keys as prefix and last four characters.
        error: why it failed.
    """

    at: str
    id: str
    change: str
    subject: str
    outcome: ChangeOutcome
    actor: Actor
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the entry as it is stored, without empty fields."""
        document = asdict(self)
        document["actor"] = {name: value for name, value in document["actor"].items() if value}
        return {name: value for name, value in document.items() if value}

    @classmethod
    def read(cls, line: str) -> Entry | None:
        """Return the entry of a line; None if the line is damaged."""
        try:
            document = json.loads(line)
            actor = dict(document.pop("actor"))
            return cls(
                **{
                    **document,
                    "outcome": ChangeOutcome(document["outcome"]),
                    "actor": Actor(**{**actor, "kind": ActorKind(actor["kind"])}),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


class Change:
    """A change that is under way."""

    def __init__(self, change: str, subject: str, details: dict[str, Any]) -> None:
        self.details = details  #: may be added to until the end
        self.error = ""  #: is set if it failed without an exception
        self._change, self._subject = change, subject
        self._id = secrets.token_hex(6)
        self._home: Path | None = None

    def begin(self, home: Path) -> None:
        """Append its first line, unless it is there already."""
        if self._home is None:
            self._home = home
            self._append(ChangeOutcome.BEGUN)

    def end(self, error: BaseException | None) -> None:
        """Append its second line, if anything was written."""
        if error is not None:
            # The message of an Isabella error has no secret; another one may have.
            what = getattr(error, "what", None)
            self.error = str(what) if what else type(error).__name__
        self._append(ChangeOutcome.FAILED if self.error else ChangeOutcome.DONE)

    def _append(self, outcome: ChangeOutcome) -> None:
        if self._home is None:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        details = {name: value for name, value in self.details.items() if value not in (None, "", (), [])}
        error = self.error[:_LONGEST_TEXT] if outcome is ChangeOutcome.FAILED else ""
        entry = Entry(at, self._id, self._change, self._subject, outcome, current_actor(), details, error)
        append(self._home, entry)


_actor: ContextVar[Actor | None] = ContextVar("audit_actor", default=None)
_command = ""  # of the whole process: the backend of a command runs in its own thread
#: The change that is under way; False within a block whose writes are none.
_under_way: ContextVar[Change | bool | None] = ContextVar("audit_change", default=None)


def current_actor() -> Actor:
    """Return who acts in this context: by default the user of the system who runs this process."""
    return _actor.get() or Actor(ActorKind.OPERATOR, _os_user(), via=_command)


def set_command(command: str) -> None:
    """Note the command that this process carries out."""
    global _command
    _command = command


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Attribute the changes within the block, and in tasks that are started in it, to an actor."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


@contextmanager
def change(change: str, subject: str, *, home: Path | None = None, **details: Any) -> Iterator[Change]:
    """Make all writes within the block one change, unless the block is part of another one.

    It is recorded from the first write on: at once with a `home`, otherwise with the first request to Letta that
    writes. Without any, nothing is recorded.
    """
    outer = _under_way.get()
    if isinstance(outer, Change):
        if home is not None:
            outer.begin(home)
        yield outer
        return
    one = Change(change, subject, details)
    token = _under_way.set(one)
    try:
        if home is not None:
            one.begin(home)
        yield one
    except BaseException as error:
        one.end(error)
        raise
    else:
        one.end(None)
    finally:
        _under_way.reset(token)


def recorded(kind: str, about: Callable[..., Mapping[str, Any]]) -> Callable[[Function], Function]:
    """Make every call of an async function one change. `about` returns its `subject` and its details."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with change(kind, **about(*args, **kwargs)):
                return await function(*args, **kwargs)

        return cast("Function", call)

    return decorate


@contextmanager
def temporary() -> Iterator[None]:
    """Record nothing that is written within the block: it is removed again at its end."""
    token = _under_way.set(False)
    try:
        yield
    finally:
        _under_way.reset(token)


@contextmanager
def writing(home: Path | None, kind: str, subject: str, **details: Any) -> Iterator[None]:
    """Record one write within the block: as part of the change that is under way, or as a separate one."""
    outer = _under_way.get()
    if home is None or outer is False:
        yield
    elif isinstance(outer, Change):
        outer.begin(home)
        yield
    else:
        with change(kind, subject, home=home, **details):
            yield


def append(home: Path, entry: Entry) -> None:
    """Append a line. What cannot be appended to is set aside. Another failure is a warning, and stops nothing."""
    line = redaction.redact(json.dumps(entry.as_json(), ensure_ascii=False)) + "\n"
    folder, data = home / FOLDER, line.encode("utf-8", "surrogatepass")
    try:
        try:
            _append_line(folder, data)
        except OSError:
            path = folder / _CURRENT
            state.make_way(path)
            state.make_way(path, log=True)
            _append_line(folder, data)
    except OSError as error:
        log.warning(
            "audit log not written",
            path=str(home / FOLDER),
            error=state.why(error),
            sentence=f"{home / FOLDER}: the audit log cannot be written ({state.why(error)}): {line.strip()}",
        )


def _append_line(folder: Path, line: bytes) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / _CURRENT
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            status = os.fstat(descriptor)
            if not _is_at(path, status):
                continue
            if status.st_size and status.st_size + len(line) > _LARGEST:
                _rotate(folder, path)
                continue
            # The rest of a line that a full disk or a killed process has cut off.
            whole = not status.st_size or os.pread(descriptor, 1, status.st_size - 1) == b"\n"
            os.write(descriptor, line if whole else b"\n" + line)
            return
        finally:
            os.close(descriptor)


def _is_at(path: Path, status: os.stat_result) -> bool:
    """Return whether an open file still has its name: another process may have renamed it meanwhile."""
    with suppress(FileNotFoundError):
        there = path.lstat()
        return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)
    return False


def _rotate(folder: Path, path: Path) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    path.rename(folder / f"audit-{stamp}.jsonl")
    for old in _full(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)


def _full(folder: Path) -> list[Path]:
    return sorted(folder.glob("audit-*.jsonl"))


@dataclass(frozen=True)
class Record:
    """A change, as its log lines describe it."""

    entry: Entry  # the last line, with the time of the first one
    interrupted: bool = False  # whether there is no second line


def records(home: Path) -> Iterator[Record]:
    """Yield the changes, oldest first, as they began. Damaged lines are left out."""
    begun: dict[str, Entry] = {}
    for path in (*_full(home / FOLDER), home / FOLDER / _CURRENT):
        for entry in _entries(path):
            first = begun.get(entry.id)
            begun[entry.id] = entry if first is None else Entry(**{**vars(entry), "at": first.at})
    for entry in begun.values():
        yield Record(entry, entry.outcome is ChangeOutcome.BEGUN)


def _entries(path: Path) -> Iterator[Entry]:
    try:
        if path.stat().st_size > _LARGEST_READ:
            state.report(path, "it is larger than an audit log")
            return
        with files.lines(path) as lines:
            for line in lines:
                if (entry := Entry.read(line)) is not None:
                    yield entry
    except (FileAbsent, FileNotFoundError):
        return


def _os_user() -> str:
    """Return the user of this process, and who became it by sudo."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    with suppress(ImportError, KeyError):
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    sudo = os.environ.get("SUDO_USER")
    return f"{user} (sudo by {sudo})" if sudo and sudo != user else user
