"""`isabella providers sync --watch`: the keeper without the backend."""

from __future__ import annotations

import json
import sys

from isabella.cli.tables import show_report
from isabella.config.settings import Settings
from isabella.providers.headline import document
from isabella.watch.events import Synced, WatchEvent, sentences
from isabella.watch.watcher import LettaActions, Watcher


async def watch(settings: Settings, *, as_json: bool) -> None:
    """Sync, and keep the providers in line until cancelled. Each report goes to standard output as one JSON line."""
    from isabella.api import ensure_providers

    def tell(event: WatchEvent) -> None:
        for sentence in sentences(event):
            print(f"{'warning: ' if sentence.warning else ''}{sentence.text}", file=sys.stderr, flush=True)
        if as_json and isinstance(event, Synced):
            print(json.dumps(document(event.report)), flush=True)

    report = await ensure_providers(settings, count_models=True)
    if as_json:
        print(json.dumps(document(report)), flush=True)
    else:
        show_report(report)
        print("Keeping watch; stop with Ctrl-C.", file=sys.stderr, flush=True)
    await Watcher(settings, LettaActions(), tell, report=report).run()
