"""Installation of a release: the unpacked sdist, with the environment that its own lock describes (facts R2, R3).

A release is complete if its marker file exists, which is written last. Anything without the marker is the rest of an
interrupted installation, and is deleted and installed again.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from isabella.embedded import child_processes, sdist
from isabella.embedded.instance import InstancePaths, make_private
from isabella.embedded.progress import Progress, step
from isabella.errors import InstallFailed
from isabella.system import state

_EXTRAS = ("postgres", "server")
# The lock has psycopg2 twice: as a wheel, and as sources that need a compiler and libpq. The wheel is enough.
_NOT_INSTALLED = "psycopg2"
_MARKER = "isabella-complete.json"


def installed(paths: InstancePaths) -> str | None:
    """Return the last migration of an installed release; None if the installation is incomplete or damaged."""
    record = state.load(paths.program / _MARKER)
    head = record.get("migration_head")
    if record and not isinstance(head, str):
        state.report_fields(paths.program / _MARKER)
    # The environment's interpreter is a link to one that may have been removed since.
    return head if isinstance(head, str) and os.access(paths.python, os.X_OK) else None


def install(paths: InstancePaths, progress: Progress) -> str:
    """Fetch and install a release, and return its last migration. The caller holds the release's lock."""
    release, program = paths.release, paths.program
    try:
        child_processes.stop_orphans("--project", program)
        _clear(paths)
        fetching = step(progress, "fetch", f"Letta {release}")
        with fetching, tempfile.TemporaryDirectory(prefix=".fetch-", dir=paths.releases) as scratch:
            archive = sdist.fetch(release, Path(scratch), progress)
            sdist.unpack(archive, Path(scratch), release).rename(program)
        with step(progress, "install", f"Letta {release} in an environment of its own, about 800 MB"):
            _create_environment(paths)
            head = migration_head(program / "alembic" / "versions")
            state.save(program / _MARKER, {"release": release, "migration_head": head})
    except OSError as error:
        raise InstallFailed(
            f"Letta {release} could not be installed in {program}: {error.strerror or error}.",
            remedy="It needs about 1.5 GB there. Set ISABELLA_HOME to a folder on another disk if necessary.",
        ) from error
    return head


def _clear(paths: InstancePaths) -> None:
    make_private(paths.releases)
    for leftover in (paths.program, *paths.releases.glob(".fetch-*"), *paths.releases.glob(".gone-*")):
        if leftover.exists():
            # Renamed first, so that an interrupted deletion leaves no half tree under the old name.
            gone = paths.releases / f".gone-{leftover.name.lstrip('.')}"
            if leftover != gone:
                shutil.rmtree(gone, ignore_errors=True)
                leftover.rename(gone)
            shutil.rmtree(gone)


def _create_environment(paths: InstancePaths) -> None:
    import uv

    project = tomllib.loads((paths.program / "pyproject.toml").read_text())
    offered = project.get("project", {}).get("optional-dependencies", {})
    extras = [f"--extra={extra}" for extra in _EXTRAS if extra in offered]
    # The interpreter is given by path: the .python-version in the tree may name one that is missing (fact R3).
    interpreter = getattr(sys, "_base_executable", sys.executable)
    command = [
        *(uv.find_uv_bin(), "sync", "--project", str(paths.program), "--python", interpreter),
        *("--frozen", "--no-dev", "--no-progress", *extras, f"--no-install-package={_NOT_INSTALLED}"),
    ]
    # The variable overrides one of the operator's that would put the environment elsewhere.
    environ = child_processes.install_environment() | {"UV_PROJECT_ENVIRONMENT": ".venv"}
    state.write(paths.install_log, "")
    with paths.install_log.open("a") as log:
        finished = subprocess.run(
            command, cwd=paths.program, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
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
        raise InstallFailed(f"The migrations in {versions} should have one head, but have {len(heads)}.")
    return str(heads.pop())


def _assigned(module: ast.Module, names: tuple[str, ...]) -> dict[str, object]:
    """Return the literals that a module assigns to these names."""
    values: dict[str, object] = {}
    for statement in module.body:
        match statement:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value) if name in names:
                values[name] = None if value is None else ast.literal_eval(value)
    return values
