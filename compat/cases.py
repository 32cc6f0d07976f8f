"""The cases: a state of Letta, and the outcome: proven, or refused with reason and remedy.

A case returns its cell of the table. It fails if a provider is neither proven nor explained, if something was deleted
that cannot be recreated, or if a proven key is not the key that reaches the vendor. The doctor's cases fail if the
doctor finds anything in a healthy system, or anything but the fault in a broken one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from compat.target import FORMER_KEY, Target
from isabella.agents.reconcile import EnsureOutcome
from isabella.agents.service import open_agent_service
from isabella.api import ensure_providers
from isabella.config.settings import load_settings
from isabella.providers.report import Proof, ProviderReport
from isabella.system.urls import is_gateway_url
from tests.support.backend_server import connection_to, gateway
from tests.support.doctor_env import VENDORS, DoctorEnv
from tests.support.fault_proxy import Proxy
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal

Case = Callable[[Target], str]

#: 64 hexadecimal digits (fact O7).
_HEX_KEY = "5eed" * 16
#: Nothing listens there.
_ELSEWHERE = "http://127.0.0.1:9/v1"


def _proven(target: Target, name: str, entry: ProviderReport, how: str) -> str:
    """Check that the provider is proven and an agent's next message carries the key; return `how`."""
    assert entry.proof is Proof.PROVEN, entry.reason
    assert target.opened(name) == target.key, entry.reason
    assert target.bearers(name) == {"the configured key"}
    return how


def _in_place(target: Target, name: str, entry: ProviderReport) -> str:
    assert not target.deleted
    return _proven(target, name, entry, "in place")


def _recreated_or_named(target: Target, name: str, id: str, entry: ProviderReport, remedy: str) -> str:
    """Check that the provider was recreated under its id or, if the release cannot, refused with a remedy."""
    (row,) = target.admin.rows(name)
    assert row["id"] == id
    if target.recreates:
        return _proven(target, name, entry, "recreated")
    assert not target.deleted
    assert entry.proof is Proof.FAILED
    assert entry.remedy is not None
    assert remedy in entry.remedy, entry.remedy
    return "refused: upgrade"


def absent(target: Target) -> str:
    """No provider: it is created, and a second sync writes nothing."""
    name = target.new_name()
    entry = target.sync(name)
    came = _proven(target, name, entry, "created")
    (row,) = target.admin.rows(name)
    again = target.sync(name)
    assert again.proof is Proof.PROVEN
    assert target.writes == []
    told = any("O10" in notice for notice in target.notices)
    assert told == (target.version < (0, 16, 4))
    return came if row.get("last_synced") is not None and not told else f"{came}, no models read (O10)"


def stale(target: Target) -> str:
    """Another key: changed in place, and the next message carries the new one."""
    name = target.new_name()
    target.plant(name)
    return _in_place(target, name, target.sync(name))


def moved(target: Target) -> str:
    """Another base URL, and an agent that is bound there: both are changed in place, and the key arrives (M6)."""
    name = target.new_name()
    target.plant(name, base_url=_ELSEWHERE)
    with target.agent(name, _ELSEWHERE) as agent:
        came = _in_place(target, name, target.sync(name))
        assert target.carried(agent) == {"the configured key"}
    return f"{came}, with the agent"


def behind_gateway(target: Target) -> str:
    """An agent moves behind the gateway: another key in Letta fails no turn; and it moves back."""
    name = target.new_name()
    id = target.plant(name, key=target.key)
    settings = target.settings(name, ISABELLA_GATEWAY="on")
    with target.agent(name, target.base_url) as agent, gateway(settings, connection_to(target.letta, target.home)):
        (entry,) = asyncio.run(ensure_providers(settings, only=[name])).providers
        assert entry.proof is Proof.PROVEN, entry.reason
        assert is_gateway_url(entry.stored_base_url)
        assert target.carried(agent) == {"the configured key"}
        stale = {"api_key": FORMER_KEY, "base_url": entry.stored_base_url}
        target.admin.http.patch(f"/v1/providers/{id}", json=stale).raise_for_status()
        assert target.carried(agent) == {"the configured key"}
        assert target.sync(name).proof is Proof.PROVEN
        assert target.carried(agent) == {"the configured key"}
    return "answered with the configured key"


