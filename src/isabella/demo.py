"""The demo: the stale-key bug and its fix, shown on a real Letta with practice vendors.

Two acts: a key that became stale, and a master key that was changed.
"""

from __future__ import annotations

import secrets
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import rich.console
from filelock import FileLock, Timeout
from pydantic import SecretStr
from rich.text import Text

from isabella.api import compare_providers, ensure_providers
from isabella.config.choices import LettaLock
from isabella.config.settings import Settings, load_settings
from isabella.embedded import Letta, Progress, Server, Step
from isabella.embedded.instance import make_private
from isabella.errors import LettaBroken, LettaError, LettaRefused, LockTimeout
from isabella.letta.client import LettaClient, configured_connection
from isabella.letta.encryption import KeyMatch, KeyReading, read_back
from isabella.letta.llm_config import Binding, creation_fields
from isabella.letta.store import StoredProvider
from isabella.practice import PracticeVendors
from isabella.providers.desired import Desired, desired_providers
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof
from isabella.system import state
from isabella.system.files import write_private
from isabella.system.processes import interrupt_on_sigterm
from isabella.system.redaction import mask

INSTANCE = "demo"
#: The vendor, and the name of its provider.
VENDOR = "cerebras"

_FACT = "Please remember that my cat is called Minka."
_QUESTION = "What is my cat called?"
_NAME = "Minka"

_GOOD, _BAD = "green", "yellow"
_LABEL_WIDTH, _MAX_WIDTH = 15, 118
_SAID_LIMIT = 240
#: Steps that take long; they are shown when they start and when they end.
_LONG = ("fetch", "install", "wait")


@dataclass
class DemoOutput:
    """Prints the demo, and collects the differences from what it expects."""

    console: rich.console.Console
    differences: list[str] = field(default_factory=list)

    def heading(self, title: str) -> None:
        """Print the title of an act."""
        self.console.print()
        self.console.print(Text(title, style="bold"))

    def line(self, label: str, text: str, *, style: str = "") -> None:
        """Print an event."""
        width = min(self.console.width, _MAX_WIDTH) - _LABEL_WIDTH - 2
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
        for index, line in enumerate(lines):
            shown_label = (label if index == 0 else "").ljust(_LABEL_WIDTH)
            self.console.print(Text.assemble("  ", (shown_label, "dim"), (line, style)), soft_wrap=True)

    def check(self, label: str, text: str, *, expected: str, ok: bool, style: str = "") -> None:
        """Print an event, and record a difference unless it is as expected; `style` is that of the expected event."""
        self.line(label, text, style=style if ok else "bold red")
        if not ok:
            self.differences.append(f"{label}: {text!r}; expected: {expected}")

    def end(self) -> bool:
        """Print the differences; return whether there are none."""
        self.console.print()
        for difference in self.differences:
            self.console.print(Text(f"unexpected: {difference}", style="bold red"))
        if not self.differences:
            self.console.print(Text("As expected: every line above was asked and answered in this run."))
        return not self.differences


def run_demo(
    home: Path,
    console: rich.console.Console,
    progress: Callable[[], AbstractContextManager[Progress]],
    lock: LettaLock,
) -> bool:
    """Run the demo on its own Letta instance, and erase it. Return whether every event was as expected."""
    output = DemoOutput(console)
    with interrupt_on_sigterm(), progress() as report:
        began = time.monotonic()
        with open_stage(home, report, lock) as stage:
            output.line(
                "setup",
                f"Letta {stage.letta.version} on its own Postgres, up after {time.monotonic() - began:.0f} s; "
                "a practice vendor replaces Cerebras.",
            )
            anyio.run(_stale_key, stage, output)
            master_key = SecretStr(secrets.token_hex(32))
            stage.letta = stage.server.restart_letta(_only_long(report), master_key=master_key)
            anyio.run(_changed_master_key, stage, output, master_key)
    return output.end()


async def _stale_key(stage: DemoStage, output: DemoOutput) -> None:
    output.heading("1  An old key is stored in Letta")
    old = stage.vendors.key(VENDOR)
    settings = stage.configure(old, stage.letta.master_key)
    report = await ensure_providers(settings)
    entry = report.configured[0]
    output.check(
        "first start",
        f"{entry.action} provider {entry.name} with {_shown(old)}: {entry.proof}",
        expected="it is created and proven",
        ok=report.all_proven,
    )
    async with stage.client(settings) as letta:
        await stage.make_agent(letta, settings)
        await _talk(stage, letta, output, _FACT, status=200)
        new = stage.vendors.rotate(VENDOR)
        settings = stage.configure(new, stage.letta.master_key)
        output.line("the vendor", f"Cerebras accepts only {_shown(new)} from now on; it is in .env")
        await _talk(stage, letta, output, _QUESTION, status=401, key=old)
        _, reading = await _read_provider(letta, settings)
        stored = reading.key if reading is not None else None
        output.check(
            "Letta holds",
            f"{_shown(stored)}, read back with the master key; .env has {_shown(new)}",
            expected="the old key",
            ok=stored is not None and stored.get_secret_value() == old.get_secret_value(),
            style=_BAD,
        )
        await _plan_and_sync(letta, output, settings, ProviderState.STALE, Action.UPDATE)
        await _talk(stage, letta, output, _QUESTION, status=200, key=new)


