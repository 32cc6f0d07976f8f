"""The paths of Letta's REST API. It imports nothing, so that light commands can ask for a path."""

from __future__ import annotations

HEALTH = "/v1/health/"
PROVIDERS = "/v1/providers/"
MODELS = "/v1/models/"
AGENTS = "/v1/agents/"
AGENT_COUNT = "/v1/agents/count"
AGENT_IMPORT = "/v1/agents/import"
BLOCKS = "/v1/blocks/"
TOOLS = "/v1/tools/"
ARCHIVES = "/v1/archives/"
PASSAGES = "/v1/passages/"
RUNS = "/v1/runs/"
MESSAGES = "/v1/messages/"
CONVERSATIONS = "/v1/conversations/"


def provider(provider_id: str) -> str:
    """Return the path of a provider."""
    return f"/v1/providers/{provider_id}"


def agent(agent_id: str, *below: str) -> str:
    """Return the path of an agent, or of something below it."""
    return "/".join([f"/v1/agents/{agent_id}", *below])


def conversation(conversation_id: str, *below: str) -> str:
    """Return the path of a conversation, or of something below it."""
    return "/".join([f"/v1/conversations/{conversation_id}", *below])
