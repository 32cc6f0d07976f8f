"""Whatever Letta holds, whatever the strategy: the vendor gets the configured key, or it is refused as documented.

On a real Letta, with a proxy that counts what is sent, and vendors that log what arrives.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.api import compare_providers, ensure_providers, verify_providers
from isabella.config.choices import Strategy
from isabella.config.gateway_address import gateway_address
from isabella.config.settings import Settings, load_settings
from isabella.config.vendors import usual_vendors
from isabella.embedded import Letta
from isabella.letta.encryption import decrypt
from isabella.letta.llm_config import Binding
from isabella.letta.releases import Capabilities
from isabella.practice import PracticeVendors
from isabella.practice.overlay import with_practice_vendors
from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport, Receipt, Report
from isabella.system.urls import gateway_base_url
from tests.support.backend_server import connection_to, gateway
from tests.support.fault_proxy import Kind, Proxy
from tests.support.letta_admin import LettaAdmin, open_admin
from tests.support.letta_encryption import MASTER_KEY, OTHER_MASTER_KEY, seal

STRATEGIES = (Strategy.AUTO, Strategy.RECREATE, Strategy.IN_PLACE)
CATALOG = tuple(vendor.provider for vendor in usual_vendors())
LETTAS_OWN = "the master key that Letta runs under"
KEEP, UPDATE, RECREATE, CREATE, REFUSE = (
    Action.KEEP,
    Action.UPDATE,
    Action.RECREATE,
    Action.CREATE,
    Action.REFUSE,
)
#: What Letta holds -> what it is called, and what is done with strategy auto, recreate, in-place.
MATRIX: dict[str, tuple[ProviderState, tuple[Action, Action, Action]]] = {
    "absent": (ProviderState.ABSENT, (CREATE, CREATE, CREATE)),
    "fresh": (ProviderState.IN_SYNC, (KEEP, RECREATE, KEEP)),
    "stale": (ProviderState.STALE, (UPDATE, RECREATE, UPDATE)),
    "sealed under another master key": (ProviderState.UNREADABLE, (RECREATE, RECREATE, REFUSE)),
    "plaintext although a master key is set": (ProviderState.PLAINTEXT, (UPDATE, RECREATE, UPDATE)),
    "plaintext and stale": (ProviderState.STALE, (UPDATE, RECREATE, UPDATE)),
    "wrong type": (ProviderState.MISTYPED, (RECREATE, RECREATE, REFUSE)),
    "other base URL": (ProviderState.MOVED, (UPDATE, RECREATE, UPDATE)),
    "soft-deleted": (ProviderState.ABSENT, (CREATE, CREATE, CREATE)),
    "more than 50 providers before it": (ProviderState.STALE, (UPDATE, RECREATE, UPDATE)),
    "empty key": (ProviderState.STALE, (UPDATE, RECREATE, UPDATE)),
    "sealed empty key": (ProviderState.STALE, (UPDATE, RECREATE, UPDATE)),
}


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """Vendors for all tests of this file."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture(scope="module")
def letta(letta_server: Letta) -> Iterator[LettaAdmin]:
    """The real Letta, cleared of what this file planted when it is done."""
    with open_admin(letta_server) as opened:
        opened.clear("case-*", "crowd-*", *CATALOG)
        yield opened
        opened.clear("case-*", "crowd-*", *CATALOG)


@pytest.fixture
def proxy(letta_server: Letta) -> Iterator[Proxy]:
    """A proxy that counts what Isabella sends to Letta."""
    with Proxy(letta_server.base_url) as running:
        yield running


def settings_for(
    letta: Letta, proxy: Proxy, home: Path, master_key: str | None = LETTAS_OWN, **variables: str
) -> Settings:
    """Settings that lead through the proxy to this Letta; under its own master key, another, or none."""
    if master_key == LETTAS_OWN:
        master_key = None if letta.master_key is None else letta.master_key.get_secret_value()
    if master_key is not None:
        variables["LETTA_ENCRYPTION_KEY"] = master_key
    return load_settings(
        environment={
            "LETTA_BASE_URL": proxy.url,
            "LETTA_API_KEY": letta.password.get_secret_value(),
            "ISABELLA_HOME": str(home),
            "ISABELLA_CONFIG_FILE": str(home / "isabella.toml"),
            **variables,
        }
    )


