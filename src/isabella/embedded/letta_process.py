"""The Letta server of one instance: its environment, its process, and its health."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from isabella.embedded import child_processes, confine, instance
from isabella.embedded.instance import LOOPBACK, InstancePaths, make_private
from isabella.errors import EndedWhileStarting
from isabella.letta.paths import HEALTH
from isabella.letta.releases import release_in
from isabella.system import processes, state
from isabella.system.peers import listens
from isabella.system.processes import ChildProcess
from isabella.system.sockets import kept_port

_CONFINE, _LAUNCHER = (Path(__file__).with_name(name) for name in ("confine.py", "launch.py"))
_INSTANCE_OPTION = "--instance"
# As in launch.py, which runs in Letta's environment.
_MIGRATIONS_URL, _MIGRATIONS_TLS = "ISABELLA_MIGRATIONS_URL", "ISABELLA_MIGRATIONS_TLS"
#: The remedy of an error that quotes the log of Letta.
AFTER_LOG = "Correct the cause that the log shows, then repeat the command."
SECONDS_TO_START = 300.0  # the imports alone take ten seconds, and far longer on a small machine with a cold disk
_SECONDS_TO_STOP = 15.0
#: A server that hangs uses less of a processor than this in so many seconds. One that starts is never idle.
_IDLE_SECONDS, _IDLE_CPU_SECONDS = 30.0, 0.3


@dataclass(frozen=True)
class ServerRun:
    """The record of a start of the server."""

    process: ChildProcess  # the server's process, which may have ended since
    port: int  # its port on loopback
    key: str  # the fingerprint of the master key that it was started with
    database: str = ""  # where its database is; empty in the Postgres of this instance

    def save(self, path: Path) -> None:
        """Write the record to a file."""
        record: dict[str, Any] = {"pid": self.process.pid, "started": self.process.started}
        record |= {"port": self.port, "key": self.key}
        state.save(path, record | ({"database": self.database} if self.database else {}))

    @classmethod
    def load(cls, path: Path) -> ServerRun | None:
        """Return the record in a file; None if the file is missing or damaged."""
        record = state.load(path)
        process, port, key = ChildProcess.in_record(record), state.port_in(record, "port"), record.get("key")
        if process is None or port is None or not isinstance(key, str):
            if record:
                state.report_fields(path)
            return None
        database = record.get("database", "")
        return cls(process, port, key, database if isinstance(database, str) else "")


def health(port: int, *, timeout: float = 5.0) -> str | None:
    """Return the release of the Letta on this port of loopback; None if none answers (fact R7)."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout)
    try:
        connection.request("GET", HEALTH)
        answer = connection.getresponse()
        return release_in(json.loads(answer.read(4096))) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def environment(
    paths: InstancePaths,
    *,
    port: int,
    database: SecretStr,
    password: SecretStr,
    socket: Path | None,
    master_key: SecretStr | None,
    extra: Mapping[str, str],
    sandbox: bool = True,
    migrate: bool = False,
    tls: str = "disable",
) -> dict[str, str]:
    """Return the whole environment of the server, without any of the operator's keys (fact P7).

    `socket` is that of Postgres. Letta's driver would send the password in the clear to a program that listens on the
    port of a killed Postgres; a folder that only the owner can enter has no such program. `sandbox` says whether the
    tools of agents run in a sandbox, if that is possible here, and `migrate` whether the database is migrated first.
    `tls` is libpq's `sslmode`; modes other than `disable` are for a database elsewhere.
    """
    at = f"&host={socket.parent}" if socket else ""
    environ = {
        "HOME": str(paths.server_home),
        "TMPDIR": str(paths.server_tmp),
        "LETTA_PG_URI": f"{database.get_secret_value()}?ssl={tls}{at}",
        "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
        # Otherwise Letta stores every request to a vendor, that is, the whole context again at each step.
        "LETTA_TRACK_PROVIDER_TRACE": "false",
        "LETTA_SERVER_PASSWORD": password.get_secret_value(),
        # The URL for tools that call the server; Letta's default is port 8283, whatever port the server has.
        "LETTA_DEFAULT_BASE_URL": f"http://{LOOPBACK}:{port}",
        "PYTHONUNBUFFERED": "1",
    }
    if master_key is not None:
        environ["LETTA_ENCRYPTION_KEY"] = master_key.get_secret_value()
    if sandbox:
        environ[confine.STATE] = str(paths.tool_sandbox_file)
    if migrate:
        environ[_MIGRATIONS_URL] = database.get_secret_value() + (f"?unix_sock={socket}" if socket else "")
        environ[_MIGRATIONS_TLS] = tls
    return child_processes.network_environment() | environ | dict(extra)


