"""The doctor's judgement without a server: evidence in, causes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from isabella.config.settings import load_settings
from isabella.config.vendors import known_vendors
from isabella.doctor.checks import check
from isabella.doctor.collect.configuration import nearby_base_urls, read_configuration
from isabella.doctor.diagnosis import Diagnosis, explain, root_causes
from isabella.doctor.evidence import (
    AgentEvidence,
    ConfigurationEvidence,
    Evidence,
    LettaEvidence,
    LettaProcess,
    ProviderEvidence,
    VendorEvidence,
)
from isabella.doctor.findings import Finding, Layer, Remedy, Severity
from isabella.doctor.log_messages import scrub
from isabella.errors import ConfigurationError, LettaUnreachable
from isabella.letta.encryption import KeyMatch, KeyReading
from isabella.letta.llm_config import LlmConfig
from isabella.letta.releases import capabilities_of
from isabella.letta.store import StoredProvider
from isabella.providers.desired import desired_providers
from isabella.vendors.client import KeyVerdict as Said
from isabella.vendors.client import Trouble, VendorAnswer

KEYS = {
    "CEREBRAS_API_KEY": "csk-fake-0001",
    "GROQ_API_KEY": "gsk_fake-0002",
    "MISTRAL_API_KEY": "fake-0003",
    "LONGCAT_API_KEY": "ak_fake-0004",
}
SEALED = KeyReading(KeyMatch.EQUAL, sealed=True, key=SecretStr("x"))
PROCESS = LettaProcess(pid=7, listens=("127.0.0.1",), has_master_key=True, same_master_key=True)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def llm(model: str, address: str, provider: str, client: str = "zai", **changes: Any) -> LlmConfig:
    """What an agent speaks through when it is bound explicitly."""
    bound = LlmConfig(model, client, address, provider, "byok", 65_536, f"{provider}/{model}")
    return replace(bound, **changes)


def healthy(release: str = "0.16.8") -> Evidence:
    """Everything in order: four providers, an agent on each."""
    client = "zai" if release >= "0.16.7" else "openai"
    desired = desired_providers(load_settings(environment=KEYS))
    models = {one.name: one.vendor.default_model or "" for one in desired}
    rows = tuple(
        ProviderEvidence(
            StoredProvider(f"provider-{one.name}", one.name, one.type, one.base_url, "c2VhbGVk", synced=True), SEALED
        )
        for one in desired
    )
    agents = tuple(
        AgentEvidence(
            f"agent-{one.name}",
            f"a-{one.name}",
            llm(models[one.name], one.base_url, one.name, client),
        )
        for one in desired
    )
    return Evidence(
        ConfigurationEvidence(desired=desired, has_master_key=True, sets_master_key=True),
        {
            name: VendorEvidence(VendorAnswer(Said.ACCEPTED, "1 model", 200, {model: None}))
            for name, model in models.items()
        },
        LettaEvidence(
            base_url="http://127.0.0.1:8283",
            abilities=capabilities_of(release),
            rows=rows,
            agents=agents,
            deleted=frozenset(),
            open=False,
            process=PROCESS,
        ),
    )


def seen(evidence: Evidence, **changes: Any) -> Evidence:
    """The same, with something else seen of Letta."""
    return replace(evidence, letta=replace(evidence.letta, **changes))


def row(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    """The same, with another row of this name."""
    rows = evidence.letta.rows or ()
    return seen(evidence, rows=tuple(replace(one, **changes) if one.stored.name == name else one for one in rows))


def diagnose(evidence: Evidence) -> Diagnosis:
    """Check the evidence and explain the findings."""
    return explain(evidence, check(evidence))


def codes(verdict: Diagnosis) -> set[tuple[str, str | None]]:
    """Code and provider of each cause."""
    return {(cause.finding.code, cause.finding.provider) for cause in verdict.causes}


@pytest.mark.parametrize("release", ["0.16.0", "0.16.1", "0.16.2", "0.16.4", "0.16.5", "0.16.6", "0.16.7", "0.16.8"])
def test_health_is_health_on_every_release(release: str) -> None:
    """A system in order has no finding on any 0.16.x; what a release cannot do is a note."""
    verdict = diagnose(healthy(release))
    assert verdict.healthy, verdict.sentences
    assert verdict.unknowns == ()
    assert {note.code for note in verdict.notes} == ({"release-cannot-recreate"} if release < "0.16.2" else set())


def test_a_release_that_was_not_measured() -> None:
    """What was not measured is said to be so."""
    assert ("release-not-measured", None) in codes(diagnose(healthy("0.17.0")))


def test_listening_beyond_loopback() -> None:
    """A Letta that other machines reach is told, by its socket or by its address."""
    assert codes(diagnose(seen(healthy(), process=replace(PROCESS, listens=("0.0.0.0",))))) == {
        ("letta-beyond-loopback", None)
    }
    away = seen(healthy(), base_url="http://letta.example:8283", process=None)
    assert codes(diagnose(away)) == {("letta-over-plain-http", None)}
    assert diagnose(seen(away, base_url="https://letta.example")).healthy


def test_base_keys() -> None:
    """Keys in Letta's environment are told; where it cannot be seen, by the base providers that Letta lists."""
    keys = seen(healthy(), process=replace(PROCESS, base_keys=("OPENAI_API_KEY",)))
    assert codes(diagnose(keys)) == {("base-keys-in-letta", None)}
    listed = seen(healthy(), process=None, base=frozenset({"letta", "openai"}))
    assert codes(diagnose(listed)) == {("base-keys-in-letta", None)}
    # Letta keeps a base provider whose key is gone: the environment knows better.
    assert diagnose(seen(listed, process=PROCESS)).healthy


