"""The claims of the document that the project started from, each tried on the real Letta. The README shows them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import psycopg
import pytest

from isabella.embedded import Letta
from isabella.letta.llm_config import Binding
from isabella.letta.releases import OPENAI
from isabella.practice import PracticeVendors
from tests.support.letta_encryption import OTHER_MASTER_KEY, seal

#: Name in the practice vendors, Letta's own type, a model.
VENDORS = [
    ("cerebras", "cerebras", "gpt-oss-120b"),
    ("groq", "groq", "openai/gpt-oss-120b"),
    ("mistral", "mistral", "mistral-medium-latest"),
    ("longcat", "openai", "LongCat-2.0"),
]

#: Nothing listens there.
NOWHERE = "http://127.0.0.1:9/v1"


@dataclass
class Stage:
    """A Letta spoken to in plain REST, as the document does, and vendors that log what arrives."""

    letta: Letta
    http: httpx.Client
    vendors: PracticeVendors
    providers: list[str]
    agents: list[str]

    def key(self, vendor: str) -> str:
        return self.vendors.key(vendor).get_secret_value()

    def register(self, vendor: str, type: str, key: str | None = None) -> dict[str, Any]:
        """POST a provider for a vendor, under a name of its own."""
        body = {
            "name": f"{vendor}-{secrets.token_hex(4)}",
            "provider_type": type,
            "base_url": self.vendors.base_url(vendor),
            "api_key": key or self.key(vendor),
        }
        made: dict[str, Any] = self.http.post("/v1/providers/", json=body).raise_for_status().json()
        self.providers.append(made["id"])
        return made

    def recreate(self, provider: dict[str, Any], **changes: str) -> dict[str, Any]:
        """POST a provider of the same name again, after it was deleted."""
        vendor = provider["name"].rsplit("-", 1)[0]
        body = {
            "name": provider["name"],
            "provider_type": provider["provider_type"],
            "base_url": provider["base_url"],
            "api_key": self.key(vendor),
        } | changes
        made: dict[str, Any] = self.http.post("/v1/providers/", json=body).raise_for_status().json()
        return made

    def models(self, provider: dict[str, Any]) -> list[dict[str, Any]]:
        """The models that Letta lists for a provider."""
        query = {"provider_name": provider["name"], "provider_category": "byok"}
        found: list[dict[str, Any]] = self.http.get("/v1/models/", params=query).raise_for_status().json()
        return found

    def create_agent(self, **fields: Any) -> httpx.Response:
        body = {"name": f"claim-{secrets.token_hex(4)}", "include_base_tools": False, **fields}
        response = self.http.post("/v1/agents/", json=body)
        if response.is_success:
            self.agents.append(response.json()["id"])
        return response

    def bound_agent(self, vendor: str, provider: dict[str, Any], model: str) -> str:
        """An agent with the explicit binding of fact M6; its id."""
        binding = Binding(provider["name"], model, provider["base_url"], 65_536, client=OPENAI)
        return str(self.create_agent(llm_config=binding.as_llm_config()).raise_for_status().json()["id"])

    def say(self, agent: str) -> httpx.Response:
        return self.http.post(
            f"/v1/agents/{agent}/messages", json={"messages": [{"role": "user", "content": "Hello."}]}
        )

    def keys_at(self, vendor: str) -> set[str]:
        """Fingerprints of the keys with which chats arrived at a vendor."""
        return {
            r.key_sha256
            for r in self.vendors.requests(vendor)
            if r.key_sha256 and r.path.endswith("/chat/completions")
        }

    def write_stored_key(self, provider: dict[str, Any], text: str) -> None:
        """Put something into the encrypted column, past Letta."""
        with psycopg.connect(self.letta.database_url.get_secret_value(), autocommit=True) as database:
            database.execute("UPDATE providers SET api_key_enc = %s WHERE id = %s", (text, provider["id"]))


@pytest.fixture(scope="module")
def letta(empty_letta: Letta) -> Letta:
    """A Letta without providers: of two of type openai with the same models, only the first is listed (M4)."""
    return empty_letta


@pytest.fixture
def stage(letta: Letta) -> Iterator[Stage]:
    """A stage of its own for each claim, left as it was found."""
    options: dict[str, Any] = {
        "base_url": letta.base_url,
        "headers": {"Authorization": f"Bearer {letta.password.get_secret_value()}"},
        "timeout": 60,
        "trust_env": False,
    }
    with PracticeVendors() as vendors, httpx.Client(**options) as http:
        found = Stage(letta, http, vendors, [], [])
        yield found
    # Letta closes a connection after some of its failures, so cleaning up gets one of its own.
    with httpx.Client(**options) as http:
        for agent in found.agents:
            http.delete(f"/v1/agents/{agent}").raise_for_status()
        for provider in found.providers:
            http.delete(f"/v1/providers/{provider}")


def test_patch_takes_effect(stage: Stage) -> None:
    """A PATCH of the key reaches the encrypted column: the vendor gets the new key with the next message (P3)."""
    provider = stage.register("cerebras", "cerebras", "csk-former-and-refused")
    agent = stage.bound_agent("cerebras", provider, "gpt-oss-120b")
    assert stage.say(agent).status_code == 401

    stage.http.patch(f"/v1/providers/{provider['id']}", json={"api_key": stage.key("cerebras")}).raise_for_status()
    stage.vendors.forget()

    assert stage.say(agent).status_code == 200
    assert all(request.carries(stage.key("cerebras")) for request in stage.vendors.requests("cerebras"))


def test_patch_fails_where_the_stored_key_cannot_be_opened(stage: Stage) -> None:
    """A key sealed under another master key stays stale for ever: PATCH answers 400 and changes nothing (P4)."""
    provider = stage.register("cerebras", "cerebras")
    sealed = seal("csk-former", OTHER_MASTER_KEY)
    stage.write_stored_key(provider, sealed)

    refused = stage.http.patch(f"/v1/providers/{provider['id']}", json={"api_key": stage.key("cerebras")})

    assert refused.status_code == 400
    assert "Failed to decrypt data" in refused.text
    (stored,) = stage.http.get("/v1/providers/", params={"name": provider["name"]}).json()
    assert stored["api_key_enc"] == sealed


def test_delete_and_post_write_the_key(stage: Stage) -> None:
    """DELETE then POST writes the key, whatever stood there before, under the same id (P6, O2)."""
    provider = stage.register("cerebras", "cerebras")
    stage.write_stored_key(provider, seal("csk-former", OTHER_MASTER_KEY))
    agent = stage.bound_agent("cerebras", provider, "gpt-oss-120b")
    assert stage.say(agent).status_code == 500

    stage.http.delete(f"/v1/providers/{provider['id']}").raise_for_status()
    again = stage.recreate(provider)

    assert again["id"] == provider["id"]
    assert stage.say(agent).status_code == 200


def test_between_delete_and_post_another_key_reaches_the_vendor(stage: Stage) -> None:
    """While a provider is deleted its agents do not fail closed: a key that is not theirs is sent (P7)."""
    provider = stage.register("cerebras", "cerebras")
    agent = stage.bound_agent("cerebras", provider, "gpt-oss-120b")
    stage.http.delete(f"/v1/providers/{provider['id']}").raise_for_status()
    stage.vendors.forget()

    answer = stage.say(agent)

    assert answer.status_code == 401
    arrived = [r for r in stage.vendors.requests("cerebras") if r.path.endswith("/chat/completions")]
    assert arrived
    # This server has no key of OpenAI in its environment, or that one would have been sent.
    assert all(request.carries("DUMMY_API_KEY") for request in arrived)


def test_native_groq_never_uses_the_stored_key(stage: Stage) -> None:
    """An agent on a provider of type groq fails although the stored key is the right one (M3)."""
    provider = stage.register("groq", "groq")
    made = stage.create_agent(model=f"{provider['name']}/openai/gpt-oss-120b").raise_for_status().json()
    stage.vendors.forget()

    answer = stage.say(made["id"])

    assert answer.status_code == 500
    assert stage.vendors.requests("groq") == []


def test_cerebras_and_mistral_have_provider_classes(stage: Stage) -> None:
    """Both types list their models, so there is a class for them; Cerebras' window is taken as 8192 (M1, M2)."""
    cerebras, mistral = stage.register("cerebras", "cerebras"), stage.register("mistral", "mistral")

    handles = {model["handle"]: model for model in (*stage.models(cerebras), *stage.models(mistral))}

    assert f"{mistral['name']}/mistral-medium-latest" in handles
    assert handles[f"{cerebras['name']}/gpt-oss-120b"]["context_window"] == 8192


