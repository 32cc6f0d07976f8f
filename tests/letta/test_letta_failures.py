"""Bad weather on a real Letta: one clear line, nothing lost, nothing twice, and nothing called proven that is not."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from isabella.api import ensure_providers
from isabella.config.choices import Strategy
from isabella.config.settings import load_settings
from isabella.embedded import Letta
from isabella.letta.encryption import decrypt
from isabella.letta.llm_config import Binding
from isabella.practice import PracticeVendors
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport
from tests.support.command import Command, Ended
from tests.support.fault_proxy import Kind, Proxy, When
from tests.support.letta_admin import LettaAdmin, open_admin
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal

STALE = "ak_practice-stale"
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """Vendors for all tests of this file."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture(scope="module")
def letta(letta_server: Letta) -> Iterator[LettaAdmin]:
    """The real Letta, cleared of what this file planted when it is done."""
    with open_admin(letta_server) as opened:
        yield opened
        opened.clear("storm-*")


@dataclass
class Scene:
    """One or more providers of their own, a proxy before Letta, and the command line configured for both.

    Attributes:
        letta: where it is planted.
        proxy: between Isabella and Letta.
        command: the command line.
        name: the provider's name.
        key: its configured key.
        base_url: its vendor's.
        variables: what `.env` holds.
    """

    letta: LettaAdmin
    proxy: Proxy
    command: Command
    name: str
    key: str
    base_url: str
    variables: dict[str, str]

    def configure(self, **variables: str) -> None:
        """Change `.env`."""
        self.variables |= variables
        self.command.configure(**self.variables)

    def declare(self, *providers: tuple[str, str]) -> None:
        """Declare providers by name and base URL; each has its key in a variable of its own: KEY_0, KEY_1, …."""
        tables = [
            f'[[providers]]\nname = "{name}"\nbase_url = "{base_url}"\napi_key_env = "KEY_{number}"\n'
            'default_model = "LongCat-2.0"\n'
            for number, (name, base_url) in enumerate(providers)
        ]
        (self.command.folder / "isabella.toml").write_text("".join(tables))

    def plant(self, key: str = STALE, type: str = "openai") -> str:
        """Have Letta hold the provider with this key."""
        return self.letta.provider(self.name, type, self.base_url, key)

    def ensure(self, strategy: Strategy = Strategy.AUTO, *, probe: bool = False) -> ProviderReport:
        """Bring the provider in line from within this process."""
        settings = load_settings(
            self.command.folder / ".env",
            environment={"ISABELLA_CONFIG_FILE": str(self.command.folder / "isabella.toml")},
        )
        run = ensure_providers(settings, only=[self.name], strategy=strategy, probe=probe)
        (entry,) = asyncio.run(run).providers
        return entry

    def opened(self) -> list[str | None]:
        """The keys of all live records of this name, opened."""
        master_key = self.letta.letta.master_key
        assert master_key is not None
        return [decrypt(row["api_key_enc"], master_key.get_secret_value()) for row in self.letta.rows(self.name)]


@pytest.fixture
def scene(letta: LettaAdmin, vendors: PracticeVendors, tmp_path: Path) -> Iterator[Scene]:
    """A provider at the practice LongCat, not yet in Letta, and `.env` for it."""
    name, base_url = f"storm-{secrets.token_hex(4)}", vendors.base_url("longcat")
    key = vendors.rotate("longcat", keep_old=True).get_secret_value()
    assert letta.letta.master_key is not None
    with Proxy(letta.letta.base_url) as proxy:
        found = Scene(letta, proxy, Command(tmp_path, {}), name, key, base_url, {})
        found.declare((name, base_url))
        found.configure(
            LETTA_BASE_URL=proxy.url,
            LETTA_API_KEY=letta.letta.password.get_secret_value(),
            LETTA_ENCRYPTION_KEY=letta.letta.master_key.get_secret_value(),
            ISABELLA_HOME=str(tmp_path / "home"),
            ISABELLA_TIMEOUT="10",
            KEY_0=key,
        )
        yield found
    letta.clear(name)
    vendors.clear()


