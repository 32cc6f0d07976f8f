"""Counters of turns and syncs, and gauges of providers, parts and backups, in the format of Prometheus."""

from __future__ import annotations

import time
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from isabella.gateway.client import GatewayTraffic
from isabella.providers.health import current_health, level_of
from isabella.providers.plan import DONE, Action
from isabella.providers.report import Proof, ProviderReport, Report
from isabella.server.gateway_metrics import GatewayCollector
from isabella.server.readiness import Phase, Readiness
from isabella.turns.circuit_breaker import CircuitState
from isabella.turns.events import Ended, Event, Failover, Usage
from isabella.turns.service import TurnService
from isabella.watch.events import SyncCause, Synced, WatchEvent, WatchFailed

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 120.0)
_CIRCUIT_STATES = {CircuitState.CLOSED: 0, CircuitState.TRYING: 1, CircuitState.OPEN: 2}


class Metrics:
    """The metrics of one backend."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"isabella_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"isabella_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"isabella_{name}_seconds", text, labels, buckets=_SECONDS, registry=registry)

        began = "Seconds until the answer began, including the wait in the queue."
        circuit = "State of a vendor's circuit breaker: 0 closed, 1 half open, 2 open."
        level = "The worse of stored key and vendor status: 0 ok, 1 unknown, 2 warning, 3 problem."
        stored = "The stored key compared with the configured one: 1 for the condition of a provider."
        self._turns = counter("turns", "Turns that ended.", "reason", "handle")
        self._first_token = histogram("first_token", began, "handle")
        self._seconds = histogram("turn", "Duration of a turn in seconds.")
        self._failovers = counter("failovers", "Vendors that did not answer.", "handle", "code")
        self._tokens = counter("tokens", "Tokens used.", "kind")
        self._under_way = gauge("turns_under_way", "Turns in progress, or waiting in a queue.")
        self._circuit = gauge("vendor_left_out", circuit, "provider")
        self._level = gauge("provider_level", level, "provider")
        self._stored = gauge("stored_key", stored, "provider", "condition")
        self._vendor = gauge("vendor_status", "The last answer of a vendor: 1 for its state.", "provider", "state")
        proven = "Unix time at which the stored key was last read back and found equal."
        self._proven = gauge("provider_proven_timestamp_seconds", proven, "provider")
        synced = "Syncs of a provider: unchanged, changed, refused (by the vendor or the configuration), unproven."
        self._syncs = counter("provider_syncs", synced, "provider", "outcome")
        drift = "Changes made in Letta that the watcher found and corrected."
        self._drift = counter("drift_corrected", drift, "provider")
        self._sync_failures = counter("sync_failures", "Syncs of the watcher that failed as a whole.", "cause")
        self._ready = gauge("status", "1 for the status of /ready, 0 for the others.", "status")
        self._waiting = gauge("turns_waiting", "Turns that wait behind another turn of their agent.")
        self._restarts = counter("part_restarts", "Starts of a process that had ended, by this backend.", "part")
        self._restarts_seen: dict[str, int] = {}
        self._proven_at: dict[str, float] = {}
        info = gauge("build_info", "1; the version is in the label.", "version")
        info.labels(version("isabella")).set(1)
        ProcessCollector(registry=registry)
        self._part = gauge("part_up", "1 if a supervised process works: postgres, letta, gateway.", "part")
        self._backup_failed = gauge("backup_failed", "1 if the last nightly backup failed, otherwise 0.")
        self._backup_made = gauge("backup_timestamp_seconds", "Unix time of the newest backup; 0: there is none.")
        self._backup_size = gauge("backup_size_bytes", "Size of the newest backup; 0: there is none.")
        self._gateway = GatewayCollector()
        registry.register(self._gateway)

    def record(self, event: Event) -> None:
        """Count an event of a turn."""
        match event:
            case Failover():
                self._failovers.labels(event.handle, event.code.value).inc()
            case Usage():
                self._tokens.labels("prompt").inc(event.prompt_tokens)
                self._tokens.labels("completion").inc(event.completion_tokens)
            case Ended():
                handle = event.handle or ""
                self._turns.labels(event.reason.value, handle).inc()
                self._seconds.observe(event.seconds)
                if event.first_token is not None:
                    self._first_token.labels(handle).observe(event.first_token)

    def record_sync(self, report: Report) -> None:
        """Count a sync of the providers in a report."""
        for entry in report.configured:
            self._syncs.labels(entry.name, _outcome(entry)).inc()
            if entry.proof is Proof.PROVEN:
                self._proven_at[entry.name] = time.time()

    def record_watch_event(self, event: WatchEvent) -> None:
        """Count corrected drift, and failures of the watcher."""
        match event:
            case Synced(part=part, cause=SyncCause.RESYNC | SyncCause.RETRY):
                for entry in part.configured:
                    if entry.action in DONE and entry.proof is Proof.PROVEN:
                        self._drift.labels(entry.name).inc()
            case WatchFailed(cause=cause):
                self._sync_failures.labels(cause.name.lower()).inc()

    def render(self, turn_service: TurnService | None, readiness: Readiness, traffic: GatewayTraffic | None) -> bytes:
        """Return all metrics as Prometheus text, with the present state of circuits, providers and gateway."""
        self._gateway.status, self._gateway.traffic = readiness.gateway, traffic
        for gauge in (self._circuit, self._level, self._stored, self._vendor, self._proven):
            gauge.clear()
        for phase in Phase:
            self._ready.labels(phase.value).set(readiness.status is phase)
        self._render_turns(turn_service)
        self._render_backups(readiness)
        for part in readiness.parts:
            self._part.labels(part.word).set(part.runs)
            self._restarts.labels(part.word).inc(max(0, part.restarts - self._restarts_seen.get(part.word, 0)))
            self._restarts_seen[part.word] = part.restarts
        for entry in readiness.with_vendors(readiness.report).configured if readiness.report is not None else ():
            self._level.labels(entry.name).set(level_of(entry))
            self._stored.labels(entry.name, current_health(entry).value).set(1)
            if (proven_at := self._proven_at.get(entry.name)) is not None:
                self._proven.labels(entry.name).set(proven_at)
            if entry.vendor_status is not None:
                self._vendor.labels(entry.name, entry.vendor_status.state.value).set(1)
        return generate_latest(self._registry)

    def _render_turns(self, turn_service: TurnService | None) -> None:
        self._under_way.set(0 if turn_service is None else turn_service.under_way)
        self._waiting.set(0 if turn_service is None else turn_service.queue.waiting)
        states = {} if turn_service is None else turn_service.deps.breaker.states()
        for provider, state in states.items():
            self._circuit.labels(provider).set(_CIRCUIT_STATES[state])

    def _render_backups(self, readiness: Readiness) -> None:
        status = readiness.backups
        if status is not None:
            self._backup_failed.set(status.failure is not None)
            self._backup_made.set(0 if status.made_at is None else status.made_at.timestamp())
            self._backup_size.set(status.size)


def _outcome(entry: ProviderReport) -> str:
    if entry.action is Action.REFUSE:
        return "refused"
    if entry.proof is not Proof.PROVEN:
        return "unproven"
    return "changed" if entry.action in DONE else "unchanged"