def ensure(settings: Settings, name: str, strategy: Strategy = Strategy.AUTO) -> ProviderReport:
    """Bring one provider in line; what is reported of it."""
    (entry,) = asyncio.run(ensure_providers(settings, only=[name], strategy=strategy)).providers
    return entry


@dataclass(frozen=True)
class Case:
    """One provider of its own in Letta, and what is configured for it.

    Attributes:
        name: its name.
        base_url: the vendor's.
        key: the configured key, which the vendor accepts.
        settings: the configuration.
        agent: an agent bound to it; None where it has to be made after the sync.
        id: its record, where there is one.
    """

    name: str
    base_url: str
    key: SecretStr
    settings: Settings
    agent: str | None = None
    id: str | None = None


def plant(
    state: str,
    letta: LettaAdmin,
    vendors: PracticeVendors,
    proxy: Proxy,
    home: Path,
    *,
    master_key: str | None = LETTAS_OWN,
    behind: ExitStack | None = None,
) -> Case:
    """Bring Letta into this state, for a provider of its own at the practice LongCat.

    `behind` holds the gateway open that is between; None for the direct way.
    """
    name, base_url = f"case-{secrets.token_hex(4)}", vendors.base_url("longcat")
    key = vendors.rotate("longcat", keep_old=True)
    (home / "isabella.toml").write_text(
        f'[[providers]]\nname = "{name}"\nbase_url = "{base_url}"\napi_key_env = "CASE_API_KEY"\n'
        'default_model = "LongCat-2.0"\n'
    )
    way = "off" if behind is None else "on"
    settings = settings_for(
        letta.letta, proxy, home, master_key, CASE_API_KEY=key.get_secret_value(), ISABELLA_GATEWAY=way
    )
    if behind is not None:
        behind.enter_context(gateway(settings, connection_to(letta.letta, home)))
        base_url = gateway_base_url(str(gateway_address(settings)), name)
    if state == "absent":
        return Case(name, base_url, key, settings)
    stale = state in ("stale", "more than 50 providers before it")
    id = letta.provider(
        name,
        "cerebras" if state == "wrong type" else "openai",
        vendors.base_url("cerebras") if state == "other base URL" else base_url,
        "ak_practice-stale" if stale else "" if state == "empty key" else key.get_secret_value(),
    )
    agent = letta.agent(Binding(name, "LongCat-2.0", base_url, 32_768))
    match state:
        case "sealed under another master key":
            letta.write_key(id, seal(key.get_secret_value(), OTHER_MASTER_KEY))
        case "plaintext although a master key is set":
            letta.write_key(id, key.get_secret_value())
        case "plaintext and stale":
            letta.write_key(id, "ak_practice-stale")
        case "sealed empty key":
            assert letta.letta.master_key is not None
            letta.write_key(id, seal("", letta.letta.master_key.get_secret_value()))
        case "soft-deleted":
            letta.delete(id)
        case "more than 50 providers before it":
            letta.crowd(id, 120)
            listed = letta.http.get("/v1/providers/").raise_for_status().json()
            assert name not in {row["name"] for row in listed}
    return Case(name, base_url, key, settings, agent, id)


