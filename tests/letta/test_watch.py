"""Keeping watch over a real Letta: files that change under it, keys that change behind its back, models that go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import Mock

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import SecretStr

from isabella.agents.model_catalog import ModelCatalog
from isabella.agents.service import AgentService
from isabella.api import compare_providers, ensure_providers
from isabella.config.settings import Settings, load_settings
from isabella.connect import connect
from isabella.embedded import Letta
from isabella.letta.client import Connection
from isabella.letta.encryption import decrypt
from isabella.letta.llm_config import Binding
from isabella.practice import PracticeVendors
from isabella.providers.plan import Action
from isabella.providers.report import Proof
from isabella.server import runtime as backend_keeping
from isabella.server.api.status import providers as api_providers
from isabella.server.readiness import Phase, Readiness
from isabella.server.runtime import Runtime
from isabella.server.web.jobs import JobRunner
from isabella.server.web.pages_providers import ProvidersPage
from isabella.server.web.rendering import Renderer
from isabella.vendors.client import VendorState
from isabella.watch import events
from isabella.watch.events import SyncCause, WatchEvent
from isabella.watch.model_refresh import ModelRefresh
from isabella.watch.watcher import Clock, LettaActions, Schedule, Watcher
from tests.support.command import Command
from tests.support.letta_admin import LettaAdmin, open_admin

NAMES = {"cerebras": "cerebras", "mistral": "byok-mistral"}
E = TypeVar("E", bound=WatchEvent)
#: Far more than anything here takes; whoever waits for so long has failed.
LONG = 60.0


class Time:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.date = datetime(2026, 11, 22, 12, 0).astimezone()

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.seconds, now=lambda: self.date, chance=lambda: 0.5)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.date += timedelta(seconds=seconds)


@dataclass
class Watch:
    """A watcher that runs, as the backend has it, and what it has told."""

    letta: LettaAdmin
    vendors: PracticeVendors
    env: Path
    settings: Settings
    portal: BlockingPortal
    watcher: Watcher
    readiness: Readiness
    models: ModelCatalog
    time: Time
    told: list[WatchEvent] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def heard(self, kind: type[E], such: Callable[[E], bool] = lambda event: True) -> E:
        """Wait for such an event among those that nobody has waited for yet."""

        def found() -> E | None:
            for index, event in enumerate(self.told):
                if isinstance(event, kind) and such(event):
                    del self.told[: index + 1]
                    return event
            return None

        with self.news:
            event = self.news.wait_for(found, LONG)
            # wait_for has called it for the last time; what it found is gone from the list.
            assert event is not None, f"no such {kind.__name__}: {self.told}"
            return event

    def pass_time(self, seconds: float) -> None:
        """Let time go by, and let the watcher notice."""
        self.time.advance(seconds)
        self.portal.call(self.watcher.wake)

    def write(self, text: str) -> None:
        """Write `.env`, as an editor does that replaces the file."""
        fresh = self.env.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.env)

    def row(self, vendor: str) -> dict[str, Any]:
        """What Letta holds of a provider."""
        (row,) = self.letta.rows(NAMES[vendor])
        return row

    def holds(self, vendor: str) -> str | None:
        """The key that Letta holds."""
        master_key = self.letta.letta.master_key
        assert master_key is not None
        return decrypt(self.row(vendor)["api_key_enc"], master_key.get_secret_value())

    def shown(self, vendor: str) -> Any:
        """The provider in `/api/providers`."""
        answer = self.portal.call(api_providers, self.readiness)
        return next(one for one in answer.providers if one.name == NAMES[vendor])


def dotenv(vendors: PracticeVendors, **keys: SecretStr) -> str:
    """A `.env` with two vendors."""
    lines = []
    for vendor in NAMES:
        key = keys.get(vendor, vendors.key(vendor)).get_secret_value()
        lines += [f"{vendor.upper()}_API_KEY={key}", f"{vendor.upper()}_BASE_URL={vendors.base_url(vendor)}"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def letta(empty_letta: Letta) -> Iterator[LettaAdmin]:
    """The session's Letta, emptied: the report of a vanished model names every agent that has lost it."""
    with open_admin(empty_letta) as opened:
        yield opened


@pytest.fixture
def watch(letta: LettaAdmin, tmp_path: Path) -> Iterator[Watch]:
    """Providers in line, and a watcher that has begun to watch."""
    with PracticeVendors() as vendors, opened(letta, vendors, tmp_path) as watching:
        yield watching


