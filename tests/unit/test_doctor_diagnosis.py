"""The doctor's judgement without a server: evidence in, causes out."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import isabella.doctor
from isabella.agents.prompt_budget import PromptBudget
from isabella.config.settings import load_settings
from isabella.config.vendors import usual_vendors
from isabella.doctor.checks import check
from isabella.doctor.collect.configuration import nearby_base_urls, read_configuration
from isabella.doctor.evidence import (
    AgentEvidence,
    ConfigurationEvidence,
    ConfigurationProblem,
    ConflictingVariable,
    Evidence,
    GatewayEvidence,
    LettaEvidence,
    LettaProcess,
    ProviderEvidence,
    VendorEvidence,
)
from isabella.doctor.findings import Diagnosis, Finding, Remedy, Severity, explain, finding_table, root_causes
from isabella.doctor.layers import Layer
from isabella.doctor.log_messages import scrub
from isabella.errors import (
    ConfigurationError,
    IsabellaError,
    LettaBroken,
    LettaUnauthorized,
    LettaUnreachable,
    NotLetta,
    StartFailed,
)
from isabella.gateway.client import GatewayProvider
from isabella.letta.encryption import KeyMatch, KeyReading
from isabella.letta.llm_config import LlmConfig
from isabella.letta.releases import capabilities_of
from isabella.letta.store import StoredProvider
from isabella.providers.desired import Remark, RemarkKind, desired_providers
from isabella.providers.report import GatewayState, GatewayStatus, Receipt
from isabella.system.urls import GATEWAY_PATH, gateway_base_url
from isabella.turns.probe import ProbeResult
from isabella.vendors.client import KeyVerdict as Said
from isabella.vendors.client import Trouble, VendorAnswer
from isabella.vendors.model_lists import ListedModel

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


def test_tools_without_a_sandbox() -> None:
    """It is a note, with the reason; with bubblewrap it is a check that passed. Another Letta is not judged."""
    reason = "bubblewrap is not installed"
    verdict = diagnose(seen(healthy(), tool_sandbox=reason))
    assert verdict.healthy
    (note,) = verdict.notes
    assert (note.code, note.evidence) == ("tools-without-sandbox", (reason,))
    assert reason in note.summary
    with_it = diagnose(seen(healthy(), tool_sandbox="bubblewrap"))
    assert not with_it.notes
    assert any("Tools that Letta runs" in passed.text for passed in with_it.passed)
    assert not diagnose(healthy()).notes


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
    """All vendors but those on demand are in the healthy evidence, so that a new one is judged, too."""
    usual = {vendor.name for vendor in usual_vendors()}
    assert {one.vendor.name for one in healthy().configuration.desired} == usual


# --- every code of the table ----------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"
Change = Callable[[Evidence], Evidence]


def configured(**changes: Any) -> Change:
    """Change the configuration."""
    return lambda evidence: replace(evidence, configuration=replace(evidence.configuration, **changes))


def in_letta(**changes: Any) -> Change:
    """Change what Letta is and has."""
    return lambda evidence: seen(evidence, **changes)


def unreachable(error: IsabellaError, **changes: Any) -> Change:
    """Letta cannot be examined for this reason."""
    return in_letta(rows=None, agents=None, abilities=None, error=error, **changes)


def problem(code: str, subject: str, origin: str | None = None) -> Change:
    """A setting or a file cannot be used."""
    return configured(problems=(ConfigurationProblem(code, subject, "It is wrong.", None, origin),))


def conflict(variable: str, provider: str | None = None) -> Change:
    """A variable has two values."""
    return configured(conflicts=(ConflictingVariable(variable, ".env", 1, provider),))


def groq(**changes: Any) -> Change:
    """Change the configuration of the Groq provider."""

    def change(evidence: Evidence) -> Evidence:
        desired = evidence.configuration.desired
        changed = tuple(replace(one, **changes) if one.name == "byok-groq" else one for one in desired)
        return configured(desired=changed)(evidence)

    return change


def remark(kind: RemarkKind, *, obstacle: bool = False) -> Change:
    """Something is wrong with the key of Groq."""
    noted = Remark(kind, "GROQ_API_KEY", "It is wrong", Path("groq.key"))
    return groq(obstacle=noted, problem="…", key=None) if obstacle else groq(remarks=(noted,))


def answers(answer: VendorAnswer, working_url: str | None = None) -> Change:
    """Groq answers this."""
    return lambda evidence: replace(
        evidence, vendors={**evidence.vendors, "byok-groq": VendorEvidence(answer, working_url)}
    )


def in_row(**changes: Any) -> Change:
    """Change the evidence about the Groq provider in Letta."""
    return lambda evidence: row(evidence, "byok-groq", **changes)


def stored(**changes: Any) -> Change:
    """Change the record of the Groq provider in Letta."""

    def change(evidence: Evidence) -> Evidence:
        (record,) = (one.stored for one in evidence.letta.rows or () if one.stored.name == "byok-groq")
        return row(evidence, "byok-groq", stored=replace(record, **changes))

    return change


def absent(name: str = "byok-groq", **changes: Any) -> Change:
    """The Groq provider is not in Letta."""

    def change(evidence: Evidence) -> Evidence:
        rows = tuple(one for one in evidence.letta.rows or () if one.stored.name != "byok-groq")
        renamed = groq(name=name)(evidence)
        return seen(renamed, rows=rows, **changes)

    return change


def agent(**changes: Any) -> Change:
    """There is one agent, on Cerebras, with these changes of its `llm_config`."""
    bound = replace(llm("gpt-oss-120b", "https://api.cerebras.ai/v1", "cerebras"), **changes)
    return in_letta(agents=(AgentEvidence("x", "x", bound),))


def duplicate(evidence: Evidence) -> Evidence:
    """There is a second provider for Groq."""
    (record,) = (one.stored for one in evidence.letta.rows or () if one.stored.name == "byok-groq")
    second = ProviderEvidence(replace(record, id="provider-2", name="groq-2"))
    return seen(evidence, rows=(*(evidence.letta.rows or ()), second))


def no_key(evidence: Evidence) -> Evidence:
    """Nothing is configured, and Letta is not known."""
    desired = desired_providers(load_settings(environment={}))
    return Evidence(ConfigurationEvidence(desired=desired), {}, LettaEvidence())


ADDRESS = "http://127.0.0.1:8284"


def gateway(state: GatewayState = GatewayState.RUNS, *, here: bool = True, **changes: Any) -> Change:
    """Letta is to reach the vendors through a gateway, which has the configuration but for these changes."""

    def change(evidence: Evidence) -> Evidence:
        known = {
            one.name: GatewayProvider(**({"upstream": one.upstream, "key": one.masked_key} | changes))
            for one in evidence.configuration.desired
        }
        reason = None if state is GatewayState.RUNS else "it was not started"
        status = GatewayStatus(ADDRESS, state, reason)
        readable = here and state is GatewayState.RUNS
        return replace(evidence, gateway=GatewayEvidence(status, here, known if readable else None))

    return change


def behind_gateway(
    state: GatewayState = GatewayState.RUNS,
    *,
    here: bool = True,
    providers: Mapping[str, GatewayProvider] | None = None,
    **changes: Any,
) -> Change:
    """Everything is behind the gateway: the configuration, the providers in Letta, and the agents."""

    def change(evidence: Evidence) -> Evidence:
        moved = {one.name: gateway_base_url(ADDRESS, one.name) for one in evidence.configuration.desired}
        desired = tuple(
            replace(one, base_url=moved[one.name], behind_gateway=one.base_url)
            for one in evidence.configuration.desired
        )
        rows = tuple(
            replace(one, stored=replace(one.stored, base_url=moved[one.stored.name]))
            for one in evidence.letta.rows or ()
        )
        agents = tuple(
            replace(one, llm=replace(one.llm, endpoint=moved[one.llm.provider or ""]))
            for one in evidence.letta.agents or ()
        )
        evidence = gateway(state, here=here, **changes)(seen(configured(desired=desired)(evidence), rows=rows))
        evidence = seen(evidence, agents=agents)
        if providers is not None and evidence.gateway is not None:
            evidence = replace(evidence, gateway=replace(evidence.gateway, providers=providers))
        return evidence

    return change


def past_gateway(*, rows: bool = False, agents: bool = False) -> Change:
    """The gateway is on, and these have the vendors' own base URLs still."""

    def change(evidence: Evidence) -> Evidence:
        moved = behind_gateway()(evidence)
        if rows:
            moved = seen(moved, rows=evidence.letta.rows)
        return seen(moved, agents=evidence.letta.agents) if agents else moved

    return change


