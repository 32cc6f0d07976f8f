"""Backup, verification and restore of 5 agents with 10,000 messages and 1,000 passages: times and size."""

from __future__ import annotations

import statistics
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
from isabella.embedded.backups import Backup, BackupPolicy, BackupReason
from isabella.letta.llm_config import Binding
from isabella.practice import PracticeVendors
from tests.support.backup_rows import furnish
from tests.support.letta_admin import open_admin

MESSAGES, PASSAGES = 10_000, 1_000

_T = TypeVar("_T")


async def measure(servers: Servers, *, quick: bool) -> Results:
    """Measure on an instance of its own; the restore includes the start of Letta."""
    results = Results()
    await anyio.to_thread.run_sync(_measure, servers.home, 20 if quick else 1, 1 if quick else 5, results)
    return results


def _measure(home: Path, share: int, rounds: int, results: Results) -> None:
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
            _measure_in(server, load_settings(environment=environment, home=Path(folder)), key, rounds, results)
    finally:
        server.erase()


def _measure_in(server: Server, settings: Settings, key: x25519.Identity, rounds: int, results: Results) -> None:
    policy, to = BackupPolicy.of(settings), settings.home / "measured.age"

    def back_up() -> Backup:
        to.unlink(missing_ok=True)
        return restoring.back_up(server, policy, BackupReason.MANUAL, to=to)

    seconds, made = _timed(rounds, back_up)
    results.add("backup_seconds", statistics.median(seconds), "", seconds)
    results.add("backup_mb", made[-1].size / 1e6, "compressed and encrypted")
    seconds, verified = _timed(rounds, lambda: restoring.verify(server, to, [key]))
    counted = ", ".join(f"{number} {word}" for word, number in verified[-1].contents.counted().items())
    results.add("backup_verify_seconds", statistics.median(seconds), counted, seconds)
    steps: list[Step] = []
    seconds, _ = _timed(rounds, lambda: restoring.restore(server, to, [key], steps.append))
    letta = sum(one.seconds or 0 for one in steps if one.state == "done" and one.name in ("letta", "stop")) / rounds
    told = f"{letta:.1f} s of it to stop and start Letta"
    results.add("backup_restore_seconds", statistics.median(seconds), told, seconds)


def _timed(rounds: int, work: Callable[[], _T]) -> tuple[list[float], list[_T]]:
    seconds, results = list[float](), list[_T]()
    for _ in range(rounds):
        began = time.monotonic()
        results.append(work())
        seconds.append(time.monotonic() - began)
    return seconds, results
