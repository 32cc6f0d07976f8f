"""What the backend knows of itself when its work has ended, and that it then ends, too."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NoReturn
from unittest.mock import Mock

import anyio
import httpx2 as httpx
import pytest
import uvicorn
from structlog.testing import capture_logs

from isabella.config.settings import load_settings
from isabella.embedded import Progress, Server, Step
from isabella.embedded.progress import no_progress
from isabella.errors import ConfigurationError, EndedWhileStarting, StartFailed
from isabella.letta.client import Connection, configured_connection
from isabella.providers.report import Report
from isabella.server import prerequisites, services, up
from isabella.server.options import ServeOptions
from isabella.server.readiness import Phase, Readiness
from isabella.system import redaction
from tests.support.sample_reports import IN_SYNC

SECRET = "fake-canary-5eed-of-the-readiness"


def nested(error: Exception) -> ExceptionGroup[Exception]:
    """As it comes out of task groups within task groups."""
    return ExceptionGroup("unhandled", [ExceptionGroup("unhandled", [error])])


def test_an_error_of_ours_is_told_as_it_is() -> None:
    """However deep in task groups it happened: its sentence and its remedy are the operator's."""
    error = ConfigurationError("The database is gone.", remedy="Start it.")
    readiness = Readiness(phase=Phase.READY)
    readiness.fail(nested(error))
    assert readiness.error is error
    assert readiness.phase is Phase.FAILED
    assert readiness.reasons == ["The database is gone. Start it."]


@pytest.mark.parametrize("in_groups", [False, True])
def test_something_unforeseen_is_told_without_secrets_and_logged(in_groups: bool) -> None:
    """What it was is said in one sentence; the traceback is in the log."""
    redaction.remember(SECRET)
    error = RuntimeError(f"a bug with {SECRET} in its text")
    readiness = Readiness(phase=Phase.READY)
    with capture_logs() as logged:
        readiness.fail(nested(error) if in_groups else error)
    assert readiness.phase is Phase.FAILED
    assert not readiness.serving
    assert readiness.error is not None
    assert readiness.error.what.startswith("RuntimeError: a bug with ")
    assert readiness.error.remedy
    assert SECRET not in str(readiness.error)
    assert [(one["log_level"], one["exc_info"]) for one in logged] == [("error", error)]


class Inside:
    """The backend's inside, which ends with an error where it is told to.

    Args:
        error: what it ends with.
        after_sync: whether it has come up before that.
    """

    def __init__(self, error: Exception, *, after_sync: bool) -> None:
        self.error = error
        self.after_sync = after_sync
        self.said: list[str] = []
        self.options = ServeOptions(
            practice=False, verify=False, progress=self._progress, show=lambda _report: None, say=self.said.append
        )

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        yield no_progress

    async def wait(self, *_arguments: object) -> None:
        if not self.after_sync:
            raise self.error

    async def sync(self, *_arguments: object) -> Report:
        return Report("http://letta", "0.16.8", [IN_SYNC])

    @asynccontextmanager
    async def reside(self, *_arguments: object) -> AsyncIterator[None]:
        raise self.error
        yield


async def _serve_a_while(server: uvicorn.Server, listener: object) -> None:
    """One that goes on for ever does not keep the tests."""
    with anyio.fail_after(30):
        await server.serve(sockets=[listener])  # type: ignore[list-item]


