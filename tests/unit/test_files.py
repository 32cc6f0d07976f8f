"""Files that somebody names: what is read, what is refused, and that nothing is read without end.

Whatever could eat all memory by a fault runs in a process of its own, with a limit on its memory.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from isabella.config.settings import Settings, load_settings
from isabella.errors import FileAbsent, FileUnreadable
from isabella.practice.overlay import ConfigSnapshot
from isabella.providers.report import Report
from isabella.system import files
from isabella.watch.config_changes import file_stamps
from isabella.watch.events import ConfigAccepted, ConfigRefused, WatchEvent
from isabella.watch.model_refresh import ModelRefresh
from isabella.watch.watcher import Watcher

Result = TypeVar("Result")

_MEMORY = 3 * 1024**3
_KEY = "gsk_canary-of-a-file-0001"


def limit_memory() -> None:
    """Have this process fail with MemoryError rather than take the machine's memory."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def limited(work: Callable[[], Result]) -> Result:
    """Do something in another process, with little memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=limit_memory) as pool:
        return pool.submit(work).result(timeout=60)


def directory(path: Path) -> None:
    """A directory."""
    path.mkdir()


def device(path: Path) -> None:
    """A link to a device without an end."""
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    """A socket in the file system."""
    # Addresses of sockets are short: it is made under a relative name.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def large(path: Path) -> None:
    """A file of comments that is one byte too large."""
    path.write_bytes(b"#" * (files.LARGEST + 1))


def binary(path: Path) -> None:
    """A file that is not UTF-8."""
    path.write_bytes(b"# \xff\xfe\n")


def pipe(path: Path) -> None:
    """A pipe to which nobody writes."""
    os.mkfifo(path)


REFUSED = [
    (directory, "it is a directory, not a file", "regular file"),
    (device, "it is a device, not a file", "regular file"),
    (listening, "it is a socket or a device, not a file", "regular file"),
    (large, "it is larger than 1 MiB", "the right file"),
    (binary, "it is not UTF-8 text (byte 2)", "UTF-8"),
    (pipe, "it is a pipe that has delivered nothing within 0.2 s", "command that writes to it"),
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.2)


def why_refused(path: Path) -> tuple[str, str, str | None]:
    """The error of reading a file."""
    try:
        found = files.read(path).text
    except FileUnreadable as error:
        return error.what, error.reason, error.remedy
    raise AssertionError(f"{len(found)} characters were read")


@pytest.mark.parametrize(("make", "reason", "remedy"), REFUSED)
def test_what_is_no_file_of_bounded_length_is_refused(
    make: Callable[[Path], None], reason: str, remedy: str, tmp_path: Path
) -> None:
    """The error names the file, the reason, and what to do."""
    path = tmp_path / "named"
    make(path)
    what, why, cure = limited(partial(why_refused, path))
    assert what == f"{path}: cannot be read: {reason}."
    assert why == reason
    assert remedy in (cure or "")


def test_an_absent_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Whoever can do without a file tells an absent one from one that cannot be read."""
    with pytest.raises(FileAbsent, match="no such file"):
        files.read(tmp_path / "absent")
    with pytest.raises(FileUnreadable, match="no file can have that name") as error:
        files.read(Path("a\0b"))
    assert not isinstance(error.value, FileAbsent)


def test_a_file_may_be_as_large_as_the_limit(tmp_path: Path) -> None:
    """The limit itself is allowed, and a caller may set another one."""
    path = tmp_path / "named"
    path.write_bytes(b"#" * files.LARGEST)
    assert len(files.read(path).data) == files.LARGEST
    path.write_bytes(b"#" * (2 * files.LARGEST + 1))
    with pytest.raises(FileUnreadable, match="larger than 2 MiB"):
        files.read(path, largest=2 * files.LARGEST)


def test_text_is_read_as_people_save_it(tmp_path: Path) -> None:
    """Without a byte-order mark, and with one kind of line ending; the permissions come along."""
    path = tmp_path / "named"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    path.chmod(0o640)
    content = files.read(path)
    assert (content.text, content.mode) == ("one\ntwo\nthree\n", 0o640)


@pytest.fixture
def process_substitution() -> Iterator[Callable[[bytes], Path]]:
    """Makes paths as the shell's `<(command)` does, whose command has ended."""
    ends = []

    def make(data: bytes) -> Path:
        out, into = os.pipe()
        ends.append(out)
        os.write(into, data)
        os.close(into)
        return Path(f"/dev/fd/{out}")

    yield make
    for end in ends:
        os.close(end)


def test_a_pipe_is_read_once_and_stays_known(process_substitution: Callable[[bytes], Path]) -> None:
    """Every part of the program that reads it again gets what it delivered."""
    path = process_substitution(f"GROQ_API_KEY={_KEY}\n".encode())
    assert files.read(path).data == files.read(path).data == f"GROQ_API_KEY={_KEY}\n".encode()