# --- Letta in bad weather: one line, exit 1, nothing changed ------------------------------------------------------


def down(scene: Scene, stack: ExitStack) -> str:
    """Nothing listens at the address."""
    taken = stack.enter_context(socket.socket())
    taken.bind(("127.0.0.1", 0))
    scene.configure(LETTA_BASE_URL=f"http://127.0.0.1:{taken.getsockname()[1]}")
    return "No Letta server answers"


def silent(scene: Scene, stack: ExitStack) -> str:
    """Connections are taken, and nothing is ever answered."""
    scene.configure(ISABELLA_TIMEOUT="0.5")
    scene.proxy.fault("GET ", "hang", times=None)
    return "did not answer"


def wrong_password(scene: Scene, stack: ExitStack) -> str:
    """The password is another one."""
    scene.configure(LETTA_API_KEY="not-the-password")
    return "wants another password"


def no_password(scene: Scene, stack: ExitStack) -> str:
    """There is no password."""
    scene.configure(LETTA_API_KEY="")
    return "wants a password"


def not_a_letta(scene: Scene, stack: ExitStack) -> str:
    """Something answers there, and it is no Letta."""
    scene.configure(LETTA_BASE_URL=scene.base_url.removesuffix("/longcat/openai/v1"))
    return "is not a Letta server"


def html(scene: Scene, stack: ExitStack) -> str:
    """A page of a gateway answers."""
    scene.proxy.fault("GET ", "html", times=None)
    return "is not a Letta server"


def failing(scene: Scene, stack: ExitStack) -> str:
    """Letta fails to list its providers."""
    scene.proxy.fault("GET /v1/providers/", 500, times=None)
    return "with 500"


def breaking(scene: Scene, stack: ExitStack) -> str:
    """The list breaks off, again and again."""
    scene.proxy.fault("GET /v1/providers/", "truncate", "after", times=None)
    return "broke during GET"


def malformed_env(scene: Scene, stack: ExitStack) -> str:
    """A line of `.env` is none."""
    with (scene.command.folder / ".env").open("a") as file:
        file.write("NOT A LINE\n")
    return f".env, line {len(scene.variables) + 1}:"


def malformed_toml(scene: Scene, stack: ExitStack) -> str:
    """isabella.toml is no TOML."""
    (scene.command.folder / "isabella.toml").write_text("\n[[providers]]\nname = \n")
    return "isabella.toml: not valid TOML"


def wrong_database(scene: Scene, stack: ExitStack) -> str:
    """The database for the lock cannot be reached."""
    scene.configure(ISABELLA_DATABASE_URL="postgresql://letta:canary-word@127.0.0.1:9/letta")
    return "database cannot be used"


WEATHERS = [
    down,
    silent,
    wrong_password,
    no_password,
    not_a_letta,
    html,
    failing,
    breaking,
    malformed_env,
    malformed_toml,
]


def is_one_clear_line(ended: Ended, said: str) -> None:
    """One message on standard error, with a remedy at most, and exit code 1."""
    assert ended.code == 1
    lines = [line for line in ended.err.splitlines() if line.startswith("isabella: ")]
    assert len(lines) == 1, ended.err
    assert said in lines[0]
    assert len(ended.err.splitlines()) <= 2, ended.err


@pytest.mark.parametrize("weather", [*WEATHERS, wrong_database])
def test_in_bad_weather_sync_says_one_line_and_changes_nothing(
    weather: Any, scene: Scene, vendors: PracticeVendors
) -> None:
    """Exit 1, one line that says what is wrong, one JSON object; Letta holds what it held, and got no write."""
    scene.plant()
    before = scene.letta.rows(scene.name)
    with ExitStack() as stack:
        said = weather(scene, stack)
        ended = scene.command.run("providers", "sync", "--json")
    is_one_clear_line(ended, said)
    assert said in ended.document["error"]["what"]
    assert scene.proxy.writes == []
    assert scene.letta.rows(scene.name) == before
    assert scene.key not in ended.out + ended.err
    assert "canary-word" not in ended.out + ended.err


