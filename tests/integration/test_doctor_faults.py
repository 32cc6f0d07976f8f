"""The doctor on a real Letta: each fault planted there is named, and what is printed heals it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from sealed import OTHER_MASTER_KEY, seal
from ward import Ward, open_door

from isabella.agents.binding import Binding
from isabella.doctor.symptoms import recognise_in
from isabella.embedded import Server
from isabella.errors import AgentUnknown, ConfigurationError
from isabella.practice import PracticeVendors

Cause = tuple[str, str | None]
Plant = Callable[[Ward], object]

CLOSED = "http://127.0.0.1:9"
DECLARED = '[[providers]]\nname = "{}"\nbase_url = "{}"\napi_key_env = "MISTRAL_API_KEY"\n'


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and what the doctor has to name.

    Attributes:
        plant: plants it in a healthy ward.
        causes: code and provider of exactly what the verdict names.
        person: does what only a person can, where the remedy says so in words.
        options: options of the doctor.
    """

    plant: Plant
    causes: frozenset[Cause]
    person: Plant | None = None
    options: tuple[str, ...] = field(default=())


def fault(
    plant: Plant,
    code: str,
    provider: str | None = None,
    *,
    person: Plant | None = None,
    options: tuple[str, ...] = (),
) -> Fault:
    """A fault with one cause."""
    return Fault(plant, frozenset({(code, provider)}), person, options)


def calm(ward: Ward) -> None:
    """What a vendor does wrong is over."""
    ward.vendors.clear()


def revoke(vendor: str) -> Plant:
    """The vendor takes another key from now on; the right one is the new one."""

    def plant(ward: Ward) -> None:
        key = ward.vendors.rotate(vendor)
        ward.right[f"{vendor.upper()}_API_KEY"] = key.get_secret_value()

    return plant


def in_shell(name: str, form: str) -> Plant:
    """A key of the shell alone, with something around it."""

    def plant(ward: Ward) -> None:
        ward.unset(name)
        ward.environment[name] = form.format(ward.right[name])

    return plant


def key_file(mode: int | None, *, beside: bool = False) -> Plant:
    """The key in a file of its own; without a mode, in one that is not there."""

    def plant(ward: Ward) -> None:
        path = ward.folder / "groq.key"
        if mode is not None:
            path.write_text(ward.right["GROQ_API_KEY"] + "\n")
            path.chmod(mode)
        if not beside:
            ward.unset("GROQ_API_KEY")
        ward.set(GROQ_API_KEY_FILE=str(path))

    return plant


def declare(name: str) -> Plant:
    """Declare a further vendor: Mistral once more, at an address of its own."""

    def plant(ward: Ward) -> None:
        base_url = ward.right["MISTRAL_BASE_URL"].replace("127.0.0.1", "localhost")
        (ward.folder / "isabella.toml").write_text(DECLARED.format(name, base_url))

    return plant


def sealed_otherwise(ward: Ward) -> None:
    """The stored key was sealed under another master key."""
    text = seal(ward.right["MISTRAL_API_KEY"], OTHER_MASTER_KEY)
    ward.sql("UPDATE providers SET api_key_enc = %s WHERE name = 'byok-mistral'", text)


def plaintext(ward: Ward) -> None:
    """The stored key stands there as it is."""
    ward.sql("UPDATE providers SET api_key_enc = %s WHERE name = 'cerebras'", ward.right["CEREBRAS_API_KEY"])


def mistyped(ward: Ward) -> None:
    """Somebody followed the advice to make every provider type openai."""
    ward.delete("byok-mistral")
    body = {"name": "byok-mistral", "provider_type": "openai", "base_url": ward.right["MISTRAL_BASE_URL"]}
    ward.api("POST", "/v1/providers/", body | {"api_key": ward.right["MISTRAL_API_KEY"]})


