"""Every vendor known by name, set up by its variables as a person does: registered, proven, and asked by an agent.

The practice vendors refuse all that the real ones are known to refuse. llama.cpp is in `test_real_model.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from isabella.config.settings import Settings, load_settings
from isabella.config.vendors import known_vendors
from isabella.embedded import Letta
from isabella.practice import PracticeVendors
from isabella.providers.report import Proof
from isabella.vendors.client import VendorState
from tests.support.backend_server import TOKEN, Backend, connection_to, gateway, serve
from tests.support.further_vendors import PROFILES

VENDORS = {vendor.name: vendor for vendor in known_vendors()}


def model_of(name: str) -> str:
    """The vendor's default model; of a server of one's own, the first that it lists."""
    return VENDORS[name].default_model or PROFILES[name].listed[0].id


def environment(practice: PracticeVendors) -> dict[str, str]:
    """The variables that set all of them up: a key and an address; for a server of one's own an address alone."""
    variables = {}
    for name, vendor in VENDORS.items():
        if name not in PROFILES:
            continue
        assert vendor.base_url_env is not None
        variables[vendor.base_url_env] = practice.base_url(name)
        if not vendor.key_optional:
            variables[vendor.api_key_env] = practice.key(name).get_secret_value()
    return variables


@pytest.fixture(scope="module")
def practice() -> Iterator[PracticeVendors]:
    """All practice vendors, as strict as can be."""
    with PracticeVendors(vendors=PROFILES) as running:
        for name in PROFILES:
            running.strict(name)
        yield running


@pytest.fixture(scope="module")
def served(
    empty_letta: Letta, practice: PracticeVendors, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """A backend whose start registers all vendors."""
    home: Path = tmp_path_factory.mktemp("home")
    settings: Settings = load_settings(
        environment=environment(practice), home=home, token=SecretStr(TOKEN), gateway="on", embeddings="off"
    )
    connection = connection_to(empty_letta, home)
    with gateway(settings, connection), serve(empty_letta, practice, settings, connection) as running:
        yield running


def test_each_is_registered_and_proven(served: Backend) -> None:
    """By the start of the backend, with the keys that were configured."""
    report = served.runtime.readiness.report
    assert report is not None
    proofs = {entry.name: entry.proof for entry in report.configured}
    assert proofs == {VENDORS[name].provider: Proof.PROVEN for name in PROFILES}


@pytest.mark.parametrize("name", PROFILES)
def test_an_agent_remembers_and_answers(served: Backend, practice: PracticeVendors, name: str) -> None:
    """With a tool call, its result, usage, and by the model that was asked; the vendor refuses nothing."""
    handle = f"{VENDORS[name].provider}/{model_of(name)}"
    agent = served.agent(f"agent-{name.replace('.', '-')}", handle)
    turn = served.say(agent, "Remember that my dog is called Rex.")
    assert (turn.end["reason"], turn.end["handle"], turn.handles) == ("completed", handle, [handle]), turn.events
    assert [call["name"] for call in turn.all("tool_call")]
    assert all(result["ok"] for result in turn.all("tool_result"))
    assert turn.text
    usage = turn.one("usage")
    assert usage["prompt_tokens"] > usage["completion_tokens"] > 0
    asked = [request for request in practice.requests(name) if request.path.endswith("/chat/completions")]
    assert {(request.status, request.accepted, request.strictness) for request in asked} == {(200, True, None)}


@pytest.mark.parametrize("name", ["xai", "gemini"])
def test_a_key_that_is_refused_with_400_is_told_like_any_other(
    served: Backend, practice: PracticeVendors, name: str
) -> None:
    """In the turn, with what to do, and in the status of the vendor."""
    provider, key = VENDORS[name].provider, practice.key(name)
    agent = served.agent(f"refused-{name}", f"{provider}/{model_of(name)}")
    practice.rotate(name)
    try:
        turn = served.say(agent, "Hello.")
        error = turn.one("error")
    finally:
        practice.accept(name, [key])
    assert (error["code"], error.get("status")) == ("key_refused", 400), turn.events
    assert "isabella doctor" in error["remedy"]
    assert served.runtime.readiness.vendors.of(provider).state is VendorState.REFUSES_KEY
