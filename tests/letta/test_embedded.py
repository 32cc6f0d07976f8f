"""The embedded server, for real: up, up again, interrupted, two at once, down without a trace.

Vendor keys are planted in the environment of every command, as an operator's shell would have them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg
import pytest
from pydantic import SecretStr

from compat import letta_lock
from isabella.config.choices import LettaLock
from isabella.embedded import InstanceStatus, Letta, Server, Step, confine, install, launch, letta_process, postgres
from isabella.embedded.instance import InstancePaths
from isabella.embedded.supervised_parts import LettaPart, PostgresPart
from isabella.errors import StartFailed
from isabella.letta.encryption import encrypt
from isabella.system.processes import has_ended

COMMAND = Path(sys.executable).with_name("isabella")
CANARY = "canary-93b1f0c2-never-to-be-seen"
PLANTED = {
    f"{vendor}_API_KEY": CANARY for vendor in ("OPENAI", "GROQ", "CEREBRAS", "MISTRAL", "LONGCAT", "ANTHROPIC")
}


@pytest.fixture(scope="module", autouse=True)
def planted() -> Iterator[None]:
    """The operator's shell has vendor keys."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def server(new_server: Callable[..., Server]) -> Server:
    """An instance that these tests have for themselves."""
    return new_server("embedded", migrated=False)