def duplicate(ward: Ward) -> None:
    """A second provider for Groq, which nobody declared."""
    body = {"name": "groq-of-old", "provider_type": "groq", "base_url": ward.right["GROQ_BASE_URL"]}
    ward.api("POST", "/v1/providers/", body | {"api_key": "gsk_of-old"})


def duplicate_in_use(ward: Ward) -> None:
    """The same, with an agent on it."""
    duplicate(ward)
    ward.rebind("byok-groq", provider_name="groq-of-old")


def bound_to_nothing(ward: Ward) -> None:
    """An agent on a provider that is not there, at an address that is."""
    ward.rebind("longcat", provider_name="longcat-of-old")


def bound_to_nowhere(ward: Ward) -> None:
    """An agent on a provider and an address that nobody knows."""
    ward.agent("orphan", Binding("gone", "some-model", "http://127.0.0.1:9/v1", 32_768))


def remove_orphan(ward: Ward) -> None:
    """Nobody needs it."""
    (orphan,) = ward.api("GET", "/v1/agents/?name=orphan")
    ward.api("DELETE", f"/v1/agents/{orphan['id']}")


FAULTS: dict[str, Fault] = {
    # 1: configuration
    "key unset": fault(lambda w: w.unset("GROQ_API_KEY"), "key-unset", "byok-groq"),
    "key empty": fault(lambda w: w.set(GROQ_API_KEY=""), "key-empty", "byok-groq"),
    "key placeholder": fault(lambda w: w.set(CEREBRAS_API_KEY="your-key-here"), "key-placeholder", "cerebras"),
    "key with a space inside": fault(lambda w: w.set(GROQ_API_KEY='"gsk_ab cd"'), "key-malformed", "byok-groq"),
    "key with an accent": fault(lambda w: w.set(MISTRAL_API_KEY="clé-0815"), "key-malformed", "byok-mistral"),
    "key in quotes": fault(in_shell("GROQ_API_KEY", "'{}'"), "key-cleaned", "byok-groq"),
    "key with a newline": fault(in_shell("LONGCAT_API_KEY", "{}\n"), "key-cleaned", "longcat"),
    "key after Bearer": fault(in_shell("MISTRAL_API_KEY", "Bearer {}"), "key-cleaned", "byok-mistral"),
    "another vendor's key": fault(
        lambda w: w.set(GROQ_API_KEY=w.right["CEREBRAS_API_KEY"]), "key-of-another-vendor", "byok-groq"
    ),
    "old key in the shell": fault(
        lambda w: w.environment.update(GROQ_API_KEY="gsk_of-last-year"), "key-contradiction", "byok-groq"
    ),
    "old base URL in the shell": fault(
        lambda w: w.environment.update(CEREBRAS_BASE_URL=f"{CLOSED}/v1"), "key-contradiction", "cerebras"
    ),
    "old Letta in the shell": fault(lambda w: w.environment.update(LETTA_BASE_URL=CLOSED), "letta-contradiction"),
    "key file absent": fault(key_file(None), "key-file-unreadable", "byok-groq", person=key_file(0o600)),
    "key file for everybody": fault(key_file(0o644), "key-file-readable", "byok-groq"),
    "key set twice": fault(key_file(0o600, beside=True), "key-set-twice", "byok-groq"),
    "master key missing": fault(lambda w: w.unset("LETTA_ENCRYPTION_KEY"), "master-key-missing"),
    "master key malformed": fault(lambda w: w.set(LETTA_ENCRYPTION_KEY="0815"), "master-key-malformed"),
    "master key not Letta's": fault(lambda w: w.set(LETTA_ENCRYPTION_KEY=OTHER_MASTER_KEY), "master-key-not-lettas"),
    ".env malformed": fault(
        lambda w: (w.folder / ".env").write_text('GROQ_API_KEY="unclosed\n'), "env-file-malformed", person=Ward.write
    ),
    "isabella.toml malformed": fault(
        lambda w: (w.folder / "isabella.toml").write_text("providers = 1\n"),
        "toml-malformed",
        person=lambda w: (w.folder / "isabella.toml").unlink(),
    ),
    "setting malformed": fault(lambda w: w.set(ISABELLA_PORT="eighty"), "setting-malformed"),
    "Letta's address malformed": fault(lambda w: w.set(LETTA_BASE_URL="letta"), "setting-malformed"),
    "base URL malformed": fault(lambda w: w.set(GROQ_BASE_URL="groq"), "base-url-malformed", "byok-groq"),
    "provider type unknown": fault(
        lambda w: w.set(CEREBRAS_PROVIDER_TYPE="cerebra"), "provider-type-unknown", "cerebras"
    ),
    ".env for everybody": fault(lambda w: (w.folder / ".env").chmod(0o644), "env-file-readable"),
    # 2: the vendor itself
    "Cerebras refuses the key": fault(revoke("cerebras"), "key-refused", "cerebras"),
    "Groq refuses the key": fault(revoke("groq"), "key-refused", "byok-groq"),
    "Mistral refuses the key": fault(revoke("mistral"), "key-refused", "byok-mistral"),
    "LongCat refuses the key": fault(revoke("longcat"), "key-refused", "longcat"),
    "out of funds (402)": fault(
        lambda w: w.vendors.fault("cerebras", status=402), "vendor-out-of-funds", "cerebras", person=calm
    ),
    "out of funds (403)": fault(
        lambda w: w.vendors.fault("longcat", status=403), "vendor-out-of-funds", "longcat", person=calm
    ),
    "asked too often": fault(
        lambda w: w.vendors.fault("groq", status=429, retry_after=7), "vendor-rate-limited", "byok-groq", person=calm
    ),
    "vendor failing": fault(
        lambda w: w.vendors.fault("mistral", status=503), "vendor-failing", "byok-mistral", person=calm
    ),
    "connection reset": fault(
        lambda w: w.vendors.fault("mistral", reset=True), "vendor-unreachable", "byok-mistral", person=calm
    ),
    "vendor hanging": fault(
        lambda w: w.vendors.fault("longcat", hang=True), "vendor-timeout", "longcat", person=calm
    ),
    "a proxy's page (502)": fault(
        lambda w: w.vendors.fault("groq", html=502), "vendor-html", "byok-groq", person=calm
    ),
    "a portal's page (200)": fault(
        lambda w: w.vendors.fault("groq", html=200), "vendor-html", "byok-groq", person=calm
    ),
    "no list of models": fault(
        lambda w: w.vendors.fault("cerebras", malformed=True), "vendor-not-a-model-list", "cerebras", person=calm
    ),
    "/v1 missing": fault(
        lambda w: w.set(CEREBRAS_BASE_URL=w.right["CEREBRAS_BASE_URL"].removesuffix("/v1")),
        "base-url-wrong",
        "cerebras",
    ),
    "/v1 doubled": fault(
        lambda w: w.set(MISTRAL_BASE_URL=w.right["MISTRAL_BASE_URL"] + "/v1"), "base-url-wrong", "byok-mistral"
    ),
    "LongCat's other form": fault(
        lambda w: w.set(LONGCAT_BASE_URL=w.right["LONGCAT_BASE_URL"].removesuffix("/v1")), "base-url-wrong", "longcat"
    ),
    "base URL with the endpoint": fault(
        lambda w: w.set(GROQ_BASE_URL=w.right["GROQ_BASE_URL"] + "/chat/completions"), "base-url-wrong", "byok-groq"
    ),
    "host unknown": fault(
        lambda w: w.set(GROQ_BASE_URL="http://api.groq.invalid/openai/v1"), "vendor-dns", "byok-groq"
    ),
    "https to an http port": fault(
        lambda w: w.set(MISTRAL_BASE_URL=w.right["MISTRAL_BASE_URL"].replace("http:", "https:")),
        "vendor-tls",
        "byok-mistral",
    ),
    "nobody at the base URL": fault(
        lambda w: w.set(LONGCAT_BASE_URL=f"{CLOSED}/openai/v1"), "vendor-unreachable", "longcat"
    ),
    # 3: what Letta holds
    "Letta down": fault(lambda w: w.set(LETTA_BASE_URL=CLOSED), "letta-unreachable"),
    "not a Letta": fault(lambda w: w.set(LETTA_BASE_URL=f"http://127.0.0.1:{w.vendors.port}"), "not-letta"),
    "Letta's address with a path": fault(
        lambda w: w.set(LETTA_BASE_URL=w.right["LETTA_BASE_URL"] + "/v1"), "not-letta"
    ),
    "password wrong": fault(lambda w: w.set(LETTA_API_KEY="not-the-password"), "letta-password-wrong"),
    "password missing": fault(lambda w: w.unset("LETTA_API_KEY"), "letta-password-missing"),
    "no Letta named": fault(
        lambda w: w.unset("LETTA_BASE_URL"),
        "letta-not-running",
        person=lambda w: w.set(LETTA_BASE_URL=w.right["LETTA_BASE_URL"]),
    ),
    "provider absent": fault(
        lambda w: (w.unset("ISABELLA_DATABASE_URL"), w.delete("longcat")), "provider-absent", "longcat"
    ),
    "provider soft-deleted": fault(lambda w: w.delete("byok-groq"), "provider-deleted", "byok-groq"),
    "key stale": fault(lambda w: w.store("cerebras", api_key="csk-of-old"), "key-stale", "cerebras"),
    "key sealed otherwise": fault(sealed_otherwise, "key-sealed-otherwise", "byok-mistral"),
    "key in plaintext": fault(plaintext, "key-plaintext", "cerebras"),
    "key erased by an upgrade": fault(
        lambda w: w.sql("UPDATE providers SET api_key_enc = NULL WHERE name = 'longcat'"), "key-erased", "longcat"
    ),
    "key in the old column": fault(
        lambda w: w.sql("UPDATE providers SET api_key_enc = NULL, api_key = 'gsk_bare' WHERE name = 'byok-groq'"),
        "key-erased",
        "byok-groq",
    ),
    "key empty in Letta": fault(lambda w: w.store("byok-groq", api_key=""), "key-empty-in-letta", "byok-groq"),
    "provider mistyped": fault(mistyped, "provider-mistyped", "byok-mistral"),
    "base URL moved": fault(lambda w: w.store("cerebras", base_url=f"{CLOSED}/v1"), "base-url-moved", "cerebras"),
    "second provider": fault(duplicate, "provider-duplicate", "byok-groq"),
    "second provider in use": fault(duplicate_in_use, "provider-duplicate", "byok-groq"),
    "name of a base provider": fault(declare("letta"), "name-taken-by-base", "letta", person=declare("cerebras-too")),
    # 4: Letta's use of it
    "native Groq agent": fault(lambda w: w.native("byok-groq/openai/gpt-oss-120b"), "agent-ignores-key", "byok-groq"),
    "agent of type deepseek": fault(
        lambda w: w.rebind("longcat", model_endpoint_type="deepseek"), "agent-ignores-key", "longcat"
    ),
    "agent of type xai": fault(
        lambda w: w.rebind("cerebras", model_endpoint_type="xai"), "agent-ignores-key", "cerebras"
    ),
    "openai-proxy handle": fault(lambda w: w.native("openai-proxy/LongCat-2.0"), "agent-proxy-handle", "longcat"),
    "window of 8192": fault(lambda w: w.native("cerebras/gpt-oss-120b"), "agent-window-small", "cerebras"),
    "window of 30000": fault(lambda w: w.rebind("longcat", context_window=30_000), "agent-window-small", "longcat"),
    "agent at an old address": fault(
        lambda w: w.rebind("byok-mistral", model_endpoint=f"{CLOSED}/v1"), "agent-address-old", "byok-mistral"
    ),
    "agent on a provider that is gone": fault(bound_to_nothing, "agent-provider-gone"),
    "agent on nothing at all": fault(bound_to_nowhere, "agent-provider-gone", person=remove_orphan),
    "agent that is not byok": fault(
        lambda w: w.rebind("cerebras", provider_category="base"), "agent-sends-lettas-key", "cerebras"
    ),
    # 5: receipt
    "a completion fails": fault(
        lambda w: w.vendors.fault("mistral", on="chat", status=503),
        "receipt-failed",
        "byok-mistral",
        person=calm,
        options=("--probe", "--provider", "byok-mistral"),
    ),
    "a completion is refused": fault(
        lambda w: w.vendors.fault("mistral", on="chat", status=401),
        "receipt-refused",
        "byok-mistral",
        person=calm,
        options=("--probe", "--provider", "byok-mistral"),
    ),
}