def test_a_deleted_provider_on_a_release_that_cannot_bring_it_back() -> None:
    """On 0.16.1 the remedy is an upgrade, never a sync; from 0.16.2 on it is the sync."""
    for release, command in (("0.16.1", None), ("0.16.2", "isabella providers sync --only longcat")):
        evidence = healthy(release)
        rows = tuple(one for one in evidence.letta.rows or () if one.stored.name != "longcat")
        (cause,) = diagnose(seen(evidence, rows=rows, deleted=frozenset({"longcat"}))).causes
        assert (cause.finding.code, cause.finding.remedy.command) == ("provider-deleted", command)


def test_a_key_sealed_otherwise_on_a_release_that_cannot_recreate() -> None:
    """On 0.16.0 nothing over REST heals it, and the remedy says so."""
    evidence = row(healthy("0.16.0"), "longcat", reading=KeyReading(KeyMatch.UNREADABLE, sealed=True))
    (cause,) = diagnose(evidence).causes
    assert cause.finding.code == "key-sealed-otherwise"
    assert cause.finding.remedy.command is None
    assert "upgrade" in cause.finding.remedy.text


def test_what_cannot_be_known_is_said() -> None:
    """With Letta out of reach it is one cause, and what it hides is listed; the vendors are judged all the same."""
    evidence = seen(healthy(), rows=None, agents=None, abilities=None, error=LettaUnreachable("No Letta answers."))
    refused = {**evidence.vendors, "byok-groq": VendorEvidence(VendorAnswer(Said.REFUSED, "Invalid API Key", 401))}
    verdict = diagnose(replace(evidence, vendors=refused))
    assert codes(verdict) == {("letta-unreachable", None), ("key-refused", "byok-groq")}
    assert {unknown.layer for unknown in verdict.unknowns} == {Layer.STORED, Layer.USE, Layer.EXPOSURE}


@pytest.mark.parametrize("trouble", Trouble)
def test_a_vendor_that_does_not_answer_says_nothing_of_the_key(trouble: Trouble) -> None:
    """Whatever stands in between, the key is not called wrong, and that it stays unknown is said."""
    evidence = healthy()
    answer = VendorAnswer(Said.UNREACHABLE if trouble is not Trouble.HTML else Said.FAILING, "…", trouble=trouble)
    verdict = diagnose(replace(evidence, vendors={**evidence.vendors, "longcat": VendorEvidence(answer)}))
    assert [name for _, name in codes(verdict)] == ["longcat"]
    assert not any(code.startswith("key-") for code, _ in codes(verdict))
    assert [unknown.provider for unknown in verdict.unknowns] == ["longcat"]


