"""Looking at the providers while somebody has the page open, with looks that the tests do."""

from __future__ import annotations

from types import SimpleNamespace

import anyio
import pytest
from reports import DRIFTED, IN_SYNC, REFUSED

from isabella.config.settings import Settings, load_settings
from isabella.letta.connection import Connection
from isabella.providers.report import Report
from isabella.server.event_log import EventLog
from isabella.server.readiness import Readiness
from isabella.server.web import jobs as lookouts
from isabella.server.web.context import ConsoleContext
from isabella.server.web.jobs import ProviderMonitor


class House(ConsoleContext):
    """A backend that has come up, behind which there is nothing."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(readiness=Readiness(), token=None), EventLog())

    @property
    def up(self) -> bool:
        return True

    @property
    def settings(self) -> Settings:
        return load_settings(environment={})

    @property
    def connection(self) -> Connection:
        return Connection("http://letta", None, None, None, self.settings.home, 5.0, embedded=False)


def test_a_look_that_fails_unforeseen_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the looking ends, nor what runs beside it in the backend; the next look shows what it finds."""
    report = Report("http://letta", "0.16.8", [IN_SYNC])
    failed = anyio.Event()

    async def look(*_arguments: object, **_options: object) -> Report:
        if failed.is_set():
            return report
        failed.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(lookouts, "compare_providers", look)

    async def play() -> ProviderMonitor:
        context = House()
        monitor = ProviderMonitor(context)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as context.tasks:
                with monitor.watching():
                    await failed.wait()
                    assert monitor.standing.report is None
                    monitor.wake()
                    await monitor.notifier.after(0, 30)
                context.tasks.cancel_scope.cancel()
        return monitor

    assert anyio.run(play).standing.report == report


def test_a_look_that_a_sync_has_overtaken_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before a sync says less than its report, even where the look ends later."""
    context = House()
    monitor = ProviderMonitor(context)

    async def look(*_arguments: object, **_options: object) -> Report:
        context.readiness.settle(Report("http://letta", "0.16.8", [REFUSED]))
        return Report("http://letta", "0.16.8", [DRIFTED])

    monkeypatch.setattr(lookouts, "compare_providers", look)
    anyio.run(monitor._look)
    assert monitor.standing.report is not None
    assert monitor.standing.report.providers == [REFUSED]
