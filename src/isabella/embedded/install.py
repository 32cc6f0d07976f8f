"""Installation of a release: the unpacked sdist, with an environment of locked dependencies (facts R2, R3).

The dependencies are those of Isabella's patched lock, `dependencies/letta-RELEASE.txt`, or those of the release's own
lock. A release is complete if its marker file exists, which is written last and names the lock. It is installed
beside its place and then moved there, so that an installation that fails leaves the former one as it was.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from isabella.config.choices import LettaLock
from isabella.embedded import child_processes, sdist
from isabella.embedded.instance import InstancePaths, make_private
from isabella.embedded.progress import Progress, step
from isabella.errors import InstallFailed
from isabella.system import state

_LOCKS = Path(__file__).with_name("dependencies")
_EXTRAS = ("postgres", "server")
# The lock has psycopg2 twice: as a wheel, and as sources that need a compiler and libpq. The wheel is enough.
_NOT_INSTALLED = "psycopg2"
_MARKER = "isabella-complete.json"
_ORIGINAL = LettaLock.ORIGINAL.value


@dataclass(frozen=True)
class Installation:
    """A complete installation of a release."""

    release: str
    migration_head: str  # its last migration
    lock: str  # identifies the lock of its dependencies: `original`, or `patched` with a hash


def installed(paths: InstancePaths) -> Installation | None:
    """Return the installation of a release; None if it is incomplete or damaged."""
    record = state.load(paths.program / _MARKER)
    match record:
        # Installations of Isabella 0.1 name no lock.
        case {"migration_head": str(head), **rest}:
            found = Installation(paths.release, head, str(rest.get("lock", _ORIGINAL)))
        case _:
            if record:
                state.report_fields(paths.program / _MARKER)
            return None
    # The environment's interpreter is a link to one that may have been removed since.
    return found if os.access(paths.python, os.X_OK) else None


def lock_name(release: str, choice: LettaLock) -> str:
    """Return the text that identifies the lock of a release, as `Installation.lock` does."""
    path = _patched_lock(release, choice)
    return _ORIGINAL if path is None else f"patched {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def install(paths: InstancePaths, progress: Progress, choice: LettaLock = LettaLock.PATCHED) -> Installation:
    """Fetch and install a release in place of a former installation. The caller holds the release's lock.

    Raises `InstallFailed`, also if a process runs from the former installation.
    """
    release, staging = paths.release, paths.staging
    lock = lock_name(release, choice)
    try:
        child_processes.stop_orphans("--project", staging)
        _refuse_if_used(paths)
        _clear(paths)
        fetching = step(progress, "fetch", f"Letta {release}")
        with fetching, tempfile.TemporaryDirectory(prefix=".fetch-", dir=paths.releases) as scratch:
            archive = sdist.fetch(release, Path(scratch), progress)
            sdist.unpack(archive, Path(scratch), release).rename(staging)
        size = 800 if lock == _ORIGINAL else 450
        detail = f"Letta {release} in its own environment, about {size} MB, {lock.split()[0]} lock"
        with step(progress, "install", detail):
            _create_environment(paths, _patched_lock(release, choice))
            complete = Installation(release, migration_head(staging / "alembic" / "versions"), lock)
            state.save(staging / _MARKER, asdict(complete))
            _move_in_place(paths)
    except OSError as error:
        raise InstallFailed(
            f"Letta {release} could not be installed in {paths.program}: {error.strerror or error}.",
            remedy="It needs about 1.5 GB there. Set ISABELLA_HOME to a folder on another disk if necessary.",
        ) from error
    return complete


def _patched_lock(release: str, choice: LettaLock) -> Path | None:
    path = _LOCKS / f"letta-{release}.txt"
    return path if choice is LettaLock.PATCHED and path.exists() else None


def _refuse_if_used(paths: InstancePaths) -> None:
    """Raise if a process runs from the installation. It would load modules of two versions."""
    if not paths.program.exists():
        # A process with this path, if there is one, is in a container, or this one is.
        return
    for process in psutil.process_iter():
        try:
            arguments = process.cmdline()
        except psutil.Error:
            continue
        if arguments[:1] == [str(paths.python)]:
            raise InstallFailed(
                f"Letta {paths.release} must be reinstalled, but another instance runs from {paths.program} "
                f"(pid {process.pid}: {' '.join(arguments[1:5])}).",
                remedy="Stop that instance (isabella letta down --instance NAME), then repeat the command.",
            )


def _clear(paths: InstancePaths) -> None:
    """Delete the rest of interrupted installations and deletions."""
    make_private(paths.releases)
    for pattern in (paths.staging.name, ".fetch-*", ".gone-*"):
        for leftover in paths.releases.glob(pattern):
            shutil.rmtree(leftover)


def _move_in_place(paths: InstancePaths) -> None:
    # Renamed first, so that an interrupted deletion leaves no half tree under the old name.
    former = paths.releases / f".gone-{paths.release}"
    if paths.program.exists():
        paths.program.rename(former)
    paths.staging.rename(paths.program)
    if former.exists():
        shutil.rmtree(former)


def _create_environment(paths: InstancePaths, patched: Path | None) -> None:
    # The interpreter is given by path: the .python-version in the tree may name one that is missing (fact R3).
    interpreter = getattr(sys, "_base_executable", sys.executable)
    environment = paths.staging / ".venv"
    state.write(paths.install_log, "")
    if patched is None:
        offered = tomllib.loads((paths.staging / "pyproject.toml").read_text()).get("project", {})
        extras = [f"--extra={extra}" for extra in _EXTRAS if extra in offered.get("optional-dependencies", {})]
        _uv(
            paths,
            *("sync", "--python", interpreter, "--frozen", "--no-dev", "--no-install-project", *extras),
            f"--no-install-package={_NOT_INSTALLED}",
        )
    else:
        _uv(paths, "venv", "--python", interpreter, str(environment))
        _uv(
            paths,
            *("pip", "sync", "--python", str(environment / "bin" / "python"), "--require-hashes"),
            # What has no wheel is built, with tools of the same versions and hashes.
            *("--build-constraints", str(patched)),
            # `nltk` opens no file with several names, such as one that is shared with uv's cache.
            *("--link-mode", "copy", str(patched)),
        )
    _add_project(environment, paths.release)


def _add_project(environment: Path, release: str) -> None:
    """Make Letta's own package importable, as an editable installation does, without building it."""
    (packages,) = environment.glob("lib/python*/site-packages")
    up = "/".join([".."] * len(packages.relative_to(environment.parent).parts))
    (packages / "letta.pth").write_text(f"{up}\n")
    metadata = packages / f"letta-{release}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: letta\nVersion: {release}\n")