@pytest.mark.parametrize("command", ["plan", "status", "verify"])
@pytest.mark.parametrize("weather", [down, wrong_password, html])
def test_in_bad_weather_the_other_commands_end_alike(command: str, weather: Any, scene: Scene) -> None:
    """Whatever was asked for: exit 1 and one line; without --json nothing on standard output."""
    with ExitStack() as stack:
        said = weather(scene, stack)
        ended = scene.command.run("providers", command)
    is_one_clear_line(ended, said)
    assert ended.out == ""


# --- vendors in bad weather ---------------------------------------------------------------------------------------


def entries(ended: Ended) -> dict[str, dict[str, Any]]:
    """The providers of a report, by name."""
    return {entry["name"]: entry for entry in ended.document["providers"]}


def test_a_vendor_that_refuses_the_new_key_does_not_stop_the_others(scene: Scene, vendors: PracticeVendors) -> None:
    """The stored key stays, the line says that `.env` holds a refused key, the others are proven, exit 1."""
    other = f"{scene.name}-other"
    scene.declare((scene.name, scene.base_url), (other, scene.base_url))
    scene.configure(KEY_0="ak_practice-nobody-takes-this", KEY_1=scene.key)
    scene.plant()
    before = scene.letta.rows(scene.name)
    ended = scene.command.run("providers", "sync", "--json")
    assert ended.code == 1
    refused, proven = entries(ended)[scene.name], entries(ended)[other]
    assert (refused["stored"], refused["action"], refused["proof"]) == ("stale", "refuse", "failed")
    assert "refuses the configured key (401" in refused["reason"]
    assert "the stored key stays" in refused["reason"]
    assert "KEY_0 (.env) holds a refused key" in refused["remedy"]
    assert (proven["action"], proven["proof"]) == ("create", "proven")
    assert scene.letta.rows(scene.name) == before
    assert len(scene.letta.rows(other)) == 1
    scene.letta.clear(other)


def test_a_refused_key_is_not_registered(scene: Scene, vendors: PracticeVendors) -> None:
    """Where there was nothing, there is nothing afterwards: what was made is taken back."""
    scene.configure(KEY_0="ak_practice-nobody-takes-this")
    ended = scene.command.run("providers", "sync", "--json")
    assert ended.code == 1
    entry = entries(ended)[scene.name]
    assert (entry["stored"], entry["action"], entry["proof"]) == ("absent", "refuse", "failed")
    assert "nothing is registered" in entry["reason"]
    assert scene.letta.rows(scene.name) == []


@pytest.mark.parametrize("planted", [False, True])
def test_a_vendor_that_cannot_be_reached_gets_its_key_all_the_same(planted: bool, scene: Scene) -> None:
    """No answer says nothing of the key: it is written and proven, marked as not confirmed, exit 0."""
    scene.base_url = NOWHERE
    scene.declare((scene.name, NOWHERE))
    if planted:
        scene.plant()
    ended = scene.command.run("providers", "sync", "--json")
    assert ended.code == 0
    entry = entries(ended)[scene.name]
    assert (entry["action"], entry["proof"]) == ("update" if planted else "create", "proven")
    assert "not confirmed by the vendor" in entry["reason"]
    assert scene.opened() == [scene.key]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"html": 403}, "not confirmed"),
        ({"html": 502}, "not confirmed"),
        ({"status": 500}, "not confirmed"),
        ({"reset": True}, "not confirmed"),
        ({"malformed": True}, "not confirmed"),
        ({"status": 429}, "limits its rate"),
        ({"status": 402}, "out of funds"),
    ],
)
def test_a_vendor_on_a_bad_day_is_no_refusal(
    fault: dict[str, Any], said: str, scene: Scene, vendors: PracticeVendors
) -> None:
    """Failures, pages of a gateway, haste and empty accounts do not keep a key from being written; it is said."""
    scene.plant()
    vendors.fault("longcat", on="models", **fault)
    report = scene.ensure(probe=True)
    assert (report.action, report.proof) == (Action.UPDATE, Proof.PROVEN)
    assert said in report.reason
    assert scene.opened() == [scene.key]