def clear(paths: InstancePaths) -> None:
    """Remove the temporary files of a former run, and what it found out about the sandbox."""
    state.make_way(paths.tool_sandbox_file)
    paths.tool_sandbox_file.unlink(missing_ok=True)
    _empty(paths.server_tmp)


def start(
    paths: InstancePaths,
    port: int,
    environ: Mapping[str, str],
    master_key: SecretStr | None,
    kept: Collection[tuple[str, int]] = (),
    database: str = "",
) -> ServerRun:
    """Start the server, which keeps the ports `kept`, to which it sends keys and prompts, from other users.

    It accepts requests later; see `wait_until_started`. For the ports see `kept_port`. `database` is where its
    database is, if that is not in the Postgres of this instance.
    """
    child_processes.rotate_log(paths.letta_log)
    with ExitStack() as stack:
        sockets = [stack.enter_context(one) for address in kept if (one := kept_port(*address)) is not None]
        process = processes.spawn(
            [*launch_command(paths), "server", "--secure", "--host", LOOPBACK, "--port", str(port)],
            env=environ,
            log=paths.letta_log,
            cwd=paths.server_home,
            pass_fds=[one.fileno() for one in sockets],
        )
    run = ServerRun(process, port, instance.fingerprint(master_key), database)
    run.save(paths.run_file)
    return run


def wait_until_migrated(run: ServerRun, is_migrated: Callable[[], bool]) -> bool:
    """Wait until a server that was just started has migrated its database. Returns False if it ends before."""
    deadline = time.monotonic() + SECONDS_TO_START
    while not (migrated := is_migrated()) and run.process.is_running() and time.monotonic() < deadline:
        time.sleep(0.2)
    return migrated


def wait_until_started(paths: InstancePaths, run: ServerRun, has_database: Callable[[], bool]) -> None:
    """Wait until a server that was just started, and has migrated its database, is healthy.

    Raises:
        EndedWhileStarting: the server or its database ended, or the server hangs. Its log is quoted.
    """
    if wait_until_healthy(paths, run, has_database, lambda: True):
        return
    if not has_database():
        stop(paths, run)
        raise EndedWhileStarting(
            f"Postgres ended while Letta {paths.release} was starting.",
            remedy="Read its log (isabella letta logs --postgres), then run `isabella letta up`.",
        )
    ended = not run.process.is_running()
    stop(paths, run)
    log = child_processes.quote_log(paths.letta_log)
    if ended:
        raise EndedWhileStarting(f"Letta {paths.release} ended while starting. {log}", remedy=AFTER_LOG)
    raise EndedWhileStarting(
        f"Letta {paths.release} did not start: it did nothing for {_IDLE_SECONDS:.0f} s, or did not answer within "
        f"{SECONDS_TO_START:.0f} s. {log}",
        remedy=AFTER_LOG,
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)


def is_healthy(run: ServerRun, release: str, *, timeout: float = 5.0) -> bool:
    """Return whether this process, not another one on its port, accepts requests."""
    return listens(run.process, LOOPBACK, run.port) and health(run.port, timeout=timeout) == release


def wait_until_healthy(
    paths: InstancePaths, run: ServerRun, has_database: Callable[[], bool], is_migrated: Callable[[], bool]
) -> bool:
    """Wait until a server is healthy.

    Returns False if it or its database ends, or it takes too long, or it hangs: it can, if its database ends at the
    wrong moment. One that waits for the database to be migrated hangs only if `is_migrated` is true.
    """
    deadline = time.monotonic() + SECONDS_TO_START
    worked, last = time.monotonic(), 0.0
    while run.process.is_running() and has_database() and time.monotonic() < deadline:
        if is_healthy(run, paths.release):
            return True
        spent = run.process.cpu_seconds()
        if spent - last > _IDLE_CPU_SECONDS:
            worked, last = time.monotonic(), spent
        elif time.monotonic() - worked > _IDLE_SECONDS and is_migrated():
            return False
        time.sleep(0.1)
    return False


def stop(paths: InstancePaths, run: ServerRun | None) -> bool:
    """Stop the server, and processes of this instance that were started but not recorded. Returns whether any ran."""
    stopped = run is not None and run.process.stop(grace=_SECONDS_TO_STOP)
    return child_processes.stop_orphans(_INSTANCE_OPTION, paths.folder) > 0 or stopped


def running(paths: InstancePaths) -> ServerRun | None:
    """Return the server of this instance if its process is alive, healthy or not."""
    run = ServerRun.load(paths.run_file)
    return run if run is not None and run.process.is_running() else None


def launch_command(paths: InstancePaths) -> list[str]:
    """Return the command that runs a program of the release, up to the program's own arguments."""
    # -P: the modules beside the launcher are Isabella's, and must not hide Letta's.
    return [str(paths.python), "-P", str(_CONFINE), str(_LAUNCHER), _INSTANCE_OPTION, str(paths.folder)]