PAIRS = [
    ("key placeholder", "key stale"),
    ("key unset", "native Groq agent"),
    ("key in quotes", "window of 8192"),
    ("another vendor's key", "key sealed otherwise"),
    ("old key in the shell", "agent at an old address"),
    ("key file for everybody", "base URL moved"),
    ("setting malformed", "key erased by an upgrade"),
    ("isabella.toml malformed", "openai-proxy handle"),
    ("provider type unknown", "second provider"),
    (".env for everybody", "password missing"),
    ("key in plaintext", "Cerebras refuses the key"),
    ("Groq refuses the key", "provider soft-deleted"),
    ("Mistral refuses the key", "provider mistyped"),
    ("out of funds (402)", "base URL moved"),
    ("asked too often", "key empty in Letta"),
    ("vendor failing", "key sealed otherwise"),
    ("connection reset", "agent at an old address"),
    ("a proxy's page (502)", "second provider in use"),
    ("/v1 missing", "agent that is not byok"),
    ("LongCat's other form", "key erased by an upgrade"),
    ("master key missing", "agent of type xai"),
    ("master key not Letta's", "Groq refuses the key"),
    ("Letta down", "LongCat refuses the key"),
    ("not a Letta", "key empty"),
    ("provider soft-deleted", "window of 30000"),
    ("key stale", "agent on a provider that is gone"),
]