async def _changed_master_key(stage: DemoStage, output: DemoOutput, master_key: SecretStr) -> None:
    output.heading("2  The master key was changed")
    key = stage.vendors.key(VENDOR)
    settings = stage.configure(key, master_key)
    output.line("the operator", "Letta is restarted with another LETTA_ENCRYPTION_KEY, which is also in .env")
    async with stage.client(settings) as letta:
        await _talk(stage, letta, output, _QUESTION, status=500)
        _, reading = await _read_provider(letta, settings)
        unreadable = reading is not None and reading.match is KeyMatch.UNREADABLE
        output.check(
            "Letta holds",
            "an encrypted key that the master key in .env cannot decrypt" if unreadable else f"{reading}",
            expected="a key that cannot be decrypted",
            ok=unreadable,
            style=_BAD,
        )
        await _try_to_update(letta, output, settings)
        await _plan_and_sync(letta, output, settings, ProviderState.UNREADABLE, Action.RECREATE)
        await _talk(stage, letta, output, _QUESTION, status=200, key=key)


async def _talk(
    stage: DemoStage, letta: LettaClient, output: DemoOutput, text: str, *, status: int, key: SecretStr | None = None
) -> None:
    """Send a message to the agent; show its answer and the requests that reached the vendor."""
    before = max((request.number for request in stage.vendors.requests(VENDOR)), default=0)
    output.line("you", text)
    answered, said = await _say(letta, stage.agent, text)
    good = status == 200
    recalls = good and text == _QUESTION
    output.check(
        "the agent",
        said if answered == 200 else f"{answered}  {said}",
        expected=f"{status}{', with the name' if recalls else ''}",
        ok=answered == status and (not recalls or _NAME in said),
        style=_GOOD if good else _BAD,
    )
    if text == _FACT:
        return
    arrived = [request for request in stage.vendors.requests(VENDOR, after=before) if "completions" in request.path]
    if not arrived:
        output.check("the vendor", "got no request", expected="a request", ok=key is None)
        return
    seen = ", ".join(dict.fromkeys(f"{request.key_masked or 'no key'}: {request.status}" for request in arrived))
    output.check(
        "the vendor",
        f"got {seen}",
        expected=f"a request with {_shown(key)}",
        ok=key is None or all(request.carries(key.get_secret_value()) for request in arrived),
    )


async def _say(letta: LettaClient, agent_id: str, text: str) -> tuple[int, str]:
    """Send a message. Return Letta's HTTP status, 0 if there was none, and the text of the agent or the error."""
    try:
        turn = await letta.messages.send(agent_id, text)
    except (LettaRefused, LettaBroken) as error:
        line = " ".join((error.detail or error.what).split())
        return error.status or 0, line if len(line) <= _SAID_LIMIT else f"{line[:_SAID_LIMIT]}…"
    except LettaError as error:
        return 0, f"no answer: {error.what}"
    rows = [row for row in turn["messages"] if row.get("message_type") == "assistant_message"]
    said = " ".join(str(row.get("content")) for row in rows)
    return 200, said or f"(nothing; the turn ended with {turn['stop_reason']['stop_reason']})"


async def _try_to_update(letta: LettaClient, output: DemoOutput, settings: Settings) -> None:
    """Update the provider in place, without a plan."""
    stored, _ = await _read_provider(letta, settings)
    desired = _desired(settings)
    if stored is None or desired.key is None:
        raise AssertionError("there is nothing to update")
    try:
        await letta.providers.update(stored.id, key=desired.key, base_url=desired.base_url)
    except LettaRefused as refused:
        text, ok = f"{refused.status}  {refused.detail.strip(' :')}", refused.status == 400
    else:
        text, ok = "200", False
    output.check("PATCH", text, expected="400, Letta cannot decrypt the stored key", ok=ok, style=_BAD)