def probed(result: ProbeResult) -> Change:
    """A completion through Letta on Groq had this result."""
    return lambda evidence: replace(behind_gateway()(evidence), probes={"byok-groq": result})


def prompt(parts: dict[str, int]) -> Change:
    """The first agent has a prompt of these parts."""

    def change(evidence: Evidence) -> Evidence:
        first, *others = evidence.letta.agents or ()
        budget = PromptBudget(parts, first.llm.window)
        return replace(evidence, letta=replace(evidence.letta, agents=(replace(first, prompt=budget), *others)))

    return change


def stated_window(tokens: int) -> Change:
    """Cerebras states this window for its model."""
    answer = VendorAnswer(Said.ACCEPTED, "1 model", 200, {"gpt-oss-120b": tokens})
    return lambda evidence: replace(evidence, vendors={**evidence.vendors, "cerebras": VendorEvidence(answer)})


PLAINTEXT = KeyReading(KeyMatch.EQUAL, sealed=False)
HIDDEN = KeyReading(KeyMatch.HIDDEN, sealed=True)


def ends_model(**fields: Any) -> Change:
    """Have Cerebras announce the end of the model of its agent."""

    def change(evidence: Evidence) -> Evidence:
        former = evidence.vendors["cerebras"].answer
        (id,) = former.models
        listed = {id: ListedModel(id, end=date(2027, 1, 31), **fields)}
        answer = replace(former, listed=listed)
        return replace(evidence, vendors={**evidence.vendors, "cerebras": VendorEvidence(answer)})

    return change


