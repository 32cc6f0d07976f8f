"""Whether the gateway runs: asked at its address, in reports, in the headline, and in the reasons of a backend."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from pydantic import SecretStr, TypeAdapter
from typer.testing import CliRunner

from isabella.cli import app
from isabella.cli.tables import show_report
from isabella.config.gateway_address import SERVICE, state_file
from isabella.config.settings import Settings, load_settings
from isabella.doctor.collect import collect_gateway
from isabella.doctor.evidence import GatewayEvidence
from isabella.errors import LettaRefused
from isabella.gateway.client import gateway_status
from isabella.gateway.server import publish
from isabella.gateway.traffic import StoppedKey
from isabella.letta.client import Connection
from isabella.providers.desired import desired_providers
from isabella.providers.health import Level, headline, report_document
from isabella.providers.report import GatewayState, GatewayStatus, Receipt, Report
from isabella.server import gateway_monitor
from isabella.server.api.status import GatewayStatusBody, Provider
from isabella.server.gateway_monitor import describe_stopped_key, run_gateway_monitor
from isabella.server.readiness import Phase, Readiness
from isabella.server.runtime import Runtime
from isabella.turns.probe import judge_refusal
from isabella.vendors.client import VendorObservation, VendorState
from tests.support import backend_server
from tests.support.sample_reports import DRIFTED, IN_SYNC
from tests.unit.test_headline import seen

ADDRESS = "http://127.0.0.1:8284"
OWN = "https://api.cerebras.ai/v1"
AT_GATEWAY = f"{ADDRESS}/isabella-gateway/cerebras/v1"
BEHIND = replace(
    IN_SYNC,
    base_url=AT_GATEWAY,
    stored_base_url=AT_GATEWAY,
    upstream=OWN,
    vendor_status=seen(VendorState.ANSWERS),
)
RUNS = GatewayStatus(ADDRESS, GatewayState.RUNS)
DOWN = GatewayStatus(ADDRESS, GatewayState.DOWN, "it was not started", "Start it: isabella gateway up")
UNKNOWN = GatewayStatus("http://gw.example", GatewayState.UNKNOWN, "it cannot be reached from here")


def report(gateway: GatewayStatus | None, *entries: object) -> Report:
    """A report with a provider behind this gateway."""
    return Report("http://letta", "0.16.8", list(entries) or [BEHIND], gateway=gateway)  # type: ignore[arg-type]


def settings(home: Path, gateway: str = "on") -> Settings:
    """Settings with a gateway."""
    return load_settings(environment={}, home=home, gateway=gateway)


def ask(configured: Settings) -> GatewayStatus | None:
    """Ask whether the gateway of these settings runs."""
    return anyio.run(gateway_status, configured)


@contextmanager
def another_program(status: int, document: object) -> Iterator[str]:
    """A program that answers every request so; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- at its address -------------------------------------------------------------------------------------------------


def test_without_a_gateway_there_is_no_status(tmp_path: Path) -> None:
    """With `off`, and with `auto` before its first start, Letta calls the vendors directly."""
    assert ask(settings(tmp_path, "off")) is None
    assert ask(settings(tmp_path, "auto")) is None


def test_the_gateway_of_a_home(tmp_path: Path) -> None:
    """It runs while its process answers on its port; before and after that it is down, with the remedy."""
    configured = settings(tmp_path)
    before = ask(configured)
    assert before is not None
    assert (before.state, before.remedy) == (GatewayState.DOWN, "Start it: isabella gateway up")
    connection = Connection("http://127.0.0.1:9", None, None, None, tmp_path, timeout=5.0, embedded=False)
    with backend_server.gateway(configured, connection):
        running = ask(configured)
        port = json.loads(state_file(tmp_path).read_text())["port"]
        assert running == GatewayStatus(f"http://127.0.0.1:{port}", GatewayState.RUNS)
        assert ask(settings(tmp_path, f"http://127.0.0.1:{port}")) == running
    after = ask(configured)
    assert after is not None
    assert after.state is GatewayState.DOWN
    assert "does not answer" in (after.reason or "")


