"""What happens in turns, counted, in the format of Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from isabella.errors import NotReady
from isabella.providers.headline import level_of
from isabella.providers.health import stands
from isabella.server.errors import ERRORS
from isabella.server.readiness import Readiness
from isabella.turns.circuit_breaker import CircuitState
from isabella.turns.events import Ended, Event, Failover, Usage
from isabella.turns.service import TurnService
from isabella.turns.turn import Turn

router = APIRouter(tags=["state"], responses=ERRORS)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 120.0)
_STATES = {CircuitState.CLOSED: 0, CircuitState.TRYING: 1, CircuitState.OPEN: 2}


class Metrics:
    """The counts of one backend."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._turns = Counter("isabella_turns", "Turns that ended.", ("reason", "handle"), registry=self.registry)
        self._first_token = Histogram(
            "isabella_first_token_seconds",
            "Seconds until the answer began, waiting included.",
            ("handle",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._seconds = Histogram(
            "isabella_turn_seconds", "Seconds that a turn took.", buckets=_SECONDS, registry=self.registry
        )
        self._failovers = Counter(
            "isabella_failovers", "Vendors that did not answer.", ("handle", "code"), registry=self.registry
        )
        self._tokens = Counter("isabella_tokens", "Tokens used.", ("kind",), registry=self.registry)
        self._under_way = Gauge("isabella_turns_under_way", "Turns that speak or wait.", registry=self.registry)
        self._breaker = Gauge(
            "isabella_vendor_left_out",
            "Whether a vendor is left out: 0 asked, 1 tried again, 2 left out.",
            ("provider",),
            registry=self.registry,
        )
        self._level = Gauge(
            "isabella_provider_level",
            "The worse of stored key and vendor: 0 in order, 1 not known, 2 warning, 3 problem.",
            ("provider",),
            registry=self.registry,
        )
        self._stored = Gauge(
            "isabella_stored_key",
            "What Letta holds, compared with the configuration: 1 for the condition that a provider is in.",
            ("provider", "condition"),
            registry=self.registry,
        )
        self._vendor = Gauge(
            "isabella_vendor_status",
            "What a vendor did when it was asked last: 1 for the state that it is in.",
            ("provider", "state"),
            registry=self.registry,
        )
        self._desk: TurnService | None = None
        self._readiness: Readiness | None = None

    def of(self, turn_service: TurnService, readiness: Readiness) -> None:
        """Whose state is told beside the counts."""
        self._desk, self._readiness = turn_service, readiness

    def see(self, _turn: Turn, event: Event) -> None:
        """Count an event."""
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

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        if self._desk is not None:
            self._under_way.set(self._desk.under_way)
            self._breaker.clear()
            for provider, state in self._desk.deps.breaker.states().items():
                self._breaker.labels(provider).set(_STATES[state])
        self._tell_providers()
        return generate_latest(self.registry)

    def _tell_providers(self) -> None:
        for gauge in (self._level, self._stored, self._vendor):
            gauge.clear()
        if self._readiness is None or self._readiness.report is None:
            return
        for entry in self._readiness.seen(self._readiness.report).ours:
            self._level.labels(entry.name).set(level_of(entry))
            self._stored.labels(entry.name, stands(entry).value).set(1)
            if entry.vendor_status is not None:
                self._vendor.labels(entry.name, entry.vendor_status.state.value).set(1)


@router.get(
    "/metrics",
    summary="Counts for Prometheus",
    response_class=Response,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Tell turns, times to the first token, failovers, tokens, vendors that are left out, and how providers stand."""
    found = getattr(request.app.state, "metrics", None)
    if not isinstance(found, Metrics):
        raise NotReady("Nothing is counted yet.", remedy="`GET /ready` says how far the start has come.")
    return Response(found.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
