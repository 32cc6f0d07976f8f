"""Looking at the providers while somebody has the page open, with looks that the tests do."""

from __future__ import annotations

from unittest.mock import Mock

import anyio
import pytest

from isabella.agents.service import AgentService
from isabella.config.settings import load_settings
from isabella.letta.client import Connection
from isabella.providers.report import Report
from isabella.server import provider_monitor
from isabella.server.provider_monitor import ProviderMonitor
from isabella.server.runtime import Runtime
from tests.support.sample_reports import DRIFTED, IN_SYNC, REFUSED


def started() -> Runtime:
    """The runtime of a backend that has started, with nothing behind it."""
    settings = load_settings(environment={})
    connection = Connection("http://letta", None, None, None, settings.home, 5.0, embedded=False)
    return Runtime(agent_service=Mock(spec=AgentService, settings=settings, connection=connection))


def test_a_look_that_fails_unforeseen_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the looking ends, nor what runs beside it in the backend; the next look shows what it finds."""
    report = Report("http://letta", "0.16.8", [IN_SYNC])
    failed = anyio.Event()

    async def look(*_arguments: object, **_options: object) -> Report:
        if failed.is_set():
            return report
        failed.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(provider_monitor, "compare_providers", look)

    async def play() -> ProviderMonitor:
        runtime = started()
        monitor = ProviderMonitor(runtime)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as runtime.tasks:
                with monitor.viewing():
                    await failed.wait()
                    assert monitor.states.report is None
                    monitor.wake()
                    await monitor.notifier.wait(0, 30)
                runtime.tasks.cancel_scope.cancel()
        return monitor

    assert anyio.run(play).states.report == report


def test_a_look_that_a_sync_has_overtaken_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before a sync says less than its report, even where the look ends later."""
    runtime = started()
    monitor = ProviderMonitor(runtime)

    async def look(*_arguments: object, **_options: object) -> Report:
        runtime.readiness.record(Report("http://letta", "0.16.8", [REFUSED]))
        return Report("http://letta", "0.16.8", [DRIFTED])

    monkeypatch.setattr(provider_monitor, "compare_providers", look)
    anyio.run(monitor._poll)
    assert monitor.states.report is not None
    assert monitor.states.report.providers == [REFUSED]
