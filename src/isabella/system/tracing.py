"""OpenTelemetry traces: spans of requests, turns, and calls of Letta and the vendors.

Off unless the environment names a receiver (`OTEL_EXPORTER_OTLP_ENDPOINT`). While it is off, nothing is
imported for it, and a span is a shared object that does nothing. Spans have no text of messages and no key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

log = structlog.get_logger()

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PREFIX = "OTEL_"

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


class SpanKind(StrEnum):
    """The part that this process plays in a span."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"
    INTERNAL = "INTERNAL"


class NoSpan:
    """A span while tracing is off."""

    def set(self, **attributes: str | int | float | bool | None) -> None:
        """Do nothing."""

    def rename(self, name: str) -> None:
        """Do nothing."""


class RealSpan(NoSpan):
    """A span that is recorded."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, **attributes: str | int | float | bool | None) -> None:
        """Set attributes; an underscore in a name stands for a dot. None is left out."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(_ATTRIBUTES.get(name, name.replace("_", ".")), value)

    def rename(self, name: str) -> None:
        """Give the span another name."""
        self._span.update_name(name)


#: Names of the semantic conventions that have an underscore themselves.
_ATTRIBUTES = {
    "status_code": "http.response.status_code",
    "method": "http.request.method",
    "route": "http.route",
    "model": "gen_ai.request.model",
    "error_type": "error.type",
}
_NO_SPAN: AbstractContextManager[NoSpan] = nullcontext(NoSpan())


def enabled() -> bool:
    """Return whether spans are recorded."""
    return _tracer is not None


def wanted(variables: Mapping[str, str]) -> bool:
    """Return whether variables switch tracing on, as OpenTelemetry's standard has them."""
    off = variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or variables.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(variables.get(name, "").strip() for name in _ENDPOINTS)


def configure(service: str, dotenv: Mapping[str, str]) -> None:
    """Record the spans of this process from now on, if its environment or `.env` says so.

    `service` is its name unless `OTEL_SERVICE_NAME` is set. Without the packages of the extra `otel`, log a warning.
    """
    global _provider, _tracer
    for name, value in dotenv.items():
        if name.startswith(_PREFIX):
            os.environ.setdefault(name, value)
    if _tracer is not None or not wanted(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        sentence = "Traces are wanted (OTEL_EXPORTER_OTLP_ENDPOINT), and the packages for them are not installed: "
        log.warning("no traces", sentence=f"{sentence}install isabella[otel].")
        return
    resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _provider, _tracer = provider, provider.get_tracer("isabella")


def flush() -> None:
    """Send the spans that have ended now, not in a few seconds."""
    if _provider is not None:
        _provider.force_flush()


def stop() -> None:
    """Send what is left, and record no more."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: str | None = None,
    **attributes: str | int | float | bool | None,
) -> AbstractContextManager[NoSpan]:
    """Record the block, and what tasks that are started in it do, as a span of the one around it.

    `parent` is the W3C `traceparent` of a span of another process. An error is recorded by its type only.
    """
    if _tracer is None:
        return _NO_SPAN
    return _recorded(_tracer, name, kind, parent, attributes)


@contextmanager
def _recorded(
    tracer: Tracer, name: str, kind: SpanKind, parent: str | None, attributes: Mapping[str, Any]
) -> Iterator[NoSpan]:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None if parent is None else TraceContextTextMapPropagator().extract({"traceparent": parent})
    with tracer.start_as_current_span(
        name,
        context=context,
        kind=trace.SpanKind[kind.value],
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        one = RealSpan(current)
        one.set(**attributes)
        try:
            yield one
        except BaseException as error:
            # The message of an error may quote a user's text.
            one.set(error_type=type(error).__name__)
            if isinstance(error, Exception):
                current.set_status(trace.StatusCode.ERROR)
            raise


def headers() -> dict[str, str]:
    """Return the W3C headers of the current span, for a request within it; none while tracing is off."""
    found: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(found)
    return found
