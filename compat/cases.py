"""What Letta may hold, case by case, and what comes of it: proven, or refused with the reason and the way out.

A case returns what goes into the table. It fails where a provider is neither proven nor explained, where something
was deleted that cannot come back, or where a proven key is not the one that reaches the vendor. The doctor's cases
fail where it finds anything in a system that is in order, or not exactly the fault in one that is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from compat.stage import FORMER_KEY, Stage
from isabella.agents.reconcile import EnsureOutcome
from isabella.agents.service import open_agent_service
from isabella.config.settings import load_settings
from isabella.providers.report import Proof, ProviderReport
from tests.support.doctor_env import VENDORS, DoctorEnv
from tests.support.fault_proxy import Proxy
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal

Case = Callable[[Stage], str]

#: 64 hexadecimal digits (fact O7).
_HEX_KEY = "5eed" * 16
#: Nothing listens there.
_ELSEWHERE = "http://127.0.0.1:9/v1"


def _proven(stage: Stage, name: str, entry: ProviderReport, how: str) -> str:
    """It is proven, and an agent's next message carries the configured key."""
    assert entry.proof is Proof.PROVEN, entry.reason
    assert stage.opened(name) == stage.key, entry.reason
    assert stage.bearers(name) == {"the configured key"}
    return how


def _in_place(stage: Stage, name: str, entry: ProviderReport) -> str:
    assert not stage.deleted
    return _proven(stage, name, entry, "in place")


def _recreated_or_named(stage: Stage, name: str, id: str, entry: ProviderReport, remedy: str) -> str:
    """Recreated under the same id where that works; elsewhere nothing was deleted, and the way out is told."""
    (row,) = stage.admin.rows(name)
    assert row["id"] == id
    if stage.recreates:
        return _proven(stage, name, entry, "recreated")
    assert not stage.deleted
    assert entry.proof is Proof.FAILED
    assert entry.remedy is not None
    assert remedy in entry.remedy, entry.remedy
    return "refused: upgrade"


def absent(stage: Stage) -> str:
    """It is created, and a second sync writes nothing."""
    name = stage.new_name()
    entry = stage.sync(name)
    came = _proven(stage, name, entry, "created")
    (row,) = stage.admin.rows(name)
    again = stage.sync(name)
    assert again.proof is Proof.PROVEN
    assert stage.writes == []
    told = any("O10" in notice for notice in stage.notices)
    assert told == (stage.version < (0, 16, 4))
    return came if row.get("last_synced") is not None and not told else f"{came}, no models read (O10)"


def stale(stage: Stage) -> str:
    """Another key: changed in place, and the next message carries the new one."""
    name = stage.new_name()
    stage.plant(name)
    return _in_place(stage, name, stage.sync(name))


def moved(stage: Stage) -> str:
    """Another base URL, and an agent that is bound there: both are changed in place, and the key arrives (M6)."""
    name = stage.new_name()
    stage.plant(name, base_url=_ELSEWHERE)
    with stage.agent(name, _ELSEWHERE) as agent:
        came = _in_place(stage, name, stage.sync(name))
        assert stage.carried(agent) == {"the configured key"}
    return f"{came}, with the agent"


def absent_and_moved(stage: Stage) -> str:
    """Nothing, but an agent of former days at another base URL: it is changed before the key is there (M6)."""
    name = stage.new_name()
    with stage.agent(name, _ELSEWHERE) as agent:
        entry = stage.sync(name)
        assert "agents that call the new address now: compat-" in entry.reason
        came = _proven(stage, name, entry, "created")
        assert stage.carried(agent) == {"the configured key"}
    return f"{came}, with the agent"


def another_type(stage: Stage) -> str:
    """Another type: only recreating it helps."""
    name = stage.new_name()
    id = stage.plant(name, key=stage.key, type="cerebras")
    return _recreated_or_named(stage, name, id, stage.sync(name), "Upgrade Letta to 0.16.2")


def sealed_elsewhere(stage: Stage) -> str:
    """Sealed under another master key: PATCH is answered 400, so only recreating it helps (P4, O5)."""
    name = stage.new_name()
    id = stage.plant(name)
    stage.admin.write_key(id, seal(stage.key, OTHER_MASTER_KEY))
    return _recreated_or_named(stage, name, id, stage.sync(name), "under the master key that this was sealed with")