def test_another_program_on_the_port_is_no_gateway(tmp_path: Path) -> None:
    """It is not taken for the gateway, neither at the recorded port nor at a configured URL."""
    with another_program(200, {"status": "ok"}) as url:
        publish(state_file(tmp_path).parent, int(url.rpartition(":")[2]), SecretStr("t"))
        for configured in (settings(tmp_path), settings(tmp_path, url)):
            status = ask(configured)
            assert status is not None
            assert status.state is GatewayState.DOWN
    with another_program(404, {}) as url:
        status = ask(settings(tmp_path, url))
        assert status is not None
        assert (status.state, status.reason) == (GatewayState.DOWN, "the server there is not Isabella's gateway")


def test_a_url_that_cannot_be_reached(tmp_path: Path) -> None:
    """On this machine nothing runs there; a name that only Letta's machine knows says nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        status = ask(settings(tmp_path, closed))
    assert status is not None
    assert status.state is GatewayState.DOWN
    away = ask(settings(tmp_path, "http://gateway.invalid:8284"))
    assert away is not None
    assert away.state is GatewayState.UNKNOWN
    assert "from here" in (away.reason or "")


def test_loopback_of_another_machine_is_not_asked(tmp_path: Path) -> None:
    """Beside a Letta elsewhere, its URL is one of that machine, whatever listens on the same port here."""
    with another_program(200, {"service": "isabella-gateway"}) as url:
        there = load_settings(environment={}, home=tmp_path, gateway=url, letta_base_url="http://letta.example:8283")
        here = load_settings(environment={}, home=tmp_path, gateway=url, letta_base_url="http://127.0.0.1:8283")
        status = ask(there)
        assert status is not None
        assert (status.state, status.reason) == (GatewayState.UNKNOWN, "it is on Letta's machine")
        assert ask(here) == GatewayStatus(url, GatewayState.RUNS)


# --- in the evidence of the doctor ---------------------------------------------------------------------------------


def collected(configured: Settings) -> GatewayEvidence:
    """The evidence of the doctor about the gateway of these settings."""
    evidence = anyio.run(collect_gateway, configured)
    assert evidence is not None
    return evidence


def test_what_the_gateway_has_is_read_and_up_to_date(tmp_path: Path) -> None:
    """Its upstreams and masked keys, after it has read its files again: a changed key is not a difference."""
    env = tmp_path / ".env"

    def configured(key: str) -> Settings:
        env.write_text(f"CEREBRAS_API_KEY={key}\n")
        return load_settings(env, {}, home=tmp_path, gateway="on")

    first = configured("csk-canary-of-the-evidence-0001")
    connection = Connection("http://127.0.0.1:9", None, None, None, tmp_path, timeout=5.0, embedded=False)
    with backend_server.gateway(first, connection):
        evidence = collected(first)
        assert (evidence.status.state, evidence.here) == (GatewayState.RUNS, True)
        assert evidence.providers is not None
        assert set(evidence.providers) == {"cerebras"}
        assert (evidence.providers["cerebras"].upstream, evidence.providers["cerebras"].key) == (OWN, "csk-…0001")
        assert "canary" not in repr(evidence)
        for number in range(2, 5):
            changed = configured(f"csk-canary-of-the-evidence-000{number}")
            providers = collected(changed).providers
            assert providers is not None
            assert providers["cerebras"].key == f"csk-…000{number}"
        elsewhere = collected(settings(tmp_path, evidence.status.address))
        assert (elsewhere.here, elsewhere.providers) == (False, None)
    after = collected(first)
    assert (after.status.state, after.providers) == (GatewayState.DOWN, None)
    assert anyio.run(collect_gateway, settings(tmp_path, "off")) is None


@pytest.mark.parametrize(
    ("code", "vendor", "gateway_code"),
    [("invalid_api_key", None, "invalid_api_key"), ("vendor_unreachable", VendorState.UNREACHABLE, None)],
)
def test_a_receipt_tells_who_refused(code: str, vendor: VendorState | None, gateway_code: str | None) -> None:
    """A 401 of the gateway is no refusal of the key by the vendor, whatever Letta calls it."""
    body = {"error": {"message": "Isabella's gateway said no.", "type": SERVICE, "param": None, "code": code}}
    detail = f"UNAUTHENTICATED: Authentication failed with OpenAI: Error code: 401 - {body} [BYOK]"
    refused = LettaRefused("Letta answered 401.", status=401, kind="llm_authentication", detail=detail)
    result = judge_refusal(refused)
    assert (result.receipt, result.said) == (Receipt.FAILED, "Isabella's gateway said no.")
    assert (result.vendor, result.gateway_code) == (vendor, gateway_code)


def test_a_receipt_has_the_vendor_s_own_words() -> None:
    """Not those of Letta, which name the company of its client."""
    detail = (
        "UNAUTHENTICATED: Authentication failed with OpenAI: Error code: 401 - {'message': 'Wrong API Key'} [BYOK]"
    )
    refused = LettaRefused("Letta answered 401.", status=401, kind="llm_authentication", detail=detail)
    result = judge_refusal(refused)
    assert (result.receipt, result.vendor, result.said) == (
        Receipt.REFUSED,
        VendorState.REFUSES_KEY,
        "401: Wrong API Key",
    )


# --- in reports -----------------------------------------------------------------------------------------------------


def test_a_desired_provider_has_both_base_urls(tmp_path: Path) -> None:
    """The base URL for Letta is the gateway's, and the vendor's own stays known."""
    (cerebras, *_) = desired_providers(settings(tmp_path))
    assert (cerebras.base_url, cerebras.upstream) == (AT_GATEWAY, OWN)


def test_the_json_of_a_report() -> None:
    """A provider has its upstream only behind a gateway; the HTTP API takes both forms."""
    document = report_document(report(DOWN))
    (entry,) = document["providers"]
    assert (entry["base_url"], entry["stored_base_url"], entry["upstream"]) == (AT_GATEWAY, AT_GATEWAY, OWN)
    assert document["gateway"] == {
        "address": ADDRESS,
        "state": "down",
        "reason": "it was not started",
        "remedy": "Start it: isabella gateway up",
    }
    assert TypeAdapter(Provider).validate_python(entry).upstream == OWN
    assert TypeAdapter(GatewayStatusBody).validate_python(document["gateway"]).state == "down"
    direct = report_document(report(None, IN_SYNC))
    assert direct["gateway"] is None
    assert direct["providers"][0]["upstream"] is None


@pytest.mark.parametrize("gateway", [None, RUNS, DOWN, UNKNOWN])
def test_the_table_shows_the_gateway_and_both_base_urls(
    gateway: GatewayStatus | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` shows them, every other command the gateway alone; without a gateway neither is shown."""
    show_report(report(gateway), conditions=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert (AT_GATEWAY in shown and OWN in shown) is (gateway is not None)
    assert gateway is None or gateway.sentence in shown
    show_report(report(gateway))
    shown = " ".join(capsys.readouterr().out.split())
    assert AT_GATEWAY not in shown
    assert gateway is None or gateway.sentence in shown


# --- in the headline and the reasons --------------------------------------------------------------------------------


def test_a_gateway_that_does_not_run_leads() -> None:
    """Every key is proven and every vendor has answered: nobody gets an answer now, and the headline says that."""
    assert headline(report(RUNS)).title == "Everything is in order."
    lead = headline(report(DOWN))
    assert (lead.level, lead.title) == (Level.PROBLEM, "The gateway is not running.")
    assert "agents get no answer" in lead.text
    assert "isabella gateway up" in lead.remedy


def test_what_else_is_wrong_is_told_beside_it() -> None:
    """The worse of two problems leads, and the other one is in the text."""
    drifted = replace(DRIFTED, upstream=OWN)
    lead = headline(report(DOWN, drifted))
    assert lead.title == "The gateway is not running."
    assert "1 of 1 providers is not in order. cerebras: Letta does not hold the configured values." in lead.text
    lead = headline(report(UNKNOWN, drifted))
    assert (lead.level, lead.title) == (Level.PROBLEM, "1 of 1 providers is not in order.")
    assert "is not known" in lead.text


def test_a_gateway_of_which_nothing_is_known_is_not_in_order() -> None:
    """Nothing known is neither good nor bad."""
    lead = headline(report(UNKNOWN))
    assert lead.level is Level.UNKNOWN
    assert lead.title != "Everything is in order."
    assert "It is not known whether the gateway at http://gw.example is running" in lead.text


def test_readiness_tells_that_the_gateway_does_not_run() -> None:
    """A backend whose providers are in order is degraded while its gateway is down, and pages are told at once."""
    changed: list[int] = []
    readiness = Readiness()
    readiness.vendors.changed = lambda: changed.append(1)
    readiness.record(report(RUNS, replace(BEHIND, vendor_status=_answered())))
    assert (readiness.status, readiness.reasons) == (Phase.READY, [])
    for gateway in (RUNS, DOWN, DOWN):
        readiness.record_gateway(gateway)
    assert len(changed) == 3  # the answer, RUNS, and DOWN once
    assert (readiness.phase, readiness.status, readiness.serving) == (Phase.READY, Phase.DEGRADED, True)
    assert readiness.reasons == [DOWN.sentence]
    readiness.record_gateway(UNKNOWN)
    assert (readiness.status, readiness.reasons) == (Phase.READY, [])
    readiness.record_gateway(RUNS)
    assert (readiness.status, readiness.reasons) == (Phase.READY, [])


def test_a_backend_follows_a_gateway_that_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for its health, without its totals; readiness has it at once, and a change is a notice."""
    monkeypatch.setattr(gateway_monitor, "_ADDRESS_INTERVAL", 0.05)
    runtime = Runtime()
    without: Any = SimpleNamespace(deps=SimpleNamespace(gateway=None))

    async def until(state: GatewayState) -> None:
        notifier = runtime.event_log.notifier
        with anyio.fail_after(30):
            while runtime.readiness.gateway is None or runtime.readiness.gateway.state is not state:
                await notifier.wait(notifier.count, 0.1)

    async def follow() -> str:
        async with AsyncExitStack() as stack:
            with another_program(200, {"service": SERVICE}) as url:
                runtime.watcher = cast("Any", SimpleNamespace(settings=settings(tmp_path, url)))
                await stack.enter_async_context(run_gateway_monitor(runtime, without))
                await until(GatewayState.RUNS)
                assert list(runtime.event_log.entries) == []
            await until(GatewayState.DOWN)
        return url

    url = anyio.run(follow)
    assert runtime.gateway is None
    (notice,) = runtime.event_log.entries
    assert notice.warning
    assert notice.text.startswith(f"The gateway at {url} is not running, so agents get no answer")


def test_a_report_keeps_the_gateway_it_was_made_with() -> None:
    """A backend that has not looked yet shows what the report says."""
    readiness = Readiness()
    assert readiness.with_vendors(report(DOWN)).gateway == DOWN
    readiness.record_gateway(RUNS)
    assert readiness.with_vendors(report(DOWN)).gateway == RUNS


def _answered() -> VendorObservation:
    return VendorObservation(VendorState.ANSWERS, "it answered", seen(VendorState.ANSWERS, 5).at)


@pytest.mark.parametrize(
    ("stopped", "told"),
    [
        (("stale", True, True), "an outdated key (gsk_…abcd); the configured key was sent in its place."),
        (
            ("stale", True, False),
            "an outdated key (gsk_…abcd); it was sent to the vendor, which refuses the configured",
        ),
        (("foreign", True, True), "a key that is not its own (gsk_…abcd); the configured key was sent in its place."),
        (("foreign", False, True), "a key that is not its own (gsk_…abcd); nothing was sent to the vendor."),
    ],
)
def test_the_notice_of_a_key_says_what_was_sent(stopped: tuple[str, bool, bool], told: str) -> None:
    """A former key that went to the vendor, because that refuses the configured one, is not called replaced."""
    kind, answered, replaced = stopped
    assert told in describe_stopped_key(StoppedKey(1, 0.0, "byok-groq", kind, "gsk_…abcd", answered, replaced))


@pytest.mark.parametrize("option", ["--tls-certificate", "--tls-key"])
def test_half_of_a_certificate_is_an_error(option: str, tmp_path: Path) -> None:
    """A certificate without its key must not end in plain HTTP."""
    came = CliRunner().invoke(app, ["gateway", "run", option, str(tmp_path / "file.pem")], catch_exceptions=True)
    assert came.exit_code != 0
    assert "are given together" in came.output