def isabella(server: Server, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `isabella letta …` on an instance, as an operator would."""
    return subprocess.run(
        [COMMAND, "letta", *arguments, "--home", server.home, "--instance", server.instance],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def family(status: InstanceStatus) -> list[psutil.Process]:
    """All processes of an instance: the two servers and their descendants."""
    heads = [psutil.Process(pid) for pid in (status.letta.pid, status.postgres.pid) if pid is not None]
    return [*heads, *(child for head in heads for child in head.children(recursive=True))]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. What only waits for somebody to ask how it ended, has."""
    return [one for one in processes if not has_ended(one)]


def marked(server: Server) -> list[int]:
    """Processes with a path of this instance among their arguments, however they came to be."""
    path = str(server.paths.folder)
    found = []
    for process in psutil.process_iter():
        try:
            mine = any(argument.startswith(path) for argument in process.cmdline())
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def secrets_of(server: Server) -> dict[str, str]:
    """The secrets of an instance by the names of their files."""
    paths = server.paths
    files = (
        paths.master_key_file,
        paths.password_file,
        paths.database_password_file,
        paths.superuser_password_file,
    )
    return {path.name: path.read_text().strip() for path in files}


def test_up_tells_the_address_and_no_secret(server: Server, tmp_path: Path) -> None:
    """Each step is a line on standard error; the address is on standard output, the password only in its file."""
    finished = isabella(server, "up", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    status = server.status()
    assert status.running
    assert str(status.base_url) in finished.stdout
    assert str(status.password_file) in finished.stdout
    for step in ("Install", "Postgres", "Migrate", "Letta"):
        assert step in finished.stderr
    for secret in (*secrets_of(server).values(), CANARY):
        assert secret not in finished.stdout + finished.stderr


def test_a_second_up_only_looks(server: Server) -> None:
    """What runs is reused: the same processes, and no step but the look."""
    server.up()
    before = server.status()
    events: list[Step] = []
    again = server.up(events.append)
    assert not again.started
    assert [(event.name, event.state) for event in events] == [("check", "started"), ("check", "done")]
    assert server.status() == before


def test_the_patched_lock_differs_only_as_its_file_says(server: Server) -> None:
    """Every other version is that of the release's own lock; what is new is needed by something that was replaced."""
    server.up()
    content = letta_lock.source()
    original = tomllib.loads((server.paths.program / "uv.lock").read_text())["package"]
    versions = {package["name"]: package["version"] for package in original}
    locked = letta_lock.locked(letta_lock.LOCK.read_text())
    for entry in (*content["override"], *content["follow"]):
        assert versions[entry["package"]] == entry["from"]
    # keyring is of fastmcp-slim, which that lock does not have.
    assert {entry["package"] for entry in content["left_out"]} - versions.keys() == {"keyring"}
    kept = {name: version for name, version in locked.items() if name in versions}
    assert kept.items() <= (versions | letta_lock.changed()).items()
    assert locked.keys() - versions.keys() == set(content["new"])
    assert server.status().lock == install.lock_name(server.release, LettaLock.PATCHED)


def test_vendor_keys_do_not_reach_letta(server: Server) -> None:
    """Fact P7: what Letta does not have it cannot leak. What it needs is in its environment, not its arguments."""
    letta = server.up()
    assert letta.master_key is not None
    process = psutil.Process(server.status().letta.pid)
    environ = process.environ()
    assert CANARY not in "".join(environ.values())
    assert not set(PLANTED) & environ.keys()
    assert environ["LETTA_ENCRYPTION_KEY"] == letta.master_key.get_secret_value()
    for member in family(server.status()):
        try:
            arguments = " ".join(member.cmdline())
        except psutil.NoSuchProcess:
            # A worker of Postgres' that has ended since.
            continue
        for secret in secrets_of(server).values():
            assert secret not in arguments
    assert providers(letta) == {"letta"}


_TOOL = """
def look(path: str) -> str:
    \"\"\"Tell what a tool sees.

    Args:
        path (str): A file.
    \"\"\"
    import json, os
    status = open("/proc/self/status").read()
    return json.dumps({
        "environment": dict(os.environ), "folder": os.getcwd(), "temporary": os.environ["TMPDIR"],
        "file": os.path.exists(path), "privileges": "NoNewPrivs:\\t1" in status,
    })
"""


def test_a_tool_gets_no_secret(server: Server) -> None:
    """Letta would give it its whole environment. With bubblewrap, it does not see the files of secrets either."""
    letta = server.up()
    paths = server.paths
    answer = httpx2.post(
        f"{letta.base_url}/v1/tools/run",
        headers={"Authorization": f"Bearer {letta.password.get_secret_value()}"},
        json={
            "source_code": _TOOL,
            "args": {"path": str(paths.master_key_file)},
            "json_schema": {
                "name": "look",
                "description": "Tell what a tool sees.",
                "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
            },
        },
        timeout=180,
    ).json()
    assert answer["status"] == "success", answer
    seen = json.loads(answer["tool_return"])
    for name, secret in secrets_of(server).items():
        assert secret not in "".join(seen["environment"].values()), name
    assert Path(seen["folder"]).is_relative_to(paths.server_home)
    assert Path(seen["temporary"]) == paths.server_tmp
    assert seen["privileges"] == (sys.platform == "linux")
    assert seen["file"] == (paths.tool_sandbox_file.read_text().strip() != confine.WORKS)


def providers(letta: Letta) -> set[str]:
    """All providers that Letta has, also those it made itself, which its API does not list."""
    with psycopg.connect(letta.database_url.get_secret_value()) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM providers")}


#: Imports Letta as the launcher does, and then each deferred package, with every name that Letta has of it.
_RESOLVE = """
import importlib, json, sys
sys.path.insert(0, sys.argv.pop())
import launch
imports = launch.defer_imports()
launch.build_validators_lazily()
sys.argv = ["letta", "server", "--no-generation"]
importlib.import_module("letta.server.rest_api.app")
importlib.import_module("letta.main")
imports.finish()
deferred = sorted(imports.deferred)
names = [
    (module, name)
    for module, held in [*sys.modules.items()] if module.startswith("letta.")
    for name, value in [*vars(held).items()] if type(value).__name__ == "DeferredName"
]
for package in deferred:
    imports.load(package)
left = [name for name in names if type(vars(sys.modules[name[0]])[name[1]]).__name__ == "DeferredName"]
print(json.dumps([deferred, len(names), left]), file=sys.stderr)
import os
os._exit(0)
"""


def test_every_name_of_a_deferred_package_exists(server: Server, tmp_path: Path) -> None:
    """Letta's imports use none of them, and each can be had when it is used."""
    deferred, names, left = _in_letta(server, tmp_path, _RESOLVE)
    assert deferred == sorted(launch.DEFERRED)
    assert names > len(deferred)
    assert left == []


#: Transforms requests as OpenAI's client does, before and after the launcher has changed it.
_TRANSFORM = """
import asyncio, json, sys
sys.path.insert(0, sys.argv.pop())
import launch
import openai
from openai._types import NOT_GIVEN
from openai.resources.chat.completions import completions
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.completion_create_params import CompletionCreateParams
call = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
tool = {"type": "function", "function": {"name": "f", "strict": None, "parameters": {"type": "object"}}}
tool["function"]["parameters"]["properties"] = {"roles": {"type": "string", "enum": ("user", "tool")}}
picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
plain = {
    "model": "m", "stream": True, "max_tokens": 5, "temperature": 0.5, "user": NOT_GIVEN, "tools": [tool],
    "tool_choice": {"type": "function", "function": {"name": "f"}}, "extra": {"unknown": [None, {}]},
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "r"},
        {"role": "tool", "tool_call_id": "call-1", "content": "done"},
    ],
}
answer = ChatCompletionMessage(role="assistant", content="c")
further = [{**plain, "messages": messages} for messages in ((dict(role="user", content="u"),), [answer])]
before = completions.async_maybe_transform
launch.send_plain_requests()
after = completions.async_maybe_transform
read = lambda transform: [asyncio.run(transform(data, CompletionCreateParams)) for data in (plain, *further, None)]
kept = asyncio.run(after(plain, CompletionCreateParams))["messages"] is plain["messages"]
print(json.dumps([read(before), read(after), kept]), file=sys.stderr)
"""


def test_a_request_of_plain_json_is_sent_as_the_client_of_openai_would_send_it(
    server: Server, tmp_path: Path
) -> None:
    """So is one that is not plain, which that client goes on to transform."""
    before, after, kept = _in_letta(server, tmp_path, _TRANSFORM)
    assert before == after
    assert len(before[0]["messages"]) == 4
    assert "user" not in before[0]
    assert before[2]["messages"] == [{"role": "assistant", "content": "c"}]
    assert kept


def _in_letta(server: Server, home: Path, script: str) -> Any:
    """Run a script in Letta's environment, with the launcher's folder as its argument; return what it reports."""
    paths = server.paths
    done = subprocess.run(
        [paths.python, "-P", "-c", script, Path(launch.__file__).parent],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LETTA_DIR": str(home)},
        cwd=paths.program,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stderr.splitlines()[-1])


def test_nobody_comes_in_without_a_password(server: Server) -> None:
    """Letta, and Postgres for every user, ask for one; both listen on loopback, and Postgres on nothing else."""
    letta = server.up()
    status = server.status()
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx2.get(f"{letta.base_url}/v1/providers/", headers=headers, timeout=30).status_code == 401
    with psycopg.connect(letta.database_url.get_secret_value()) as connection:
        assert connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
    for user in ("postgres", "isabella"):
        for password in ("", ":wrong"):
            address = f"postgresql://{user}{password}@127.0.0.1:{status.postgres.port}/letta"
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(address, connect_timeout=10)
    for service in (status.letta, status.postgres):
        process = psutil.Process(service.pid)
        listening = [found.laddr for found in process.net_connections("all") if found.status == psutil.CONN_LISTEN]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", service.port)]
    # The socket is in a folder that nobody else can enter.
    cluster = postgres.find_cluster(server.paths)
    assert cluster is not None
    sockets = psutil.Process(status.postgres.pid).net_connections("unix")
    assert [str(found.laddr) for found in sockets if found.laddr] == [f"./.s.PGSQL.{status.postgres.port}"]
    assert cluster.data.stat().st_mode & 0o777 == 0o700


def test_files_are_private(server: Server) -> None:
    """Secrets and logs are 0600; folders are closed. As root, one group may pass through those above the database."""
    server.up()
    paths = server.paths
    cluster = postgres.find_cluster(paths)
    assert cluster is not None
    user = cluster.user
    passing = {paths.folder, paths.folder.parent, paths.logs} if user is not None else set()
    for path in (paths.folder, *paths.folder.rglob("*")):
        mode = path.lstat().st_mode & 0o777
        if path.is_symlink():
            continue
        if path in passing:
            assert user is not None
            assert (mode, path.stat().st_gid) == (0o710, user.gid)
        else:
            assert mode & 0o077 == 0, path
    for path in (paths.home / "locks", paths.releases):
        assert path.stat().st_mode & 0o777 == 0o700


def test_no_secret_is_in_a_log(server: Server, tmp_path: Path) -> None:
    """Letta prints its password and the migrations the database's: neither gets into a file or onto the screen."""
    server.up()
    logs = [path for path in server.paths.logs.iterdir() if path.is_file()]
    assert {"letta.log", "postgres.log"} <= {path.name for path in logs}
    shown = isabella(server, "logs", "--lines", "1000", cwd=tmp_path).stdout
    assert "Uvicorn running on" in shown
    assert "database system is ready" in isabella(server, "logs", "--postgres", cwd=tmp_path).stdout
    for text in (shown, *(path.read_text() for path in logs)):
        for secret in (*secrets_of(server).values(), CANARY):
            assert secret not in text


def test_status_says_what_runs(server: Server, tmp_path: Path) -> None:
    """Exit code 0 while both run, 3 otherwise; --json is one object."""
    letta = server.up()
    finished = isabella(server, "status", "--json", cwd=tmp_path)
    assert finished.returncode == 0
    found = json.loads(finished.stdout)
    assert (found["running"], found["base_url"], found["version"]) == (True, letta.base_url, "0.16.8")
    assert isabella(replace(server, instance="tests-never"), "status", cwd=tmp_path).returncode == 3


def test_another_master_key_is_not_passed_over(server: Server) -> None:
    """A running Letta is neither restarted nor used under a key it does not run under; a restart is asked for."""
    kept = server.up()
    before = server.status()
    with pytest.raises(StartFailed, match="a master key other than") as failure:
        replace(server, master_key=SecretStr("ab" * 32)).up()
    assert "isabella letta down" in str(failure.value.remedy)
    with pytest.raises(StartFailed, match="a master key other than"):
        replace(server, encrypt=False).up()
    assert server.status() == before

    events: list[Step] = []
    restarted = server.restart_letta(events.append, encrypt=False, extra_env={"OPENAI_API_KEY": "sk-wanted"})
    assert restarted.started
    assert restarted.master_key is None
    after = server.status()
    assert after.postgres == before.postgres
    environ = psutil.Process(after.letta.pid).environ()
    assert "LETTA_ENCRYPTION_KEY" not in environ
    assert environ["OPENAI_API_KEY"] == "sk-wanted"
    assert any(event.state == "note" and "a different master key" in event.detail for event in events)
    with pytest.raises(StartFailed, match="a master key other than"):
        server.up()
    server.down()
    assert server._key() == kept.master_key


_INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
from isabella.embedded import Server

home, instance, name, state, delay, which = sys.argv[1:]

def interrupt(event):
    if (event.name, event.state) == (name, state):
        strike = lambda: os.kill(os.getpid(), getattr(signal, which))
        threading.Timer(float(delay), strike).start() if float(delay) else strike()

Server(Path(home), instance=instance).up(interrupt)
"""

# In the order of the steps. A delay puts the blow somewhere in the middle; wherever it falls, all must end well.
INTERRUPTIONS = [
    ("postgres", "started", 0.0, "SIGKILL"),
    ("postgres", "started", 0.2, "SIGKILL"),
    ("postgres", "started", 0.2, "SIGINT"),
    ("postgres", "done", 0.0, "SIGKILL"),
    ("migrate", "started", 1.5, "SIGKILL"),
    ("migrate", "started", 1.5, "SIGINT"),
    ("migrate", "done", 0.0, "SIGTERM"),
    ("letta", "started", 1.0, "SIGKILL"),
]


def test_interrupted_at_every_step(new_server: Callable[..., Server]) -> None:
    """Whenever a start is cut off, by whatever signal, the next one goes on; in the end there is one of each."""
    server = new_server("interrupted", migrated=False)
    for name, state, delay, which in INTERRUPTIONS:
        finished = subprocess.run(
            [sys.executable, "-c", _INTERRUPTED, server.home, server.instance, name, state, str(delay), which],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        # A step that an earlier attempt had completed is not repeated, and so cannot be interrupted.
        assert finished.returncode in (0, 1, -getattr(signal, which)), finished.stderr
        if finished.returncode == 1:
            assert "KeyboardInterrupt" in finished.stderr
        run = letta_process.running(server.paths)
        if run is not None and name != "letta":
            # A Letta that survives would complete the start by itself.
            os.kill(run.process.pid, signal.SIGKILL)
    letta = server.up()
    assert providers(letta) == {"letta"}
    status = server.status()
    assert status.running
    # Before the family is counted: what is forked since then shows its parent's arguments for a moment.
    found = set(marked(server))
    everything = family(status)
    assert {pid for pid in found if psutil.pid_exists(pid)} <= {process.pid for process in everything}

    # Even the record of what runs may be lost.
    server.paths.run_file.unlink()
    assert server.down()
    assert alive(everything) == []
    assert marked(server) == []


def test_two_at_once_on_ports_that_are_taken(server: Server, tmp_path: Path) -> None:
    """One starts it, the other waits and finds it; where the ports of last time are taken, others are chosen."""
    server.up()
    server.down()
    remembered = json.loads(server.paths.ports_file.read_text())
    command = [str(COMMAND), "letta", "up", "--home", str(server.home), "--instance", server.instance]
    with closing(socket.socket()) as letta_port, closing(socket.socket()) as postgres_port:
        for listener, port in ((letta_port, remembered["letta"]), (postgres_port, remembered["postgres"])):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
        both = [
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=250) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    status = server.status()
    assert status.running
    assert (status.letta.port, status.postgres.port) != (remembered["letta"], remembered["postgres"])
    assert all(str(status.base_url) in out for out, _ in said)
    assert sorted("was up already" in out for out, _ in said) == [False, True]
    assert set(marked(server)) <= {process.pid for process in family(status)}


def test_a_crash_is_healed(server: Server) -> None:
    """Both servers killed, as by a power cut, and files damaged: the next start finds the data as they were.

    Without the master key, it makes no other one as long as a value is encrypted.
    """
    first = server.up()
    held = providers(first)
    before = server.status()
    key = server.paths.master_key_file.read_text()
    store_secret(first, encrypt("a secret of Letta's", key.strip()))
    killed = family(before)
    for pid in (before.letta.pid, before.postgres.pid):
        os.kill(int(pid or 0), signal.SIGKILL)
    psutil.wait_procs(killed, timeout=30)
    assert not server.status().running
    server.paths.master_key_file.unlink()
    with pytest.raises(StartFailed, match=r"1 values in Letta's database .* providers.api_key_enc of letta"):
        server.up()
    assert not server.paths.master_key_file.exists()
    server.paths.master_key_file.write_text(key)
    store_secret(first, None)
    events: list[Step] = []
    damage(server.paths)
    letta = server.up(events.append)
    assert letta.started
    assert ("migrate", "skipped") in [(event.name, event.state) for event in events]
    assert providers(letta) == held
    # The new passwords are the ones in force.
    url = f"{letta.base_url}/v1/providers/"
    assert letta.password.get_secret_value() == server.paths.password_file.read_text().strip()
    assert httpx2.get(url, headers={"Authorization": f"Bearer {letta.password.get_secret_value()}"}).is_success


def store_secret(letta: Letta, text: str | None) -> None:
    """Store a text in a column of encrypted values."""
    with psycopg.connect(letta.database_url.get_secret_value()) as connection:
        connection.execute("UPDATE providers SET api_key_enc = %s WHERE name = 'letta'", (text,))


def damage(paths: InstancePaths) -> None:
    """Damage what can be made anew."""
    for path in (paths.password_file, paths.run_file, paths.ports_file):
        path.write_text("This text is of another program.\n")
    paths.database_password_file.unlink()
    paths.database_password_file.mkdir()
    paths.lock.unlink()
    paths.lock.symlink_to(paths.master_key_file)


def test_a_postgres_that_dies_or_freezes_moves_nothing(server: Server) -> None:
    """Beside a Letta that runs, it comes back alone, and Letta goes on: the same process, and both ports the same."""
    letta, before = server.up(), server.status()
    held = providers(letta)
    part = PostgresPart(server)
    killed = psutil.Process(before.postgres.pid)
    killed.kill()
    psutil.wait_procs([killed], timeout=30)
    assert (part.look().process, part.answers()) == (None, False)
    again = server.up()
    assert (again.started, again.base_url) == (False, letta.base_url)
    between = server.status()
    assert between.letta == before.letta
    assert between.postgres.port == before.postgres.port

    frozen = part.look().process
    assert frozen is not None
    psutil.Process(frozen.pid).suspend()
    while psutil.Process(frozen.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    assert "stopped by a signal" in str(part.look().problem)
    part.start(frozen)
    assert part.answers()
    after = server.status()
    assert (after.letta, after.postgres.port) == (before.letta, before.postgres.port)
    assert after.postgres.pid not in (None, frozen.pid)
    headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}"}
    # The connections of its pool have ended; each costs one request.
    statuses = [
        httpx2.get(f"{letta.base_url}/v1/providers/", headers=headers, timeout=30).status_code for _ in "12345"
    ]
    assert 200 in statuses, statuses
    assert providers(letta) == held


def test_down_leaves_nothing_running(server: Server, tmp_path: Path) -> None:
    """No process is left; a second down has nothing to do; the data and the secrets stay."""
    server.up()
    secrets = secrets_of(server)
    everything = family(server.status())
    assert len(everything) > 3
    finished = isabella(server, "down", cwd=tmp_path)
    assert (finished.returncode, finished.stdout.strip()) == (0, "Stopped.")
    assert alive(everything) == []
    assert marked(server) == []
    # A backend that supervises it does not take this for a crash.
    assert not LettaPart(server).look().wanted
    assert not PostgresPart(server).look().wanted
    assert isabella(server, "down", cwd=tmp_path).stdout.strip() == "Nothing was running."
    assert isabella(server, "status", cwd=tmp_path).returncode == 3
    assert secrets_of(server) == secrets