@pytest.fixture(scope="module")
def server(new_server: Callable[..., Server]) -> Server:
    """A server of this module alone: it is restarted, and everything in it is a patient."""
    return new_server("doctor")


@pytest.fixture(scope="module")
def vendors() -> Iterator[PracticeVendors]:
    """The practice vendors of this module."""
    with PracticeVendors() as running:
        yield running


@pytest.fixture(scope="module")
def one_ward(server: Server, vendors: PracticeVendors, tmp_path_factory: pytest.TempPathFactory) -> Ward:
    """The ward that all tests here share."""
    return Ward(tmp_path_factory.mktemp("doctor") / "ward", server.up(), vendors)


@pytest.fixture
def ward(one_ward: Ward) -> Iterator[Ward]:
    """A healthy ward."""
    handlers = logging.getLogger().handlers[:]
    one_ward.reset()
    yield one_ward
    logging.getLogger().handlers = handlers


def causes(document: dict) -> set[Cause]:
    """What the verdict names."""
    return {(finding["code"], finding["provider"]) for finding in document["findings"]}


def heal(ward: Ward, one: Fault, document: dict, *, fix: bool) -> dict:
    """Do literally what is printed, as often as something is."""
    for _ in range(4):
        for finding in document["findings"]:
            mine = one.person is not None and (finding["code"], finding["provider"]) in one.causes
            if mine:
                one.person(ward)
            else:
                assert ward.follow(finding, fix=fix), f"nothing to do literally: {finding['remedy']}"
        document = ward.doctor(*one.options)
        if document["healthy"]:
            break
    return document