def plaintext(stage: Stage) -> str:
    """The right key, stored before there was a master key: sealed now, in place (P5)."""
    name = stage.new_name()
    id = stage.plant(name)
    stage.admin.write_key(id, stage.key)
    entry = stage.sync(name)
    assert not any(line == f"DELETE /v1/providers/{id}" for line in stage.writes)
    assert stage.admin.key_text(id) != stage.key
    return _proven(stage, name, entry, "sealed in place")


def lost(stage: Stage) -> str:
    """No key at all, as an upgrade leaves it: written in place, and said why (O4)."""
    name = stage.new_name()
    id = stage.plant(name)
    stage.admin.database.execute("UPDATE providers SET api_key_enc = NULL WHERE id = %s", (id,))
    entry = stage.sync(name)
    assert "O4" in entry.reason
    return _in_place(stage, name, entry)


def white_space(stage: Stage) -> str:
    """The right key with white space around it, as releases before 0.16.5 store it: another key, changed (O9)."""
    name = stage.new_name()
    id = stage.plant(name)
    assert stage.letta.master_key is not None
    stage.admin.write_key(id, seal(f" {stage.key}\n", stage.letta.master_key.get_secret_value()))
    return _in_place(stage, name, stage.sync(name))


def empty(stage: Stage) -> str:
    """An empty key: POST and PATCH take it, and it is nothing (P10, O9)."""
    name = stage.new_name()
    stage.plant(name, key="")
    return _in_place(stage, name, stage.sync(name))


def deleted(stage: Stage) -> str:
    """Deleted by hand: it comes back under its id, or its name is blocked, and that is said (O1, O2, O8)."""
    name = stage.new_name()
    id = stage.plant(name)
    stage.admin.delete(id)
    entry = stage.sync(name)
    if stage.recreates:
        (row,) = stage.admin.rows(name)
        assert row["id"] == id
        return _proven(stage, name, entry, "created, same id")
    assert entry.proof is Proof.FAILED
    assert "O1" in entry.reason
    assert entry.remedy is not None
    assert "Upgrade Letta to 0.16.2" in entry.remedy
    return "refused: upgrade"


def crowded(stage: Stage) -> str:
    """More than 50 providers: all are listed, and only this one is written (P1)."""
    name = stage.new_name()
    id = stage.plant(name)
    stage.admin.crowd(id, 60)
    entry = stage.sync(name)
    assert len(stage.writes) == 1
    stage.admin.clear("crowd-*")
    return _in_place(stage, name, entry)


def refused(stage: Stage) -> str:
    """The vendor refuses the configured key: the stored one stays."""
    name = stage.new_name()
    stage.plant(name)
    entry = stage.sync(name, key="ak_practice-refused")
    assert entry.proof is Proof.FAILED
    assert stage.writes == []
    assert stage.opened(name) == FORMER_KEY
    return "refused, nothing written"


def in_order(stage: Stage) -> str:
    """All is well, and the doctor says so: seen from this machine, with completions, and over REST alone.

    What a release cannot do is worth knowing there, but no finding.
    """
    with stage.env() as env:
        notes = _healthy(stage, env)
        assert _healthy(stage, env, "--probe") == notes
        # A Letta on another machine: its process and its database are out of sight, so it is asked for more.
        env.unset("ISABELLA_DATABASE_URL")
        with Proxy(stage.letta.base_url) as proxy:
            env.set(LETTA_BASE_URL=proxy.url)
            assert _healthy(stage, env) == notes
            assert {line.rpartition("/")[2] for line in proxy.writes} <= {"check"}
    assert notes == (set() if stage.recreates else {"release-cannot-recreate"})
    return "no finding" if stage.recreates else "no finding; a note: never delete (O1)"


def one_stale(stage: Stage) -> str:
    """Letta holds another key of one of them: that alone is found, and what is printed heals it."""
    with stage.env() as env:
        env.store("byok-groq", api_key="gsk_practice-former")
        (finding,) = env.doctor()["findings"]
        assert (finding["code"], finding["provider"]) == ("key-stale", "byok-groq")
        assert env.follow(finding, fix=False)
        _healthy(stage, env)
    return "found and healed"


def her_agents(stage: Stage) -> str:
    """Isabella's own agents are made, kept at the next start, switched to another vendor, and answer there."""
    with stage.env() as env:
        return asyncio.run(_her_agents(stage, env))


