"""The doctor on a real Letta: each fault planted there is named, and what is printed heals it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from isabella.doctor.collect import configuration, letta
from isabella.doctor.log_messages import recognise_in
from isabella.embedded import Letta, Server
from isabella.errors import AgentUnknown, ConfigurationError
from isabella.practice import PracticeVendors
from tests.support.doctor_env import DoctorEnv, open_door
from tests.support.doctor_faults import (
    FAULTS,
    PAIRS,
    Cause,
    Fault,
    bound_to_nothing,
    declare,
    plaintext,
    sealed_otherwise,
)
from tests.support.letta_encryption import OTHER_MASTER_KEY, derived_once


@pytest.fixture(autouse=True, scope="module")
def _derived_once() -> Iterator[None]:
    """Every test decrypts the values of the same four providers several times."""
    with derived_once():
        yield


@pytest.fixture(scope="module")
def server(embedded: Server) -> Server:
    """The session's server, which a test restarts."""
    return embedded


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """The practice vendors of this module."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture(scope="module")
def module_env(empty_letta: Letta, vendors: PracticeVendors, tmp_path_factory: pytest.TempPathFactory) -> DoctorEnv:
    """The env that all tests here share."""
    return DoctorEnv(tmp_path_factory.mktemp("doctor") / "env", empty_letta, vendors)


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is silent here but where a test is about that, and a busy machine must not look like it."""
    if "hanging" in request.node.name or "all_down" in request.node.name:
        return
    monkeypatch.setattr(letta, "REQUEST_TIMEOUT", 60.0)
    monkeypatch.setattr(letta, "TOTAL_TIMEOUT", 90.0)
    monkeypatch.setattr(configuration, "VENDOR_TIMEOUT", 30.0)
    monkeypatch.setattr(configuration, "FURTHER_TIMEOUT", 30.0)


@pytest.fixture
def env(module_env: DoctorEnv) -> DoctorEnv:
    """A healthy env."""
    module_env.reset()
    return module_env


def causes(document: dict[str, Any]) -> set[Cause]:
    """What the verdict names."""
    return {(finding["code"], finding["provider"]) for finding in document["findings"]}


def heal(env: DoctorEnv, one: Fault, document: dict[str, Any], *, fix: bool) -> dict[str, Any]:
    """Do literally what is printed, as often as something is."""
    for _ in range(4):
        for finding in document["findings"]:
            if one.person is not None and (finding["code"], finding["provider"]) in one.causes:
                one.person(env)
            else:
                assert env.follow(finding, fix=fix), f"nothing to do literally: {finding['remedy']}"
        document = env.doctor(*one.options)
        if document["healthy"]:
            break
    return document


def test_a_healthy_system_has_no_finding(env: DoctorEnv) -> None:
    """Four providers in order, an agent on each: nothing is found and nothing left open, with and without a probe."""
    for options in ((), ("--probe",)):
        document = env.doctor(*options)
        assert document["healthy"], document["verdict"]
        assert document["unknown"] == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_its_remedy_heals(env: DoctorEnv, name: str) -> None:
    """Exactly the planted cause is in the verdict, and the remedy, done literally, makes the system healthy."""
    one = FAULTS[name]
    one.plant(env)
    document = env.doctor(*one.options)
    assert causes(document) == one.causes, document["verdict"]
    healed = heal(env, one, document, fix=list(FAULTS).index(name) % 2 == 0)
    assert healed["healthy"], healed["verdict"]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_faults_both_are_named(env: DoctorEnv, first: str, second: str) -> None:
    """Two faults at once are both in the verdict, or it is said what cannot be known for the other's sake."""
    wanted = FAULTS[first].causes | FAULTS[second].causes
    FAULTS[first].plant(env)
    FAULTS[second].plant(env)
    document = env.doctor()
    missing = wanted - causes(document)
    open_for = {provider for _, provider in missing}
    said = {unknown["provider"] for unknown in document["unknown"]}
    assert not missing or open_for <= said, document


def test_letta_without_a_password_is_told(env: DoctorEnv) -> None:
    """Whoever can read the providers without a password is told; whether their keys stand open as well, too."""
    with open_door(env.letta) as address:
        env.set(LETTA_BASE_URL=address)
        env.unset("LETTA_API_KEY")
        assert causes(env.doctor()) == {("letta-open", None)}
        plaintext(env)
        assert causes(env.doctor()) == {("keys-readable", None), ("key-plaintext", "cerebras")}


def test_keys_that_our_master_key_does_not_open_are_told_apart(env: DoctorEnv) -> None:
    """Where Letta's process is out of sight, Letta itself is asked which of the two has the wrong master key."""
    with open_door(env.letta) as address:
        env.set(LETTA_BASE_URL=address)
        sealed_otherwise(env)
        assert ("key-sealed-otherwise", "byok-mistral") in causes(env.doctor())
        env.reset()
        env.set(LETTA_BASE_URL=address, LETTA_ENCRYPTION_KEY=OTHER_MASTER_KEY)
        found = causes(env.doctor())
        assert ("master-key-not-lettas", None) in found
        assert not any(code == "key-sealed-otherwise" for code, _ in found)


