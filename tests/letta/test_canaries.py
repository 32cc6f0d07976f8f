"""Canary keys: nothing that Isabella prints, logs, keeps, serves or starts gives a key away.

One story is played on a real Letta, with keys that occur nowhere else: everything goes well, keys are refused, Letta
refuses whole requests and quotes them, the connection breaks, configuration files are malformed, a backend serves.
Whatever comes out on the way is searched afterwards.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import secrets
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlsplit
from zipfile import ZipFile

import httpx2
import pytest

from isabella.config.vendors import usual_vendors
from isabella.embedded import Letta, Server
from isabella.practice import PracticeVendors
from isabella.practice.daemon import accepted_keys
from isabella.practice.vendor import new_keys
from isabella.system.redaction import KNOWN_PREFIXES
from tests.support.command import Command, Ended
from tests.support.fault_proxy import Proxy
from tests.support.letta_admin import LettaAdmin, open_admin

# The whole story is told in a fixture, on a busy machine beside other servers.
pytestmark = pytest.mark.timeout(900)

#: So many characters of a secret in a row are found, wherever they stand in it; the last four may be shown.
_WINDOW = 10
#: What the practice vendors put before the random part of a key.
_FAKE = "practice-"
_UP_SECONDS = 90.0
#: How often the command line of a process is read, 20 ms apart.
_LOOKS = 10

#: The only files that are meant to hold secrets, below the homes of Isabella and of the tests' own Letta.
MEANT_TO_HOLD = (
    "token",
    "practice/keys.json",
    "practice/state.json",
    "master-key",
    "server-password",
    "database-password",
    "postgres-password",
    # Letta writes the address of its database there itself.
    "home/.letta/config",
)


@dataclass
class Story:
    """What came out of it.

    Attributes:
        secrets: every secret, by what it is.
        said: whatever was printed, answered or shown, by what was done.
        command_lines: of every process on this machine while it was played.
        homes: the folders that were written to.
    """

    secrets: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    command_lines: set[str] = field(default_factory=set)
    homes: list[Path] = field(default_factory=list)

    def pieces(self) -> dict[str, list[bytes]]:
        """What to look for: each secret's pieces, as it stands and as it stands in a URL."""
        found: dict[str, list[bytes]] = {}
        for name, secret in self.secrets.items():
            prefix = next((known for known in KNOWN_PREFIXES if secret.startswith(known)), "")
            # What says that it is a fake is said in other places, too: agents of other tests are named so.
            body = secret.removeprefix(prefix).removeprefix(_FAKE)
            middle = len(body) // 2
            windows = [body[:_WINDOW], body[middle : middle + _WINDOW], body[-_WINDOW:]]
            found[name] = [piece.encode() for piece in dict.fromkeys([*windows, *map(quote, windows)])]
        return found

    def found_in(self, content: bytes | mmap.mmap) -> list[str]:
        """The names of the secrets of which a piece stands there."""
        return [name for name, pieces in self.pieces().items() if any(content.find(piece) >= 0 for piece in pieces)]


class Watch:
    """Looks at the command lines of all processes from their start on, while it is open."""

    def __init__(self, seen: set[str]) -> None:
        self._seen = seen
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        looks: dict[str, int] = {}
        while not self._over.wait(0.02):
            # Some looks at each process are enough: what is started is a fork of its parent until it execs.
            looks = {pid: looks.get(pid, 0) + 1 for pid in os.listdir("/proc") if pid.isdigit()}  # noqa: PTH208
            for pid in (pid for pid, count in looks.items() if count <= _LOOKS):
                with suppress(OSError):  # It has ended.
                    line = Path("/proc", pid, "cmdline").read_bytes()
                    self._seen.add(line.replace(b"\0", b" ").decode("utf-8", "replace"))


def canary_keys() -> dict[str, str]:
    """A key for each vendor, that looks like one of its own."""
    return {vendor.name: f"{vendor.key_prefix or ''}Canary{secrets.token_hex(12)}" for vendor in usual_vendors()}


def key_variables(keys: dict[str, str]) -> dict[str, str]:
    """The variables for these keys."""
    return {vendor.api_key_env: keys[vendor.name] for vendor in usual_vendors()}


