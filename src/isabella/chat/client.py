"""The line to a backend: what a chat asks of it, over HTTP."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2 as httpx
from pydantic import SecretStr

from isabella.errors import IsabellaError
from isabella.system.peers import Peer, hooks

_SECONDS = 60.0
#: A backend sends a ping every 15 s, whatever happens in the turn.
_SILENCE = 60.0


@dataclass(frozen=True)
class TurnEvent:
    """One event of a turn.

    Attributes:
        kind: what happened.
        data: what belongs to it.
    """

    kind: str
    data: dict[str, Any]


class BackendClient:
    """A backend, for one agent.

    Args:
        address: where it listens.
        token: what it asks for.
        agent: the agent's name.
        peer: by which its process is known before anything is sent there; None where this process serves it.
    """

    def __init__(self, address: str, token: SecretStr, agent: str, peer: Peer | None = None) -> None:
        self.agent = agent
        self.address = address
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token.get_secret_value()}"},
            timeout=httpx.Timeout(_SECONDS, connect=5.0),
            trust_env=False,
            event_hooks=hooks(peer),
        )

    def __enter__(self) -> Self:
        """Open it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._client.close()

    def about(self) -> dict[str, Any]:
        """The agent: its name and model.

        Raises:
            IsabellaError: there is no such agent, or the backend does not answer.
        """
        found: dict[str, Any] = self._ask("GET", "")
        return found

    def handles(self) -> list[str]:
        """The models that would work now."""
        return [str(handle) for handle in self._ask("GET", "/api/models", whole=True)["handles"]]

    def switch(self, handle: str) -> tuple[str, list[str]]:
        """Switch the agent to another model; its handle, and what is to be known about it."""
        done = self._ask("POST", "/switch", json={"handle": handle})
        return str(done["model"]["handle"]), [str(note) for note in done["notes"]]

    def blocks(self) -> list[tuple[str, str]]:
        """The agent's memory blocks: label and text."""
        return [(block["label"], block["value"]) for block in self._ask("GET", "/blocks")["blocks"]]

    def remember(self, text: str) -> None:
        """Write a passage into the agent's archival memory."""
        self._ask("POST", "/passages", json={"text": text})

    def search(self, query: str) -> list[str]:
        """What the agent has in archival memory and history about something, as lines."""
        found = self._ask("GET", "/search", params={"q": query})
        passages = [f"archive: {passage['text']}" for passage in found["passages"]]
        return passages + [f"{entry['kind']}: {entry['text']}" for entry in found["messages"] if entry.get("text")]

    def export(self) -> bytes:
        """The agent as a file."""
        return self._request("GET", f"/api/agents/{quote(self.agent)}/export").content

    def say(self, message: str) -> TurnStream:
        """Say something."""
        return TurnStream(self._client, f"/api/agents/{quote(self.agent)}/turns", message)

    def _ask(self, method: str, path: str, *, whole: bool = False, **options: Any) -> Any:
        return self._request(method, path if whole else f"/api/agents/{quote(self.agent)}{path}", **options).json()

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise _lost(self.address, error) from None
        if response.status_code >= 400:
            raise _refusal(response)
        return response


class TurnStream:
    """A turn under way. Iterating over it gives its events; `stop` ends it, from another thread or a signal."""

    def __init__(self, client: httpx.Client, path: str, message: str) -> None:
        self._client = client
        self._path = path
        self._message = message
        self._events: queue.Queue[TurnEvent | IsabellaError | None] = queue.Queue()
        self._id: str | None = None
        # In a thread, so that an interruption of the reader does not tear the connection: that would lose the end.
        threading.Thread(target=self._hear, name="turn", daemon=True).start()

    def __iter__(self) -> Iterator[TurnEvent]:
        """The events as they come.

        Raises:
            IsabellaError: the backend refuses the turn, or is lost in the middle.
        """
        while (event := self._events.get()) is not None:
            if isinstance(event, IsabellaError):
                raise event
            yield event

    def stop(self) -> None:
        """Have it end. Its end event still comes."""
        if self._id is not None:
            path = f"{self._path}/{self._id}"
            threading.Thread(target=self._delete, args=(path,), name="stop", daemon=True).start()

    def _delete(self, path: str) -> None:
        try:
            self._client.delete(path)
        except httpx.TransportError as error:
            self._events.put(_lost(str(self._client.base_url), error))
        except IsabellaError as error:
            self._events.put(error)

    def _hear(self) -> None:
        try:
            with self._client.stream(
                "POST", self._path, json={"message": self._message}, timeout=httpx.Timeout(_SILENCE, connect=5.0)
            ) as response:
                if response.status_code >= 400:
                    response.read()
                    self._events.put(_refusal(response))
                    return
                for event in _events(response.iter_lines()):
                    if event.kind == "turn":
                        self._id = event.data["id"]
                    self._events.put(event)
        except httpx.TransportError as error:
            self._events.put(_lost(str(self._client.base_url), error))
        except IsabellaError as error:
            self._events.put(error)
        except Exception as error:  # noqa: BLE001 - whoever waits has to be told
            self._events.put(IsabellaError(f"The backend's answer cannot be understood: {type(error).__name__}."))
        finally:
            self._events.put(None)


def _events(lines: Iterator[str]) -> Iterator[TurnEvent]:
    kind = ""
    for line in lines:
        if line.startswith("event:"):
            kind = line[6:].strip()
        elif line.startswith("data:") and kind:
            yield TurnEvent(kind, json.loads(line[5:]))


def _refusal(response: httpx.Response) -> IsabellaError:
    try:
        error = response.json()["error"]
        return IsabellaError(str(error["message"]), remedy=error.get("remedy"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return IsabellaError(f"The backend answered with {response.status_code}.")


def _lost(address: str, error: Exception) -> IsabellaError:
    return IsabellaError(
        f"The backend at {address} does not answer ({type(error).__name__}).",
        remedy="Is `isabella up` still running?",
    )