@contextmanager
def opened(letta: LettaAdmin, vendors: PracticeVendors, folder: Path) -> Iterator[Watch]:
    """Bring the providers in line, and keep watch until the test is over."""
    env = folder / ".env"
    env.write_text(dotenv(vendors))
    master_key = letta.letta.master_key
    assert master_key is not None
    settings = load_settings(
        env,
        environment={
            "LETTA_BASE_URL": letta.letta.base_url,
            "LETTA_API_KEY": letta.letta.password.get_secret_value(),
            "LETTA_ENCRYPTION_KEY": master_key.get_secret_value(),
            "ISABELLA_HOME": str(folder / "home"),
            "ISABELLA_CONFIG_FILE": str(folder / "isabella.toml"),
        },
    )
    readiness, models, time = Readiness(), ModelCatalog.of(settings), Time()
    told: list[WatchEvent] = []
    news = threading.Condition()

    def on_event(event: WatchEvent) -> None:
        # Comes last: what the backend makes of it is done by then.
        with news:
            told.append(event)
            news.notify_all()

    with start_blocking_portal() as portal:
        stack = AsyncExitStack()

        async def start() -> Watcher:
            await readiness.run_start_sync(lambda: ensure_providers(settings))
            assert readiness.phase is Phase.READY
            schedule = Schedule(settings.resync, settings.refresh_at, time.clock())
            return await stack.enter_async_context(
                backend_keeping.run_watcher(
                    readiness, settings, LettaActions(), models, schedule=schedule, on_event=on_event
                )
            )

        async def live() -> None:
            async with stack:
                started.append(await start())
                up.set()
                await over.wait()

        started: list[Watcher] = []
        up = threading.Event()
        over = portal.call(anyio.Event)
        life = portal.start_task_soon(live)
        while not up.wait(0.05):
            if life.done():
                life.result()
        try:
            yield Watch(letta, vendors, env, settings, portal, started[0], readiness, models, time, told, news)
        finally:
            portal.call(over.set)
            life.result(LONG)


def test_a_key_that_is_changed_in_the_file_reaches_letta_and_no_other_is_touched(watch: Watch) -> None:
    """Editing `.env` is enough: the one provider is updated in place and proven, and agents' models go by its key."""
    before = {vendor: watch.row(vendor) for vendor in NAMES}
    key = watch.vendors.rotate("cerebras", keep_old=True)

    watch.write(dotenv(watch.vendors, cerebras=key))

    synced = watch.heard(events.Synced)
    assert synced.cause is SyncCause.CHANGE
    (entry,) = synced.part.providers
    assert (entry.name, entry.action, entry.proof) == ("cerebras", Action.UPDATE, Proof.PROVEN)
    assert watch.holds("cerebras") == key.get_secret_value()
    assert watch.row("cerebras")["id"] == before["cerebras"]["id"]
    # Every writing gives the sealed text another salt.
    assert watch.row("mistral")["api_key_enc"] == before["mistral"]["api_key_enc"]
    assert [one.key for one in watch.models.providers if one.name == "cerebras"] == [key]
    assert {one.name for one in synced.report.configured} == {*NAMES.values()}
    shown = watch.shown("cerebras")
    assert (shown.condition, shown.proof) == ("InSync", "proven")
    assert watch.readiness.report is not None
    # What is shown is rounded to seconds, in which both may have happened.
    since = {one.name: one.since for one in watch.readiness.report.providers if one.since is not None}
    assert since[NAMES["cerebras"]] > since[NAMES["mistral"]]


def test_a_half_written_file_changes_nothing_until_it_is_whole(watch: Watch) -> None:
    """What cannot be read leaves the former settings in force, is said once, and is forgotten when it is mended."""
    before = watch.row("mistral")
    key = watch.vendors.rotate("mistral", keep_old=True)
    whole = dotenv(watch.vendors, mistral=key)

    watch.write(whole + 'CEREBRAS_API_KEY="half of')
    refused = watch.heard(events.ConfigRefused)
    assert str(watch.env) in refused.what
    watch.write(whole + 'CEREBRAS_API_KEY="half of it')
    watch.portal.call(watch.watcher.reread)
    assert watch.row("mistral") == before
    assert watch.readiness.phase is Phase.READY

    watch.write(whole)
    watch.heard(events.ConfigAccepted)
    assert watch.heard(events.Synced).part.providers[0].name == "byok-mistral"
    assert watch.holds("mistral") == key.get_secret_value()
    assert not [event for event in watch.told if isinstance(event, events.ConfigRefused)]


