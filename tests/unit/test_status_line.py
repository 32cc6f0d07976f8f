"""The status line of all pages: of all that is wrong, the worst; and outcomes that go when they no longer hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import anyio
import pytest

from isabella.agents.service import AgentService
from isabella.config.settings import load_settings
from isabella.errors import IsabellaError, LettaUnreachable
from isabella.providers.health import Level, StatusHeadline
from isabella.providers.report import GatewayState, GatewayStatus, Report
from isabella.server import provider_monitor
from isabella.server.runtime import Runtime
from isabella.server.web.jobs import Job, JobKind, JobRunner, JobState
from isabella.system.supervision import PartState, PartStatus
from isabella.vendors.client import VendorState
from tests.support.sample_reports import DRIFTED, FOREIGN, IN_SYNC

pytestmark = pytest.mark.anyio

AWAY = LettaUnreachable("http://letta: connection refused", remedy="Start it.")


def report(*entries: Any) -> Report:
    """A report with these providers."""
    return Report("http://letta", "0.16.8", list(entries))


@dataclass
class Scene:
    """A backend whose Letta answers what the test says."""

    monkeypatch: pytest.MonkeyPatch
    answer: Report | IsabellaError = field(default_factory=lambda: report(IN_SYNC))
    runtime: Runtime = field(init=False)
    seen: list[StatusHeadline] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = load_settings(environment={})
        agents = Mock(spec=AgentService, settings=settings, connection=Mock())
        self.runtime = Runtime(None, settings, agent_service=agents)
        self.runtime.readiness.record(report(IN_SYNC))
        self.runtime.readiness.vendors.observe("cerebras", VendorState.ANSWERS, "it answered")
        self.monkeypatch.setattr(provider_monitor, "compare_providers", self.compare)

    async def compare(self, *_: Any, **__: Any) -> Report:
        if isinstance(self.answer, IsabellaError):
            raise self.answer
        return self.answer

    async def look(self, answer: Report | IsabellaError | None = None) -> StatusHeadline:
        """Have Letta answer so from now on, look at it, and return the status line."""
        self.answer = answer or self.answer
        await self.runtime.monitor.poll()
        return self.now()

    def now(self) -> StatusHeadline:
        """The status line; remembered if it is another one."""
        lead = self.runtime.status_line
        if not self.seen or (self.seen[-1].level, self.seen[-1].title) != (lead.level, lead.title):
            self.seen.append(lead)
        return lead


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """One in which everything is in order."""
    return Scene(monkeypatch)


async def test_the_worst_leads(scene: Scene) -> None:
    """A part that is down, Letta that does not answer, a vendor that refuses, a key that differs: in this order."""
    readiness, vendors = scene.runtime.readiness, scene.runtime.readiness.vendors
    assert (await scene.look()).title == "Everything is in order."
    other = replace(DRIFTED, name="byok-groq")
    await scene.look(report(IN_SYNC, other))
    assert "byok-groq: Letta does not hold the configured values" in scene.now().text
    vendors.observe("cerebras", VendorState.REFUSES_KEY, "401: no")
    assert scene.now().text.startswith("cerebras: the vendor refuses the key")
    lead = await scene.look(AWAY)
    assert (lead.level, lead.title, lead.remedy) == (Level.PROBLEM, "Letta does not answer.", "Start it.")
    assert lead.seen == scene.runtime.monitor.states.since
    down = PartStatus("Letta", "letta", PartState.DOWN, "Letta has ended.")
    readiness.supervisor = Mock(down=(down,), statuses=(down,))
    lead = scene.now()
    assert (lead.title, lead.seen) == ("Letta does not work; agents answer when it does again.", down.since)
    assert "being restarted" in lead.remedy
    readiness.error = IsabellaError("The port is taken.", remedy="Choose another.")
    assert scene.now().title == "Isabella does not work."


async def test_every_line_has_its_time(scene: Scene) -> None:
    """What a vendor did has the time of that; everything else the time of the last look."""
    before = datetime.now(UTC)
    lead = await scene.look()
    assert lead.seen is not None
    assert lead.seen >= before
    at = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
    scene.runtime.readiness.vendors = replaced = type(scene.runtime.readiness.vendors)(lambda: at)
    replaced.observe("cerebras", VendorState.UNREACHABLE, "no answer", at)
    assert scene.now().seen == at


async def test_nothing_flips_without_a_change(scene: Scene) -> None:
    """The same look again, a failed one again, and two pages at once tell the same; each change is told once."""
    for answer in (report(IN_SYNC), AWAY, report(IN_SYNC)):
        for _ in range(3):
            await scene.look(answer)
    titles = [lead.title for lead in scene.seen]
    assert titles == ["Everything is in order.", "Letta does not answer.", "Everything is in order."]


async def test_an_outage_that_the_supervisor_sees_has_one_line(scene: Scene) -> None:
    """A look that fails because a supervised part is away adds no second line to it, neither before nor after."""
    down = PartStatus("Letta", "letta", PartState.DOWN, "Letta has ended.")

    async def confirm() -> int:
        # The supervisor learns of it when it is asked to look.
        supervisor.down = (down,)
        return 1

    supervisor = Mock(down=(), statuses=(down,), confirm=confirm)
    scene.runtime.readiness.supervisor = supervisor
    await scene.look(report(IN_SYNC))
    await scene.look(AWAY)
    supervisor.down = ()
    await scene.look(report(IN_SYNC))
    assert [lead.title for lead in scene.seen] == [
        "Everything is in order.",
        "Letta does not work; agents answer when it does again.",
        "Everything is in order.",
    ]


async def test_a_look_during_a_sync_is_not_shown(scene: Scene) -> None:
    """While providers are written, Letta holds neither the former nor the new state."""
    await scene.look()
    with scene.runtime.syncing():
        await scene.look(report(DRIFTED))
    assert scene.now().title == "Everything is in order."
    assert (await scene.look()).level is Level.PROBLEM


async def test_without_a_key_the_path_of_the_file_is_named(scene: Scene) -> None:
    """The next step is a line in a file, whose whole path is told."""
    lead = await scene.look(report(FOREIGN))
    assert lead.title == "No provider is configured."
    assert str(scene.runtime.settings.sources.file.absolute()) in lead.remedy


# --- outcomes ------------------------------------------------------------------------------------------------------


class _Ended:
    """A job that has ended, without its work."""

    def __init__(self, scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: JobKind, *only: str) -> None:
        self.error: IsabellaError | None = None
        self.runner = JobRunner(scene.runtime)
        self.job = Job(kind, only)
        self.runner._last = self.job
        monkeypatch.setattr(self.runner, "_work", self._work)

    async def _work(self, _job: Job, _confirmed: bool) -> None:
        await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error

    async def run(self) -> Job | None:
        await self.runner._run(self.job, False)
        return self.runner.current


@pytest.mark.parametrize("kind", JobKind)
async def test_an_outcome_has_its_time_and_stays_while_it_holds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: JobKind
) -> None:
    """Another look that finds the same, and a vendor that answers once more, are no change."""
    ended = _Ended(scene, monkeypatch, kind)
    job = await ended.run()
    assert job is not None
    assert job.ended_at is not None
    await scene.look()
    scene.runtime.readiness.vendors.observe("cerebras", VendorState.ANSWERS, "it answered again")
    assert ended.runner.current is job


@pytest.mark.parametrize("kind", JobKind)
async def test_an_outcome_goes_when_letta_holds_something_else(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: JobKind
) -> None:
    """A key that was changed behind Isabella's back ends every outcome that spoke of it, and no other one."""
    ended, other = _Ended(scene, monkeypatch, kind), _Ended(scene, monkeypatch, kind, "byok-groq")
    await ended.run()
    await other.run()
    await scene.look(report(DRIFTED))
    assert ended.runner.current is None
    assert other.runner.current is other.job


