"""The watcher, with work that the tests do in Letta's place and a clock that they move."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from isabella.agents.model_catalog import ModelCatalog
from isabella.config.settings import Settings, WatchMode, load_settings
from isabella.errors import IsabellaError, LettaUnreachable
from isabella.practice.overlay import ConfigSnapshot
from isabella.providers.desired import desired_providers
from isabella.providers.report import ProviderReport, Report
from isabella.server.readiness import Readiness
from isabella.server.runtime import run_watcher
from isabella.watch.events import (
    ConfigAccepted,
    ConfigRefused,
    ModelsRefreshed,
    ProvidersDropped,
    RestartNeeded,
    SyncCause,
    Synced,
    WatchEvent,
    WatchFailed,
    log_sentences,
)
from isabella.watch.model_refresh import ModelRefresh
from isabella.watch.watcher import Clock, Schedule, Watcher
from tests.support.sample_reports import MENDED, REFUSED

KEYS = {"GROQ_API_KEY": "gsk_first-fake", "MISTRAL_API_KEY": "fake-mistral-key"}


@dataclass
class Scene:
    """A watcher, and all that it does and tells. It is the work itself."""

    folder: Path
    refused: set[str] = field(default_factory=set)
    error: Exception | None = None
    asked: list[list[str]] = field(default_factory=list)
    told: list[WatchEvent] = field(default_factory=list)
    #: What somebody else does just before a sync ends.
    meanwhile: Callable[[], object] = lambda: None
    seconds: float = 0.0
    date: datetime = field(default_factory=lambda: datetime(2026, 11, 22, 12, 0).astimezone())

    def __post_init__(self) -> None:
        self.write(**KEYS)
        settings = load_settings(
            self.folder / ".env", environment={"ISABELLA_CONFIG_FILE": str(self.folder / "isabella.toml")}
        )
        self.schedule = Schedule(
            settings.resync, settings.refresh_at, Clock(lambda: self.seconds, lambda: self.date, lambda: 0.5)
        )
        self.watcher = Watcher(settings, self, self.told.append, report=None, schedule=self.schedule)

    def write(self, **variables: str) -> None:
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def go_on(self, seconds: float) -> None:
        self.seconds += seconds
        self.date += timedelta(seconds=seconds)

    async def ensure(self, settings: Settings, only: Sequence[str]) -> Report:
        self.asked.append(list(only))
        if self.error is not None:
            raise self.error
        entries = [
            _entry(one.name, one.name in self.refused) for one in desired_providers(settings) if one.configured
        ]
        self.meanwhile()
        return Report("http://letta", "0.16.8", [entry for entry in entries if not only or entry.name in only])

    async def refresh_models(self, settings: Settings) -> ModelRefresh:
        if self.error is not None:
            raise self.error
        return ModelRefresh(datetime.now(UTC), ())

    async def until(self, kind: type[WatchEvent]) -> WatchEvent:
        """Wait for the next event of a kind."""
        with anyio.fail_after(30):
            while True:
                for index, event in enumerate(self.told):
                    if isinstance(event, kind):
                        del self.told[: index + 1]
                        return event
                await anyio.sleep(0.01)


def _entry(name: str, refused: bool) -> ProviderReport:
    return replace(REFUSED if refused else MENDED, name=name, vendor=name)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A watcher that has not begun."""
    return Scene(tmp_path)


def run(call: Callable[[], Awaitable[None]]) -> None:
    """Run a scene."""
    anyio.run(call)


def test_a_changed_key_syncs_its_provider_alone(scene: Scene) -> None:
    """And an unchanged file nothing at all."""

    async def play() -> None:
        await scene.watcher.reread()
        assert scene.asked == []
        scene.write(**KEYS | {"GROQ_API_KEY": "gsk_second-fake"})
        await scene.watcher.reread()

    run(play)
    assert scene.asked == [["byok-groq"]]
    (event,) = scene.told
    assert isinstance(event, Synced)
    assert event.cause is SyncCause.CHANGE
    assert "updated in place and proven" in log_sentences(event)[0].text