# --- lost answers -------------------------------------------------------------------------------------------------

LOSSES: list[tuple[Kind, When]] = [
    ("drop", "before"),
    ("drop", "after"),
    ("reset", "after"),
    ("truncate", "after"),
    (500, "before"),
    (500, "after"),
    (502, "after"),
    (429, "before"),
]


@pytest.mark.parametrize(
    ("write", "kind", "when"),
    [
        *((write, *loss) for write in ("POST", "PATCH", "DELETE", "DELETE, then POST") for loss in LOSSES),
        *((write, *loss) for write in ("first PATCH", "second PATCH") for loss in LOSSES[:2]),
    ],
)
def test_a_lost_answer_is_looked_after_and_proven(write: str, kind: Kind, when: When, scene: Scene) -> None:
    """Whether the write had happened or not: in the end the key is proven, once, and the id is the same."""
    strategy = Strategy.AUTO
    match write:
        case "POST":
            id = None
            scene.proxy.fault("POST /v1/providers/", kind, when)
        case "PATCH":
            id = scene.plant()
            scene.proxy.fault("PATCH /v1/providers/", kind, when)
        case "DELETE" | "DELETE, then POST":
            id, strategy = scene.plant(), Strategy.RECREATE
            scene.proxy.fault(f"{write[-4:].strip()}E? /v1/providers/" if write == "DELETE" else "POST ", kind, when)
        case _:
            id = scene.plant(scene.key)
            scene.letta.write_key(id, scene.key)
            number = 1 if write == "first PATCH" else 2
            key = scene.key.encode()

            def meant(line: str, body: bytes) -> bool:
                return line.startswith("PATCH") and (key in body) == (number == 2)

            scene.proxy.fault(meant, kind, when)
    report = scene.ensure(strategy)
    assert report.proof is Proof.PROVEN, report.reason
    assert scene.opened() == [scene.key]
    if id is not None:
        assert [row["id"] for row in scene.letta.rows(scene.name)] == [id]


@pytest.mark.parametrize(("write", "when"), [("PATCH", "after"), ("DELETE", "before")])
def test_a_write_that_hangs_is_given_up_and_looked_after(write: str, when: When, scene: Scene) -> None:
    """Silence after a write is a lost answer like any other."""
    scene.configure(ISABELLA_TIMEOUT="3")
    scene.plant()
    scene.proxy.fault(write, "hang", when)
    report = scene.ensure(Strategy.RECREATE if write == "DELETE" else Strategy.AUTO)
    assert report.proof is Proof.PROVEN, report.reason
    assert scene.opened() == [scene.key]


@pytest.mark.parametrize("strategy", [Strategy.AUTO, Strategy.RECREATE])
def test_a_lost_post_that_cannot_be_looked_after_at_once_is_not_made_twice(strategy: Strategy, scene: Scene) -> None:
    """When the look after a lost answer fails, too, the 409 of the second POST is understood for what it is."""
    if strategy is Strategy.RECREATE:
        scene.plant()
    scene.proxy.fault("POST /v1/providers/", "drop", "after")
    posted = "POST /v1/providers/"
    scene.proxy.fault(lambda line, _: line.startswith("GET") and posted in scene.proxy.writes, 500)
    report = scene.ensure(strategy)
    assert report.proof is Proof.PROVEN, report.reason
    assert "failed" not in report.reason
    assert "not in Letta now" not in report.reason
    assert scene.opened() == [scene.key]


