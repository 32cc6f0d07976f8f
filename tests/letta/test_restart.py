"""Isabella's memory outlives everything: backend, Letta and Postgres are stopped and started, on every vendor."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

from isabella.config.vendors import usual_vendors
from isabella.embedded import InstanceStatus, Server
from isabella.practice import NAMES, PracticeVendors
from isabella.system.processes import has_ended
from tests.support.backend_server import TOKEN, TurnRecord, events_of
from tests.support.command import Command

HANDLES = {
    "cerebras": "cerebras/gpt-oss-120b",
    "groq": "byok-groq/openai/gpt-oss-120b",
    "mistral": "byok-mistral/mistral-medium-latest",
    "longcat": "longcat/LongCat-2.0",
}
#: What Isabella is told on which vendor: who is called what.
FACTS = {
    "cerebras": ("dog", "Rex"),
    "groq": ("cat", "Minka"),
    "mistral": ("parrot", "Coco"),
    "longcat": ("boat", "Nautilus"),
}
_UP_SECONDS = 120.0


@dataclass
class House:
    """Everything that is started and stopped, as an operator does it, and the vendors, who are not stopped.

    Attributes:
        server: an instance of Letta of its own.
        vendors: the practice vendors.
        command: Isabella in a folder with `.env`.
    """

    server: Server
    vendors: PracticeVendors
    command: Command

    @contextmanager
    def up(self) -> Iterator[Talk]:
        """Letta and Postgres, then the backend, each as processes of their own; in the end all of them are gone."""
        letta = self.server.up()
        assert letta.started
        processes = _family(self.server.status())
        try:
            assert letta.master_key is not None
            self.command.configure(
                **_keys_and_addresses(self.vendors),
                LETTA_BASE_URL=letta.base_url,
                LETTA_API_KEY=letta.password.get_secret_value(),
                LETTA_ENCRYPTION_KEY=letta.master_key.get_secret_value(),
                ISABELLA_DATABASE_URL=letta.database_url.get_secret_value(),
                ISABELLA_HOME=str(self.command.folder / "home"),
                ISABELLA_PORT="0",
                ISABELLA_TOKEN=TOKEN,
            )
            with self._backend() as conversation:
                yield conversation
        finally:
            down = self.command.run(
                "letta", "down", "--home", str(self.server.home), "--instance", self.server.instance
            )
        assert down.code == 0, down.err
        assert [one for one in processes if not has_ended(one)] == []
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(letta.base_url)

    @contextmanager
    def _backend(self) -> Iterator[Talk]:
        with self.command.start("up") as process:
            # One that does not come up is ended, and with it the reading below.
            late = threading.Timer(_UP_SECONDS, process.kill)
            late.start()
            said = ""
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    said += line
                    if found := re.search(r"Ready: (http://\S+)", line):
                        break
                else:
                    raise AssertionError(f"the backend did not come up: {said}")
                late.cancel()
                headers = {"Authorization": f"Bearer {TOKEN}"}
                with httpx2.Client(base_url=found[1], headers=headers, timeout=60) as client:
                    yield Talk(client, self.vendors)
            finally:
                late.cancel()
                process.send_signal(signal.SIGINT)
                _, rest = process.communicate(timeout=60)
        assert process.returncode == 0, said + rest


@dataclass
class Talk:
    """A conversation with Isabella, each turn of it on a vendor of one's choice, whose log is looked at."""

    client: httpx2.Client
    vendors: PracticeVendors

    def say(self, vendor: str, message: str) -> TurnRecord:
        """Say something on this vendor: it alone is asked, and with the key that is its own."""
        switched = self.client.post("/api/agents/Isabella/switch", json={"handle": HANDLES[vendor]})
        assert switched.status_code == 200, switched.text
        before = {name: len(self.vendors.requests(name)) for name in NAMES}
        with self.client.stream("POST", "/api/agents/Isabella/turns", json={"message": message}) as response:
            assert response.status_code == 200, response.read()
            heard = TurnRecord(list(events_of(response.iter_lines())))
        assert (heard.end["reason"], heard.end["handle"]) == ("completed", HANDLES[vendor])
        asked = {name: self.vendors.requests(name)[before[name] :] for name in NAMES}
        assert [name for name in NAMES if asked[name]] == [vendor]
        assert {(request.path.rpartition("/v1/")[2], request.status) for request in asked[vendor]} == {
            ("chat/completions", 200)
        }
        key = self.vendors.key(vendor).get_secret_value()
        assert all(request.carries(key) for request in asked[vendor])
        return heard


def _keys_and_addresses(vendors: PracticeVendors) -> dict[str, str]:
    found = {}
    for vendor in usual_vendors():
        found[vendor.api_key_env] = vendors.key(vendor.name).get_secret_value()
        assert vendor.base_url_env is not None
        found[vendor.base_url_env] = vendors.base_url(vendor.name)
    return found


def _family(status: InstanceStatus) -> list[psutil.Process]:
    heads = [psutil.Process(status.letta.pid), psutil.Process(status.postgres.pid)]
    return [*heads, *(child for head in heads for child in head.children(recursive=True))]


@pytest.fixture
def deps(new_server: Callable[..., Server], tmp_path: Path) -> Iterator[House]:
    """One that the other tests do not live in: theirs is not stopped."""
    with PracticeVendors() as vendors:
        yield House(new_server("restart"), vendors, Command(tmp_path, {}))


def test_she_remembers_when_everything_was_stopped(deps: House) -> None:
    """What she is told on each vendor she knows after the start, on that vendor and on every other one.

    At no time does a vendor see any key but its own.
    """
    with deps.up() as before:
        for vendor, (what, name) in FACTS.items():
            assert name not in before.say(vendor, f"What is my {what} called?").text
            told = before.say(vendor, f"Please remember that my {what} is called {name}.")
            assert told.one("tool_result")["ok"]
    with deps.up() as after:
        for asked in HANDLES:
            for what, name in FACTS.values():
                assert name in after.say(asked, f"What is my {what} called?").text
    for vendor in NAMES:
        key = deps.vendors.key(vendor).get_secret_value()
        assert all(request.carries(key) for request in deps.vendors.requests(vendor))