def test_a_healthy_system_has_no_finding(ward: Ward) -> None:
    """Four providers in order, an agent on each: nothing is found and nothing left open, with and without a probe."""
    for options in ((), ("--probe",)):
        document = ward.doctor(*options)
        assert document["healthy"], document["verdict"]
        assert document["unknown"] == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_its_remedy_heals(ward: Ward, name: str) -> None:
    """Exactly the planted cause is in the verdict, and the remedy, done literally, makes the system healthy."""
    one = FAULTS[name]
    one.plant(ward)
    document = ward.doctor(*one.options)
    assert causes(document) == one.causes, document["verdict"]
    healed = heal(ward, one, document, fix=list(FAULTS).index(name) % 2 == 0)
    assert healed["healthy"], healed["verdict"]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_of_two_faults_both_are_named(ward: Ward, first: str, second: str) -> None:
    """Two faults at once are both in the verdict, or it is said what cannot be known for the other's sake."""
    wanted = FAULTS[first].causes | FAULTS[second].causes
    FAULTS[first].plant(ward)
    FAULTS[second].plant(ward)
    document = ward.doctor()
    missing = wanted - causes(document)
    open_for = {provider for _, provider in missing}
    said = {unknown["provider"] for unknown in document["unknown"]}
    assert not missing or open_for <= said, document