@pytest.mark.parametrize("write", ["POST", "PATCH"])
def test_a_page_in_a_write_s_place_is_no_success(write: str, scene: Scene) -> None:
    """A gateway's page with status 200 instead of Letta's answer is found out by reading back."""
    if write == "PATCH":
        scene.plant()
    scene.proxy.fault(write, "html", "before")
    report = scene.ensure()
    assert (report.proof is Proof.PROVEN) == (scene.opened() == [scene.key])


def test_what_cannot_be_read_back_is_unproven_and_not_deleted(scene: Scene) -> None:
    """When Letta takes the key and then fails to show it, that is said, and nothing more is written: no DELETE."""
    scene.plant()
    scene.proxy.fault(lambda line, _: line.startswith("GET") and bool(scene.proxy.writes), 500, times=None)
    report = scene.ensure()
    assert (report.action, report.proof) == (Action.UPDATE, Proof.UNPROVEN)
    assert "could not be read back" in report.reason
    assert [line.split()[0] for line in scene.proxy.writes] == ["PATCH"]
    assert scene.opened() == [scene.key]


def test_models_that_cannot_be_counted_do_not_lose_the_report(scene: Scene) -> None:
    """The number of models is a courtesy: where Letta fails to tell it, the report is shown all the same, exit 0."""
    scene.configure(KEY_0=scene.key)
    assert scene.command.run("providers", "sync", "--json").code == 0
    scene.proxy.fault("GET /v1/models/", 500, times=None)
    ended = scene.command.run("providers", "sync", "--json")
    assert ended.code == 0
    assert entries(ended)[scene.name]["proof"] == "proven"


# --- between DELETE and POST --------------------------------------------------------------------------------------


def test_a_post_that_is_refused_after_delete_puts_the_former_record_back(scene: Scene) -> None:
    """The former key, type and address are in Letta again, and the report says so plainly, with exit 1."""
    id = scene.plant()
    scene.proxy.fault("POST /v1/providers/", 422)
    ended = scene.command.run("providers", "sync", "--strategy", "recreate", "--no-probe", "--json")
    assert ended.code == 1
    entry = entries(ended)[scene.name]
    assert (entry["action"], entry["proof"]) == ("recreate", "failed")
    assert "The former record is back in Letta." in entry["reason"]
    assert scene.name in entry["remedy"]
    assert scene.opened() == [STALE]
    assert [row["id"] for row in scene.letta.rows(scene.name)] == [id]


def test_a_post_that_goes_on_failing_puts_the_former_record_back(scene: Scene) -> None:
    """A Letta that fails on the new record alone is tried while our patience lasts, then the old one is back."""
    scene.configure(ISABELLA_TIMEOUT="3")
    scene.plant()
    key = scene.key.encode()
    scene.proxy.fault(lambda line, body: line.startswith("POST") and key in body, 500, times=None)
    report = scene.ensure(Strategy.RECREATE)
    assert (report.action, report.proof) == (Action.RECREATE, Proof.FAILED)
    assert "The former record is back in Letta." in report.reason
    assert scene.opened() == [STALE]


def test_a_former_key_that_was_remembered_as_another_is_opened_to_be_put_back(scene: Scene) -> None:
    """What the run before found to hold another key is not opened to be compared; to be put back it is."""
    scene.plant()
    for _ in range(2):
        scene.proxy.fault("POST /v1/providers/", 422)
        report = scene.ensure(Strategy.RECREATE)
        assert (report.stored, report.proof) == (ProviderState.STALE, Proof.FAILED)
        assert "The former record is back in Letta." in report.reason
        assert scene.opened() == [STALE]