def test_an_announced_end_names_the_day_and_the_replacement() -> None:
    """It is told while the model still works; an agent on another model is not concerned."""
    (cause,) = diagnose(ends_model(replacement="new")(healthy())).causes
    assert (cause.finding.code, cause.finding.severity) == ("agent-model-ending", "warning")
    assert "2027-01-31" in cause.finding.sentence
    assert cause.finding.remedy.text.endswith("isabella agents switch a-cerebras cerebras/new.")


CASES: dict[str, list[Change]] = {
    "gateway-not-running": [
        behind_gateway(GatewayState.DOWN),
        behind_gateway(GatewayState.DOWN, here=False),
    ],
    "gateway-otherwise-configured": [
        behind_gateway(providers={}),
        behind_gateway(upstream="https://elsewhere.example/v1"),
        behind_gateway(key="csk-…9999"),
        behind_gateway(problem="it is empty"),
    ],
    "receipt-refused-by-gateway": [
        probed(ProbeResult(Receipt.FAILED, "no", gateway_code="provider_not_configured")),
        probed(ProbeResult(Receipt.FAILED, "no", gateway_code="invalid_api_key")),
    ],
    "agent-past-gateway": [past_gateway(agents=True)],
    "agent-at-other-gateway": [agent(endpoint=f"{ADDRESS}{GATEWAY_PATH}cerebras/v1")],
    "env-file-malformed": [problem("env-file-malformed", ".env")],
    "env-file-unreadable": [problem("env-file-unreadable", ".env")],
    "toml-malformed": [problem("toml-malformed", "isabella.toml")],
    "setting-malformed": [
        problem("setting-malformed", "ISABELLA_PORT", ".env, line 1"),
        problem("setting-malformed", "LETTA_BASE_URL", "environment"),
    ],
    "master-key-malformed": [problem("master-key-malformed", "LETTA_ENCRYPTION_KEY", ".env, line 1")],
    "key-contradiction": [conflict("GROQ_API_KEY", "byok-groq")],
    "letta-contradiction": [conflict("LETTA_BASE_URL")],
    "setting-contradiction": [conflict("ISABELLA_PORT")],
    **{
        kind.value: [remark(kind, obstacle=True)]
        for kind in (
            RemarkKind.KEY_EMPTY,
            RemarkKind.KEY_PLACEHOLDER,
            RemarkKind.KEY_MALFORMED,
            RemarkKind.KEY_FILE_UNREADABLE,
            RemarkKind.KEY_COMMAND_FAILED,
            RemarkKind.KEY_KEYRING_FAILED,
            RemarkKind.BASE_URL_MALFORMED,
        )
    },
    **{
        kind.value: [remark(kind)]
        for kind in (
            RemarkKind.KEY_CLEANED,
            RemarkKind.KEY_SET_TWICE,
            RemarkKind.KEY_FILE_READABLE,
            RemarkKind.KEY_COMMAND_STALE,
            RemarkKind.KEY_KEYRING_STALE,
            RemarkKind.KEY_OF_ANOTHER_VENDOR,
        )
    },
    "key-unset": [groq(key=None, key_source="GROQ_API_KEY is not set")],
    "master-key-missing": [
        configured(has_master_key=False),
        lambda evidence: configured(has_master_key=False)(in_row(reading=HIDDEN)(evidence)),
    ],
    "master-key-not-lettas": [
        in_letta(process=replace(PROCESS, same_master_key=False)),
        in_row(reading=KeyReading(KeyMatch.UNREADABLE, sealed=True), opens=True),
        unreachable(StartFailed("Letta runs under another master key.")),
    ],
    "no-key-configured": [no_key, lambda evidence: in_letta(rows=())(no_key(evidence))],
    "key-refused": [answers(VendorAnswer(Said.REFUSED, "no", 401))],
    "vendor-out-of-funds": [answers(VendorAnswer(Said.OUT_OF_FUNDS, "no", 402))],
    "vendor-rate-limited": [answers(VendorAnswer(Said.RATE_LIMITED, "no", 429, retry_after=7))],
    "vendor-dns": [answers(VendorAnswer(Said.UNREACHABLE, "no", trouble=Trouble.DNS))],
    "vendor-tls": [answers(VendorAnswer(Said.UNREACHABLE, "no", trouble=Trouble.TLS))],
    "vendor-timeout": [answers(VendorAnswer(Said.UNREACHABLE, "no", trouble=Trouble.TIMEOUT))],
    "vendor-unreachable": [answers(VendorAnswer(Said.UNREACHABLE, "no", trouble=Trouble.CONNECTION))],
    "base-url-wrong": [
        answers(VendorAnswer(Said.WRONG_ADDRESS, "no", 404)),
        answers(VendorAnswer(Said.WRONG_ADDRESS, "no", 404), "https://api.groq.com/openai/v1"),
    ],
    "vendor-html": [answers(VendorAnswer(Said.FAILING, "no", 502, trouble=Trouble.HTML))],
    "vendor-not-a-model-list": [answers(VendorAnswer(Said.WRONG_ADDRESS, "no", 200))],
    "vendor-failing": [answers(VendorAnswer(Said.FAILING, "no", 503))],
    "letta-password-wrong": [unreachable(LettaUnauthorized("No."), password_sent=True)],
    "letta-password-missing": [unreachable(LettaUnauthorized("No."))],
    "not-letta": [unreachable(NotLetta("No."))],
    "letta-silent": [unreachable(LettaUnreachable("No.", sent=True), base_url=None)],
    "letta-unreachable": [unreachable(LettaUnreachable("No.")), unreachable(StartFailed("No."))],
    "letta-failing": [unreachable(LettaBroken("No."))],
    "letta-not-running": [unreachable(ConfigurationError("No."))],
    "letta-without-master-key": [
        in_letta(process=replace(PROCESS, has_master_key=False), embedded=embedded) for embedded in (False, True)
    ],
    "release-not-measured": [in_letta(abilities=capabilities_of("0.17.0"))],
    "release-cannot-recreate": [in_letta(abilities=capabilities_of("0.16.1"))],
    "provider-type-unknown": [groq(type="grok")],
    "name-taken-by-base": [absent("openai", base=frozenset({"openai"}))],
    "provider-absent": [absent()],
    "provider-deleted": [
        absent(deleted=frozenset({"byok-groq"})),
        absent(deleted=frozenset({"byok-groq"}), abilities=capabilities_of("0.16.1")),
    ],
    "provider-mistyped": [stored(type="openai")],
    "base-url-moved": [stored(base_url="https://old.example/v1")],
    "key-stale": [in_row(reading=KeyReading(KeyMatch.DIFFERENT, sealed=True, key=SecretStr("gsk_old")))],
    "key-empty-in-letta": [in_row(reading=KeyReading(KeyMatch.NOTHING, sealed=True))],
    "key-erased": [
        lambda evidence: stored(key_text=None)(in_row(reading=KeyReading(KeyMatch.NOTHING))(evidence)),
        lambda evidence: in_letta(bare=frozenset({"byok-groq"}))(
            in_row(reading=KeyReading(KeyMatch.NOTHING))(evidence)
        ),
    ],
    "key-sealed-otherwise": [in_row(reading=KeyReading(KeyMatch.UNREADABLE, sealed=True))],
    "key-plaintext": [in_row(reading=PLAINTEXT)],
    "provider-duplicate": [
        duplicate,
        lambda evidence: duplicate(agent(provider="groq-2", category="byok")(evidence)),
    ],
    "agent-ignores-key": [agent(endpoint_type="groq")],
    "agent-proxy-handle": [agent(handle="openai-proxy/gpt-oss-120b")],
    "agent-window-small": [agent(window=8192)],
    "agent-over-window": [prompt({"persona": 60_000, "tool x": 6_000, "conversation": 0})],
    "agent-window-large": [stated_window(8192)],
    "agent-address-old": [agent(endpoint="https://old.example/v1")],
    "agent-provider-gone": [
        agent(provider="gone"),
        agent(provider="gone", endpoint="https://old.example/v1"),
    ],
    "agent-sends-lettas-key": [agent(category="base")],
    "agent-cannot-stream": [agent(agent_type="memgpt_agent"), agent(agent_type="memgpt_agent", category="base")],
    "agent-client-refused": [agent(endpoint_type="openai")],
    "agent-summaries-elsewhere": [agent(compaction="cerebras/gpt-oss-120b")],
    "agent-model-gone": [agent(model="gone", handle="cerebras/gone")],
    "agent-model-ending": [ends_model(replacement="other"), ends_model()],
    "receipt-refused": [lambda e: replace(e, probes={"byok-groq": ProbeResult(Receipt.REFUSED, "it's no")})],
    "receipt-failed": [lambda e: replace(e, probes={"byok-groq": ProbeResult(Receipt.FAILED, "it's no")})],
    "env-file-readable": [configured(env_file=Path(".env"), env_mode=0o644, secrets_in_file=True)],
    "letta-open": [in_letta(open=True, rows=())],
    "keys-readable": [lambda evidence: in_letta(open=True)(stored(key_text="gsk_plain")(evidence))],
    "letta-beyond-loopback": [in_letta(process=replace(PROCESS, listens=("0.0.0.0",)))],
    "letta-over-plain-http": [in_letta(base_url="http://letta.example:8283")],
    "base-keys-in-letta": [
        in_letta(process=replace(PROCESS, base_keys=("OPENAI_API_KEY",))),
        in_letta(process=None, base=frozenset({"letta", "openai"})),
    ],
    "tools-without-sandbox": [in_letta(tool_sandbox="bubblewrap is not installed")],
}


