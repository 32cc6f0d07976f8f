"""A client of the running backend: its providers, and the chat with one agent."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx2 as httpx
from pydantic import SecretStr

from isabella.errors import IsabellaError
from isabella.system.peers import Peer, hooks
from isabella.system.urls import client_options

_LOG = "The log of the backend says why."
_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 0.3
_SECONDS = 60.0
#: The backend sends a ping every 15 s during a turn.
_SILENCE_SECONDS = 60.0


@dataclass(frozen=True)
class TurnEvent:
    """A server-sent event of a turn: its type and its fields."""

    kind: str
    data: dict[str, Any]


class BackendClient:
    """A client of the backend, for one agent. Its methods raise `IsabellaError` if the backend refuses or is lost.

    `peer` identifies the backend's process before anything is sent to it; it is None for a backend in this process.
    """

    def __init__(
        self, address: str, token: SecretStr, agent: str, peer: Peer | None = None, *, timeout: float = _SECONDS
    ) -> None:
        self.agent = agent
        #: The id of the conversation that messages are sent to; None for the agent's default one.
        self.conversation: str | None = None
        self.address = address
        self._path = f"/api/agents/{quote(agent)}"
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token.get_secret_value()}"},
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            verify=client_options(address)["verify"],
            trust_env=False,
            event_hooks=hooks(peer),
        )

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def wait_until_ready(self, seconds: float, say: Callable[[str], None]) -> None:
        """Wait while the backend starts, or restarts Letta; `say` receives each reason once.

        Raises `IsabellaError` if it ends meanwhile. After `seconds` without another reason, the wait ends as well.
        """
        said, deadline = "", time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                response = self._client.get("/ready")
                ready = response.json()
            except (httpx.TransportError, ValueError) as error:
                raise _unreachable(self.address, error) from None
            if ready.get("status") not in ("starting", "interrupted"):
                return
            reasons = " ".join(ready.get("reasons", ()))
            if reasons != said:
                say(f"Waiting: {reasons}")
                said, deadline = reasons, time.monotonic() + seconds
            time.sleep(_LOOK_SECONDS)

    def providers(self) -> dict[str, Any]:
        """Return the providers as the backend's API describes them."""
        return self._json("GET", "/api/providers")

    def about(self) -> dict[str, Any]:
        """Return the agent as the backend's API describes it."""
        return self._json("GET", self._path)

    def handles(self) -> list[str]:
        """Return the handles of the models that would work now."""
        return [str(handle) for handle in self._json("GET", "/api/models")["handles"]]

    def switch(self, handle: str) -> tuple[str, list[str]]:
        """Switch the agent to another model. Returns the new handle, and notes for the user."""
        switched = self._json("POST", f"{self._path}/switch", json={"handle": handle})
        return str(switched["model"]["handle"]), [str(note) for note in switched["notes"]]

    def blocks(self) -> list[tuple[str, str]]:
        """Return the label and the text of each block of the agent's core memory."""
        return [(block["label"], block["value"]) for block in self._json("GET", f"{self._path}/blocks")["blocks"]]

    def remember(self, text: str) -> None:
        """Add a passage to the agent's archival memory."""
        self._request("POST", f"{self._path}/passages", json={"text": text})

    def search(self, query: str) -> list[str]:
        """Search the agent's archival memory and the conversation. Returns the matches as lines."""
        within = {} if self.conversation is None else {"conversation": self.conversation}
        document = self._json("GET", f"{self._path}/search", params={"q": query, **within})
        passages = [f"archive: {passage['text']}" for passage in document["passages"]]
        return passages + [f"{entry['kind']}: {entry['text']}" for entry in document["messages"] if entry.get("text")]

    def export(self) -> bytes:
        """Return the agent as the content of an agent file."""
        return self._request("GET", f"{self._path}/export").content

    def send(self, message: str) -> TurnStream:
        """Send a message to the agent. Returns the stream of the turn's events."""
        return TurnStream(self._client, f"{self._path}/turns", message, self.conversation)

    def conversations(self) -> list[tuple[str, str]]:
        """Return the id and the name of each conversation that is not archived: the default one, then the latest."""
        known = self._json("GET", f"{self._path}/conversations")["conversations"]
        return [(str(each["id"]), str(each["name"])) for each in known if not each["archived"]]

    def use_conversation(self, wanted: str) -> str:
        """Send later messages to the conversation with this id or name, or to a `new` one. Returns its name."""
        if wanted == "new":
            begun = self._json("POST", f"{self._path}/conversations", json={})
            self.conversation = str(begun["id"])
            return str(begun["name"])
        known = self._json("GET", f"{self._path}/conversations")["conversations"]
        for same in (
            lambda each: each["id"] == wanted,
            lambda each: each["name"] == wanted and not each["archived"],
            lambda each: each["name"].casefold() == wanted.casefold(),
        ):
            for each in filter(same, known):
                self.conversation = str(each["id"])
                return str(each["name"])
        raise IsabellaError(
            f"{self.agent} has no conversation {wanted[:100]!r}.",
            remedy="/conversation in `isabella chat` lists them; `new` begins one.",
        )

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        document: dict[str, Any] = self._request(method, path, **options).json()
        return document

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise _unreachable(self.address, error) from None
        if response.status_code >= 400:
            raise _refusal(response)
        return response