async def _her_agents(stage: Stage, env: DoctorEnv) -> str:
    async with open_agent_service(load_settings(env.folder / ".env", env.environment)) as agent_service:
        made = await agent_service.ensure()
        assert made
        assert {one.done for one in made} == {EnsureOutcome.CREATED}, [one.reason for one in made]
        kept = await agent_service.ensure()
        assert {one.done for one in kept} == {EnsureOutcome.KEPT}, [(one.reason, one.changes) for one in kept]
        isabella = await agent_service.registry.find("Isabella")
        for handle in ("byok-groq/openai/gpt-oss-120b", "longcat/LongCat-2.0"):
            await agent_service.registry.switch(isabella, handle, agent_service.models)
            vendor = {"byok-groq": "groq"}.get(handle.partition("/")[0], handle.partition("/")[0])
            stage.vendors.forget()
            stage.admin.say(isabella.id)
            arrived = [one for one in stage.vendors.requests(vendor) if one.path.endswith("/chat/completions")]
            assert arrived
            assert all(one.carries(stage.vendors.key(vendor).get_secret_value()) for one in arrived)
        assert (await agent_service.registry.get(isabella.id)).handle == "longcat/LongCat-2.0"
    return "made, kept, switched"


def _healthy(stage: Stage, env: DoctorEnv, *options: str) -> set[str]:
    """Nothing is found or left open, and it was really looked at; what is worth knowing."""
    document = env.doctor(*options)
    assert document["findings"] == [], document["verdict"]
    assert document["unknown"] == []
    assert document["letta"]["version"] == stage.letta.version
    fine = [one["text"] for one in document["fine"]]
    for provider in VENDORS.values():
        assert any(text.startswith(f"{provider}: read back and equal, sealed") for text in fine), fine
    assert f"{len(VENDORS)} of {len(VENDORS)} agents use their providers as they should" in fine
    receipts = [text for text in fine if text.endswith("the vendor accepted it")]
    assert len(receipts) == (len(VENDORS) if "--probe" in options else 0), fine
    return {note["code"] for note in document["notes"]}


def open_stale(stage: Stage) -> str:
    """Letta and Isabella without a master key: changed in place, and read back in plaintext (P2)."""
    name = stage.new_name()
    stage.plant(name)
    return _in_place(stage, name, stage.sync(name))


def open_sealed(stage: Stage) -> str:
    """Sealed, and the master key unset since: written anew in place, before the ciphertext is sent as a key (O6)."""
    name = stage.new_name()
    id = stage.plant(name)
    stage.admin.write_key(id, seal(stage.key, OTHER_MASTER_KEY))
    return _in_place(stage, name, stage.sync(name))


def open_hex(stage: Stage) -> str:
    """A key of 64 hexadecimal digits: up to 0.16.6 it would never be used, so it is refused (O7)."""
    name = stage.new_name()
    stage.vendors.accept("longcat", [_HEX_KEY, stage.key])
    former, stage.key = stage.key, _HEX_KEY
    try:
        entry = stage.sync(name)
        if stage.version >= (0, 16, 7):
            return _proven(stage, name, entry, "created")
        assert entry.proof is Proof.FAILED
        assert stage.writes == []
        assert entry.remedy is not None
        assert "LETTA_ENCRYPTION_KEY" in entry.remedy
        return "refused: set a master key"
    finally:
        stage.key = former


#: What Letta holds -> the case, on a Letta with a master key.
SEALING: dict[str, Case] = {
    "nothing": absent,
    "another key": stale,
    "another base URL, and an agent there": moved,
    "nothing, and an agent at another base URL": absent_and_moved,
    "another type": another_type,
    "a key sealed under another master key": sealed_elsewhere,
    "the right key in plaintext": plaintext,
    "no key any more, after an upgrade": lost,
    "the key with white space around it": white_space,
    "an empty key": empty,
    "a deleted provider of that name": deleted,
    "more than 50 providers": crowded,
    "a key, and the vendor refuses the configured one": refused,
    "four providers in order, an agent on each: the doctor": in_order,
    "the same, but another key of one of them: the doctor": one_stale,
    "four providers in order: Isabella's own agents": her_agents,
}
#: The same on a Letta without one.
OPEN: dict[str, Case] = {
    "another key, no master key": open_stale,
    "a sealed key, the master key unset since": open_sealed,
    "nothing, and the key has 64 hexadecimal digits, no master key": open_hex,
}
