"""The practice vendors as a process of their own, driven by functions and by the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from unittest.mock import Mock

import httpx2
import psutil
import pytest
from typer.testing import CliRunner

from isabella.cli import app
from isabella.config import vendors
from isabella.config.settings import load_settings
from isabella.errors import PracticeError
from isabella.practice import NAMES, VendorFault, daemon
from isabella.practice.overlay import ConfigSnapshot, as_served, with_practice_vendors
from isabella.practice.server import TOKEN_HEADER, listen
from isabella.providers.desired import desired_providers
from isabella.server import prerequisites
from isabella.server.options import ServeOptions
from isabella.watch.config_changes import ConfigDiff, diff_config


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of Isabella's; what runs in it is stopped at the end. Others may want the usual port meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(daemon, "DEFAULT_PORT", free.getsockname()[1])
    yield tmp_path / "home"
    daemon.down(tmp_path / "home")


def models(running: daemon.Running, vendor: str, key: str) -> int:
    """The status that a vendor answers to a key."""
    return httpx2.get(running.base_url(vendor) + "/models", headers={"Authorization": f"Bearer {key}"}).status_code


def isabella(home: Path, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    """Run `isabella practice` in this process: exit code, standard output, standard error."""
    result = CliRunner().invoke(app, ["practice", *arguments, "--home", str(home)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_up_reuses_what_runs_and_down_leaves_nothing(home: Path) -> None:
    """The second `up` finds the first; after `down` the process is gone and the keys and the port are kept."""
    told: list[str] = []
    first = daemon.up(home, progress=told.append)
    second = daemon.up(home, progress=told.append)
    assert (first.started, second.started) == (True, False)
    assert (first.process, first.port) == (second.process, second.port)
    assert any("already" in line for line in told)
    keys = {name: first.key(name).get_secret_value() for name in NAMES}
    assert [models(first, name, keys[name]) for name in NAMES] == [200] * 4
    assert daemon.down(home)
    assert not first.process.is_running()
    assert daemon.status(home) is None
    assert not daemon.down(home)
    again = daemon.up(home)
    assert again.port == first.port
    assert {name: again.key(name).get_secret_value() for name in NAMES} == keys


def test_commands_speak_of_the_vendors_that_the_backend_speaks_to(home: Path) -> None:
    """Running practice vendors stand in where nobody has a key and Letta is ours; never otherwise."""
    given = {"ISABELLA_HOME": str(home)}

    def keys(**variables: str) -> set[str | None]:
        settings = as_served(load_settings(environment=given | variables))
        return {None if one.key is None else one.key.get_secret_value() for one in desired_providers(settings)}

    assert keys() == {None}
    running = daemon.up(home)
    assert keys() == {running.key(name).get_secret_value() for name in NAMES}
    assert keys(GROQ_API_KEY="gsk_of-somebody-s-own-account") == {None, "gsk_of-somebody-s-own-account"}
    assert keys(LETTA_BASE_URL="http://127.0.0.1:8283") == {None}
    daemon.down(home)
    assert keys() == {None}


def test_files_are_the_owners_alone_and_no_key_is_where_others_look(home: Path) -> None:
    """Modes are 0600 in a 0700 folder; arguments, environment and log of the process hold no key."""
    os.environ["CEREBRAS_API_KEY"] = "csk-canary-of-the-environment"
    try:
        running = daemon.up(home)
    finally:
        del os.environ["CEREBRAS_API_KEY"]
    key = running.key("cerebras").get_secret_value()
    models(running, "cerebras", key)
    folder = home / "practice"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    process = psutil.Process(running.process.pid)
    open_to_others = (
        " ".join(process.cmdline()) + json.dumps(process.environ()) + (folder / "practice.log").read_text()
    )
    assert key not in open_to_others
    assert "csk-canary" not in open_to_others
    assert running.token.get_secret_value() not in open_to_others
    assert key not in repr(running)


def test_killed_vendors_come_up_again(home: Path) -> None:
    """After a SIGKILL the next `up` starts anew, with the keys as they were."""
    first = daemon.up(home)
    key = first.rotate("groq").get_secret_value()
    os.kill(first.process.pid, signal.SIGKILL)
    second = daemon.up(home)
    assert second.started
    assert second.key("groq").get_secret_value() == key
    assert models(second, "groq", key) == 200


def test_another_port_when_the_former_is_taken(home: Path) -> None:
    """A port asked for by number is that or an error; otherwise a free one is found."""
    port = daemon.up(home).port
    with pytest.raises(PracticeError, match=f"run on port {port} already"):
        daemon.up(home, port + 1)
    daemon.down(home)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(PracticeError, match=f"Port {port} is taken"):
            daemon.up(home, port)
        assert daemon.up(home).port != port


def test_two_at_once_start_one(home: Path) -> None:
    """Whoever comes second finds what the first has started."""
    found: list[daemon.Running] = []
    threads = [threading.Thread(target=lambda: found.append(daemon.up(home))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({running.process for running in found}) == 1
    assert sum(running.started for running in found) == 1


def test_controls_from_another_process(home: Path) -> None:
    """Keys, faults and logs are controlled with the token, and not without it."""
    running = daemon.up(home)
    old = running.key("cerebras").get_secret_value()
    new = running.rotate("cerebras", keep_old=True).get_secret_value()
    assert [models(running, "cerebras", key) for key in (old, new)] == [200, 200]
    running.control.accept("cerebras", [running.key("cerebras")])
    assert [models(running, "cerebras", key) for key in (old, new)] == [401, 200]
    assert [request.carries(old) for request in running.control.requests("cerebras")] == [True, False, True, False]
    running.control.fault("cerebras", VendorFault(status=503, times=1))
    assert [models(running, "cerebras", new) for _ in range(2)] == [503, 200]
    running.control.fault("cerebras", VendorFault(latency=0.01))
    assert running.control.faults("cerebras")[0]["latency"] == 0.01
    running.control.clear()
    assert running.control.faults("cerebras") == []
    logged = f"{running.address}/practice/cerebras/requests"
    httpx2.delete(logged, headers={TOKEN_HEADER: running.token.get_secret_value()})
    assert running.control.requests("cerebras") == []
    answer = httpx2.get(f"{running.address}/practice/cerebras/keys", headers={TOKEN_HEADER: "guessed"})
    assert answer.status_code == 401
    with_token = {TOKEN_HEADER: running.token.get_secret_value()}
    shown = httpx2.get(f"{running.address}/practice/cerebras/keys", headers=with_token).text
    assert new not in shown
    for body in (b"{", b"[]", b'{"accepted": "x"}', b'{"accepted": ["a b"]}', b'{"accepted": [], "more": 1}'):
        bad = httpx2.put(f"{running.address}/practice/cerebras/keys", headers=with_token, content=body)
        assert bad.status_code == 422
    daemon.down(home)
    with pytest.raises(PracticeError, match="do not answer"):
        running.control.faults("cerebras")


def test_damaged_keys_are_made_anew(home: Path) -> None:
    """A file that was edited into something else is named until the vendors start with new keys; it is kept."""
    former = daemon.up(home).key("groq")
    daemon.down(home)
    daemon.keys_file(home).write_text('{"accepted": {')
    with pytest.raises(PracticeError, match="cannot be read") as caught:
        daemon.accepted_keys(home)
    assert "Delete the file" in str(caught.value)
    assert daemon.up(home).key("groq") != former
    assert (home / "practice" / "keys.json.damaged").read_text() == '{"accepted": {'


def test_command_line(home: Path, tmp_path: Path) -> None:
    """up, status, keys, rotate, fault, log, env, down: what they print holds no key."""
    assert isabella(home, "status")[0] == 3
    code, out, _ = isabella(home, "up")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(NAMES)
    running = daemon.status(home)
    assert running is not None
    old = running.key("groq").get_secret_value()
    printed = out
    for arguments in (
        ["rotate", "groq", "--keep-old"],
        ["keys", "groq"],
        ["fault", "groq", "--status", "429", "--times", "1", "--retry-after", "3"],
        ["status"],
        ["status", "--json"],
    ):
        code, out, _ = isabella(home, *arguments)
        assert code == 0, arguments
        printed += out
    new = running.key("groq").get_secret_value()
    assert new != old
    assert "429" in printed
    assert [models(running, "groq", key) for key in (new, old)] == [429, 200]
    _, out, _ = isabella(home, "log", "groq")
    assert [line.split()[1] for line in out.splitlines()] == ["429", "200"]
    printed += out
    assert isabella(home, "fault", "groq", "--clear")[1] == "No fault is active.\n"
    path = tmp_path / "practice.env"
    printed += isabella(home, "env", str(path))[1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"GROQ_API_KEY={new}" in path.read_text()
    assert isabella(home, "env", str(path))[0] == 1
    for name in NAMES:
        assert running.key(name).get_secret_value() not in printed
    assert old not in printed
    assert isabella(home, "down")[:2] == (0, "Stopped.\n")
    assert json.loads(isabella(home, "status", "--json")[1]) == {"running": False}


def test_limits_and_windows_on_the_command_line(home: Path) -> None:
    """They take effect, are shown, and are removed with the faults; the log tells the tokens and the end."""
    running = daemon.up(home)

    def chat(text: str) -> int:
        body = {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {running.key('groq').get_secret_value()}"}
        return httpx2.post(f"{running.base_url('groq')}/chat/completions", headers=headers, json=body).status_code

    assert isabella(home, "limit", "groq")[1] == "No limit is active.\n"
    shown = isabella(home, "limit", "groq", "--tokens", "1000")[1]
    assert shown == "requests per minute: 30, left: 30\ntokens per minute: 1000, left: 1000\n"
    assert [chat("Hello"), chat("Hello" * 1_000)] == [200, 413]
    assert isabella(home, "limit", "groq", "--off")[1] == "No limit is active.\n"
    assert "window 100, overflow vllm" in isabella(home, "fault", "groq", "--window", "100", "--overflow", "vllm")[1]
    assert [chat("Hello" * 1_000), chat("Hello")] == [400, 200]
    assert isabella(home, "fault", "groq", "--overflow", "abacus")[0] == 64
    isabella(home, "limit", "groq", "--requests", "1")
    assert isabella(home, "fault", "groq", "--clear")[1] == "No fault is active.\n"
    assert isabella(home, "limit", "groq")[1] == "No limit is active.\n"
    requests = running.control.requests("groq")
    assert [(request.status, request.generated > 0, request.ended) for request in requests] == [
        (200, True, "completed"),
        (413, False, "completed"),
        (400, False, "completed"),
        (200, True, "completed"),
    ]
    log = isabella(home, "log", "groq")[1].splitlines()
    assert log[0].endswith(f" {requests[0].generated} tokens")


def test_keys_from_a_file_and_from_standard_input(home: Path, tmp_path: Path) -> None:
    """Whether the vendors run or not, the keys of a file replace the list."""
    running = daemon.up(home)
    given = "csk-given-0000000000000001"
    listed = tmp_path / "keys"
    listed.write_text(f"{given}\n\n")
    assert isabella(home, "keys", "cerebras", "--accept", str(listed))[:2] == (0, "csk-…0001\n")
    assert models(running, "cerebras", given) == 200
    daemon.down(home)
    assert isabella(home, "keys", "groq", "--accept", "-", stdin="gsk_other000000000000002\n")[0] == 0
    again = daemon.up(home)
    assert [models(again, "cerebras", given), models(again, "groq", "gsk_other000000000000002")] == [200, 200]
    assert isabella(home, "keys", "cerebras", "--accept", str(tmp_path / "absent"))[0] == 1


def test_mistakes_of_users(home: Path) -> None:
    """Each is told in a line, with what to do."""
    for arguments in (["log", "groq"], ["rotate", "groq"]):
        code, _, message = isabella(home, *arguments)
        assert (code, bool(message)) == (1, True), arguments
    for arguments in (["keys", "nobody"], ["fault", "groq", "--status", "99"]):
        code, _, message = isabella(home, *arguments)
        assert (code, bool(message)) == (64, True), arguments


def test_help_imports_nothing_heavy() -> None:
    """The command module is on the way to every `isabella --help`."""
    heavy = "{'uvicorn', 'starlette', 'pydantic', 'httpx2', 'psutil', 'filelock', 'rich'}"
    code = f"import sys, isabella.cli.practice; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_whoever_keeps_watch_takes_rotated_keys(home: Path, tmp_path: Path) -> None:
    """Their file of keys is watched where they stand in: a rotated key is a new key of that provider alone."""
    running = daemon.up(home)
    settings = load_settings(environment={"ISABELLA_HOME": str(home), "ISABELLA_CONFIG_FILE": str(tmp_path / "none")})
    before = ConfigSnapshot.of(with_practice_vendors(settings, running))
    assert daemon.keys_file(home) in before.files
    assert diff_config(before, before.again(), before.settings) == ConfigDiff()

    rotated = running.rotate("longcat")
    after = before.again()
    assert diff_config(before, after, before.settings) == ConfigDiff(providers=("longcat",))
    assert {one.name: one.key for one in after.desired}["longcat"] == rotated

    # What cannot be read, and a vendor that accepts nobody, leave what was known.
    daemon.accept(home, "longcat", [])
    assert diff_config(after, after.again(), after.settings) == ConfigDiff()
    daemon.keys_file(home).write_text("{")
    assert diff_config(after, after.again(), after.settings) == ConfigDiff()


@pytest.fixture
def _five_vendors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A catalog with a fifth vendor, of which the practice vendors know nothing."""
    text = (Path(vendors.__file__).parent / "vendors.toml").read_text()
    (longcat,) = (part for part in text.split("[[vendors]]") if 'name = "longcat"' in part)
    fifth = f"\n[[vendors]]{longcat}".replace("longcat", "fifth").replace("LongCat", "Fifth")
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "vendors.toml").write_text(text + fifth.replace("LONGCAT", "FIFTH"))
    monkeypatch.setattr(resources, "files", lambda _package: tmp_path / "catalog")
    vendors.known_vendors.cache_clear()
    # The files of other packages are read before: only the catalog is another one.
    assert [vendor.name for vendor in vendors.usual_vendors()] == [*NAMES, "fifth"]
    monkeypatch.undo()
    yield
    vendors.known_vendors.cache_clear()