def test_a_malformed_file_is_said_once_and_the_former_settings_stay(scene: Scene) -> None:
    """The same mistake is not told again, another is, and its end is told, too."""

    async def play() -> None:
        for text in ('GROQ_API_KEY="half', 'GROQ_API_KEY="half', "GROQ_API_KEY"):
            (scene.folder / ".env").write_text(text)
            await scene.watcher.reread()
        scene.write(**KEYS)
        await scene.watcher.reread()

    run(play)
    assert [type(event) for event in scene.told] == [ConfigRefused, ConfigRefused, ConfigAccepted]
    assert "The former one stays in force." in log_sentences(scene.told[0])[0].text
    assert scene.asked == []


def test_a_refused_key_waits_by_itself_while_the_others_are_looked_at(scene: Scene) -> None:
    """A look for drift leaves it alone; it is tried again at its own, slowing pace, and a changed key at once."""
    scene.refused = {"byok-groq"}

    async def play() -> None:
        await scene.watcher.resync()
        assert scene.schedule.waiting == {"byok-groq"}
        await scene.watcher.resync()
        await scene.watcher.retry(["byok-groq"])
        assert scene.schedule.seconds() == 10
        scene.write(**KEYS | {"GROQ_API_KEY": "gsk_second-fake"})
        await scene.watcher.reread()
        assert scene.schedule.seconds() == 5
        scene.refused = set()
        await scene.watcher.retry(["byok-groq"])
        assert scene.schedule.waiting == frozenset()
        await scene.watcher.resync()

    run(play)
    assert scene.asked == [[], ["byok-mistral"], ["byok-groq"], ["byok-groq"], ["byok-groq"], []]
    assert scene.watcher.report is not None
    assert scene.watcher.report.all_proven


@pytest.mark.parametrize(
    "error", [LettaUnreachable("No Letta server answers."), RuntimeError("a bug with gsk_first-fake in its text")]
)
def test_no_error_ends_the_watch_and_each_is_said_once(scene: Scene, error: Exception) -> None:
    """What could not be done is tried again with growing pauses; no key is in what is said."""
    scene.error = error

    async def play() -> None:
        await scene.watcher.resync()
        assert scene.schedule.waiting == {"byok-groq", "byok-mistral"}
        await scene.watcher.retry(["byok-groq", "byok-mistral"])
        await scene.watcher.retry(["byok-groq", "byok-mistral"])
        await scene.watcher.refresh()
        scene.error = None
        await scene.watcher.retry(["byok-groq", "byok-mistral"])
        await scene.watcher.refresh()
        scene.error = error
        await scene.watcher.refresh()

    run(play)
    assert [type(event) for event in scene.told] == [
        WatchFailed,
        WatchFailed,
        WatchFailed,
        Synced,
        ModelsRefreshed,
        WatchFailed,
    ]
    assert scene.schedule.waiting == frozenset()
    for event in scene.told:
        assert "gsk_first-fake" not in "".join(sentence.text for sentence in log_sentences(event))


def test_what_is_gone_or_takes_a_restart_is_said(scene: Scene) -> None:
    """A provider without a key stays in Letta; a port waits for the next start; an interval counts at once."""
    scene.write(GROQ_API_KEY=KEYS["GROQ_API_KEY"], ISABELLA_PORT="8123", ISABELLA_RESYNC="10")
    run(scene.watcher.reread)
    restart, gone, _ = scene.told
    assert isinstance(restart, RestartNeeded)
    assert "ISABELLA_PORT" in log_sentences(restart)[0].text
    assert isinstance(gone, ProvidersDropped)
    assert gone.names == ("byok-mistral",)
    scene.go_on(11)
    assert scene.schedule.due().resync
    assert scene.watcher.settings.port == 8000