@pytest.mark.parametrize("after_sync", [False, True])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(f"a bug with {SECRET}"), "RuntimeError: a bug with "),
        (nested(ConfigurationError("The database is gone.", remedy="Start it.")), "The database is gone. Start it."),
    ],
)
def test_a_backend_whose_inside_has_ended_stops(
    error: Exception, words: str, after_sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go on answering: the command says why, without secrets, and ends with a failure."""
    redaction.remember(SECRET)
    monkeypatch.chdir(tmp_path)
    inside = Inside(error, after_sync=after_sync)
    monkeypatch.setattr(services, "_wait_for_letta", inside.wait)
    monkeypatch.setattr(services, "_sync", inside.sync)
    monkeypatch.setattr(services, "open_agents", inside.reside)
    monkeypatch.setattr(up, "_run_server", _serve_a_while)
    environment = {"ISABELLA_HOME": str(tmp_path), "ISABELLA_PORT": "0", "LETTA_BASE_URL": "http://127.0.0.1:9"}
    assert up.serve(load_settings(environment=environment), inside.options) == 1
    said = inside.said[-1]
    assert said.startswith(f"{'Stopped' if after_sync else 'Not started'}: {words}")
    assert SECRET not in said


def test_the_port_is_the_backend_s_while_letta_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants it in that moment does not get it; a second backend is told at once which setting to change."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = load_settings(environment={}, home=tmp_path, port=port)
    inside = Inside(RuntimeError(), after_sync=False)
    told: list[ConfigurationError] = []
    shown: list[httpx.Response] = []

    def letta_starts(_settings: object, _server: object, options: ServeOptions, _stack: object) -> NoReturn:
        with options.progress() as progress:
            progress(Step("install", "started", "Letta 0.16.8"))
            progress(Step("check", "started", "something"))
            progress(Step("check", "done", "something"))
        shown.append(httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False))
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
        another_home = load_settings(environment={}, home=tmp_path / "other", port=port)
        with pytest.raises(ConfigurationError) as error:
            up.serve(another_home, inside.options)
        told.append(error.value)
        raise StartFailed("Enough was seen.")

    monkeypatch.setattr(prerequisites, "start_embedded", letta_starts)
    with pytest.raises(StartFailed):
        up.serve(settings, inside.options)
    assert [error.what for error in told] == [f"Port {port} of 127.0.0.1 cannot be used: Address already in use."]
    assert "ISABELLA_PORT" in str(told[0].remedy)
    assert [answer.status_code for answer in shown] == [503]
    assert (shown[0].json()["status"], shown[0].json()["reasons"]) == ("starting", ["Install: Letta 0.16.8."])


@pytest.mark.parametrize("received_by", ["main thread", "other thread"])
def test_letta_is_stopped_only_after_the_services_have_ended(
    received_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of their work does not end the wait for them, although they need a moment to end.

    One that another thread receives does not wake the main thread, like one that comes just before it sleeps.
    """
    inside, order = Inside(RuntimeError(), after_sync=True), list[str]()

    @asynccontextmanager
    async def services_that_end_slowly(*_arguments: object) -> AsyncIterator[None]:
        try:
            thread = threading.main_thread() if received_by == "main thread" else threading.current_thread()
            signal.pthread_kill(thread.ident or 0, signal.SIGTERM)
            await anyio.sleep_forever()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.3)
            order.append("services")

    def start(_settings: object, _server: object, _options: object, stack: ExitStack) -> Connection | None:
        stack.callback(order.append, "Letta")
        return configured_connection(
            load_settings(environment={"LETTA_BASE_URL": "http://127.0.0.1:9"}, home=tmp_path)
        )

    monkeypatch.setattr(services, "_wait_for_letta", inside.wait)
    monkeypatch.setattr(services, "_sync", inside.sync)
    monkeypatch.setattr(services, "open_agents", services_that_end_slowly)
    monkeypatch.setattr(prerequisites, "start_embedded", start)
    monkeypatch.setattr(prerequisites, "start_gateway", lambda *_arguments: None)
    settings = load_settings(environment={}, home=tmp_path, port=0)
    assert up.serve(settings, inside.options) == 0
    assert order == ["services", "Letta"]
    assert inside.said[-1].startswith("Stopping.")


@pytest.mark.parametrize("deaths", [0, 1, 2])
def test_a_letta_that_ends_while_it_starts_is_started_once_more(
    deaths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once, it comes up all the same; one that always ends is reported."""
    failures = [EndedWhileStarting("Letta 0.16.8 ended while starting.\n    its log") for _ in range(deaths)]
    up = Mock(side_effect=[*failures, "a Letta"])
    monkeypatch.setattr(Server, "up", up)
    monkeypatch.setattr(prerequisites, "embedded_connection", lambda _settings, letta: letta)
    options = Inside(RuntimeError(), after_sync=False).options
    settings = load_settings(environment={}, home=tmp_path)
    with ExitStack() as stack:
        if deaths < 2:
            assert str(prerequisites.start_embedded(settings, Server(tmp_path), options, stack)) == "a Letta"
        else:
            with pytest.raises(EndedWhileStarting):
                prerequisites.start_embedded(settings, Server(tmp_path), options, stack)
    assert up.call_count == min(deaths + 1, 2)