def _uv(paths: InstancePaths, *arguments: str) -> None:
    import uv

    # The variable overrides one of the operator's that would put the environment elsewhere.
    environ = child_processes.install_environment() | {"UV_PROJECT_ENVIRONMENT": ".venv"}
    # The project's folder identifies the process, in case Isabella is killed (see `child_processes.stop_orphans`).
    command = [uv.find_uv_bin(), "--project", str(paths.staging), "--no-progress", *arguments]
    with paths.install_log.open("a") as log:
        finished = subprocess.run(
            command, cwd=paths.staging, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )
    if finished.returncode != 0:
        raise InstallFailed(
            f"uv could not install Letta {paths.release}. {child_processes.quote_log(paths.install_log)}",
            remedy=_remedy("\n".join(child_processes.tail_log(paths.install_log, 50))),
        )


def _remedy(output: str) -> str:
    if "No space left" in output:
        return "The disk is full: free about 1.5 GB, or set ISABELLA_HOME to a folder on another disk."
    if any(sign in output for sign in ("error sending request", "Failed to fetch", "dns error", "timed out")):
        return "Check the network connection or the proxy (HTTPS_PROXY), then repeat the command."
    return "Repeat the command; if it fails again, read the log."


def migration_head(versions: Path) -> str:
    """Return the last migration: the one that no other migration follows. The files are parsed, not run."""
    revisions: set[object] = set()
    followed: set[object] = set()
    for path in versions.glob("*.py"):
        values = _assigned(ast.parse(path.read_text()), ("revision", "down_revision"))
        revisions.add(values.get("revision"))
        before = values.get("down_revision")
        followed.update(before if isinstance(before, tuple | list) else [before])
    heads = revisions - followed - {None}
    if len(heads) != 1:
        raise InstallFailed(
            f"The migrations in {versions} should have one head, but have {len(heads)}.",
            remedy="Install a release that is known to work: docs/compatibility.md lists them.",
        )
    return str(heads.pop())


def _assigned(module: ast.Module, names: tuple[str, ...]) -> dict[str, object]:
    """Return the literals that a module assigns to these names."""
    values: dict[str, object] = {}
    for statement in module.body:
        match statement:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value) if name in names:
                values[name] = None if value is None else ast.literal_eval(value)
    return values