@pytest.mark.usefixtures("_five_vendors")
def test_a_vendor_without_a_practice_vendor_is_left_out(tmp_path: Path) -> None:
    """The start without any key goes on with the others, and says so; a rotated key is noticed, too."""
    home, said = tmp_path / "home", list[str]()
    settings = load_settings(environment={"ISABELLA_HOME": str(home), "ISABELLA_CONFIG_FILE": str(tmp_path / "none")})
    options = ServeOptions(None, False, progress=Mock(), show=Mock(), say=said.append)
    with ExitStack() as started:
        served = prerequisites._with_practice(settings, options, started, [])
        wanted = [one.vendor.name for one in desired_providers(served) if one.configured]
        assert wanted == list(NAMES)
        assert "There is no practice vendor for Fifth: it is used as soon as .env has a key for it." in said
        before = ConfigSnapshot.of(served)
        daemon.accept(home, "groq", ["gsk_rotated"])
        assert diff_config(before, before.again(), settings) == ConfigDiff(providers=("byok-groq",))


def test_a_port_of_the_vendors_is_theirs_before_they_answer() -> None:
    """Nobody else can listen on it from the moment on in which it was chosen."""
    with listen(0) as ours, pytest.raises(PracticeError, match="is taken"):
        listen(ours.getsockname()[1])