def test_a_key_that_was_changed_by_hand_is_found_and_mended(watch: Watch) -> None:
    """Every five minutes Letta is compared with the configuration; only what has drifted is written."""
    before = {vendor: watch.row(vendor) for vendor in NAMES}
    body = {"api_key": "csk-put-there-by-hand", "base_url": watch.vendors.base_url("cerebras")}
    watch.letta.http.patch(f"/v1/providers/{before['cerebras']['id']}", json=body).raise_for_status()

    # A mere look tells it, and cannot know since when.
    (look,) = watch.portal.call(_compare, watch.settings)
    assert (look.condition, look.since) == ("Drifted", None)
    watch.pass_time(301)

    synced = watch.heard(events.Synced, lambda event: event.cause is SyncCause.RESYNC)
    done = {entry.name: entry.action for entry in synced.part.configured}
    assert done == {"cerebras": Action.UPDATE, "byok-mistral": Action.KEEP}
    assert watch.holds("cerebras") == watch.vendors.key("cerebras").get_secret_value()
    assert watch.row("mistral") == before["mistral"]
    assert not [event for event in watch.told if isinstance(event, events.WatchFailed)]


async def _compare(settings: Settings) -> Any:
    return (await compare_providers(settings, only=["cerebras"])).providers


def test_a_new_key_that_the_vendor_does_not_know_yet_waits_and_the_old_one_stays(watch: Watch) -> None:
    """The stored key stays, this is said, and it is tried again with growing pauses until the vendor takes it."""
    old, new = watch.vendors.key("cerebras"), SecretStr("csk-made-a-moment-ago-0001")

    watch.write(dotenv(watch.vendors, cerebras=new))
    (entry,) = watch.heard(events.Synced).part.providers
    assert (entry.action, entry.refused_by_vendor) == (Action.REFUSE, True)
    assert "the stored key stays" in entry.reason
    since = watch.shown("cerebras").since
    assert (watch.shown("cerebras").condition, watch.readiness.phase) == ("Refused", Phase.DEGRADED)
    assert watch.holds("cerebras") == old.get_secret_value()
    # Turns go on with the key that Letta has.
    assert [one.key for one in watch.models.providers if one.name == "cerebras"] == [old]

    asked = len(watch.vendors.requests("cerebras"))
    watch.pass_time(6)
    again = watch.heard(events.Synced)
    assert (again.cause, again.part.providers[0].refused_by_vendor) == (SyncCause.RETRY, True)
    assert len(watch.vendors.requests("cerebras")) == asked + 1
    assert (watch.shown("cerebras").condition, watch.shown("cerebras").since) == ("Refused", since)

    watch.vendors.accept("cerebras", [old, new])
    watch.pass_time(11)
    taken = watch.heard(events.Synced)
    assert (taken.cause, taken.part.providers[0].proof) == (SyncCause.RETRY, Proof.PROVEN)
    assert watch.holds("cerebras") == new.get_secret_value()
    assert (watch.shown("cerebras").condition, watch.readiness.phase) == ("InSync", Phase.READY)


class Looker:
    """The console's page of providers, which is looked at by hand."""

    def __init__(self, watch: Watch, connection: Connection) -> None:
        self._watch, self._connection = watch, connection
        runtime = Runtime(
            readiness=watch.readiness,
            watcher=watch.watcher,
            agent_service=Mock(spec=AgentService, connection=connection),
        )
        self.monitor, self._renderer = runtime.monitor, Renderer(runtime)
        self._page = ProvidersPage(runtime, self._renderer, JobRunner(runtime))
        self.shown: list[tuple[str, str]] = []

    def look(self) -> None:
        """Look at Letta, as the page does every few seconds, and note what is shown before and after."""
        self.note()
        self._watch.portal.call(self.monitor.poll)
        self.note()

    def note(self) -> None:
        """Note what the page shows of Cerebras and in its headline, but for times, where it is another thing now."""
        html = self._watch.portal.call(self._page.parts)
        now = _words(html["cerebras"]), _words(self._renderer.status_parts()["status"])
        if not self.shown or self.shown[-1] != now:
            self.shown.append(now)