def test_a_refused_key_and_an_old_one_in_letta() -> None:
    """Where the vendor takes Letta's key, only ours is at fault; where it refuses both, both are told."""
    different = KeyReading(KeyMatch.DIFFERENT, sealed=True, key=SecretStr("gsk_of-old"))
    refusal, yes = VendorAnswer(Said.REFUSED, "no", 401), VendorAnswer(Said.ACCEPTED, "3 models", 200)
    for stored_answer, wanted in ((yes, {"key-refused"}), (refusal, {"key-refused", "key-stale"})):
        evidence = row(healthy(), "byok-groq", reading=different)
        asked: Mapping[str, VendorEvidence] = {
            **evidence.vendors,
            "byok-groq": VendorEvidence(refusal, stored_answer=stored_answer),
        }
        assert codes(diagnose(replace(evidence, vendors=asked))) == {(code, "byok-groq") for code in wanted}


def test_many_agents_with_one_fault_are_one_finding() -> None:
    """A thousand agents with the same fault are told together, and the report stays short."""
    evidence = healthy()
    small = llm("gpt-oss-120b", "https://api.cerebras.ai/v1", "cerebras", window=8192)
    many = tuple(AgentEvidence(f"agent-{n}", f"n{n}", small) for n in range(1000))
    verdict = diagnose(seen(evidence, agents=many))
    (cause,) = verdict.causes
    assert cause.finding.code == "agent-window-small"
    assert len(cause.finding.agent_ids) == 1000
    assert len(cause.finding.evidence) <= 11
    assert "and 997 more" in cause.finding.summary


def test_agents_of_base_providers_are_nobody_s_business() -> None:
    """An agent on Letta's own free model, or on a vendor that is not ours, is no finding."""
    free = llm("letta-free", "https://inference.letta.com/v1/", "letta", "openai", category="base", window=30_000)
    claude = llm("claude", "https://api.anthropic.com/v1", "anthropic", "anthropic", category="base")
    assert diagnose(seen(healthy(), agents=(AgentEvidence("x", "x", free), AgentEvidence("y", "y", claude)))).healthy


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"endpoint_type": "openai"}, "agent-client-refused"),
        ({"agent_type": "memgpt_agent"}, "agent-cannot-stream"),
        ({"compaction": "cerebras/gpt-oss-120b"}, "agent-summaries-elsewhere"),
        ({"model": "of-last-year", "handle": "cerebras/of-last-year"}, "agent-model-gone"),
    ],
)
def test_what_agents_repair_would_mend_is_found(change: dict[str, Any], code: str) -> None:
    """The doctor and `isabella agents repair` do not contradict each other."""
    bound = llm("gpt-oss-120b", "https://api.cerebras.ai/v1", "cerebras")
    one = AgentEvidence("x", "x", replace(bound, **change))
    assert codes(diagnose(seen(healthy(), agents=(one,)))) == {(code, "cerebras")}


def test_an_agent_of_a_base_provider_that_cannot_stream_is_found() -> None:
    """It answers no streamed turn either; what helps is another model."""
    glm = llm("glm-4.7", "https://api.z.ai/api/paas/v4", "zai", "zai", category="base")
    one = AgentEvidence("x", "x", replace(glm, agent_type="memgpt_agent"))
    (cause,) = diagnose(seen(healthy(), agents=(one,))).causes
    assert cause.finding.code == "agent-cannot-stream"
    assert "isabella agents switch" in cause.finding.remedy.text


def finding(code: str, provider: str | None = None, *, by: frozenset[str] = frozenset()) -> Finding:
    """A finding of which only code, provider and explanation matter."""
    return Finding(code, Layer.STORED, Severity.ERROR, "…", "…", Remedy("…"), provider, explained_by=by)


def test_causes_and_consequences() -> None:
    """A finding is explained by another about the same provider, or about all; chains end at their cause."""
    first, second = finding("a", "p"), finding("b", "p", by=frozenset({"a"}))
    third, other = finding("c", "p", by=frozenset({"b"})), finding("b", "q", by=frozenset({"a"}))
    found = root_causes([third, second, first, other])
    assert [(cause.finding, len(cause.consequences)) for cause in found] == [(first, 2), (other, 0)]
    everywhere = finding("a")
    assert [cause.finding for cause in root_causes([everywhere, second, other])] == [everywhere]


def test_two_findings_never_explain_each_other_away() -> None:
    """Whatever the table says, something is always left in the verdict."""
    one, two = finding("a", by=frozenset({"b"})), finding("b", by=frozenset({"a"}))
    assert len(root_causes([one, two])) == 2