@pytest.mark.parametrize(("kind", "when"), [("drop", "before"), ("drop", "after"), (500, "after")])
def test_a_lost_answer_while_putting_back_is_looked_after(kind: Kind, when: When, scene: Scene) -> None:
    """Putting the former record back is a write like any other: what was lost is looked after, and said rightly."""
    scene.plant()
    old = STALE.encode()
    scene.proxy.fault(lambda line, body: line.startswith("POST") and old in body, kind, when)
    scene.proxy.fault("POST /v1/providers/", 422)
    report = scene.ensure(Strategy.RECREATE)
    assert report.proof is Proof.FAILED
    assert "The former record is back in Letta." in report.reason
    assert scene.opened() == [STALE]


def test_where_the_former_key_was_not_readable_its_loss_is_said(scene: Scene) -> None:
    """What could not be read cannot be put back: the report says that it is not in Letta now, and a sync heals it."""
    id = scene.plant()
    scene.letta.write_key(id, seal(STALE, OTHER_MASTER_KEY))
    scene.proxy.fault("POST /v1/providers/", 422)
    report = scene.ensure()
    assert (report.stored, report.action, report.proof) == (ProviderState.UNREADABLE, Action.RECREATE, Proof.FAILED)
    assert "it is not in Letta now" in report.reason
    assert scene.letta.rows(scene.name) == []
    assert scene.ensure().proof is Proof.PROVEN
    assert [row["id"] for row in scene.letta.rows(scene.name)] == [id]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_crash_between_delete_and_post_is_healed_by_the_next_start(number: int, scene: Scene) -> None:
    """Killed in the worst moment, nothing is lost: the next sync creates the record anew, and no lock is left."""
    id = scene.plant()
    scene.proxy.fault("POST /v1/providers/", "hang")
    with scene.command.start("providers", "sync", "--strategy", "recreate", "--no-probe") as process:
        scene.proxy.wait_for("POST /v1/providers/")
        assert scene.letta.rows(scene.name) == []
        process.send_signal(number)
        process.communicate(timeout=60)
    ended = scene.command.run("providers", "sync", "--json")
    assert ended.code == 0
    assert entries(ended)[scene.name]["action"] == "create"
    assert scene.opened() == [scene.key]
    assert [row["id"] for row in scene.letta.rows(scene.name)] == [id]


# --- two at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_database", [False, True])
def test_two_syncs_at_once_do_not_interleave(in_database: bool, scene: Scene) -> None:
    """Under the lock, one deletes and creates before the other does; both end proven, and there is one record."""
    scene.plant()
    if in_database:
        scene.configure(ISABELLA_DATABASE_URL=scene.letta.letta.database_url.get_secret_value())
    arguments = ("providers", "sync", "--strategy", "recreate", "--no-probe", "--json")
    with scene.command.start(*arguments) as one, scene.command.start(*arguments) as two:
        ends = [(process, *process.communicate(timeout=120)) for process in (one, two)]
    for process, out, err in ends:
        assert process.returncode == 0, err
        assert json.loads(out)["providers"]
    assert [line.split()[0] for line in scene.proxy.writes] == ["DELETE", "POST"] * 2
    assert scene.opened() == [scene.key]


def test_an_agent_goes_on_while_its_key_is_updated(scene: Scene, vendors: PracticeVendors) -> None:
    """With strategy auto the agent answers before, with the old key, and after, with the new one: no gap (P8)."""
    old = scene.key
    scene.plant(old)
    agent = scene.letta.agent(Binding(scene.name, "LongCat-2.0", scene.base_url, 32_768))
    assert scene.letta.say(agent).status_code == 200
    new = vendors.rotate("longcat", keep_old=True).get_secret_value()
    scene.configure(KEY_0=new)
    changed = replace(scene, key=new)
    assert changed.ensure(probe=True).proof is Proof.PROVEN
    start = vendors.requests("longcat")[-1].number
    assert scene.letta.say(agent).status_code == 200
    spoken = [seen for seen in vendors.requests("longcat", after=start) if seen.path.endswith("/chat/completions")]
    assert spoken
    assert all(seen.carries(new) for seen in spoken)