@pytest.fixture(params=["direct", "gateway"])
def behind(request: pytest.FixtureRequest) -> Iterator[ExitStack | None]:
    """Both ways to the vendor: None is the direct one."""
    with ExitStack() as stack:
        yield stack if request.param == "gateway" else None


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("state", MATRIX)
def test_the_vendor_gets_the_configured_key_or_the_refusal_is_the_documented_one(
    state: str,
    strategy: Strategy,
    behind: ExitStack | None,
    letta: LettaAdmin,
    vendors: PracticeVendors,
    proxy: Proxy,
    tmp_path: Path,
) -> None:
    """After a sync the agent's next message carries the configured key; or nothing was changed, with a remedy."""
    stored, actions = MATRIX[state]
    action = actions[STRATEGIES.index(strategy)]
    case = plant(state, letta, vendors, proxy, tmp_path, behind=behind)
    before = letta.rows(case.name)
    start = vendors.requests("longcat")[-1].number if vendors.requests("longcat") else 0

    report = ensure(case.settings, case.name, strategy)

    assert (report.stored, report.action) == (stored, action), report.reason
    deletes = [line for line in proxy.writes if line.startswith("DELETE")]
    if strategy is Strategy.IN_PLACE:
        assert deletes == []
    if strategy is Strategy.AUTO and action is UPDATE and state != "plaintext although a master key is set":
        # A move takes two, with the agents between them (fact M6).
        assert proxy.writes == [f"PATCH /v1/providers/{case.id}"] * (2 if stored is ProviderState.MOVED else 1)
    if action is KEEP:
        assert proxy.lines in (["GET /v1/health/", "GET /v1/providers/"], ["GET /v1/providers/", "GET /v1/health/"])
        assert vendors.requests("longcat", after=start) == []
    if action is REFUSE:
        assert report.proof is Proof.FAILED
        assert report.remedy is not None
        assert "--strategy auto" in report.remedy
        assert letta.rows(case.name) == before
        return

    assert report.proof is Proof.PROVEN, report.reason
    (row,) = letta.rows(case.name)
    assert (row["provider_type"], row["base_url"]) == ("openai", case.base_url)
    assert letta.letta.master_key is not None
    opened = decrypt(row["api_key_enc"], letta.letta.master_key.get_secret_value())
    assert opened == case.key.get_secret_value()
    if case.id is not None:
        assert row["id"] == case.id
    start = vendors.requests("longcat")[-1].number if vendors.requests("longcat") else 0
    agent = case.agent or letta.agent(Binding(case.name, "LongCat-2.0", case.base_url, 32_768))
    answer = letta.say(agent)
    assert answer.status_code == 200, answer.text
    spoken = [seen for seen in vendors.requests("longcat", after=start) if seen.path.endswith("/chat/completions")]
    assert spoken
    assert all(seen.carries(case.key.get_secret_value()) and seen.accepted for seen in spoken)
    if state == "more than 50 providers before it":
        letta.clear("crowd-*")