class TurnStream:
    """The events of a turn, iterable once. `stop` cancels the turn from another thread or a signal handler."""

    def __init__(self, client: httpx.Client, path: str, message: str, conversation: str | None = None) -> None:
        self._client = client
        self._path = path
        self._body = (
            {"message": message} if conversation is None else {"message": message, "conversation": conversation}
        )
        self._events: queue.Queue[TurnEvent | IsabellaError | None] = queue.Queue()
        self._id: str | None = None
        # A thread, so that Ctrl-C does not break the connection: the end event would be lost.
        threading.Thread(target=self._receive, name="turn", daemon=True).start()

    def __iter__(self) -> Iterator[TurnEvent]:
        """Iterate over the events as they arrive; raise `IsabellaError` if the backend refuses or is lost."""
        while (event := self._events.get()) is not None:
            if isinstance(event, IsabellaError):
                raise event
            yield event

    def stop(self) -> None:
        """Cancel the turn. Its end event still follows."""
        if self._id is not None:
            path = f"{self._path}/{self._id}"
            threading.Thread(target=self._delete, args=(path,), name="stop", daemon=True).start()

    def _delete(self, path: str) -> None:
        try:
            self._client.delete(path)
        except Exception as error:  # noqa: BLE001 - the reader of the queue raises it
            self._events.put(self._explain(error))

    def _receive(self) -> None:
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
        try:
            with self._client.stream("POST", self._path, json=self._body, timeout=timeout) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refusal(response)
                for event in _parse_events(response.iter_lines()):
                    if event.kind == "turn":
                        self._id = event.data["id"]
                    self._events.put(event)
        except Exception as error:  # noqa: BLE001 - the reader of the queue raises it, and must not wait for ever
            self._events.put(self._explain(error))
        finally:
            self._events.put(None)

    def _explain(self, error: Exception) -> IsabellaError:
        if isinstance(error, httpx.TransportError):
            return _unreachable(str(self._client.base_url), error)
        if isinstance(error, IsabellaError):
            return error
        return IsabellaError(f"The response of the backend is malformed ({type(error).__name__}).", remedy=_LOG)


def _parse_events(lines: Iterator[str]) -> Iterator[TurnEvent]:
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
        return IsabellaError(f"The backend responded with status {response.status_code}.", remedy=_LOG)


def _unreachable(address: str, error: Exception) -> IsabellaError:
    return IsabellaError(
        f"The backend at {address} does not answer ({type(error).__name__}).",
        remedy="Check that `isabella up` is still running.",
    )
