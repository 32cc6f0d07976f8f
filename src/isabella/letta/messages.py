"""Letta's messages over REST: turns, history, and messages that are added without a turn."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from isabella.letta import paths
from isabella.letta.http import LettaHttp

#: More messages than one run stores.
_OF_A_RUN = 200
_ACTIVE_RUNS = 1000


class Messages:
    """The messages of agents. Every method raises `LettaError`."""

    def __init__(self, http: LettaHttp) -> None:
        self._http = http

    async def page(self, agent_id: str, *, limit: int, order: str, **options: Any) -> list[dict[str, Any]]:
        """Return messages of an agent, oldest first.

        Args:
            agent_id: the agent.
            limit: the most messages to return; one message may be several rows with the same id.
            order: `asc` takes them from the beginning of the history, `desc` from its end.
            options: Letta's `before`, `after` and `use_assistant_message`.
        """
        rows: list[dict[str, Any]] = await self._http.get(
            paths.agent(agent_id, "messages"), limit=limit, order=order, **options
        )
        return rows

    async def of_run(self, run_id: str) -> list[dict[str, Any]]:
        """Return what Letta has stored of a run."""
        rows = await self._http.get(paths.run_messages(run_id), limit=_OF_A_RUN)
        return [row for row in rows if isinstance(row, dict)]

    async def active_runs(self) -> list[dict[str, Any]]:
        """Return the runs that are under way, of all agents."""
        rows = await self._http.get(paths.RUNS, active=True, limit=_ACTIVE_RUNS)
        return [row for row in rows if isinstance(row, dict)]

    async def latest_runs(self, agent_id: str, limit: int) -> list[dict[str, Any]]:
        """Return the latest runs of an agent, the newest first."""
        rows = await self._http.get(paths.RUNS, agent_id=agent_id, limit=limit, order="desc")
        return [row for row in rows if isinstance(row, dict)]

    async def send(self, agent_id: str, text: str, **options: Any) -> dict[str, Any]:
        """Send a message of the user and return the whole turn."""
        answer: dict[str, Any] = await self._http.post(
            paths.agent(agent_id, "messages"), {"messages": [_by_user(text)], "streaming": False, **options}
        )
        return answer

    def stream(self, agent_id: str, text: str) -> AsyncGenerator[str, None]:
        """Send a message of the user and yield the lines of Letta's event stream. It sends a ping every 30 s."""
        body = {"messages": [_by_user(text)], "streaming": True, "stream_tokens": True, "include_pings": True}
        return self._http.stream(paths.agent(agent_id, "messages"), body)

    async def cancel(self, agent_id: str, run_id: str | None) -> None:
        """Cancel a run, or without its id every run of the agent. Letta answers 409 if none is active."""
        body = {} if run_id is None else {"run_ids": [run_id]}
        await self._http.post(paths.agent(agent_id, "messages", "cancel"), body)

    async def capture(self, agent_id: str, user_text: str, answer: str, *, model: str) -> None:
        """Add a message of the user, unless it is empty, and its answer to the history, and not to the context."""
        body: Mapping[str, Any] = {
            "provider": "isabella",
            "model": model,
            "request_messages": [_by_user(user_text)] if user_text else [],
            "response_dict": {"content": answer},
        }
        await self._http.post(paths.agent(agent_id, "messages", "capture"), body)


def _by_user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
