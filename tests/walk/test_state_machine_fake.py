"""The model of it all, on a fake Letta: thousands of steps in the time of one start of the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import httpx2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from isabella.letta import encryption
from tests.support.fake_letta import FakeLetta
from tests.support.fault_transport import JumpingLoop
from tests.support.letta_encryption import seal, unseal
from tests.support.state_machine import Machine

_ROUNDS = 1
_EXAMPLES, _STEPS = 60, 50


class FakeWorld:
    """A fake Letta as the machine's world."""

    steps: ClassVar[int] = 0
    timeout = 5.0

    def begin(self, release: str, master_key: str | None) -> None:
        self._double = FakeLetta(release, master_key=master_key, rounds=_ROUNDS)

    @property
    def release(self) -> str:
        return self._double.release

    @property
    def master_key(self) -> str | None:
        return self._double.master_key

    def transport(self) -> httpx2.AsyncBaseTransport:
        return self._double.transport()

    def loop_factory(self) -> Callable[[], Any]:
        return JumpingLoop

    def rest(self, method: str, path: str, body: Any = None) -> int:
        return self._double.handle(method, f"/v1/providers/{path}", {}, body)[0]

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row.name: row.as_json() for row in self._double.rows if not row.deleted}

    def write(self, name: str, text: str | None) -> None:
        row = self._double.live(name)
        assert row is not None
        row.enc = text

    def restart(self, master_key: str | None, release: str | None = None) -> None:
        self._double.restart(master_key, release=release)

    def opened(self, text: str | None, master_key: str | None) -> str | None:
        if not text or master_key is None:
            return text
        return unseal(text, master_key, rounds=_ROUNDS) or text

    def seal(self, key: str, master_key: str) -> str:
        return seal(key, master_key, rounds=_ROUNDS)

    def bearer(self, name: str) -> str | None:
        return self._double.bearer(name)


@pytest.fixture
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A derivation takes 35 ms with as many rounds as Letta makes; here both sides make one."""
    monkeypatch.setattr(encryption, "_ROUNDS", _ROUNDS)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_few_rounds")
def test_whatever_happens_everything_is_proven_or_explained(record_property: Callable[[str, object], None]) -> None:
    """2,000 steps of edits, restarts, faults and kills: nothing lost, no foreign key sent, every proof true."""

    class OnFake(Machine):
        def __init__(self) -> None:
            self.world = FakeWorld()
            super().__init__()

    FakeWorld.steps = 0
    run_state_machine_as_test(
        OnFake,
        settings=settings(
            max_examples=_EXAMPLES,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("walked", f"state machine: {FakeWorld.steps} steps on the fake Letta")
    assert FakeWorld.steps >= 2_000
