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
RUNS = "/v1/runs/"


def provider(provider_id: str) -> str:
    """Return the path of a provider."""
    return f"/v1/providers/{provider_id}"


def agent(agent_id: str, *below: str) -> str:
    """Return the path of an agent, or of something below it."""
    return "/".join([f"/v1/agents/{agent_id}", *below])


def block(block_id: str) -> str:
    """Return the path of a memory block."""
    return f"/v1/blocks/{block_id}"


def archived_passage(archive_id: str, passage_id: str) -> str:
    """Return the path of a passage in an archive."""
    return f"/v1/archives/{archive_id}/passages/{passage_id}"


def run_messages(run_id: str) -> str:
    """Return the path of the messages of a run."""
    return f"/v1/runs/{run_id}/messages"