def _words(html: str) -> str:
    """The words of a page, without times."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<time.*?</time>", " ", html)).split())


def test_a_refused_key_is_told_the_same_until_something_changes(watch: Watch, tmp_path: Path) -> None:
    """Looks, further tries, looks for drift and answers to the stored key change nothing that is shown of it."""
    old, new = watch.vendors.key("cerebras"), SecretStr("csk-made-a-moment-ago-0003")
    looker = Looker(watch, watch.portal.call(connect, watch.settings))
    looker.look()
    # The first look counts the models besides.
    looker.shown = looker.shown[-1:]
    watch.write(dotenv(watch.vendors, cerebras=new))
    watch.heard(events.Synced)
    for _ in range(3):
        looker.look()
    watch.pass_time(6)
    assert watch.heard(events.Synced).cause is SyncCause.RETRY
    looker.note()
    looker.look()
    # An agent is answered: Letta holds the former key still.
    watch.portal.call(watch.readiness.vendors.observe, "cerebras", VendorState.ANSWERS, "gpt-oss-120b answered Anna")
    looker.look()
    watch.portal.call(watch.watcher.resync)
    watch.heard(events.Synced)
    looker.look()
    assert len(looker.shown) == 2, looker.shown
    before, refused = looker.shown
    assert "Everything is in order" in before[1]
    assert "refused" in refused[0]
    assert "replace it by a valid one" in refused[0]
    assert "Press Sync" not in refused[0]
    assert "1 of 2 providers is not in order. cerebras: the vendor refuses the configured key." in refused[1]

    (looked,) = watch.portal.call(_compare, watch.watcher.settings)
    api = watch.shown("cerebras")
    command = Command(tmp_path, {**watch.settings.sources.environment})
    ended = command.run("providers", "status", "--json")
    (told,) = [one for one in ended.document["providers"] if one["name"] == "cerebras"]
    assert ended.code == 2
    assert told["condition"] == api.condition == looked.condition == "Refused"
    assert told["reason"] == api.reason == looked.reason
    assert told["remedy"] == api.remedy == looked.remedy
    assert told["proof"] == api.proof == looked.proof == "failed"
    assert told["vendor_status"]["state"] == api.vendor_status.state == "refuses_key"
    assert datetime.fromisoformat(told["vendor_status"]["at"]) == api.vendor_status.at
    table = command.run("providers", "status")
    assert table.out.startswith("1 of 2 providers is not in order. cerebras: the vendor refuses the configured key.")

    watch.write(dotenv(watch.vendors, cerebras=old))
    watch.heard(events.Synced)
    for _ in range(2):
        looker.look()
    assert len(looker.shown) == 3
    assert "Everything is in order" in looker.shown[-1][1]


def test_what_a_sync_has_found_holds_no_longer_than_its_cause(watch: Watch) -> None:
    """Where somebody has changed what Letta holds, or the configuration, a look tells what is there now."""
    watch.write(dotenv(watch.vendors, cerebras=SecretStr("csk-made-a-moment-ago-0004")))
    watch.heard(events.Synced)
    (refused,) = watch.portal.call(_compare, watch.watcher.settings)
    assert refused.condition == "Refused"
    another = replace_key(watch.watcher.settings, SecretStr("csk-made-a-moment-ago-0005"))
    (other,) = watch.portal.call(_compare, another)
    assert (other.condition, other.vendor_status) == ("Drifted", None)
    body = {"api_key": "csk-put-there-by-hand", "base_url": watch.vendors.base_url("cerebras")}
    watch.letta.http.patch(f"/v1/providers/{watch.row('cerebras')['id']}", json=body).raise_for_status()
    (drifted,) = watch.portal.call(_compare, watch.watcher.settings)
    assert (drifted.condition, drifted.vendor_status) == ("Drifted", None)


def test_a_key_whose_predecessor_is_refused_already_is_written_at_once(watch: Watch) -> None:
    """The plan says that the vendor refuses the stored key, and the change of the file mends it in place."""
    new = watch.vendors.rotate("cerebras")
    rehearsal = replace_key(watch.settings, new)
    report = watch.portal.call(_plan, rehearsal)
    (entry,) = report.providers
    assert entry.action is Action.UPDATE
    assert "which the vendor already refuses; it accepts the configured one" in entry.reason

    watch.write(dotenv(watch.vendors, cerebras=new))
    (done,) = watch.heard(events.Synced).part.providers
    assert (done.action, done.proof) == (Action.UPDATE, Proof.PROVEN)


async def _plan(settings: Settings) -> Any:
    return await compare_providers(settings, only=["cerebras"], probe=True)


def replace_key(settings: Settings, key: SecretStr) -> Settings:
    """The settings with another key of Cerebras."""
    environment = {**settings.sources.environment, "CEREBRAS_API_KEY": key.get_secret_value()}
    return settings.model_copy(update={"sources": replace(settings.sources, environment=environment)})


def test_the_plan_tells_what_becomes_of_a_new_key(watch: Watch) -> None:
    """A rehearsal asks the vendor about both keys and writes nothing: both taken, or the new one refused."""
    before = watch.row("cerebras")
    both = watch.portal.call(_plan, replace_key(watch.settings, watch.vendors.rotate("cerebras", keep_old=True)))
    assert "the vendor accepts both keys: no gap" in both.providers[0].reason
    unknown = watch.portal.call(_plan, replace_key(watch.settings, SecretStr("csk-made-a-moment-ago-0002")))
    (entry,) = unknown.providers
    assert (entry.action, entry.condition) == (Action.REFUSE, "Refused")
    assert "the stored key stays, and the vendor accepts it" in entry.reason
    assert watch.row("cerebras") == before


def test_models_that_come_and_go_are_told_at_night_with_the_agents_that_lost_theirs(watch: Watch) -> None:
    """At half past three every list is read anew; what appeared and vanished is told, and who spoke through it."""
    agent = watch.letta.agent(Binding("cerebras", "gpt-oss-120b", watch.vendors.base_url("cerebras"), 65_536))
    name = watch.letta.http.get(f"/v1/agents/{agent}").json()["name"]
    offered = {"object": "list", "data": [{"id": "brand-new-1b", "object": "model", "created": 1, "owned_by": "C"}]}
    watch.vendors.fault("cerebras", on="models", status=200, body=json.dumps(offered))

    watch.time.date = watch.time.date.replace(hour=3, minute=29) + timedelta(days=1)
    watch.pass_time(61)

    model_refresh: ModelRefresh = watch.heard(events.ModelsRefreshed).refresh
    counts = {count.provider: count for count in model_refresh.providers}
    cerebras = counts["cerebras"]
    assert (cerebras.problem, cerebras.appeared) == (None, ("brand-new-1b",))
    assert "gpt-oss-120b" in cerebras.vanished
    assert [(lost.name, lost.model) for lost in cerebras.lost] == [(name, "gpt-oss-120b")]
    assert not counts["byok-mistral"].changed
    shown = watch.portal.call(api_providers, watch.readiness).census
    assert shown is not None
    assert shown.providers[0].lost[0].agent == name
    watch.letta.http.delete(f"/v1/agents/{agent}")


def test_the_command_line_keeps_watch_without_a_backend(watch: Watch) -> None:
    """`sync --watch` tells what it does, one JSON line for each report, and ends cleanly when it is interrupted."""
    key = watch.vendors.rotate("mistral", keep_old=True)
    # The fixture's watcher must not be the one that does it.
    other = watch.env.with_name("other.env")
    other.write_text(watch.env.read_text())
    process = subprocess.Popen(
        [Path(sys.executable).with_name("isabella"), "providers", "sync", "--watch", "--json", "--env-file", other],
        env={**watch.settings.sources.environment, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert {one["name"]: one["condition"] for one in first["providers"] if one["key"]} == dict.fromkeys(
            NAMES.values(), "InSync"
        )
        other.write_text(dotenv(watch.vendors, mistral=key))
        second = json.loads(process.stdout.readline())
        (done,) = [one for one in second["providers"] if one["name"] == "byok-mistral"]
        assert (done["action"], done["proof"]) == ("update", "proven")
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LONG)
    assert process.returncode == 0, said
    assert "byok-mistral: updated in place and proven" in said
    assert key.get_secret_value() not in said


def test_what_takes_a_restart_is_said(watch: Watch) -> None:
    """A port cannot be changed while it is listened on: this is said, once, and nothing is synced for it."""
    port = f"ISABELLA_PORT=8123\n{dotenv(watch.vendors)}"
    watch.write(port)
    assert watch.heard(events.RestartNeeded).variables == ("ISABELLA_PORT",)
    watch.write(port + "# another line\n")
    watch.portal.call(watch.watcher.reread)
    assert watch.told == []
    assert watch.watcher.settings.port == 8000