def test_letta_without_a_password_is_told(ward: Ward) -> None:
    """Whoever can read the providers without a password is told; whether their keys stand open as well, too."""
    with open_door(ward.letta) as address:
        ward.set(LETTA_BASE_URL=address)
        ward.unset("LETTA_API_KEY")
        assert causes(ward.doctor()) == {("letta-open", None)}
        plaintext(ward)
        assert causes(ward.doctor()) == {("keys-readable", None), ("key-plaintext", "cerebras")}


def test_keys_that_our_master_key_does_not_open_are_told_apart(ward: Ward) -> None:
    """Where Letta's process is out of sight, Letta itself is asked which of the two has the wrong master key."""
    with open_door(ward.letta) as address:
        ward.set(LETTA_BASE_URL=address)
        sealed_otherwise(ward)
        assert ("key-sealed-otherwise", "byok-mistral") in causes(ward.doctor())
        ward.reset()
        ward.set(LETTA_BASE_URL=address, LETTA_ENCRYPTION_KEY=OTHER_MASTER_KEY)
        found = causes(ward.doctor())
        assert ("master-key-not-lettas", None) in found
        assert not any(code == "key-sealed-otherwise" for code, _ in found)


def test_letta_restarted_without_its_master_key(ward: Ward, server: Server) -> None:
    """Keys sealed before are told as unusable: by Letta's environment and, out of sight, by what it answers.

    A base key in its environment is told beside that, with where it would go, and whose agent would send it.
    """
    without, base_key = ("letta-without-master-key", None), ("base-keys-in-letta", None)
    with ExitStack() as later:
        later.callback(server.restart_letta, master_key=ward.letta.master_key, extra_env={})
        server.restart_letta(seal=False, extra_env={"OPENAI_API_KEY": "sk-of-the-house"})
        document = ward.doctor()
        assert causes(document) == {without, base_key}
        assert "O6" in document["findings"][0]["facts"]
        ward.store("longcat", api_key=ward.right["LONGCAT_API_KEY"])
        bound_to_nothing(ward)
        document = ward.doctor()
        assert causes(document) == {without, base_key, ("agent-provider-gone", None)}
        # The seed document's warning, from the log of the server that has just stored a key in plaintext.
        with server.layout.letta_log.open(encoding="utf-8", errors="replace") as log:
            assert "no-encryption-key" in {one.symptom.id for one in recognise_in(log)}
        gone = next(one for one in document["findings"] if one["code"] == "agent-provider-gone")
        assert any("OPENAI_API_KEY is in Letta's environment" in line for line in gone["evidence"])
        with open_door(ward.letta) as address:
            ward.set(LETTA_BASE_URL=address)
            assert without in causes(ward.doctor())
    ward.set(LETTA_BASE_URL=ward.right["LETTA_BASE_URL"])
    ward.doctor("--fix")
    assert ward.doctor()["healthy"]