def test_type_openai_changes_the_handles(stage: Stage) -> None:
    """A provider of type openai lists its models as openai-proxy/…, and its own name makes no agent (M4)."""
    provider = stage.register("longcat", "openai")

    handles = [model["handle"] for model in stage.models(provider)]
    refused = stage.create_agent(model=f"{provider['name']}/LongCat-2.0")

    assert handles
    assert all(handle.startswith("openai-proxy/") for handle in handles)
    assert refused.status_code == 500


@pytest.mark.parametrize("as_type", ["native", "openai"])
def test_an_explicit_binding_works_for_every_vendor(stage: Stage, as_type: str) -> None:
    """An agent bound explicitly sends the stored key to its vendor, whatever the provider's type (M6)."""
    for vendor, native, model in VENDORS:
        provider = stage.register(vendor, native if as_type == "native" else "openai")
        agent = stage.bound_agent(vendor, provider, model)
        stage.vendors.forget()

        assert stage.say(agent).status_code == 200, vendor
        chats = [r for r in stage.vendors.requests(vendor) if r.path.endswith("/chat/completions")]
        assert chats, vendor
        assert all(chat.carries(stage.key(vendor)) for chat in chats), vendor


def test_without_a_master_key_the_list_shows_the_keys(unsealed_letta: Letta) -> None:
    """A Letta without a master key shows every key to whoever may list the providers (P2)."""
    letta = unsealed_letta
    headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}"}
    body = {"name": "open", "provider_type": "openai", "base_url": NOWHERE, "api_key": "sk-for-everybody-to-see"}
    with httpx.Client(base_url=letta.base_url, headers=headers, timeout=60, trust_env=False) as http:
        http.post("/v1/providers/", json=body).raise_for_status()
        rows = http.get("/v1/providers/").raise_for_status().json()

    (listed,) = [row for row in rows if row["name"] == "open"]
    assert listed["api_key_enc"] == "sk-for-everybody-to-see"


def test_a_changed_master_key_stops_the_agents(stage: Stage) -> None:
    """What was sealed under the former master key cannot be opened: the agent answers 500, not 401 (P4)."""
    provider = stage.register("mistral", "mistral")
    agent = stage.bound_agent("mistral", provider, "mistral-medium-latest")
    assert stage.say(agent).status_code == 200

    stage.write_stored_key(provider, seal(stage.key("mistral"), OTHER_MASTER_KEY))

    assert stage.say(agent).status_code == 500


def test_post_succeeds_with_a_refused_key(stage: Stage) -> None:
    """Letta takes any key: only that no model appears shows that the vendor refused it (P9)."""
    provider = stage.register("groq", "groq", "gsk_never-valid-anywhere")

    (stored,) = stage.http.get("/v1/providers/", params={"name": provider["name"]}).json()

    assert stored["last_synced"] is None
    assert stage.models(provider) == []
