"""The story itself, in two acts: a key that went stale, and a master key that was changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import anyio
from pydantic import SecretStr

from isabella.config.settings import Settings
from isabella.demo.stage import (
    VENDOR,
    DemoStage,
    desired_provider,
    new_master_key,
    open_stage,
    patch,
    shown,
    stored_provider,
)
from isabella.demo.telling import Narrator
from isabella.embedded import Progress
from isabella.errors import LettaRefused
from isabella.letta.encryption import KeyMatch
from isabella.providers.api import compare_providers, ensure_providers
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof
from isabella.system.processes import interrupt_on_sigterm

_FACT = "Please remember that my cat is called Minka."
_QUESTION = "What is my cat called?"
_NAME = "Minka"

_GOOD, _BAD = "green", "yellow"


def tell(home: Path, narrator: Narrator, progress: Callable[[], AbstractContextManager[Progress]]) -> bool:
    """Play the story on a Letta of its own, which is stopped and erased in the end.

    Args:
        home: Isabella's home; nothing in it is touched but an instance named demo.
        narrator: prints it.
        progress: shows what the servers do, while they do it.

    Returns:
        Whether it went as told.

    Raises:
        IsabellaError: it could not be played.
    """
    with interrupt_on_sigterm(), progress() as told:
        began = time.monotonic()
        with open_stage(home, told) as stage:
            narrator.tell(
                "The stage",
                f"Letta {stage.letta.version} on a Postgres of its own, up after {time.monotonic() - began:.0f} s; "
                "Cerebras is played by a practice vendor.",
            )
            settings = anyio.run(_stale_key, stage, narrator)
            new = new_master_key()
            stage.restart_under(new, told)
            anyio.run(_changed_master_key, stage, narrator, settings, new)
    return narrator.end()


async def _stale_key(stage: DemoStage, narrator: Narrator) -> Settings:
    """Act one. Returns the settings that it ends with."""
    narrator.act("1  An old key is stored in Letta")
    old = stage.vendors.key(VENDOR)
    settings = stage.configure(old, stage.letta.master_key)
    report = await ensure_providers(settings)
    narrator.expect(
        "an old start",
        f"{report.ours[0].action} provider {report.ours[0].name} with {shown(old)}: {report.ours[0].proof}",
        told="it is created and proven",
        held=report.all_proven,
    )
    async with stage.speaking(settings):
        await stage.make_agent(settings)
        await _talk(stage, narrator, _FACT, status=200)
        new = stage.vendors.rotate(VENDOR)
        settings = stage.configure(new, stage.letta.master_key)
        narrator.tell("the vendor", f"Cerebras takes {shown(new)} only, from now on; .env has it")
        await _talk(stage, narrator, _QUESTION, status=401, key=old)
        _, reading = await stored_provider(settings)
        held = reading.key if reading is not None else None
        narrator.expect(
            "Letta holds",
            f"{shown(held)}, read back with the master key; .env has {shown(new)}",
            told="the old key",
            held=held is not None and held.get_secret_value() == old.get_secret_value(),
            style=_BAD,
        )
        await _plan(narrator, settings, ProviderState.STALE, Action.UPDATE)
        await _sync(narrator, settings, Action.UPDATE)
        await _prove(narrator, settings)
        await _talk(stage, narrator, _QUESTION, status=200, key=new)
    return settings


async def _changed_master_key(stage: DemoStage, narrator: Narrator, before: Settings, master_key: SecretStr) -> None:
    """Act two, on the Letta that was restarted."""
    narrator.act("2  The master key was changed")
    key = desired_provider(before).key
    if key is None:
        raise AssertionError("the first act ends with a key")
    settings = stage.configure(key, master_key)
    narrator.tell("the operator", "Letta is restarted under another LETTA_ENCRYPTION_KEY; .env has it, too")
    async with stage.speaking(settings):
        await _talk(stage, narrator, _QUESTION, status=500)
        _, reading = await stored_provider(settings)
        unreadable = reading is not None and reading.match is KeyMatch.UNREADABLE
        narrator.expect(
            "Letta holds",
            "a sealed key that the master key of .env does not open" if unreadable else f"{reading}",
            told="a key that cannot be opened",
            held=unreadable,
            style=_BAD,
        )
        await _try_to_update(narrator, settings)
        await _plan(narrator, settings, ProviderState.UNREADABLE, Action.RECREATE)
        await _sync(narrator, settings, Action.RECREATE)
        await _prove(narrator, settings)
        await _talk(stage, narrator, _QUESTION, status=200, key=key)


async def _talk(
    stage: DemoStage, narrator: Narrator, text: str, *, status: int, key: SecretStr | None = None
) -> None:
    """Say something to the agent; show its answer, and what the vendor saw of it."""
    before = stage.last_request()
    narrator.tell("you", text)
    answer = await stage.say(text)
    good = status == 200
    remembered = not good or text != _QUESTION or _NAME in answer.said
    narrator.expect(
        "the agent",
        answer.shown,
        told=f"{status}{', with the name' if good and text == _QUESTION else ''}",
        held=answer.status == status and remembered,
        style=_GOOD if good else _BAD,
    )
    if good and text != _QUESTION:
        return
    arrived = stage.completions(after=before)
    if not arrived:
        narrator.expect("the vendor", "was not even asked", told="it is asked", held=key is None)
        return
    seen = ", ".join(dict.fromkeys(f"{request.key_masked or 'no key'}: {request.status}" for request in arrived))
    narrator.expect(
        "the vendor",
        f"was sent {seen}",
        told=f"it is sent {shown(key)}",
        held=key is None or all(request.carries(key.get_secret_value()) for request in arrived),
    )


async def _try_to_update(narrator: Narrator, settings: Settings) -> None:
    try:
        await patch(settings)
    except LettaRefused as refused:
        what, held = f"{refused.status}  {refused.detail.strip(' :')}", refused.status == 400
    else:
        what, held = "200", False
    narrator.expect("PATCH", what, told="400, Letta cannot decrypt what it holds", held=held, style=_BAD)


async def _plan(narrator: Narrator, settings: Settings, state: ProviderState, action: Action) -> None:
    entry = (await compare_providers(settings)).ours[0]
    narrator.expect(
        "plan",
        f"{entry.action}: {entry.reason}",
        told=f"{action}, as it is {state}",
        held=entry.action is action and entry.stored is state,
    )


async def _sync(narrator: Narrator, settings: Settings, action: Action) -> None:
    began = time.monotonic()
    entry = (await ensure_providers(settings)).ours[0]
    narrator.expect(
        "sync",
        f"{entry.action}, {entry.proof}, in {time.monotonic() - began:.1f} s",
        told=f"{action}, proven",
        held=entry.action is action and entry.proof is Proof.PROVEN,
    )


async def _prove(narrator: Narrator, settings: Settings) -> None:
    """Look once more, apart from what the sync said of itself."""
    found, reading = await stored_provider(settings)
    key = desired_provider(settings).key
    held = reading is not None and reading.match is KeyMatch.EQUAL and reading.sealed
    text = (found.key_text or "") if found is not None else ""
    narrator.expect(
        "proof",
        f"{text[:8]}… in Letta opens to {shown(reading.key if reading else None)}; .env has {shown(key)}",
        told="both are the same key",
        held=held,
        style=_GOOD,
    )