def absent_and_moved(target: Target) -> str:
    """No provider, but an agent at another base URL: the agent is changed before the key is stored (M6)."""
    name = target.new_name()
    with target.agent(name, _ELSEWHERE) as agent:
        entry = target.sync(name)
        assert "agents moved to the new base URL: compat-" in entry.reason
        came = _proven(target, name, entry, "created")
        assert target.carried(agent) == {"the configured key"}
    return f"{came}, with the agent"


def another_type(target: Target) -> str:
    """Another type: the provider is recreated."""
    name = target.new_name()
    id = target.plant(name, key=target.key, type="cerebras")
    return _recreated_or_named(target, name, id, target.sync(name), "Upgrade Letta to 0.16.2")


def sealed_elsewhere(target: Target) -> str:
    """A key encrypted with another master key: PATCH answers 400, so the provider is recreated (P4, O5)."""
    name = target.new_name()
    id = target.plant(name)
    target.admin.write_key(id, seal(target.key, OTHER_MASTER_KEY))
    return _recreated_or_named(target, name, id, target.sync(name), "under the master key that encrypted this key")


def plaintext(target: Target) -> str:
    """The right key in plaintext, from before there was a master key: encrypted in place (P5)."""
    name = target.new_name()
    id = target.plant(name)
    target.admin.write_key(id, target.key)
    entry = target.sync(name)
    assert not any(line == f"DELETE /v1/providers/{id}" for line in target.writes)
    assert target.admin.key_text(id) != target.key
    return _proven(target, name, entry, "sealed in place")


def lost(target: Target) -> str:
    """No key, as after an upgrade: written in place, with the reason (O4)."""
    name = target.new_name()
    id = target.plant(name)
    target.admin.database.execute("UPDATE providers SET api_key_enc = NULL WHERE id = %s", (id,))
    entry = target.sync(name)
    assert "O4" in entry.reason
    return _in_place(target, name, entry)


def white_space(target: Target) -> str:
    """The right key with white space around it, as releases before 0.16.5 store it: replaced in place (O9)."""
    name = target.new_name()
    id = target.plant(name)
    assert target.letta.master_key is not None
    target.admin.write_key(id, seal(f" {target.key}\n", target.letta.master_key.get_secret_value()))
    return _in_place(target, name, target.sync(name))


def empty(target: Target) -> str:
    """An empty key, which POST and PATCH accept: replaced in place (P10, O9)."""
    name = target.new_name()
    target.plant(name, key="")
    return _in_place(target, name, target.sync(name))


def deleted(target: Target) -> str:
    """A deleted provider: recreated under its id, or refused because its name is blocked (O1, O2, O8)."""
    name = target.new_name()
    id = target.plant(name)
    target.admin.delete(id)
    entry = target.sync(name)
    if target.recreates:
        (row,) = target.admin.rows(name)
        assert row["id"] == id
        return _proven(target, name, entry, "created, same id")
    assert entry.proof is Proof.FAILED
    assert "O1" in entry.reason
    assert entry.remedy is not None
    assert "Upgrade Letta to 0.16.2" in entry.remedy
    return "refused: upgrade"


def crowded(target: Target) -> str:
    """More than 50 providers: all are listed, and only this one is written (P1)."""
    name = target.new_name()
    id = target.plant(name)
    target.admin.crowd(id, 60)
    entry = target.sync(name)
    assert len(target.writes) == 1
    target.admin.clear("crowd-*")
    return _in_place(target, name, entry)


def refused(target: Target) -> str:
    """A configured key that the vendor refuses: the stored key stays."""
    name = target.new_name()
    target.plant(name)
    entry = target.sync(name, key="ak_practice-refused")
    assert entry.proof is Proof.FAILED
    assert target.writes == []
    assert target.opened(name) == FORMER_KEY
    return "refused, nothing written"


def in_order(target: Target) -> str:
    """A healthy system: no finding, neither locally, nor with completions, nor over REST alone.

    A limitation of the release is a note, not a finding.
    """
    with target.doctor_env() as env:
        notes = _healthy(target, env)
        assert _healthy(target, env, "--probe") == notes
        # As if Letta ran on another machine: without its process and database, the doctor needs more of its API.
        env.unset("ISABELLA_DATABASE_URL")
        with Proxy(target.letta.base_url) as proxy:
            env.set(LETTA_BASE_URL=proxy.url)
            assert _healthy(target, env) == notes
            assert {line.rpartition("/")[2] for line in proxy.writes} <= {"check"}
    assert notes == (set() if target.recreates else {"release-cannot-recreate"})
    return "no finding" if target.recreates else "no finding; a note: never delete (O1)"