def everything(evidence: Evidence, change: Change) -> tuple[list[str], dict[str, list[str]]]:
    """The codes of all root causes, and by root cause those of its consequences."""
    verdict = diagnose(change(evidence))
    consequences = {
        cause.finding.code: [one.code for one in cause.consequences] for cause in verdict.causes if cause.consequences
    }
    return [cause.finding.code for cause in verdict.causes], consequences


def test_behind_a_gateway_that_runs_all_is_well() -> None:
    """Base URLs of the gateway are the configured ones; what it has is compared, or said not to be known."""
    verdict = diagnose(behind_gateway()(healthy()))
    assert verdict.healthy, verdict.sentences
    assert verdict.unknowns == ()
    assert {passed.text for passed in verdict.passed if passed.layer is Layer.GATEWAY} == {
        f"the gateway answers at {ADDRESS}",
        "the gateway has the configured keys and base URLs",
    }
    away = diagnose(behind_gateway(here=False)(healthy()))
    assert away.healthy
    assert [unknown.layer for unknown in away.unknowns] == [Layer.GATEWAY]
    unknown = diagnose(behind_gateway(GatewayState.UNKNOWN, here=False)(healthy()))
    assert unknown.healthy
    assert [unknown.layer for unknown in unknown.unknowns] == [Layer.GATEWAY]


