"""Backup, verification and restore of 5 agents with 10,000 messages and 1,000 passages: times and size."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio.to_thread
from pyrage import x25519

from bench.results import Results
from bench.setup import Servers
from isabella.config.settings import Settings, load_settings
from isabella.embedded import Server, Step, restoring
from isabella.embedded.backups import BackupPolicy, Reason
from isabella.letta.llm_config import Binding
from isabella.practice import PracticeVendors
from tests.support.backup_rows import furnish
from tests.support.letta_admin import open_admin

MESSAGES, PASSAGES = 10_000, 1_000

_T = TypeVar("_T")


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure each once, on an instance of its own; the restore includes the start of Letta."""
    results = Results()
    await anyio.to_thread.run_sync(_measure, servers.home, 20 if quick else 1, results)
    return results


def _measure(home: Path, share: int, results: Results) -> None:
    server = Server(home, instance="bench-backup")
    # Remove the leftovers of a killed run.
    server.erase()
    try:
        with PracticeVendors() as vendors, tempfile.TemporaryDirectory(prefix="isabella-bench-") as folder:
            print("starting a Letta with much to back up …", flush=True)
            letta, address = server.up(), vendors.base_url("cerebras")
            with open_admin(letta) as admin:
                admin.provider("cerebras", "cerebras", address, vendors.key("cerebras").get_secret_value())
            binding = Binding("cerebras", "gpt-oss-120b", address, 65_536)
            furnish(letta, binding, messages=MESSAGES // share, passages=PASSAGES // share)
            key = x25519.Identity.generate()
            environment = {"ISABELLA_BACKUP_RECIPIENTS": str(key.to_public())}
            _measure_in(server, load_settings(environment=environment, home=Path(folder)), key, results)
    finally:
        server.erase()


def _measure_in(server: Server, settings: Settings, key: x25519.Identity, results: Results) -> None:
    policy, to = BackupPolicy.of(settings), settings.home / "measured.age"
    seconds, made = _timed(lambda: restoring.back_up(server, policy, Reason.MANUAL, to=to))
    results.add("backup_seconds", seconds)
    results.add("backup_mb", made.size / 1e6, "compressed and encrypted")
    seconds, verified = _timed(lambda: restoring.verify(server, to, [key]))
    counted = ", ".join(f"{number} {word}" for word, number in verified.contents.counted().items())
    results.add("backup_verify_seconds", seconds, counted)
    steps: list[Step] = []
    seconds, _ = _timed(lambda: restoring.restore(server, to, [key], steps.append))
    letta = sum(one.seconds or 0 for one in steps if one.state == "done" and one.name in ("letta", "stop"))
    results.add("backup_restore_seconds", seconds, f"{letta:.1f} s of it to stop and start Letta")


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    began = time.monotonic()
    result = work()
    return time.monotonic() - began, result
