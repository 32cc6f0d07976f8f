"""All that the pages stand on: the backend's own services, and what the console keeps beside them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

import anyio.abc
from pydantic import SecretStr

from isabella.agents.service import AgentService
from isabella.config.settings import Settings
from isabella.errors import NotReady
from isabella.letta.connection import Connection
from isabella.server.event_log import EventLog
from isabella.server.readiness import Readiness
from isabella.turns.service import TurnService
from isabella.watch.watcher import Watcher

_WAIT = "The page goes on by itself when the start has come so far."


class ConsoleContext:
    """What the pages stand on.

    Args:
        state: the state of the backend's application.
        event_log: what happened lately.
    """

    def __init__(self, state: Any, event_log: EventLog) -> None:
        self._state = state
        self.event_log = event_log
        #: Where work goes on that no request waits for; there while the backend runs.
        self.tasks: anyio.abc.TaskGroup | None = None
        token = state.token
        # One that survives a restart, so that a page that was open may go on.
        secret = token.get_secret_value() if isinstance(token, SecretStr) else secrets.token_urlsafe(32)
        self.csrf = hmac.new(secret.encode(), b"isabella csrf", hashlib.sha256).hexdigest()

    @property
    def readiness(self) -> Readiness:
        """How far the backend has come."""
        found = self._state.readiness
        if not isinstance(found, Readiness):
            raise TypeError("the application was not made by create_app")
        return found

    @property
    def agent_service(self) -> AgentService:
        """The agents.

        Raises:
            NotReady: the backend has not come up.
        """
        found = getattr(self._state, "agent_service", None)
        if not isinstance(found, AgentService):
            raise NotReady("The agents are not there yet.", remedy=_WAIT)
        return found

    @property
    def turn_service(self) -> TurnService:
        """Where turns are taken on.

        Raises:
            NotReady: the backend has not come up.
        """
        found = getattr(self._state, "turn_service", None)
        if not isinstance(found, TurnService):
            raise NotReady("Nobody can be spoken to yet.", remedy=_WAIT)
        return found

    @property
    def up(self) -> bool:
        """Whether the agents are there."""
        return isinstance(getattr(self._state, "agent_service", None), AgentService)

    @property
    def watcher(self) -> Watcher | None:
        """Who keeps watch; None where nobody does."""
        found = getattr(self._state, "watcher", None)
        return found if isinstance(found, Watcher) else None

    @property
    def settings(self) -> Settings:
        """What is in force now.

        Raises:
            NotReady: the backend has not come up.
        """
        return self.agent_service.settings if self.watcher is None else self.watcher.settings

    @property
    def connection(self) -> Connection:
        """Which Letta.

        Raises:
            NotReady: the backend has not come up.
        """
        return self.agent_service.connection

    def start(self, function: Any, *arguments: Any) -> None:
        """Let work go on in the backend, whoever asked for it.

        Raises:
            NotReady: the backend has not come up, or is going down.
        """
        if self.tasks is None:
            raise NotReady("The backend has not come up.", remedy=_WAIT)
        self.tasks.start_soon(function, *arguments)
