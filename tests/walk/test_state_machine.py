"""The state machine of `machine.py` on a real Letta: `make soak`. Every restart of Letta takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any, ClassVar

import httpx2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from pydantic import SecretStr

from isabella.embedded import Letta, Server
from tests.support.fake_letta import NO_KEY, looks_sealed
from tests.support.letta_admin import PROVIDERS, open_admin
from tests.support.letta_encryption import seal, unseal
from tests.support.state_machine import NAMES, PROBE, STRANGERS, Machine

_EXAMPLES, _STEPS = 5, 50
_OURS = (*NAMES, *STRANGERS, PROBE)


class _ToLetta(httpx2.AsyncBaseTransport):
    """Sends what is meant for `http://letta` to the Letta that runs, with its password."""

    def __init__(self, letta: Letta) -> None:
        self._base_url = httpx2.URL(letta.base_url)
        self._password = letta.password
        self._inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Pass it on."""
        request.url = request.url.copy_with(host=self._base_url.host, port=self._base_url.port)
        request.headers["Host"] = f"{self._base_url.host}:{self._base_url.port}"
        request.headers["Authorization"] = f"Bearer {self._password.get_secret_value()}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._inner.aclose()


class RealWorld:
    """A real Letta as the machine's world. Its release stays what it is."""

    steps: ClassVar[int] = 0
    timeout = 60.0

    def __init__(self, server: Server, letta: Letta) -> None:
        self._server, self._open = server, ExitStack()
        self._use(letta)

    def _use(self, letta: Letta) -> None:
        self._open.close()
        self._letta = letta
        self._admin = self._open.enter_context(open_admin(letta))

    def close(self) -> None:
        self._admin.clear(*_OURS)
        self._open.close()

    def begin(self, release: str, master_key: str | None) -> None:
        self._admin.clear(*_OURS)
        if master_key != self.master_key:
            self.restart(master_key)

    @property
    def release(self) -> str:
        return self._letta.version

    @property
    def master_key(self) -> str | None:
        return None if self._letta.master_key is None else self._letta.master_key.get_secret_value()

    def transport(self) -> httpx2.AsyncBaseTransport:
        return _ToLetta(self._letta)

    def loop_factory(self) -> Callable[[], Any] | None:
        return None

    def rest(self, method: str, path: str, body: Any = None) -> int:
        return self._admin.http.request(method, f"{PROVIDERS}{path}", json=body).status_code

    def rows(self) -> dict[str, dict[str, Any]]:
        return {name: row for name in _OURS for row in self._admin.rows(name)}

    def write(self, name: str, text: str | None) -> None:
        self._admin.database.execute(
            "UPDATE providers SET api_key_enc = %s WHERE name = %s AND NOT is_deleted", (text, name)
        )

    def restart(self, master_key: str | None, release: str | None = None) -> None:
        if release is not None:
            return
        key = None if master_key is None else SecretStr(master_key)
        self._use(self._server.restart_letta(master_key=key, encrypt=key is not None))

    def opened(self, text: str | None, master_key: str | None) -> str | None:
        if not text or master_key is None:
            return text
        return _unsealed(text, master_key) or text

    def seal(self, key: str, master_key: str) -> str:
        return seal(key, master_key)

    def bearer(self, name: str) -> str | None:
        (row,) = self._admin.rows(name)
        text = row["api_key_enc"]
        if not text:
            return NO_KEY
        if self.master_key is not None and looks_sealed(text):
            # Where it cannot open it, Letta itself fails first (fact P4).
            return _unsealed(text, self.master_key)
        return str(text)


@cache
def _unsealed(text: str, master_key: str) -> str | None:
    return unseal(text, master_key)


@pytest.fixture
def world(new_server: Callable[..., Server]) -> Iterator[RealWorld]:
    """A server of its own, because its master key comes and goes."""
    server = new_server("soak")
    found = RealWorld(server, server.up())
    yield found
    found.close()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_whatever_happens_everything_is_proven_or_explained(
    world: RealWorld, record_property: Callable[[str, object], None]
) -> None:
    """200 steps of edits, restarts, faults and kills on a real Letta, without a counterexample."""

    class OnLetta(Machine):
        def __init__(self) -> None:
            self.world = world
            super().__init__()

    RealWorld.steps = 0
    run_state_machine_as_test(
        OnLetta,
        settings=settings(
            max_examples=_EXAMPLES,
            stateful_step_count=_STEPS,
            deadline=None,
            derandomize=False,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("walked", f"state machine: {RealWorld.steps} steps on a real Letta")
    assert RealWorld.steps >= 200
