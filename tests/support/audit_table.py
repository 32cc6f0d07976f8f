"""Every route that writes and every command, with the change that it records in the audit log.

A text with a dot is the kind of the change; any other text says why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping

_TURN = "a message; the agent itself writes into its memory, and the histories of its blocks have that"
_SHOWS = "changes nothing"
_PROCESS = "starts or stops processes"
_PRACTICE = "vendors that are stand-ins, with keys that open nothing"
_CONVERSATION = "a conversation, not the agent"
_NO_ROUTE = "answers 404"

ROUTES: Mapping[str, str] = {
    "POST /api/agents": "agent.created",
    "PATCH /api/agents/{name}": "agent.renamed",
    "POST /api/agents/{name}/duplicate": "agent.duplicated",
    "DELETE /api/agents/{name}": "agent.deleted",
    "POST /api/agents/{name}/switch": "agent.switched",
    "POST /api/agents/import": "agent.imported",
    "PATCH /api/agents/{name}/conversations/{id}": "conversation.archived",
    "PUT /api/agents/{name}/blocks/{label}": "memory.written",
    "POST /api/agents/{name}/blocks/{label}/restore": "memory.written",
    "POST /api/agents/{name}/passages": "memory.added",
    "DELETE /api/agents/{name}/passages/{passage_id}": "memory.deleted",
    "POST /console/agents/create": "agent.created",
    "POST /console/agents/import": "agent.imported",
    "POST /console/agents/{agent}/rename": "agent.renamed",
    "POST /console/agents/{agent}/duplicate": "agent.duplicated",
    "POST /console/agents/{agent}/delete": "agent.deleted",
    "POST /console/chat/{address}/switch": "agent.switched",
    "POST /console/chat/{address}/conversations/archive": "conversation.archived",
    "POST /console/memory/{agent}/save": "memory.written",
    "POST /console/memory/{agent}/restore": "memory.written",
    "POST /console/memory/{agent}/add": "memory.added",
    "POST /console/memory/{agent}/delete": "memory.deleted",
    "POST /console/memory/{agent}/selected": "memory.deleted",
    "POST /console/providers/{kind}": "provider.updated",
    "POST /console/providers/remove-practice": "provider.deleted",
    "POST /login": "session.begun",
    "POST /console/sessions/end": "session.ended",
    "POST /console/sign-out": "session.ended",
    "POST /api/agents/{name}/turns": _TURN,
    "DELETE /api/agents/{name}/turns/{id}": _TURN,
    "POST /v1/chat/completions": _TURN,
    "POST /v1/responses": _TURN,
    "POST /chat/completions": _NO_ROUTE,
    "POST /responses": _NO_ROUTE,
    **dict.fromkeys((f"{method} /v1/{{path:path}}" for method in ("DELETE", "PATCH", "POST", "PUT")), _NO_ROUTE),
    "POST /embeddings/{secret}/v1/embeddings": _SHOWS,
    "POST /api/agents/{name}/conversations": _CONVERSATION,
    "POST /console/chat/{address}/conversations/new": _CONVERSATION,
    "POST /console/chat/{address}/conversations/rename": _CONVERSATION,
    "POST /console/chat/{address}/send": _TURN,
    "POST /console/chat/{address}/again": _TURN,
    "POST /console/chat/{address}/retry": _TURN,
    "POST /console/chat/{address}/stop": _TURN,
    "POST /console/chat/{address}/dismiss": _SHOWS,
    "POST /console/providers/dismiss": _SHOWS,
    "POST /console/theme": "a cookie of one browser",
    "POST /console/language": "a cookie of one browser",
}

COMMANDS: Mapping[str, str] = {
    "up": "provider.created",
    "providers sync": "provider.updated",
    "agents ensure": "agent.ensured",
    "agents switch": "agent.switched",
    "agents repair": "agent.repaired",
    "agents import": "agent.imported",
    "agents delete": "agent.deleted",
    "doctor": "agent.repaired",
    "vendors add": "setting.changed",
    "vendors remove": "setting.changed",
    "letta up": "master_key.made",
    "letta rekey": "master_key.changed",
    "backup create": "backup.made",
    "backup restore": "backup.restored",
    "backup key": "backup.key_sealed",
    "service install": "service.installed",
    "service uninstall": "service.uninstalled",
    "chat": _TURN,
    "login": "prints a link; the session that begins with it is recorded",
    "letta install": "programs, and no data",
    "demo": "a home of its own, which is deleted",
    **dict.fromkeys(("letta down", "letta run", "gateway up", "gateway down", "gateway run"), _PROCESS),
    **{f"practice {word}": _PRACTICE for word in ("up", "down", "status", "keys", "rotate", "fault", "limit")},
    **{f"practice {word}": _PRACTICE for word in ("log", "env", "serve")},
    **dict.fromkeys(
        (
            "agents export",
            "agents list",
            "agents show",
            "audit",
            "backup list",
            "backup verify",
            "doctor explain",
            "gateway status",
            "letta logs",
            "letta status",
            "providers plan",
            "providers status",
            "providers verify",
            "service status",
            "settings",
            "vendors",
            "vendors models",
        ),
        _SHOWS,
    ),
}
