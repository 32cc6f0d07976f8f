"""Spans of the backend's requests, as an ASGI middleware that is added only if traces are recorded."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isabella.system import tracing

#: Requests that come all the time, or never end.
_LEFT_OUT = ("/health", "/ready", "/metrics", "/console/static/")


class RequestSpans:
    """Records each request as a span, within the trace that its `traceparent` names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within a span."""
        if scope["type"] != "http" or scope["path"].startswith(_LEFT_OUT) or scope["path"].endswith("/live"):
            await self._app(scope, receive, send)
            return
        method, parent = scope["method"], Headers(scope=scope).get("traceparent")
        with tracing.span(method, tracing.SpanKind.SERVER, parent=parent, method=method) as span:

            async def send_with_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set(status_code=message["status"])
                await send(message)

            try:
                await self._app(scope, receive, send_with_status)
            finally:
                # The path itself may have the name of an agent, or a secret.
                route = getattr(scope.get("route"), "path", None) or f"/{scope['path'].split('/')[1]}"
                span.rename(f"{method} {route}")
                span.set(route=route)
