"""Keeping watch for as long as the backend lives: drift, changed files and model lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import structlog

from isabella.agents.models import ModelCatalog
from isabella.backend.readiness import Readiness
from isabella.errors import ConfigurationError
from isabella.providers.desired import desired_providers
from isabella.providers.report import Proof, Report
from isabella.settings import Settings
from isabella.watching.events import ModelsRefreshed, Synced, Tell, WatchEvent
from isabella.watching.keeper import WatchActions, Watcher
from isabella.watching.schedule import Schedule
from isabella.watching.words import sentences

log = structlog.get_logger()


@asynccontextmanager
async def run_watcher(
    readiness: Readiness,
    settings: Settings,
    work: WatchActions,
    models: ModelCatalog,
    *,
    schedule: Schedule | None = None,
    hear: Tell = lambda _event: None,
) -> AsyncIterator[Watcher]:
    """Keep watch, and let the backend know what comes of it.

    Args:
        readiness: is told every report.
        settings: what the backend was started with.
        work: what is done.
        models: go by the changed configuration as soon as Letta does.
        schedule: when things are due; by default as the settings say.
        hear: is told everything that happens, too.
    """

    def tell(event: WatchEvent) -> None:
        for sentence in sentences(event):
            (log.warning if sentence.warning else log.info)(sentence.text)
        match event:
            case Synced(report=report, part=part):
                readiness.settle(report, part, quiet=True)
                _renew(models, keeper, report)
            case ModelsRefreshed(census=census):
                readiness.counted(census)
        hear(event)

    keeper = Watcher(settings, work, tell, report=readiness.report, schedule=schedule)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        yield keeper
        tasks.cancel_scope.cancel()


def _renew(models: ModelCatalog, keeper: Watcher, report: Report) -> None:
    """Ask vendors with the keys that Letta has now. Where it keeps the former one, so do we."""
    try:
        # As the sync has read them: a key file may be another one by now.
        desired = desired_providers(keeper.settings)
    except ConfigurationError:
        # `isabella.toml` is being changed at this moment.
        desired = keeper.desired
    proven = {entry.name for entry in report.ours if entry.proof is Proof.PROVEN}
    former = {provider.name: provider for provider in models.providers}
    models.renew(
        provider if provider.name in proven or provider.name not in former else former[provider.name]
        for provider in desired
    )