async def _plan_and_sync(
    letta: LettaClient, output: DemoOutput, settings: Settings, state: ProviderState, action: Action
) -> None:
    planned = (await compare_providers(settings)).configured[0]
    output.check(
        "plan",
        f"{planned.action}: {planned.reason}",
        expected=f"{action}, as it is {state}",
        ok=planned.action is action and planned.stored is state,
    )
    began = time.monotonic()
    synced = (await ensure_providers(settings)).configured[0]
    output.check(
        "sync",
        f"{synced.action}, {synced.proof}, in {time.monotonic() - began:.1f} s",
        expected=f"{action}, proven",
        ok=synced.action is action and synced.proof is Proof.PROVEN,
    )
    # Read the key once more, independently of the proof of the sync.
    stored, reading = await _read_provider(letta, settings)
    text = (stored.key_text or "") if stored is not None else ""
    output.check(
        "proof",
        f"{text[:8]}… in Letta decrypts to {_shown(reading.key if reading else None)}; "
        f".env has {_shown(_desired(settings).key)}",
        expected="both are the same key",
        ok=reading is not None and reading.match is KeyMatch.EQUAL and reading.sealed,
        style=_GOOD,
    )


async def _read_provider(letta: LettaClient, settings: Settings) -> tuple[StoredProvider | None, KeyReading | None]:
    """Return the provider as Letta stores it, and its key read back with the master key of `.env`."""
    stored, key = await letta.providers.find(VENDOR), _desired(settings).key
    if stored is None or key is None:
        return stored, None
    return stored, read_back(stored.key_text, key.get_secret_value(), settings.letta_encryption_key, None)


def _desired(settings: Settings) -> Desired:
    """Return the provider that `.env` configures."""
    return next(provider for provider in desired_providers(settings) if provider.configured)


def _shown(key: SecretStr | None) -> str:
    return "no key" if key is None else mask(key.get_secret_value())


@dataclass
class DemoStage:
    """The environment of the demo: its own Letta, a practice vendor, a folder with `.env`, and an agent."""

    server: Server
    letta: Letta  #: that server as it runs now; a restart replaces it
    vendors: PracticeVendors
    folder: Path
    agent: str = ""

    def configure(self, key: SecretStr, master_key: SecretStr | None) -> Settings:
        """Write `.env` as an operator does, and load the settings from it."""
        lines = {
            "LETTA_BASE_URL": self.letta.base_url,
            "LETTA_API_KEY": self.letta.password.get_secret_value(),
            "CEREBRAS_API_KEY": key.get_secret_value(),
            "CEREBRAS_BASE_URL": self.vendors.base_url(VENDOR),
        }
        if master_key is not None:
            lines["LETTA_ENCRYPTION_KEY"] = master_key.get_secret_value()
        path = self.folder / ".env"
        write_private(path, "".join(f"{name}={value}\n" for name, value in lines.items()))
        return load_settings(path, environment={}, home=self.folder, config_file=self.folder / "isabella.toml")

    def client(self, settings: Settings) -> LettaClient:
        """Return a client for the Letta that runs now."""
        connection = configured_connection(settings)
        if connection is None:
            raise AssertionError("the demo's .env has the base URL of its Letta")
        return LettaClient.open(connection, timeout=connection.timeout * 2)

    async def make_agent(self, letta: LettaClient, settings: Settings) -> None:
        """Create an agent with a memory, bound to the provider (fact M6)."""
        desired = _desired(settings)
        model = desired.vendor.default_model or "default"
        window = desired.vendor.models.get(model, desired.vendor.default_window)
        self.agent = await letta.agents.create(
            {
                "name": "isabella-demo",
                "memory_blocks": [
                    {"label": "persona", "value": "I am Isabella, an assistant who remembers."},
                    {"label": "human", "value": ""},
                ],
                **creation_fields(Binding(desired.name, model, desired.base_url, window)),
            }
        )


@contextmanager
def open_stage(home: Path, progress: Progress, lock: LettaLock) -> Iterator[DemoStage]:
    """Start the environment of the demo; at the end, stop and erase it. Raise `LockTimeout` if one runs already."""
    server = Server(home, instance=INSTANCE, lock=lock)
    make_private(home / "locks")
    state.make_way(home / "locks" / "demo.lock")
    alone = FileLock(home / "locks" / "demo.lock", mode=0o600)
    try:
        alone.acquire(timeout=0)
    except Timeout:
        raise LockTimeout("The demo is already running, in another window.", remedy="Wait until it ends.") from None
    with alone, PracticeVendors() as vendors, TemporaryDirectory(prefix="isabella-demo-") as folder:
        try:
            # A demo that was killed may have left data behind. The instance belongs to the demo alone.
            server.erase()
            yield DemoStage(server, server.up(_only_long(progress)), vendors, Path(folder))
        finally:
            server.erase()


def _only_long(progress: Progress) -> Progress:
    """Return a progress callback that reports the end of long steps only; the start of each step is reported."""

    def report(event: Step) -> None:
        if event.state == "started" or (event.name in _LONG and event.state != "skipped"):
            progress(event)

    return report