def test_a_gateway_that_does_not_run_explains_what_follows_from_it() -> None:
    """It is the one cause: a completion that fails, and whatever has not moved to it yet, is a consequence."""
    assert everything(healthy(), behind_gateway(GatewayState.DOWN)) == (["gateway-not-running"], {})

    def probed_while_down(evidence: Evidence) -> Evidence:
        down = behind_gateway(GatewayState.DOWN)(evidence)
        return replace(down, probes={"byok-groq": ProbeResult(Receipt.FAILED, "Connection error.")})

    codes_, consequences = everything(healthy(), probed_while_down)
    assert (codes_, consequences) == (["gateway-not-running"], {"gateway-not-running": ["receipt-failed"]})

    def never_started(evidence: Evidence) -> Evidence:
        return gateway(GatewayState.DOWN)(past_gateway(rows=True, agents=True)(evidence))

    codes_, consequences = everything(healthy(), never_started)
    assert codes_ == ["gateway-not-running"]
    assert set(consequences["gateway-not-running"]) == {"base-url-moved", "agent-past-gateway"}


def test_where_the_gateway_was_switched_on_or_off() -> None:
    """Providers lead, and a sync moves their agents with them; each direction is told in its own words."""
    codes_, consequences = everything(healthy(), past_gateway(rows=True, agents=True))
    assert set(codes_) == {"base-url-moved"}
    assert consequences["base-url-moved"] == ["agent-past-gateway"]
    (cause, *_) = diagnose(past_gateway(rows=True, agents=True)(healthy())).causes
    assert cause.finding.severity is Severity.WARNING
    assert cause.finding.summary == "Letta calls the vendor directly, although the gateway is on."
    assert everything(healthy(), past_gateway(agents=True))[0] == ["agent-past-gateway"] * 4

    def switched_off(evidence: Evidence) -> Evidence:
        moved = behind_gateway()(evidence)
        return replace(moved, configuration=evidence.configuration, gateway=None)

    verdict = diagnose(switched_off(healthy()))
    assert {cause.finding.code for cause in verdict.causes} == {"base-url-moved"}
    assert "although the gateway is off" in verdict.causes[0].finding.summary
    assert [one.code for one in verdict.causes[0].consequences] == ["agent-at-other-gateway"]