async def test_what_a_vendor_does_ends_only_what_speaks_of_vendors(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify and Doctor have asked the vendor; Plan and Sync speak of Letta."""
    runs = [_Ended(scene, monkeypatch, kind) for kind in JobKind]
    for ended in runs:
        await ended.run()
    scene.runtime.readiness.vendors.observe("cerebras", VendorState.REFUSES_KEY, "401: no")
    left = [ended.job.kind for ended in runs if ended.runner.current is not None]
    assert left == [JobKind.PLAN, JobKind.SYNC, JobKind.REFRESH]


async def test_a_failure_goes_when_its_cause_has_gone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letta was away: the outcome stays as long as it is, however often it is looked at."""
    ended = _Ended(scene, monkeypatch, JobKind.SYNC)
    scene.answer = ended.error = AWAY
    job = await ended.run()
    assert job is not None
    assert job.state is JobState.FAILED
    await scene.look()
    assert ended.runner.current is job
    await scene.look(report(IN_SYNC))
    assert ended.runner.current is None


async def test_a_failure_goes_if_its_cause_has_gone_before_the_next_look(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page knew already that Letta was away; Letta is back when it is looked at after the failure."""
    ended = _Ended(scene, monkeypatch, JobKind.SYNC)
    await scene.look(AWAY)
    ended.error, scene.answer = AWAY, report(IN_SYNC)
    assert await ended.run() is None


async def test_a_gateway_that_has_ended_ends_what_the_doctor_said(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor has looked at it; the plan has not."""
    doctor, plan = _Ended(scene, monkeypatch, JobKind.DOCTOR), _Ended(scene, monkeypatch, JobKind.PLAN)
    await doctor.run()
    await plan.run()
    scene.runtime.readiness.record_gateway(GatewayStatus("http://gw", GatewayState.DOWN))
    assert doctor.runner.current is None
    assert plan.runner.current is plan.job