def one_stale(target: Target) -> str:
    """Another key of one provider: it is the only finding, and the printed remedy repairs it."""
    with target.doctor_env() as env:
        env.store("byok-groq", api_key="gsk_practice-former")
        (finding,) = env.doctor()["findings"]
        assert (finding["code"], finding["provider"]) == ("key-stale", "byok-groq")
        assert env.follow(finding, fix=False)
        _healthy(target, env)
    return "found and healed"


def own_agents(target: Target) -> str:
    """Isabella's agents are created, kept at the next start, switched to other vendors, and answer there."""
    with target.doctor_env() as env:
        return asyncio.run(_own_agents(target, env))


async def _own_agents(target: Target, env: DoctorEnv) -> str:
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
            target.vendors.forget()
            target.admin.say(isabella.id)
            arrived = [one for one in target.vendors.requests(vendor) if one.path.endswith("/chat/completions")]
            assert arrived
            assert all(one.carries(target.vendors.key(vendor).get_secret_value()) for one in arrived)
        assert (await agent_service.registry.get(isabella.id)).handle == "longcat/LongCat-2.0"
    return "made, kept, switched"


def _healthy(target: Target, env: DoctorEnv, *options: str) -> set[str]:
    """Check that the doctor finds nothing and has checked everything; return the codes of its notes."""
    document = env.doctor(*options)
    assert document["findings"] == [], document["verdict"]
    assert document["unknown"] == []
    assert document["letta"]["version"] == target.letta.version
    fine = [one["text"] for one in document["fine"]]
    for provider in VENDORS.values():
        expected = f"{provider}: the stored key is the configured one, encrypted"
        assert any(text.startswith(expected) for text in fine), fine
    assert f"{len(VENDORS)} of {len(VENDORS)} agents are bound correctly" in fine
    receipts = [text for text in fine if text.endswith("the vendor accepted the key")]
    assert len(receipts) == (len(VENDORS) if "--probe" in options else 0), fine
    return {note["code"] for note in document["notes"]}


def open_stale(target: Target) -> str:
    """Letta and Isabella without a master key: replaced in place, and read back in plaintext (P2)."""
    name = target.new_name()
    target.plant(name)
    return _in_place(target, name, target.sync(name))


def open_sealed(target: Target) -> str:
    """An encrypted key, but no master key any more: replaced before the ciphertext is sent as a key (O6)."""
    name = target.new_name()
    id = target.plant(name)
    target.admin.write_key(id, seal(target.key, OTHER_MASTER_KEY))
    return _in_place(target, name, target.sync(name))


def open_hex(target: Target) -> str:
    """A key of 64 hexadecimal digits: releases up to 0.16.6 would never use it, so it is refused (O7)."""
    name = target.new_name()
    target.vendors.accept("longcat", [_HEX_KEY, target.key])
    former, target.key = target.key, _HEX_KEY
    try:
        entry = target.sync(name)
        if target.version >= (0, 16, 7):
            return _proven(target, name, entry, "created")
        assert entry.proof is Proof.FAILED
        assert target.writes == []
        assert entry.remedy is not None
        assert "LETTA_ENCRYPTION_KEY" in entry.remedy
        return "refused: set a master key"
    finally:
        target.key = former


#: The cases on a Letta with a master key, by the state that they start from.
SEALING: dict[str, Case] = {
    "nothing": absent,
    "another key": stale,
    "another base URL, and an agent there": moved,
    "nothing, and an agent at another base URL": absent_and_moved,
    "behind the gateway, and another key in Letta": behind_gateway,
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
    "four providers in order: Isabella's own agents": own_agents,
}
#: The cases on a Letta without a master key.
OPEN: dict[str, Case] = {
    "another key, no master key": open_stale,
    "a sealed key, the master key unset since": open_sealed,
    "nothing, and the key has 64 hexadecimal digits, no master key": open_hex,
}