def test_a_provider_at_a_gateway_on_another_port() -> None:
    """Another gateway's base URL is said to be that, with what may come of it."""

    def other_port(evidence: Evidence) -> Evidence:
        there = gateway_base_url("http://127.0.0.1:9999", "byok-groq")
        return stored(base_url=there)(behind_gateway()(evidence))

    (cause,) = diagnose(other_port(healthy())).causes
    assert (cause.finding.code, cause.finding.provider) == ("base-url-moved", "byok-groq")
    assert cause.finding.summary == "Letta calls a gateway other than the configured one."
    assert "http://127.0.0.1:9999" in cause.finding.cause


def test_a_duplicate_and_an_agent_past_the_gateway_are_found_by_the_vendor_s_own_base_url() -> None:
    """A second provider that calls the vendor directly is one for the same vendor all the same."""
    (cause,) = diagnose(duplicate_at_vendor(healthy())).causes
    assert (cause.finding.code, cause.finding.provider) == ("provider-duplicate", "byok-groq")


def duplicate_at_vendor(evidence: Evidence) -> Evidence:
    """The four providers are behind the gateway, and a second one for Groq is not."""
    (record,) = (one.stored for one in evidence.letta.rows or () if one.stored.name == "byok-groq")
    moved = behind_gateway()(evidence)
    second = ProviderEvidence(replace(record, id="provider-2", name="groq-2"))
    return seen(moved, rows=(*(moved.letta.rows or ()), second))


