"""What is wrong with an agent: every fault, from data alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isabella.agents.repair import AvailableBindings, BindingFault, diagnose
from isabella.letta.llm_config import Binding, LlmConfig
from isabella.letta.releases import GENERIC, OPENAI, client_for

HERE = AvailableBindings(
    live={"cerebras": "http://c/v1", "byok-groq": "http://g/v1", "longcat": "http://l/v1", "foreign": "http://f/v1"},
    windows={"cerebras/oss": 65_536, "longcat/cat": 1_000_000},
    listed={"cerebras": frozenset({"oss"}), "longcat": frozenset({"cat"})},
    vendors=frozenset({"cerebras", "byok-groq", "longcat"}),
)
OLDER = (
    "memgpt_agent",
    "memgpt_v2_agent",
    "react_agent",
    "workflow_agent",
    "split_thread_agent",
    "voice_convo_agent",
)
GOOD = LlmConfig("oss", GENERIC, "http://c/v1", "cerebras", "byok", 65_536, "cerebras/oss")


def test_nothing_is_wrong_with_an_agent_of_ours() -> None:
    """A bound agent, one with a window that somebody chose, and a base model of Letta's own are left alone."""
    assert diagnose(GOOD, HERE) is None
    assert diagnose(replace(GOOD, window=20_000), HERE) is None
    assert diagnose(replace(GOOD, endpoint="http://c/v1/"), HERE) is None
    assert diagnose(replace(GOOD, category="base", provider="letta", handle="letta/free"), HERE) is None
    assert diagnose(None, HERE) is None


@pytest.mark.parametrize(
    ("llm", "fault", "binding"),
    [
        (
            replace(GOOD, endpoint_type="groq", endpoint="http://g/v1", provider="byok-groq", handle="byok-groq/oss"),
            BindingFault.KEY_IGNORED,
            Binding("byok-groq", "oss", "http://g/v1", 65_536),
        ),
        (
            LlmConfig("x", "xai", "http://f/v1", "foreign", "byok", 1000, "foreign/x"),
            BindingFault.KEY_IGNORED,
            Binding("foreign", "x", "http://f/v1", 1000),
        ),
        (
            LlmConfig("cat", OPENAI, "http://l/v1", "longcat", "byok", 30_000, "openai-proxy/cat"),
            BindingFault.PROXY_HANDLE,
            Binding("longcat", "cat", "http://l/v1", 1_000_000),
        ),
        (replace(GOOD, endpoint_type=OPENAI), BindingFault.WRONG_CLIENT, GOOD.binding),
        *(
            (
                replace(GOOD, agent_type=type),
                BindingFault.CANNOT_STREAM,
                Binding("cerebras", "oss", "http://c/v1", 65_536, OPENAI),
            )
            for type in OLDER
        ),
        (
            LlmConfig("x", GENERIC, "http://f/v1", "foreign", "byok", 1000, "foreign/x", agent_type="memgpt_agent"),
            BindingFault.CANNOT_STREAM,
            Binding("foreign", "x", "http://f/v1", 1000, OPENAI),
        ),
        (replace(GOOD, endpoint="http://old/v1"), BindingFault.BASE_URL_MOVED, GOOD.binding),
        (replace(GOOD, window=8192), BindingFault.SMALL_WINDOW, GOOD.binding),
        (replace(GOOD, compaction="cerebras/oss"), BindingFault.SUMMARIES, GOOD.binding),
    ],
)
def test_each_fault_is_told_and_mended_by_the_same_model_spelled_out(
    llm: LlmConfig, fault: BindingFault, binding: Binding
) -> None:
    """The model stays; what is wrong about how it is reached does not. Once bound so, nothing is found."""
    found = diagnose(llm, HERE)
    assert found is not None
    assert (found.fault, found.binding) == (fault, binding)
    assert found.why
    now = replace(
        llm,
        endpoint_type=binding.client,
        endpoint=binding.base_url,
        window=binding.window,
        handle=binding.handle,
        compaction=None,
    )
    assert diagnose(now, HERE) is None


@pytest.mark.parametrize("type", [None, "letta_v1_agent", "sleeptime_agent"])
def test_types_that_stream_with_every_client_keep_the_generic_one(type: str | None) -> None:
    """Nothing changes for what Letta makes today, nor where the type is not known."""
    assert diagnose(replace(GOOD, agent_type=type), HERE) is None
    assert GOOD.binding is not None
    assert GOOD.binding.suited(type) == GOOD.binding


@pytest.mark.parametrize("release", ["0.16.0", "0.16.6", "0.16.7", "0.16.8"])
@pytest.mark.parametrize("type", ["memgpt_agent", "letta_v1_agent"])
def test_the_client_is_chosen_by_release_and_by_type(release: str, type: str) -> None:
    """Before 0.16.7 there is only one client for us; since then the older types still need it."""
    chosen = Binding("cerebras", "oss", "http://c/v1", 65_536, client_for(release)).suited(type).client
    new = release in ("0.16.7", "0.16.8")
    assert chosen == (GENERIC if new and type == "letta_v1_agent" else OPENAI)


def test_a_foreign_provider_of_type_openai_keeps_its_client() -> None:
    """Of a provider that we know nothing of, OpenAI's own client may be the right one."""
    llm = LlmConfig("gpt", OPENAI, "http://f/v1", "foreign", "byok", 128_000, "foreign/gpt")
    assert diagnose(llm, HERE) is None


def test_in_place_of_a_provider_that_is_gone_the_same_model_is_sought() -> None:
    """First at the same address, then what is preferred, then the same model anywhere."""
    llm = replace(GOOD, provider="old", handle="old/oss")
    found = diagnose(llm, HERE, ("longcat/cat",))
    assert found is not None
    assert (found.fault, found.binding) == (BindingFault.PROVIDER_GONE, None)
    assert found.instead == ("cerebras/oss", "longcat/cat")
    elsewhere = diagnose(replace(llm, endpoint="http://nowhere/v1"), HERE, ("longcat/cat",))
    assert elsewhere is not None
    assert elsewhere.instead == ("longcat/cat", "cerebras/oss")


def test_a_retired_model_is_found_only_where_the_vendor_was_asked() -> None:
    """A vendor that gave no list is not held to have no models."""
    retired = replace(GOOD, model="old", handle="cerebras/old")
    found = diagnose(retired, HERE, ("longcat/cat",))
    assert found is not None
    assert (found.fault, found.instead) == (BindingFault.MODEL_GONE, ("cerebras/old", "longcat/cat"))
    assert diagnose(retired, replace(HERE, listed={})) is None
