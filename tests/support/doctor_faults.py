"""Faults to plant in a env, and what the doctor has to name for each: a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from isabella.letta.llm_config import Binding
from isabella.system.urls import gateway_base_url
from tests.support.doctor_env import DoctorEnv
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal

Cause = tuple[str, str | None]
Plant = Callable[[DoctorEnv], object]

CLOSED = "http://127.0.0.1:9"
DECLARED = '[[providers]]\nname = "{}"\nbase_url = "{}"\napi_key_env = "MISTRAL_API_KEY"\n'


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and what the doctor has to name.

    Attributes:
        plant: plants it in a healthy env.
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


def calm(env: DoctorEnv) -> None:
    """What a vendor does wrong is over."""
    env.vendors.clear()


def revoke(vendor: str) -> Plant:
    """The vendor takes another key from now on; the right one is the new one."""

    def plant(env: DoctorEnv) -> None:
        key = env.vendors.rotate(vendor)
        env.right[f"{vendor.upper()}_API_KEY"] = key.get_secret_value()

    return plant


def in_shell(name: str, form: str) -> Plant:
    """A key of the shell alone, with something around it."""

    def plant(env: DoctorEnv) -> None:
        env.unset(name)
        env.environment[name] = form.format(env.right[name])

    return plant


def key_file(mode: int | None, *, beside: bool = False) -> Plant:
    """The key in a file of its own; without a mode, in one that is not there."""

    def plant(env: DoctorEnv) -> None:
        path = env.folder / "groq.key"
        if mode is not None:
            path.write_text(env.right["GROQ_API_KEY"] + "\n")
            path.chmod(mode)
        if not beside:
            env.unset("GROQ_API_KEY")
        env.set(GROQ_API_KEY_FILE=str(path))

    return plant


def declare(name: str) -> Plant:
    """Declare a further vendor: Mistral once more, at an address of its own."""

    def plant(env: DoctorEnv) -> None:
        base_url = env.right["MISTRAL_BASE_URL"].replace("127.0.0.1", "localhost")
        (env.folder / "isabella.toml").write_text(DECLARED.format(name, base_url))

    return plant


def sealed_otherwise(env: DoctorEnv) -> None:
    """The stored key was sealed under another master key."""
    text = seal(env.right["MISTRAL_API_KEY"], OTHER_MASTER_KEY)
    env.sql("UPDATE providers SET api_key_enc = %s WHERE name = 'byok-mistral'", text)


def plaintext(env: DoctorEnv) -> None:
    """The stored key stands there as it is."""
    env.sql("UPDATE providers SET api_key_enc = %s WHERE name = 'cerebras'", env.right["CEREBRAS_API_KEY"])


def mistyped(env: DoctorEnv) -> None:
    """Somebody followed the advice to make every provider type openai."""
    env.delete("byok-mistral")
    body = {"name": "byok-mistral", "provider_type": "openai", "base_url": env.right["MISTRAL_BASE_URL"]}
    env.api("POST", "/v1/providers/", body | {"api_key": env.right["MISTRAL_API_KEY"]})


def duplicate(env: DoctorEnv) -> None:
    """A second provider for Groq, which nobody declared."""
    body = {"name": "groq-of-old", "provider_type": "groq", "base_url": env.right["GROQ_BASE_URL"]}
    env.api("POST", "/v1/providers/", body | {"api_key": "gsk_of-old"})


def duplicate_in_use(env: DoctorEnv) -> None:
    """The same, with an agent on it."""
    duplicate(env)
    env.rebind("byok-groq", provider_name="groq-of-old")


def bound_to_nothing(env: DoctorEnv) -> None:
    """An agent on a provider that is not there, at an address that is."""
    env.rebind("longcat", provider_name="longcat-of-old")


def bound_to_nowhere(env: DoctorEnv) -> None:
    """An agent on a provider and an address that nobody knows."""
    env.agent("orphan", Binding("gone", "some-model", "http://127.0.0.1:9/v1", 32_768))


def remove_orphan(env: DoctorEnv) -> None:
    """Nobody needs it."""
    (orphan,) = env.api("GET", "/v1/agents/?name=orphan")
    env.api("DELETE", f"/v1/agents/{orphan['id']}")


def provider_absent(env: DoctorEnv) -> None:
    """A provider is deleted, and the doctor is not told of the database that would remember it."""
    env.unset("ISABELLA_DATABASE_URL")
    env.delete("longcat")


def long_persona(env: DoctorEnv) -> None:
    """An agent whose persona alone is longer than its window."""
    env.change("byok-groq", system="Be kind. " * 2000)
    env.rebind("byok-groq", context_window=2048)


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
        lambda w: (w.folder / ".env").write_text('GROQ_API_KEY="unclosed\n'),
        "env-file-malformed",
        person=DoctorEnv.write,
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
    "provider absent": fault(provider_absent, "provider-absent", "longcat"),
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
    "window beyond the model's": fault(
        lambda w: w.rebind("byok-groq", context_window=200_000), "agent-window-large", "byok-groq"
    ),
    "prompt beyond the window": fault(
        long_persona,
        "agent-over-window",
        "byok-groq",
        person=lambda w: w.rebind("byok-groq", context_window=65_536),
    ),
    "window of 30000": fault(lambda w: w.rebind("longcat", context_window=30_000), "agent-window-small", "longcat"),
    "agent at an old address": fault(
        lambda w: w.rebind("byok-mistral", model_endpoint=f"{CLOSED}/v1"), "agent-address-old", "byok-mistral"
    ),
    "agent on a provider that is gone": fault(bound_to_nothing, "agent-provider-gone"),
    "agent on nothing at all": fault(bound_to_nowhere, "agent-provider-gone", person=remove_orphan),
    "agent that is not byok": fault(
        lambda w: w.rebind("cerebras", provider_category="base"), "agent-sends-lettas-key", "cerebras"
    ),
    "agent with a client that is refused": fault(
        lambda w: w.rebind("byok-mistral", model_endpoint_type="openai"), "agent-client-refused", "byok-mistral"
    ),
    "summaries by a handle": fault(
        lambda w: w.change("byok-groq", compaction_settings={"model": "byok-groq/openai/gpt-oss-120b"}),
        "agent-summaries-elsewhere",
        "byok-groq",
    ),
    "model gone": fault(
        lambda w: w.rebind("cerebras", model="llama-of-old", handle="cerebras/llama-of-old"),
        "agent-model-gone",
        "cerebras",
        person=lambda w: w.run("agents", "switch", "cerebras", "cerebras/gpt-oss-120b"),
    ),
    "model about to end": fault(
        lambda w: w.rebind(
            "byok-mistral",
            model="magistral-medium-latest",
            handle="byok-mistral/magistral-medium-latest",
            context_window=40_960,
        ),
        "agent-model-ending",
        "byok-mistral",
        person=lambda w: w.run("agents", "switch", "byok-mistral", "byok-mistral/mistral-medium-latest"),
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
    # 5: the gateway
    "gateway not running": fault(
        lambda w: w.set(ISABELLA_GATEWAY=CLOSED),
        "gateway-not-running",
        person=lambda w: w.unset("ISABELLA_GATEWAY"),
        options=("--probe",),
    ),
    "provider at a gateway": fault(
        lambda w: w.store("longcat", base_url=gateway_base_url(CLOSED, "longcat")), "base-url-moved", "longcat"
    ),
    "agent at a gateway": fault(
        lambda w: w.rebind("byok-groq", model_endpoint=gateway_base_url(CLOSED, "byok-groq")),
        "agent-at-other-gateway",
        "byok-groq",
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