def test_every_code_of_the_table_has_a_case() -> None:
    """The table and the cases below have the same codes."""
    assert set(CASES) == set(finding_table())


@pytest.mark.parametrize(
    ("code", "change"), [(code, change) for code, changes in CASES.items() for change in changes]
)
def test_a_finding_has_complete_texts(code: str, change: Change) -> None:
    """Some evidence leads to each code, and no text of the finding lacks a value."""
    findings = [outcome for outcome in check(change(healthy())) if isinstance(outcome, Finding)]
    reported = next(one for one in findings if one.code == code)
    remedy = reported.remedy
    for text in (reported.summary, reported.cause, remedy.text, remedy.command or "", *(remedy.setting or ())):
        assert not re.search(r"\bNone\b|[{}]", text or ""), text
    for text in (reported.summary, remedy.text):
        assert text[-1] in ".'" or text.startswith("Switch each"), text


def test_codes_in_the_source_are_those_of_the_table() -> None:
    """Every code that the source names is in the table, and every code of the table is named in the source."""
    table = finding_table()
    cases = {case for entry in table.values() for case in entry.get("cases", {})}
    names = {kind.value for kind in RemarkKind}
    for path in Path(isabella.doctor.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names |= set(re.findall(r"^[a-z]+(?:-[a-z]+)+$", node.value))
    assert names - {"utf-8"} - cases == set(table)


def test_entries_refer_to_codes_and_facts_that_exist() -> None:
    """`explained_by` and `facts` name existing codes and facts, in special cases, too."""
    known = set(re.findall(r"^\| ([RPOMCAG]\d+) \|", (DOCS / "facts.md").read_text(), re.MULTILINE))
    for entry in finding_table().values():
        for texts in (entry, *entry.get("cases", {}).values()):
            assert set(texts.get("explained_by", ())) <= set(finding_table())
            assert set(texts.get("facts", ())) <= known


def table_of_codes() -> str:
    """The table of codes in docs/doctor.md."""
    rows = ["| Code | Layer | Severity | Summary |", "|---|---|---|---|"]
    for code, entry in finding_table().items():
        summary = re.sub(r"\{(\w+)\}", lambda place: place[1].upper(), entry["summary"])
        rows.append(f"| `{code}` | {Layer(entry['layer']).heading} | {entry['severity']} | {summary} |")
    return "\n".join(rows) + "\n"


def test_the_documentation_has_every_code() -> None:
    """docs/doctor.md lists the codes; `python tests/unit/test_doctor_diagnosis.py` prints the list."""
    assert table_of_codes() in (DOCS / "doctor.md").read_text()


if __name__ == "__main__":
    print(table_of_codes(), end="")