@pytest.fixture(scope="module")
def letta(letta_server: Letta) -> Iterator[LettaAdmin]:
    """The real Letta, cleared of providers and agents of this file when it is done."""
    names = [vendor.provider for vendor in usual_vendors()]
    with open_admin(letta_server) as opened:
        before = {agent["id"] for agent in opened.http.get("/v1/agents/").raise_for_status().json()}
        opened.clear(*names)
        yield opened
        for agent in opened.http.get("/v1/agents/").raise_for_status().json():
            if agent["id"] not in before:
                opened.http.delete(f"/v1/agents/{agent['id']}")
        opened.clear(*names)


@pytest.fixture(scope="module")
def story(letta: LettaAdmin, embedded: Server, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The story, played once."""
    folder = tmp_path_factory.mktemp("canaries")
    told = Story(homes=[folder / "home", embedded.paths.folder])
    server = letta.letta
    assert server.master_key is not None
    database_url = server.database_url.get_secret_value()
    told.secrets = {
        "the master key": server.master_key.get_secret_value(),
        "the server password": server.password.get_secret_value(),
        "the database password": urlsplit(database_url).password or "",
    }
    with PracticeVendors() as vendors, Proxy(server.base_url) as proxy, Watch(told.command_lines):
        command = Command(folder, {})
        base_urls = {
            vendor.base_url_env: vendors.base_url(vendor.name) for vendor in usual_vendors() if vendor.base_url_env
        }
        common = {
            "LETTA_BASE_URL": proxy.url,
            "LETTA_API_KEY": server.password.get_secret_value(),
            "LETTA_ENCRYPTION_KEY": server.master_key.get_secret_value(),
            "ISABELLA_DATABASE_URL": database_url,
            "ISABELLA_HOME": str(folder / "home"),
            "ISABELLA_PORT": "0",
            "ISABELLA_TIMEOUT": "5",
        }
        _all_is_well(told, command, common | base_urls, vendors)
        _keys_are_refused(told, command, common | base_urls)
        _letta_quotes_requests(told, command, common | base_urls, proxy)
        _files_are_malformed(told, command, common | base_urls)
        _a_backend_serves(told, command, common)
    return told


def _note(told: Story, what: str, ended: Ended) -> None:
    told.said[f"{what}: exit {ended.code}"] = ended.out + ended.err


def _new_keys(told: Story, which: str) -> dict[str, str]:
    keys = canary_keys()
    told.secrets |= {f"{which} key of {name}": key for name, key in keys.items()}
    return keys


def _all_is_well(told: Story, command: Command, common: dict[str, str], vendors: PracticeVendors) -> None:
    # Command lines are searched for secrets, so some have to be those of processes that a shell starts.
    for which, one in (("a first", replace(command, forks=False)), ("a rotated", command)):
        keys = _new_keys(told, which)
        for name, key in keys.items():
            vendors.accept(name, [key])
        command.configure(**common, **key_variables(keys))
        for arguments in (["providers", "plan"], ["providers", "sync"], ["settings"], ["doctor"]):
            _note(told, f"{which}, {' '.join(arguments)}", one.run(*arguments))
        for arguments in (["providers", "status"], ["providers", "verify"], ["settings"]):
            _note(told, f"{which}, {' '.join(arguments)} --json", one.run(*arguments, "--json"))
    # The environment wins over `.env`, which is said loudly.
    shell = Command(command.folder, {"GROQ_API_KEY": canary_keys()["groq"]})
    told.secrets["the key in the shell"] = shell.environment["GROQ_API_KEY"]
    _note(told, "a contradiction", shell.run("providers", "status"))


def _keys_are_refused(told: Story, command: Command, common: dict[str, str]) -> None:
    command.configure(**common, **key_variables(_new_keys(told, "a refused")))
    _note(told, "refused, sync", command.run("providers", "sync"))
    _note(told, "refused, sync --json", command.run("providers", "sync", "--strategy", "recreate", "--json"))
    _note(told, "refused, written all the same", command.run("providers", "sync", "--no-probe"))
    _note(told, "refused, verify", command.run("providers", "verify"))
    _note(told, "refused, doctor", command.run("doctor", "--json"))
    odd = {"GROQ_API_KEY": "gsk_CanaryWith space0123456", "MISTRAL_API_KEY": "CanaryWithSnow☃0123456"}
    told.secrets |= {"a key with a space": "CanaryWith", "a key with snow": "CanaryWithSnow"}
    command.configure(**common, **odd)
    _note(told, "odd keys, sync", command.run("providers", "sync"))
    _note(told, "odd keys, settings", command.run("settings", "--json"))


def _letta_quotes_requests(told: Story, command: Command, common: dict[str, str], proxy: Proxy) -> None:
    keys = _new_keys(told, "a quoted")
    command.configure(**common, **key_variables(keys), GROQ_PROVIDER_TYPE="nonsense")
    arguments = ["providers", "sync", "--no-probe", "--strategy", "recreate"]
    _note(told, "an unknown type", command.run(*arguments))
    command.configure(**common, **key_variables(keys))
    for kind in ("drop", "html", "truncate", 500):
        proxy.fault("(POST|PATCH|DELETE) /v1/providers/", kind, "after", times=4)
        _note(told, f"writes that end with {kind}", command.run(*arguments))
        proxy.clear()
    command.configure(**common | {"LETTA_API_KEY": "Canary-a-wrong-password"}, **key_variables(keys))
    told.secrets["a wrong password"] = "Canary-a-wrong-password"
    _note(told, "a wrong password", command.run("providers", "sync", "--json"))
    database_url = "postgresql://letta:CanaryDatabaseWord@127.0.0.1:9/letta"
    told.secrets["a wrong database password"] = "CanaryDatabaseWord"
    command.configure(**common | {"ISABELLA_DATABASE_URL": database_url}, **key_variables(_new_keys(told, "another")))
    _note(told, "no database", command.run(*arguments))


def _files_are_malformed(told: Story, command: Command, common: dict[str, str]) -> None:
    key = f"csk-CanaryMalformed{secrets.token_hex(8)}"
    told.secrets["the key on a malformed line"] = key
    command.configure(**common)
    with (command.folder / ".env").open("a") as file:
        file.write(f"CEREBRAS_API_KEY {key}\n")
    _note(told, "a malformed line", command.run("providers", "sync"))
    command.configure(**common | {"LETTA_ENCRYPTION_KEY": "CanaryMasterKey"})
    told.secrets["a malformed master key"] = "CanaryMasterKey"
    _note(told, "a malformed master key", command.run("providers", "sync"))
    command.configure(**common)
    told.secrets["the key in isabella.toml"] = f"gsk_CanaryInToml{secrets.token_hex(8)}"
    for name in ("api_key", "api_key_env"):
        (command.folder / "isabella.toml").write_text(
            f'[[providers]]\nname = "a"\nbase_url = "http://127.0.0.1:9/v1"\n'
            f'{name} = "{told.secrets["the key in isabella.toml"]}"\n'
        )
        _note(told, f"a key as {name} in isabella.toml", command.run("providers", "sync", "--json"))
    (command.folder / "isabella.toml").unlink()


def _a_backend_serves(told: Story, command: Command, common: dict[str, str]) -> None:
    home = Path(common["ISABELLA_HOME"])
    command.configure(**common)
    with command.start("up", "--practice", "--verify") as process:
        try:
            address, before = _served_at(process)
            told.secrets |= {
                f"a practice key of {name}": key for name, keys in accepted_keys(home).items() for key in keys
            }
            told.secrets["the backend's token"] = token = (home / "token").read_text().strip()
            with httpx2.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
                for path in (
                    "/health",
                    "/ready",
                    "/api/providers",
                    "/api/agents",
                    "/metrics",
                    "/docs",
                    "/openapi.json",
                ):
                    answer = http.get(path)
                    told.said[f"GET {path}: {answer.status_code}"] = f"{answer.headers}{answer.text}"
                export = http.get("/api/agents/Isabella/export", params={"format": "markdown"})
            told.said[f"an export: {export.status_code}"] = _unpacked(export.content)
            refused = httpx2.get(f"{address}/api/providers", headers={"Authorization": "Bearer wrong"})
            told.said[f"GET with a wrong token: {refused.status_code}"] = f"{refused.headers}{refused.text}"
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
    told.said[f"isabella up: exit {process.returncode}"] = f"{before}{out}{err}"


def _unpacked(content: bytes) -> str:
    with ZipFile(io.BytesIO(content)) as archive:
        return "\n".join(f"{name}\n{archive.read(name).decode()}" for name in archive.namelist())


def _served_at(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Where the backend serves, and what it said until then."""
    assert process.stderr is not None
    said: list[str] = []
    late = threading.Timer(_UP_SECONDS, process.kill)
    late.start()
    try:
        for line in process.stderr:
            said.append(line)
            found = re.search(r"(Ready|Degraded): (http://\S+)", line)
            if found:
                return found[2], "".join(said)
    finally:
        late.cancel()
    raise AssertionError(f"the backend did not come up: {''.join(said)}")


def test_the_story_was_played_as_it_was_meant(story: Story) -> None:
    """What was to go well went well, and what was to fail failed: otherwise nothing was searched for its leaks."""
    codes = {what.rpartition(": exit ")[0]: what.rpartition(" ")[2] for what in story.said if ": exit " in what}
    assert {what: code for what, code in codes.items() if "a rotated, providers" in what} == {
        "a rotated, providers plan": "2",
        "a rotated, providers sync": "0",
        "a rotated, providers status --json": "0",
        "a rotated, providers verify --json": "0",
    }
    failed = ["refused, sync", "odd keys, sync", "an unknown type", "a wrong password", "no database"]
    assert {codes[what] for what in failed} == {"1"}
    assert codes["isabella up"] == "0"
    assert story.said["GET /api/providers: 200"].count('"proven"') == 4
    assert "GET with a wrong token: 401" in story.said
    assert "manifest.json" in story.said["an export: 200"]
    assert "401" in story.said["refused, sync: exit 1"]
    assert "GROQ_API_KEY is set in the environment and, differently" in story.said["a contradiction: exit 2"]
    assert any("isabella" in line and "providers sync" in line for line in story.command_lines)
    assert len(set(story.secrets.values())) == len(story.secrets) >= 30


def test_a_key_is_shown_by_its_last_four_characters_at_most(story: Story) -> None:
    """Masks are shown, and so is whose key it is: the canaries were really on their way to the screen."""
    key = story.secrets["a rotated key of groq"]
    assert f"gsk_…{key[-4:]}" in story.said["a rotated, providers sync: exit 0"]


def test_nothing_printed_or_served_holds_a_secret(story: Story) -> None:
    """Neither standard output, nor standard error with its logs, nor JSON, nor a page of the backend."""
    assert {what: found for what, text in story.said.items() if (found := story.found_in(text.encode()))} == {}


def test_no_command_line_holds_a_secret(story: Story) -> None:
    """No process was started with a secret among its arguments: others can read them."""
    assert {line: found for line in story.command_lines if (found := story.found_in(line.encode()))} == {}


def files_below(homes: list[Path]) -> Iterator[tuple[str, Path]]:
    """Every file below these folders, with its path below its own."""
    for home in homes:
        for path in home.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(home)), path


def test_no_file_holds_a_secret_but_those_that_are_meant_to(story: Story) -> None:
    """Memos, locks, ledgers, logs of Isabella, Letta, Postgres and the practice vendors, and the database itself."""
    leaks: dict[str, list[str]] = {}
    for name, path in files_below(story.homes):
        if name in MEANT_TO_HOLD or path.stat().st_size == 0:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if found := story.found_in(content):
                leaks[str(path)] = found
    assert leaks == {}


def test_files_that_are_meant_to_hold_secrets_are_their_owner_s_alone(story: Story) -> None:
    """Each of them is there, and nobody else can read it."""
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in files_below(story.homes)}
    assert {name: oct(modes[name]) for name in MEANT_TO_HOLD} == dict.fromkeys(MEANT_TO_HOLD, oct(0o600))


def test_no_temporary_file_is_left(story: Story) -> None:
    """Files that are replaced as a whole leave no half-written ones behind."""
    assert [name for name, _ in files_below(story.homes[:1]) if Path(name).name.startswith(".")] == []


def test_practice_keys_are_obvious_fakes() -> None:
    """What the practice vendors accept cannot be taken for a real key by somebody who finds it."""
    for vendor, (key,) in new_keys().items():
        assert vendor == "mistral" or "practice" in key
