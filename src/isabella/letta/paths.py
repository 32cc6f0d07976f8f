"""The paths of Letta's REST API, and what writes at them change. It imports nothing heavy: light commands use it."""

from __future__ import annotations

import re
from typing import NamedTuple

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


class Written(NamedTuple):
    """The change that a write makes: its kind, and the id of its subject."""

    change: str
    subject: str


#: Writes that change no agent, no memory and no provider: messages, conversations, searches, and what Letta computes
#: anew. Every other one is recorded.
_NO_CHANGE = re.compile(
    r"POST /v1/(agents/[^/]+/(messages.*|recompile)|conversations/.*|passages/search|providers/[^/]+/check)"
    r"|PATCH /v1/providers/[^/]+/refresh"
)
_RESOURCE = re.compile(r"/v1/(?P<resource>[a-z]+)s/(?P<id>[^/]*)(?P<below>/.*)?")
_CHANGES = {"POST": "created", "PATCH": "changed", "PUT": "changed", "DELETE": "deleted"}


def written(method: str, path: str) -> Written | None:
    """Return the change that a write makes; None if it changes no agent, no memory and no provider."""
    if method == "GET" or _NO_CHANGE.fullmatch(f"{method} {path}"):
        return None
    found = _RESOURCE.fullmatch(path)
    if found is None:
        return Written(f"letta.{_CHANGES[method]}", path)
    done = "changed" if found["below"] else _CHANGES[method]
    return Written(f"{found['resource']}.{done}", found["id"])