@pytest.mark.parametrize(
    ("configured", "own", "meant"),
    [
        (
            "https://api.longcat.chat/openai",
            "https://api.longcat.chat/openai/v1",
            "https://api.longcat.chat/openai/v1",
        ),
        ("https://api.longcat.chat/v1", "https://api.longcat.chat/openai/v1", "https://api.longcat.chat/openai/v1"),
        ("https://api.cerebras.ai", "https://api.cerebras.ai/v1", "https://api.cerebras.ai/v1"),
        ("https://api.cerebras.ai/v1/v1", "https://api.cerebras.ai/v1", "https://api.cerebras.ai/v1"),
        ("https://api.mistral.ai/v1/models", "https://api.mistral.ai/v1", "https://api.mistral.ai/v1"),
        ("http://proxy:8080/groq/v1", "https://api.groq.com/openai/v1", "http://proxy:8080/groq/openai/v1"),
    ],
)
def test_the_address_that_was_meant_is_among_those_beside(configured: str, own: str, meant: str) -> None:
    """A missing or doubled /v1, or an endpoint for a base URL, leads to the right address, on the same host."""
    beside = nearby_base_urls(configured, own)
    assert meant in beside
    assert configured not in beside
    host = configured.split("/")[2]
    assert all(address.split("/")[2] == host for address in beside)
    assert len(beside) <= 6


def test_everything_that_is_wrong_with_the_settings_is_told_at_once(tmp_path: Path) -> None:
    """Settings that cannot be used do not hide each other, nor what can be used."""
    environment = {**KEYS, "ISABELLA_PORT": "x", "LETTA_ENCRYPTION_KEY": "y", "LETTA_BASE_URL": "z"}
    configured, settings = read_configuration(environment=environment)
    assert {(problem.code, problem.subject) for problem in configured.problems} == {
        ("setting-malformed", "ISABELLA_PORT"),
        ("master-key-malformed", "LETTA_ENCRYPTION_KEY"),
        ("setting-malformed", "LETTA_BASE_URL"),
    }
    assert settings.port == 8000
    assert all(one.key is not None for one in configured.desired)
    with pytest.raises(ConfigurationError):
        read_configuration(tmp_path / "absent.env")


def test_a_file_that_cannot_be_read_leaves_the_rest_unknown(tmp_path: Path) -> None:
    """With a malformed .env it is not guessed which keys are configured: it is said to be unknown."""
    evidence = healthy()
    (tmp_path / ".env").write_text('A="unclosed\n')
    (tmp_path / ".env").chmod(0o600)
    configured, _ = read_configuration(environment={})
    verdict = diagnose(replace(evidence, configuration=configured, letta=LettaEvidence(), vendors={}))
    assert codes(verdict) == {("env-file-malformed", None)}
    assert verdict.unknowns


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("the key csk-abcdef0123456789 was refused", "abcdef0123"),
        ("Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("postgresql://letta:s3cret-word@127.0.0.1:5432/letta", "s3cret-word"),
        ("sealed: " + "QUJD1" * 12 + "==", "QUJD1QUJD1"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, secret: str) -> None:
    """Keys by prefix or length, bearers and passwords in addresses are masked, though nobody told of them."""
    assert secret not in scrub(text)


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths, ids, commands and addresses stay readable; the home folder becomes a tilde."""
    monkeypatch.setenv("HOME", "/home/anna")
    text = "Run `isabella providers sync --only byok-groq --env-file /home/anna/x/.env` (provider-1bbb5ef5-0713-41c6)"
    assert scrub(text) == text.replace("/home/anna", "~")
    assert (
        scrub("/home/annabel/.env at https://api.groq.com/openai/v1")
        == "/home/annabel/.env at https://api.groq.com/openai/v1"
    )


def test_the_document_is_scrubbed() -> None:
    """A key that slipped into a finding's evidence does not reach the JSON form."""
    leaked = replace(finding("a"), evidence=("seen: gsk_abcdefghijklmnop",))
    document = Diagnosis(None, None, causes=root_causes([leaked])).as_json()
    assert "abcdefghijklmnop" not in str(document)


def test_every_vendor_of_the_catalog_is_judged() -> None:
    """The catalog's vendors are all in the healthy evidence, so that a new one is judged, too."""
    assert {one.vendor.name for one in healthy().configuration.desired} == {vendor.name for vendor in known_vendors()}