def test_letta_restarted_without_its_master_key(env: DoctorEnv, server: Server) -> None:
    """Keys sealed before are told as unusable: by Letta's environment and, out of sight, by what it answers.

    A base key in its environment is told beside that, with where it would go, and whose agent would send it.
    """
    without, base_key = ("letta-without-master-key", None), ("base-keys-in-letta", None)
    with ExitStack() as later:
        later.callback(server.restart_letta, master_key=env.letta.master_key, extra_env={})
        server.restart_letta(encrypt=False, extra_env={"OPENAI_API_KEY": "sk-of-the-house"})
        document = env.doctor()
        assert causes(document) == {without, base_key}
        assert "O6" in document["findings"][0]["facts"]
        env.store("longcat", api_key=env.right["LONGCAT_API_KEY"])
        bound_to_nothing(env)
        document = env.doctor()
        assert causes(document) == {without, base_key, ("agent-provider-gone", None)}
        # The warning, from the log of the server that has just stored a key in plaintext.
        with server.paths.letta_log.open(encoding="utf-8", errors="replace") as log:
            assert "no-encryption-key" in {one.message.id for one in recognise_in(log)}
        gone = next(one for one in document["findings"] if one["code"] == "agent-provider-gone")
        assert any("OPENAI_API_KEY is in Letta's environment" in line for line in gone["evidence"])
        with open_door(env.letta) as address:
            env.set(LETTA_BASE_URL=address)
            assert without in causes(env.doctor())
    env.set(LETTA_BASE_URL=env.right["LETTA_BASE_URL"])
    env.doctor("--fix")
    assert env.doctor()["healthy"]


def test_the_name_of_a_base_provider_stays_taken(env: DoctorEnv) -> None:
    """A name that Letta once gave to a base provider is told, though the key is gone from its environment."""
    env.sql(
        "INSERT INTO providers (id, name, provider_type, provider_category, is_deleted) "
        "VALUES ('provider-00000000-0000-4000-8000-00000000beef', 'openai', 'openai', 'base', false) "
        "ON CONFLICT DO NOTHING"
    )
    declare("openai")(env)
    assert causes(env.doctor()) == {("name-taken-by-base", "openai")}


def test_all_down_is_told(env: DoctorEnv) -> None:
    """With Letta and all vendors silent, every one of them is named, and the examination ends."""
    for vendor in ("cerebras", "groq", "mistral", "longcat"):
        env.vendors.fault(vendor, hang=True)
    env.set(LETTA_BASE_URL=env.right["CEREBRAS_BASE_URL"].removesuffix("/v1"))
    found = causes(env.doctor())
    assert {provider for code, provider in found if code == "vendor-timeout"} == {
        "cerebras",
        "byok-groq",
        "byok-mistral",
        "longcat",
    }


def test_only_what_was_named_is_changed(env: DoctorEnv) -> None:
    """Without --fix nothing in Letta changes; with it, only the agent that was named."""

    def state() -> list[Any]:
        agents = sorted(env.api("GET", "/v1/agents/?limit=100"), key=lambda one: one["name"])
        return [*[(one["name"], one["llm_config"]) for one in agents], *[env.provider("cerebras")]]

    env.native("cerebras/gpt-oss-120b")
    before = state()
    env.doctor()
    assert state() == before
    code, _ = env.run("doctor", "--fix")
    assert code == 0
    after = state()
    changed = [name for (name, old), (_, new) in zip(before[:-1], after[:-1], strict=True) if old != new]
    assert changed == ["native"]
    assert after[-1] == before[-1]


def test_a_name_that_is_not_there(env: DoctorEnv) -> None:
    """An unknown provider, agent or file is no finding: it could not be looked, which is exit code 1."""
    for options in (
        ("--provider", "nobody"),
        ("--agent", "nobody"),
        ("--log", "absent.log"),
        ("--env-file", "absent"),
    ):
        with pytest.raises((ConfigurationError, AgentUnknown)):
            env.run("doctor", *options)


def test_one_agent_alone(env: DoctorEnv) -> None:
    """With --agent only what that agent stands on is judged."""
    env.native("byok-groq/openai/gpt-oss-120b", "g")
    env.store("cerebras", api_key="csk-of-old")
    assert causes(env.doctor("--agent", "g")) == {("agent-ignores-key", "byok-groq")}


def test_the_report_for_people(env: DoctorEnv) -> None:
    """First the verdict with what to type, then the evidence, then what was fine; no colours in a pipe, no key."""
    env.store("byok-groq", api_key="gsk_another-key-of-old")
    code, out = env.run("doctor")
    lines = out.splitlines()
    assert code == 2
    assert lines[0].startswith("1 finding")
    assert "byok-groq: Letta holds a different key from" in lines[1]
    assert "isabella providers sync --only byok-groq" in lines[1]
    assert out.index("Evidence") < out.index("Passed checks")
    assert "\x1b" not in out
    assert "gsk_another-key-of-old" not in out
    assert not any(secret in out for name, secret in env.right.items() if not name.endswith("_BASE_URL"))
