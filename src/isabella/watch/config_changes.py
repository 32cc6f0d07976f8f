"""Changes of the configuration: notice that a file was changed, read it again, and compare.

The file system reports changes if it can. Mounts and network folders often report nothing, so the files are also
checked every two seconds, which costs a few microseconds. A file that is being written is waited for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISFIFO
from typing import Any

import anyio
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from isabella.config.settings import Settings, WatchMode, variable
from isabella.practice.overlay import ConfigSnapshot
from isabella.providers.desired import Desired

log = structlog.get_logger()

#: The settings that take effect with the next sync. Every other one is used when the process starts.
_LIVE = frozenset({"strategy", "provider_types", "config_file", "resync", "refresh_at", "sources"})

CHECK_SECONDS = 2.0
#: A file counts as written if it did not change for this long.
_QUIET = 0.25
#: A file that changes without pause is read after this time as it is.
_LONGEST = 5.0


@dataclass(frozen=True)
class ConfigDiff:
    """The difference between two snapshots."""

    #: those to sync, because type, base URL, key or the problem with them has changed
    providers: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()  #: those that are no longer configured. They stay in Letta.
    undeclared: tuple[str, ...] = ()  #: those of `gone` that are no longer even declared
    restart: tuple[str, ...] = ()  #: changed variables that take effect after a restart
    timing: bool = False  #: whether the times of checks and refreshes have changed


def diff_config(before: ConfigSnapshot, now: ConfigSnapshot, in_force: Settings) -> ConfigDiff:
    """Compare two snapshots; `in_force` are the settings that the process started with."""
    former = {provider.name: provider for provider in before.desired}
    fresh = {provider.name: provider for provider in now.desired}
    still_configured = {provider.name for provider in now.desired if provider.configured}
    gone = tuple(name for name, one in former.items() if one.configured and name not in still_configured)
    return ConfigDiff(
        providers=tuple(name for name, one in fresh.items() if _changed(former.get(name), one)),
        gone=gone,
        undeclared=tuple(name for name in gone if name not in fresh),
        restart=tuple(_restart(before.settings, now.settings, in_force)),
        timing=any(getattr(before.settings, f) != getattr(now.settings, f) for f in ("resync", "refresh_at")),
    )


def apply_live_settings(now: Settings, in_force: Settings) -> Settings:
    """Return the new settings, except for those that take a restart."""
    kept = [field for field in type(now).model_fields if field not in _LIVE]
    return now.model_copy(update={field: getattr(in_force, field) for field in kept})


def _changed(former: Desired | None, fresh: Desired) -> bool:
    if former is None:
        return fresh.configured
    return (former.configured or fresh.configured) and _values(former) != _values(fresh)


def _values(provider: Desired) -> tuple[str | None, ...]:
    key = None if provider.key is None else provider.key.get_secret_value()
    model = provider.vendor.default_model
    return provider.type, provider.base_url, provider.upstream, key, provider.problem, model


def _restart(before: Settings, now: Settings, in_force: Settings) -> Iterator[str]:
    for field in type(now).model_fields:
        value = None if field in _LIVE else getattr(now, field)
        # Reported once, not again with every further change of the file.
        if field not in _LIVE and value != getattr(in_force, field) and value != getattr(before, field):
            yield variable(field)
    # The vendors' variables, while practice vendors replace the vendors for good.
    for name in () if now.sources.overlay_until_key else now.sources.overlay:
        if before.sources.dotenv.get(name) != now.sources.dotenv.get(name):
            yield name


# --- files ----------------------------------------------------------------------------------------------------------

_Stamp = tuple[int, int, int, int] | None
FileStamps = Mapping[Path, _Stamp]


def file_stamps(files: Iterable[Path]) -> FileStamps:
    """Return, for each file, the numbers that change when it does; None if it cannot be read."""
    return {path: _stamp(path) for path in files}


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except (OSError, ValueError):
        # ValueError: there is a NUL in the path.
        return None
    if S_ISFIFO(status.st_mode):
        # A pipe is read once; later writes do not count.
        return status.st_ino, 0, 0, 0
    # The inode changes if the file is replaced, even behind a symbolic link; ctime changes with owner and mode.
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


async def watch_files(
    files: Callable[[], Sequence[Path]],
    changed: Callable[[], Awaitable[None]],
    mode: WatchMode = WatchMode.AUTO,
    *,
    every: float = CHECK_SECONDS,
    since: FileStamps | None = None,
) -> None:
    """Call `changed`, which must not raise, whenever one of the files has changed, until cancelled.

    `files` is called again after every change, which may have named others. `since` are the stamps when the files
    were last read; by default those of now.
    """
    seen = {**file_stamps(files()), **(since or {})}
    while True:
        folders = sorted({path.parent for path in seen})
        async with anyio.create_task_group() as tasks:
            reporter, reports = anyio.create_memory_object_stream[None](1)
            with reporter, reports:
                if mode is WatchMode.AUTO:
                    tasks.start_soon(_listen, folders, reporter)
                while folders == sorted({path.parent for path in seen}):
                    with anyio.move_on_after(every):
                        await reports.receive()
                    if file_stamps(seen) != seen:
                        await _settle(seen)
                        # A write after this is another change.
                        before = file_stamps(seen)
                        await changed()
                        seen = {path: before[path] if path in before else _stamp(path) for path in files()}
                tasks.cancel_scope.cancel()


async def _settle(seen: FileStamps) -> None:
    """Wait until the files stop changing, so that no half-written file is read."""
    with anyio.move_on_after(_LONGEST):
        last = file_stamps(seen)
        while True:
            await anyio.sleep(_QUIET)
            if (now := file_stamps(seen)) == last:
                return
            last = now


async def _listen(folders: Sequence[Path], reporter: MemoryObjectSendStream[None]) -> None:
    """Report every change in these folders. The files themselves are replaced too often to be watched."""
    from watchfiles import awatch

    existing = [folder for folder in folders if folder.is_dir()]
    if not existing:
        return
    stop = anyio.Event()

    async def report() -> None:
        options: dict[str, Any] = {"recursive": False, "debounce": 200, "ignore_permission_denied": True}
        async for _changes in awatch(*existing, watch_filter=None, stop_event=stop, **options):
            with suppress(anyio.WouldBlock):
                reporter.send_nowait(None)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(report)
            try:
                await anyio.sleep_forever()
            finally:
                # Cancelling does not interrupt the watching thread; this event does, within 50 ms.
                stop.set()
    except Exception as error:  # noqa: BLE001 - without reports, the regular checks continue
        log.info("the file system reports no changes; checking regularly instead", reason=type(error).__name__)