def test_before_the_sync_a_stale_key_is_refused(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """The bug itself: with a stale key in Letta an agent gets a 401, and after the sync the same agent answers."""
    case = plant("stale", letta, vendors, proxy, tmp_path)
    assert case.agent is not None
    assert letta.say(case.agent).status_code == 401
    assert ensure(case.settings, case.name).proof is Proof.PROVEN
    assert letta.say(case.agent).status_code == 200


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_sync_finds_everything_in_line(
    strategy: Strategy, letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """What one sync has mended is in sync for the next, and status changes nothing."""
    case = plant("stale", letta, vendors, proxy, tmp_path)
    ensure(case.settings, case.name, strategy)
    proxy.clear()
    (status,) = asyncio.run(compare_providers(case.settings, only=[case.name])).providers
    assert (status.stored, status.proof) == (ProviderState.IN_SYNC, Proof.PROVEN)
    assert proxy.writes == []


@pytest.mark.parametrize("state", ["stale", "absent"])
def test_one_of_many_is_found_by_its_name(
    state: str, letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """Where the name is known, nothing is listed, however many there are, and nothing but that one is written."""
    case = plant(state, letta, vendors, proxy, tmp_path)
    proxy.clear()
    assert ensure(case.settings, case.name).proof is Proof.PROVEN
    asked = [seen.query.get("name") for seen in proxy.requests if seen.line == "GET /v1/providers/"]
    # At first, under the lock, and to prove it.
    assert asked == [case.name] * 3
    assert len(proxy.writes) == 1


def test_no_probe_asks_no_vendor(letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path) -> None:
    """Without probing, a new key is written unasked: nothing but Letta's own requests arrive at the vendor."""
    case = plant("stale", letta, vendors, proxy, tmp_path)
    vendors.forget()
    report = asyncio.run(ensure_providers(case.settings, only=[case.name], probe=False))
    assert report.all_proven
    assert vendors.requests("longcat") == []


def test_in_place_sends_no_delete_for_a_refused_key_either(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """Strategy in-place asks the vendor before it creates, because it could not take back what it made."""
    case = plant("absent", letta, vendors, proxy, tmp_path)
    vendors.rotate("longcat")
    report = ensure(case.settings, case.name, Strategy.IN_PLACE)
    assert (report.action, report.proof) == (REFUSE, Proof.FAILED)
    assert proxy.writes == []
    assert letta.rows(case.name) == []


def test_a_provider_of_letta_itself_is_refused(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """Where Letta has a base provider of the name, that is said with its remedy, and nothing is registered (P10)."""
    key = vendors.key("longcat")
    (tmp_path / "isabella.toml").write_text(
        f'[[providers]]\nname = "letta"\nbase_url = "{vendors.base_url("longcat")}"\napi_key_env = "CASE_API_KEY"\n'
    )
    settings = settings_for(letta.letta, proxy, tmp_path, CASE_API_KEY=key.get_secret_value())
    report = ensure(settings, "letta")
    assert (report.action, report.proof) == (REFUSE, Proof.FAILED)
    assert "base provider" in report.reason
    assert report.remedy


# --- the four vendors of a first run --------------------------------------------------------------------------------


def brought_in_line(settings: Settings) -> Report:
    """All providers of the catalog brought in line, and each shown to answer an agent."""
    report = asyncio.run(ensure_providers(settings))
    assert report.all_proven, [(entry.name, entry.reason) for entry in report.configured]
    verified = asyncio.run(verify_providers(settings))
    receipts = {entry.name: (entry.receipt, entry.reason) for entry in verified.configured}
    assert {name: receipt for name, (receipt, _) in receipts.items()} == dict.fromkeys(CATALOG, Receipt.ACCEPTED), (
        receipts
    )
    assert verified.all_proven
    return report


def test_letta_s_own_failure_is_no_word_about_the_key(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """Where Letta itself fails, another agent is asked; a vendor's refusal and a Letta that goes on failing count."""
    case = plant("stale", letta, vendors, proxy, tmp_path)
    ensure(case.settings, case.name)
    said = r"POST /v1/agents/[^/]+/messages"

    def receipt(fault: Kind | None, times: int | None = 1) -> tuple[Receipt | None, str, int]:
        proxy.clear()
        if fault is not None:
            proxy.fault(said, fault, times=times)
        (entry,) = asyncio.run(verify_providers(case.settings, only=[case.name])).providers
        return entry.receipt, entry.reason, sum(bool(re.fullmatch(said, line)) for line in proxy.lines)

    assert receipt(500)[::2] == (Receipt.ACCEPTED, 2)
    assert receipt("drop")[::2] == (Receipt.ACCEPTED, 2)
    given, why, asked = receipt(500, None)
    assert (given, asked) == (Receipt.FAILED, 2)
    assert "a fault with status 500" in why
    vendors.rotate("longcat")
    assert receipt(None)[::2] == (Receipt.REFUSED, 1)
    assert letta.http.get("/v1/agents/", params={"tags": "isabella:receipt"}).raise_for_status().json() == []


def test_all_four_are_proven_and_accepted_with_native_types_and_as_openai(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """Each of the four gives a receipt with either, and a change of type keeps the record's id (M3 to M6)."""
    letta.clear(*CATALOG)
    groq = letta.provider("byok-groq", "groq", vendors.base_url("groq"), "gsk_practice-stale")
    mistral = letta.provider("byok-mistral", "mistral", vendors.base_url("mistral"), "stale")
    letta.write_key(mistral, seal(vendors.key("mistral").get_secret_value(), OTHER_MASTER_KEY))
    longcat = letta.provider(
        "longcat", "openai", vendors.base_url("longcat"), vendors.key("longcat").get_secret_value()
    )
    letta.write_key(longcat, vendors.key("longcat").get_secret_value())
    native = with_practice_vendors(settings_for(letta.letta, proxy, tmp_path), vendors)
    openai = with_practice_vendors(
        settings_for(letta.letta, proxy, tmp_path, ISABELLA_PROVIDER_TYPES="openai"), vendors
    )

    first = {entry.name: entry for entry in brought_in_line(native).configured}
    assert {name: entry.action for name, entry in first.items()} == {
        "cerebras": CREATE,
        "byok-groq": UPDATE,
        "byok-mistral": RECREATE,
        "longcat": UPDATE,
    }
    second = {entry.name: entry for entry in brought_in_line(openai).configured}
    assert {name: entry.stored for name, entry in second.items()} == {
        "cerebras": ProviderState.MISTYPED,
        "byok-groq": ProviderState.MISTYPED,
        "byok-mistral": ProviderState.MISTYPED,
        "longcat": ProviderState.IN_SYNC,
    }
    ids = {name: [row["id"] for row in letta.rows(name)] for name in CATALOG}
    assert {name: len(found) for name, found in ids.items()} == dict.fromkeys(CATALOG, 1)
    assert [ids["byok-groq"], ids["byok-mistral"], ids["longcat"]] == [[groq], [mistral], [longcat]]
    agents = letta.http.get("/v1/agents/", params={"tags": "isabella:receipt"}).raise_for_status().json()
    assert agents == []


def test_a_warm_start_is_one_listing(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """With everything in line: one health check, one GET of providers, no write, and nothing to any vendor."""
    settings = with_practice_vendors(settings_for(letta.letta, proxy, tmp_path), vendors)
    asyncio.run(ensure_providers(settings))
    proxy.clear()
    vendors.forget()
    report = asyncio.run(ensure_providers(settings))
    assert [(entry.action, entry.proof) for entry in report.configured] == [(KEEP, Proof.PROVEN)] * 4
    assert sorted(proxy.lines) == ["GET /v1/health/", "GET /v1/providers/"]
    assert [vendors.requests(vendor.name) for vendor in usual_vendors()] == [[]] * 4


def test_what_nobody_declared_is_left_alone(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """A foreign provider is listed as such and stays as it is, with every strategy."""
    name = f"case-{secrets.token_hex(4)}"
    letta.provider(name, "openai", "http://127.0.0.1:9/v1", "ak_practice-foreign")
    before = letta.rows(name)
    settings = with_practice_vendors(settings_for(letta.letta, proxy, tmp_path), vendors)
    for strategy in STRATEGIES:
        report = asyncio.run(ensure_providers(settings, strategy=strategy))
        (entry,) = [entry for entry in report.providers if entry.name == name]
        assert (entry.stored, entry.action, entry.proof) == (ProviderState.FOREIGN, Action.NONE, Proof.NOT_ASKED)
        assert report.all_proven
    assert letta.rows(name) == before


def test_a_vendor_whose_key_was_removed_stays_in_letta(
    letta: LettaAdmin, vendors: PracticeVendors, proxy: Proxy, tmp_path: Path
) -> None:
    """A vendor without a key is listed as such; its record in Letta is left alone."""
    settings = with_practice_vendors(settings_for(letta.letta, proxy, tmp_path), vendors)
    asyncio.run(ensure_providers(settings))
    before = letta.rows("byok-groq")
    bare = settings_for(letta.letta, proxy, tmp_path)
    report = asyncio.run(ensure_providers(bare, strategy=Strategy.RECREATE))
    assert [entry.action for entry in report.providers if entry.name in CATALOG] == [Action.NONE] * 4
    assert report.configured == []
    assert letta.rows("byok-groq") == before


# --- a Letta that runs under another master key than ours, or under none ------------------------------------------


@pytest.fixture
def unsealed(unsealed_letta: Letta) -> Iterator[LettaAdmin]:
    """A Letta without a master key."""
    with open_admin(unsealed_letta) as opened:
        yield opened


def test_a_letta_without_a_master_key_is_noticed_before_anything_is_opened(
    unsealed: LettaAdmin, vendors: PracticeVendors, tmp_path: Path
) -> None:
    """A right key in plaintext is left as it is where Letta would not seal it anyway; the remedy is Letta's key."""
    # Killed probes have left these; the second name is that of Isabella 0.1.
    probes = "isabella-encryption-probe", "isabella-touchstone"
    for name in probes:
        unsealed.provider(name, "openai", "http://127.0.0.1:9/v1", f"left-{secrets.token_hex(8)}")
    with Proxy(unsealed.letta.base_url) as proxy:
        case = plant("fresh", unsealed, vendors, proxy, tmp_path, master_key=MASTER_KEY)
        before = unsealed.rows(case.name)
        report = ensure(case.settings, case.name)
        assert unsealed.rows(case.name) == before
        changes = [line for line in proxy.writes if case.id is not None and case.id in line]
    assert (report.stored, report.action, report.proof) == (ProviderState.PLAINTEXT, KEEP, Proof.FAILED)
    assert "without a master key" in report.reason
    assert report.remedy is not None
    assert "LETTA_ENCRYPTION_KEY" in report.remedy
    assert changes == []
    assert [unsealed.rows(name) for name in probes] == [[], []]
    assert case.agent is not None
    assert unsealed.say(case.agent).status_code == 200


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_key_that_letta_stores_in_plaintext_is_never_called_proven(
    strategy: Strategy, unsealed: LettaAdmin, vendors: PracticeVendors, tmp_path: Path
) -> None:
    """Where a master key is configured and Letta has none, a new key works, but the report says what is wrong."""
    with Proxy(unsealed.letta.base_url) as proxy:
        case = plant("stale", unsealed, vendors, proxy, tmp_path, master_key=MASTER_KEY)
        report = ensure(case.settings, case.name, strategy)
    assert report.proof is Proof.FAILED
    assert "plaintext" in report.reason
    assert report.remedy is not None
    assert "LETTA_ENCRYPTION_KEY" in report.remedy
    assert case.agent is not None
    assert unsealed.say(case.agent).status_code == 200


@pytest.mark.parametrize("state", ["absent", "fresh", "stale", "soft-deleted"])
def test_without_a_master_key_on_both_sides_plaintext_is_proven(
    state: str, unsealed: LettaAdmin, vendors: PracticeVendors, tmp_path: Path
) -> None:
    """Who wants no sealing gets a proof all the same."""
    with Proxy(unsealed.letta.base_url) as proxy:
        case = plant(state, unsealed, vendors, proxy, tmp_path, master_key=None)
        report = ensure(case.settings, case.name)
    assert report.proof is Proof.PROVEN, report.reason
    (row,) = unsealed.rows(case.name)
    assert row["api_key_enc"] == case.key.get_secret_value()


@pytest.mark.parametrize(
    ("master_key", "stored", "said"),
    [
        (None, ProviderState.HIDDEN, "cannot be read back"),
        (OTHER_MASTER_KEY, ProviderState.UNREADABLE, "another master key"),
    ],
)
def test_what_cannot_be_read_back_is_unproven_and_yet_works(
    master_key: str | None,
    stored: ProviderState,
    said: str,
    letta: LettaAdmin,
    vendors: PracticeVendors,
    proxy: Proxy,
    tmp_path: Path,
) -> None:
    """Without Letta's own master key the new key is written without a gap, but never called proven."""
    case = plant("stale", letta, vendors, proxy, tmp_path, master_key=master_key)
    report = ensure(case.settings, case.name)
    assert (report.stored, report.action, report.proof) == (stored, UPDATE, Proof.UNPROVEN), report.reason
    assert said in report.reason
    assert report.remedy is not None
    assert "LETTA_ENCRYPTION_KEY" in report.remedy
    assert proxy.writes == [f"PATCH /v1/providers/{case.id}"]
    assert case.agent is not None
    assert letta.say(case.agent).status_code == 200


# --- older releases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_release_that_cannot_recreate_gets_no_delete(
    strategy: Strategy,
    letta: LettaAdmin,
    vendors: PracticeVendors,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a deleted name would be lost for ever, nothing is deleted, and the remedy is an upgrade (O1, O5)."""
    case = plant("wrong type", letta, vendors, proxy, tmp_path)
    before = letta.rows(case.name)
    monkeypatch.setattr(
        "isabella.letta.providers.capabilities_of", lambda _: Capabilities("0.16.1", known=True, recreates=False)
    )
    report = ensure(case.settings, case.name, strategy)
    assert (report.action, report.proof) == (REFUSE, Proof.FAILED)
    assert proxy.writes == []
    assert letta.rows(case.name) == before