def test_a_pipe_is_no_larger_than_a_file(tmp_path: Path) -> None:
    """One that delivers without end is refused after as much."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = subprocess.Popen(["/bin/sh", "-c", 'exec cat /dev/zero > "$0"', str(path)], stderr=subprocess.DEVNULL)
    try:
        assert limited(partial(why_refused, path))[1] == "it is larger than 1 MiB"
    finally:
        writer.kill()
        writer.wait()


def test_a_pipe_that_is_not_closed_is_refused(tmp_path: Path) -> None:
    """What may still be incomplete is not taken for a configuration."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    os.write(writing, b"A=1\n")
    try:
        assert why_refused(path)[1] == "its writer has not closed it within 0.2 s"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_writer_may_come_after_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named pipe waits for its writer; nobody takes it for empty before."""
    monkeypatch.setattr(files, "PIPE_SECONDS", 30.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(files.read(path).text))
    reader.start()
    # Opening it for writing waits for the reader.
    path.write_text("A=1\n")
    reader.join(30)
    assert read == ["A=1\n"]


def test_a_pipe_is_not_watched(tmp_path: Path) -> None:
    """What is written to a pipe later is no change of the configuration."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    before = file_stamps([path])
    os.utime(path, (1, 1))
    assert file_stamps([path]) == before
    path.unlink()
    path.write_text("A=1\n")
    assert file_stamps([path]) != before


def test_a_configuration_from_pipes_survives_a_second_reading(
    process_substitution: Callable[[bytes], Path], tmp_path: Path
) -> None:
    """A watcher that reads everything anew because of another file keeps what the pipes delivered."""
    key = process_substitution(f"\ufeff{_KEY}\n".encode())
    env = process_substitution(f"GROQ_API_KEY_FILE={key}\nMISTRAL_API_KEY=fake-mistral-key\n".encode())
    settings = load_settings(env, {"ISABELLA_CONFIG_FILE": str(tmp_path / "isabella.toml")})
    before = ConfigSnapshot.of(settings)
    assert before.again() == before
    assert {one.name for one in before.desired if one.key is not None} == {"byok-groq", "byok-mistral"}


def definitions_of(path: Path) -> str:
    """The error of reading the agents' definitions."""
    from isabella.agents.definitions import load_definitions

    with pytest.raises(FileUnreadable) as error:
        load_definitions(load_settings(environment={"ISABELLA_AGENTS_FILE": str(path)}))
    return error.value.what


def test_the_definitions_of_agents_are_bounded(tmp_path: Path) -> None:
    """`agents.toml` is a regular file or a pipe, too."""
    device(tmp_path / "agents.toml")
    assert limited(partial(definitions_of, tmp_path / "agents.toml")).endswith("it is a device, not a file.")


def test_a_log_is_read_to_its_end_whatever_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log has no limit but for its lines, of which one may be endless; it may come through a pipe."""
    path = tmp_path / "letta.log"
    path.write_bytes(b"x" * 5_000_000 + b"\nError code: 401 - wrong API key\n")
    with files.lines(path) as found:
        assert max(len(line) for line in found) <= 64 * 1024
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()))
    writer.start()
    monkeypatch.setattr(files, "PIPE_SECONDS", 30.0)
    with files.lines(tmp_path / "pipe") as found:
        assert sum(len(line) for line in found) == path.stat().st_size
    writer.join(30)


class Nothing:
    """Work that is never due."""

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        """Not asked for where nothing is different."""
        raise AssertionError(only)

    async def refresh_models(self, settings: Settings) -> ModelRefresh:
        """Not asked for."""
        raise AssertionError


def watched(folder: Path, name: str, make: Callable[[Path], None]) -> list[WatchEvent]:
    """What a watcher tells while one of its files is replaced, and put back."""
    variables = {"ISABELLA_CONFIG_FILE": str(folder / "isabella.toml")}
    (folder / ".env").write_text(f"GROQ_API_KEY={_KEY}\n")
    (folder / "isabella.toml").write_text("")
    good = (folder / name).read_text()
    told: list[WatchEvent] = []
    watcher = Watcher(load_settings(folder / ".env", variables), Nothing(), told.append)
    (folder / name).unlink()
    make(folder / name)
    for _ in range(2):
        anyio.run(watcher.reread)
    assert [one.masked_key for one in watcher.desired if one.configured] == ["gsk_…0001"]
    (folder / name).rmdir() if stat.S_ISDIR((folder / name).lstat().st_mode) else (folder / name).unlink()
    (folder / name).write_text(good)
    anyio.run(watcher.reread)
    return told


@pytest.mark.parametrize("name", [".env", "isabella.toml"])
@pytest.mark.parametrize(("make", "reason", "remedy"), REFUSED)
def test_under_watch_the_former_configuration_stays(
    make: Callable[[Path], None], reason: str, remedy: str, name: str, tmp_path: Path
) -> None:
    """It is said once what is wrong, the keys stay as they were, and it is said when it is mended."""
    refused, accepted = limited(partial(watched, tmp_path, name, make))
    assert isinstance(refused, ConfigRefused)
    assert refused.what == f"{tmp_path / name}: cannot be read: {reason}."
    assert remedy in (refused.remedy or "")
    assert isinstance(accepted, ConfigAccepted)
