"""Traces of turns on a real Letta: every hop from the request to the vendor, and no text of a message."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.system import tracing
from tests.support.backend_server import Backend, backend

GROQ = "byok-groq/openai/gpt-oss-120b"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAID = "The canary sings of tracing."


@dataclass
class Receiver:
    """A receiver of OTLP over HTTP on loopback, which keeps what it gets."""

    bodies: list[bytes] = field(default_factory=list)

    def spans(self, trace: str) -> list[Any]:
        """The spans of a trace, in the order of their start."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found += [span for span in scope.spans if span.trace_id.hex() == trace]
        return sorted(found, key=lambda span: int(span.start_time_unix_nano))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """It runs, and this process sends it its spans."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        tracing.configure("isabella-tests", {})
        yield receiver
        tracing.stop()
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture(scope="module")
def served(receiver: Receiver, letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with a gateway and practice vendors of its own; tracing is on."""
    home: Path = tmp_path_factory.mktemp("home")
    with PracticeVendors() as vendors, backend(letta_server, home, vendors, gateway="on") as running:
        yield running


def _attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_turn_has_a_span_for_every_hop(served: Backend, receiver: Receiver) -> None:
    """Request, turn, Letta, gateway, vendor: each within the one before, in the trace of the program that asked."""
    agent = served.agent("traced", GROQ)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"message": SAID}
    path = f"/api/agents/{agent}/turns"
    with served.client.stream("POST", path, json=body, headers=headers) as response:
        assert response.status_code == 200
        assert '"completed"' in response.read().decode()
    # The gateway's part ends with the connection; what is left is sent when the recorder is flushed.
    tracing.flush()
    spans = receiver.spans(TRACE)
    names = [span.name for span in spans]
    assert names == [
        "POST /api/agents/{name}/turns",
        "turn",
        "letta POST messages",
        "gateway POST",
        "vendor POST",
    ]
    assert spans[0].parent_span_id.hex() == PARENT
    for outer, inner in pairwise(spans):
        assert inner.parent_span_id == outer.span_id, inner.name
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano, inner.name
        assert inner.end_time_unix_nano <= outer.end_time_unix_nano, inner.name
    request, turn, letta, gateway, vendor = map(_attributes, spans)
    assert request["http.response.status_code"] == 200
    assert (turn["isabella.reason"], turn["isabella.handle"]) == ("completed", GROQ)
    assert (letta["isabella.provider"], letta["gen_ai.request.model"]) == ("byok-groq", "openai/gpt-oss-120b")
    assert gateway["isabella.agent"] == turn["isabella.agent"] == served.id_of(agent)
    assert (vendor["http.response.status_code"], vendor["server.address"]) == (200, "127.0.0.1")
    _no_secrets(served, receiver)


def test_a_failing_vendor_is_seen_in_its_span(served: Backend, receiver: Receiver) -> None:
    """Its status is there, and not its words; the next vendor has a span of its own in the same turn."""
    trace = "1" * 32
    agent = served.agent("failing", GROQ, "byok-mistral/mistral-medium-latest")
    served.vendors.fault("groq", on="chat", status=500)
    headers, path = {"traceparent": f"00-{trace}-{PARENT}-01"}, f"/api/agents/{agent}/turns"
    with served.client.stream("POST", path, json={"message": SAID}, headers=headers) as response:
        assert '"completed"' in response.read().decode()
    served.vendors.clear()
    tracing.flush()
    spans = receiver.spans(trace)
    asked = [_attributes(span)["isabella.provider"] for span in spans if span.name == "letta POST messages"]
    assert asked == ["byok-groq", "byok-mistral"]
    statuses = [
        (found["isabella.provider"], found["http.response.status_code"])
        for found in (_attributes(span) for span in spans if span.name == "vendor POST")
    ]
    assert ("byok-groq", 500) in statuses
    assert statuses[-1] == ("byok-mistral", 200)
    ids = {span.span_id for span in spans} | {bytes.fromhex(PARENT)}
    assert {span.parent_span_id for span in spans} <= ids
    _no_secrets(served, receiver)


def _no_secrets(served: Backend, receiver: Receiver) -> None:
    everything = b"".join(receiver.bodies)
    assert b"canary" not in everything
    for vendor in ("groq", "mistral"):
        assert served.vendors.key(vendor).get_secret_value().encode() not in everything


def test_without_a_receiver_nothing_is_imported() -> None:
    """Off, tracing imports nothing (FastAPI imports the API by itself), and requests have no other headers."""
    script = (
        "import sys, json\n"
        "from isabella.system import tracing\n"
        "import isabella.server.app, isabella.gateway.app\n"
        "tracing.configure('isabella', {'OTEL_SDK_DISABLED': 'true', 'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:9'})\n"
        "with tracing.span('a') as one, tracing.span('b') as other: one.set(status_code=1)\n"
        "loaded = [name for name in ('opentelemetry.sdk', 'opentelemetry.exporter') if name in sys.modules]\n"
        "print(json.dumps([loaded, tracing.headers(),"
        " one is other, tracing.enabled()]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == [[], {}, True, False]
