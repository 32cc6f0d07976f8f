"""The two acts of the demo: a key that became stale, and a master key that was changed."""

from __future__ import annotations

import secrets
import textwrap
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import rich.console
from pydantic import SecretStr
from rich.text import Text

from isabella.api import compare_providers, ensure_providers
from isabella.config.settings import Settings
from isabella.demo.stage import (
    VENDOR,
    DemoStage,
    desired_provider,
    open_stage,
    patch,
    shown,
    stored_provider,
)
from isabella.embedded import Progress
from isabella.errors import LettaRefused
from isabella.letta.encryption import KeyMatch
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof
from isabella.system.processes import interrupt_on_sigterm

_FACT = "Please remember that my cat is called Minka."
_QUESTION = "What is my cat called?"
_NAME = "Minka"

_GOOD, _BAD = "green", "yellow"
_LABEL_WIDTH = 15
_MAX_WIDTH = 118


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
    home: Path, console: rich.console.Console, progress: Callable[[], AbstractContextManager[Progress]]
) -> bool:
    """Run the demo on a Letta instance of its own, and erase it. Return whether every event was as expected."""
    output = DemoOutput(console)
    with interrupt_on_sigterm(), progress() as report:
        began = time.monotonic()
        with open_stage(home, report) as stage:
            output.line(
                "setup",
                f"Letta {stage.letta.version} on a Postgres of its own, up after {time.monotonic() - began:.0f} s; "
                "a practice vendor replaces Cerebras.",
            )
            settings = anyio.run(_stale_key, stage, output)
            master_key = SecretStr(secrets.token_hex(32))
            stage.restart_under(master_key, report)
            anyio.run(_changed_master_key, stage, output, settings, master_key)
    return output.end()


async def _stale_key(stage: DemoStage, output: DemoOutput) -> Settings:
    """Act one. Return the settings at its end."""
    output.heading("1  An old key is stored in Letta")
    old = stage.vendors.key(VENDOR)
    settings = stage.configure(old, stage.letta.master_key)
    report = await ensure_providers(settings)
    entry = report.configured[0]
    output.check(
        "first start",
        f"{entry.action} provider {entry.name} with {shown(old)}: {entry.proof}",
        expected="it is created and proven",
        ok=report.all_proven,
    )
    async with stage.speaking(settings):
        await stage.make_agent(settings)
        await _talk(stage, output, _FACT, status=200)
        new = stage.vendors.rotate(VENDOR)
        settings = stage.configure(new, stage.letta.master_key)
        output.line("the vendor", f"Cerebras accepts only {shown(new)} from now on; it is in .env")
        await _talk(stage, output, _QUESTION, status=401, key=old)
        _, reading = await stored_provider(settings)
        stored = reading.key if reading is not None else None
        output.check(
            "Letta holds",
            f"{shown(stored)}, read back with the master key; .env has {shown(new)}",
            expected="the old key",
            ok=stored is not None and stored.get_secret_value() == old.get_secret_value(),
            style=_BAD,
        )
        await _plan_and_sync(output, settings, ProviderState.STALE, Action.UPDATE)
        await _talk(stage, output, _QUESTION, status=200, key=new)
    return settings


async def _changed_master_key(stage: DemoStage, output: DemoOutput, before: Settings, master_key: SecretStr) -> None:
    """Act two, on the restarted Letta."""
    output.heading("2  The master key was changed")
    key = desired_provider(before).key
    if key is None:
        raise AssertionError("the first act ends with a key")
    settings = stage.configure(key, master_key)
    output.line("the operator", "Letta is restarted with another LETTA_ENCRYPTION_KEY, which is also in .env")
    async with stage.speaking(settings):
        await _talk(stage, output, _QUESTION, status=500)
        _, reading = await stored_provider(settings)
        unreadable = reading is not None and reading.match is KeyMatch.UNREADABLE
        output.check(
            "Letta holds",
            "an encrypted key that the master key in .env cannot decrypt" if unreadable else f"{reading}",
            expected="a key that cannot be decrypted",
            ok=unreadable,
            style=_BAD,
        )
        await _try_to_update(output, settings)
        await _plan_and_sync(output, settings, ProviderState.UNREADABLE, Action.RECREATE)
        await _talk(stage, output, _QUESTION, status=200, key=key)


async def _talk(
    stage: DemoStage, output: DemoOutput, text: str, *, status: int, key: SecretStr | None = None
) -> None:
    """Send a message to the agent; show its answer and the requests that reached the vendor."""
    before = stage.last_request()
    output.line("you", text)
    answer = await stage.say(text)
    good = status == 200
    recalls = good and text == _QUESTION
    output.check(
        "the agent",
        answer.shown,
        expected=f"{status}{', with the name' if recalls else ''}",
        ok=answer.status == status and (not recalls or _NAME in answer.said),
        style=_GOOD if good else _BAD,
    )
    if text == _FACT:
        return
    arrived = stage.completions(after=before)
    if not arrived:
        output.check("the vendor", "got no request", expected="a request", ok=key is None)
        return
    seen = ", ".join(dict.fromkeys(f"{request.key_masked or 'no key'}: {request.status}" for request in arrived))
    output.check(
        "the vendor",
        f"got {seen}",
        expected=f"a request with {shown(key)}",
        ok=key is None or all(request.carries(key.get_secret_value()) for request in arrived),
    )


async def _try_to_update(output: DemoOutput, settings: Settings) -> None:
    try:
        await patch(settings)
    except LettaRefused as refused:
        text, ok = f"{refused.status}  {refused.detail.strip(' :')}", refused.status == 400
    else:
        text, ok = "200", False
    output.check("PATCH", text, expected="400, Letta cannot decrypt the stored key", ok=ok, style=_BAD)


async def _plan_and_sync(output: DemoOutput, settings: Settings, state: ProviderState, action: Action) -> None:
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
    stored, reading = await stored_provider(settings)
    text = (stored.key_text or "") if stored is not None else ""
    output.check(
        "proof",
        f"{text[:8]}… in Letta decrypts to {shown(reading.key if reading else None)}; "
        f".env has {shown(desired_provider(settings).key)}",
        expected="both are the same key",
        ok=reading is not None and reading.match is KeyMatch.EQUAL and reading.sealed,
        style=_GOOD,
    )