def test_the_name_of_a_base_provider_stays_taken(ward: Ward) -> None:
    """A name that Letta once gave to a base provider is told, though the key is gone from its environment."""
    ward.sql(
        "INSERT INTO providers (id, name, provider_type, provider_category, is_deleted) "
        "VALUES ('provider-00000000-0000-4000-8000-00000000beef', 'openai', 'openai', 'base', false) "
        "ON CONFLICT DO NOTHING"
    )
    declare("openai")(ward)
    assert causes(ward.doctor()) == {("name-taken-by-base", "openai")}


def test_all_down_is_told(ward: Ward) -> None:
    """With Letta and all vendors silent, every one of them is named, and the examination ends."""
    for vendor in ("cerebras", "groq", "mistral", "longcat"):
        ward.vendors.fault(vendor, hang=True)
    ward.set(LETTA_BASE_URL=ward.right["CEREBRAS_BASE_URL"].removesuffix("/v1"))
    found = causes(ward.doctor())
    assert {provider for code, provider in found if code == "vendor-timeout"} == {
        "cerebras",
        "byok-groq",
        "byok-mistral",
        "longcat",
    }


def test_only_what_was_named_is_changed(ward: Ward) -> None:
    """Without --fix nothing in Letta changes; with it, only the agent that was named."""

    def state() -> list[object]:
        agents = sorted(ward.api("GET", "/v1/agents/?limit=100"), key=lambda one: one["name"])
        return [*[(one["name"], one["llm_config"]) for one in agents], *[ward.provider("cerebras")]]

    ward.native("cerebras/gpt-oss-120b")
    before = state()
    ward.doctor()
    assert state() == before
    code, _ = ward.run("doctor", "--fix")
    assert code == 0
    after = state()
    changed = [name for (name, old), (_, new) in zip(before[:-1], after[:-1], strict=True) if old != new]
    assert changed == ["native"]
    assert after[-1] == before[-1]


def test_a_name_that_is_not_there(ward: Ward) -> None:
    """An unknown provider, agent or file is no finding: it could not be looked, which is exit code 1."""
    for options in (
        ("--provider", "nobody"),
        ("--agent", "nobody"),
        ("--log", "absent.log"),
        ("--env-file", "absent"),
    ):
        with pytest.raises((ConfigurationError, AgentUnknown)):
            ward.run("doctor", *options)


def test_one_agent_alone(ward: Ward) -> None:
    """With --agent only what that agent stands on is judged."""
    ward.native("byok-groq/openai/gpt-oss-120b", "g")
    ward.store("cerebras", api_key="csk-of-old")
    assert causes(ward.doctor("--agent", "g")) == {("agent-ignores-key", "byok-groq")}


def test_the_report_for_people(ward: Ward) -> None:
    """First the verdict with what to type, then the evidence, then what was fine; no colours in a pipe, no key."""
    ward.store("byok-groq", api_key="gsk_another-key-of-old")
    code, out = ward.run("doctor")
    lines = out.splitlines()
    assert code == 2
    assert lines[0].startswith("1 finding")
    assert "byok-groq: Letta holds another key" in lines[1]
    assert "isabella providers sync --only byok-groq" in lines[1]
    assert out.index("Evidence") < out.index("Fine")
    assert "\x1b" not in out
    assert "gsk_another-key-of-old" not in out
    assert not any(secret in out for name, secret in ward.right.items() if not name.endswith("_BASE_URL"))