def test_a_changed_master_key_names_the_way(scene: Scene) -> None:
    """It is not taken while it runs: what Letta holds is sealed under the former one."""
    scene.write(**KEYS, LETTA_ENCRYPTION_KEY="ab" * 32)
    run(scene.watcher.reread)
    (event,) = scene.told
    assert "rekey --from-env" in log_sentences(event)[0].text
    assert scene.watcher.settings.letta_encryption_key is None


def test_it_runs_by_files_and_by_the_clock_and_stops_cleanly(scene: Scene) -> None:
    """A real file and a made-up clock: a change is noticed, drift looked for, the night comes, then it ends."""

    async def play() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scene.watcher.run)
            fresh = scene.folder / "fresh"
            fresh.write_text("GROQ_API_KEY=gsk_second-fake\nMISTRAL_API_KEY=fake-mistral-key\n")
            fresh.replace(scene.folder / ".env")
            changed = await scene.until(Synced)
            assert isinstance(changed, Synced)
            assert (changed.cause, scene.asked) == (SyncCause.CHANGE, [["byok-groq"]])
            scene.go_on(301)
            scene.watcher.wake()
            looked = await scene.until(Synced)
            assert isinstance(looked, Synced)
            assert looked.cause is SyncCause.RESYNC
            scene.go_on(24 * 3600)
            scene.watcher.wake()
            await scene.until(ModelsRefreshed)
            tasks.cancel_scope.cancel()

    run(play)


def test_an_unknown_error_of_ours_has_its_remedy(scene: Scene) -> None:
    """What is to be done stands beside what happened."""
    scene.error = IsabellaError("It is full.", remedy="Empty it.")
    run(scene.watcher.resync)
    (event,) = scene.told
    assert log_sentences(event)[0].text == "Failed (a check for drift): It is full. Empty it. It is tried again."


def test_something_unforeseen_in_a_file_is_said_once_and_does_not_end_the_watch(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former settings stay in force, and the next file that can be read is taken; no key is in what is said."""

    def fails(_reading: ConfigSnapshot) -> ConfigSnapshot:
        raise RuntimeError("a bug with gsk_first-fake in its text")

    async def play() -> None:
        with monkeypatch.context() as broken:
            broken.setattr(ConfigSnapshot, "again", fails)
            await scene.watcher.reread()
            await scene.watcher.reread()
        scene.write(**KEYS | {"GROQ_API_KEY": "gsk_second-fake"})
        await scene.watcher.reread()

    run(play)
    assert [type(event) for event in scene.told] == [ConfigRefused, ConfigAccepted, Synced]
    (said,) = log_sentences(scene.told[0])
    assert "RuntimeError: a bug with " in said.text
    assert "gsk_first-fake" not in said.text
    assert scene.asked == [["byok-groq"]]


def test_a_malformed_file_saved_as_a_sync_ends_does_not_end_the_watcher(scene: Scene) -> None:
    """Models stay as they were, with what they know; a later sync, when the file is whole again, renews them."""
    toml = scene.folder / "isabella.toml"
    settings = scene.watcher.settings.model_copy(update={"watch": WatchMode.OFF})
    models = ModelCatalog(desired_providers(settings))
    former = models.providers
    readiness = Readiness()

    async def look_for_drift(watcher: Watcher) -> None:
        scene.go_on(301)
        watcher.wake()
        await scene.until(Synced)

    async def play() -> None:
        keeping_on = run_watcher(
            readiness, settings, scene, models, schedule=scene.schedule, on_event=scene.told.append
        )
        async with keeping_on as watcher:
            scene.meanwhile = lambda: toml.write_text("[[providers]\n")
            await look_for_drift(watcher)
            assert models.providers == former
            assert readiness.report is not None
            scene.meanwhile = lambda: None
            toml.write_text(
                '[[providers]]\nname = "nearby"\nbase_url = "http://127.0.0.1:9/v1"\napi_key_env = "NEARBY"\n'
            )
            await look_for_drift(watcher)

    run(play)
    assert [one.name for one in models.providers] == [*(one.name for one in former), "nearby"]
