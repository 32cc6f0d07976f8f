"""A client of the control API of this home's gateway, for the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import structlog
from pydantic import BaseModel, ConfigDict

from isabella.config.gateway_address import SERVICE, gateway_address, mark_file
from isabella.config.settings import Settings
from isabella.errors import GatewayError, UnverifiedPeer
from isabella.gateway import process
from isabella.gateway.traffic import Outcome, OutcomeMark, StoppedKey, VendorTraffic
from isabella.providers.report import GatewayState, GatewayStatus
from isabella.system.daemon import Daemon, RunningDaemon
from isabella.system.english import english
from isabella.system.peers import async_hooks
from isabella.system.urls import client_options, is_loopback

log = structlog.get_logger()

_SECONDS = 2.0
_HEALTH = "/control/health"


class GatewayProvider(BaseModel):
    """A provider of the gateway: the vendor's own base URL, its key in masked form, and why it cannot be used."""

    model_config = ConfigDict(frozen=True)

    upstream: str
    key: str | None = None
    problem: str | None = None


class GatewayTraffic(BaseModel):
    """The gateway's record of its requests."""

    model_config = ConfigDict(frozen=True)

    number: int
    open: int
    providers: dict[str, GatewayProvider]
    vendors: dict[str, VendorTraffic]
    outcomes: list[Outcome] = field(default_factory=list)
    stopped_keys: list[StoppedKey] = field(default_factory=list)


async def gateway_status(settings: Settings) -> GatewayStatus | None:
    """Return whether the gateway of these settings runs; None if Letta is to call the vendors directly."""
    address = gateway_address(settings)
    if address is None:
        return None
    if not process.starts_here(settings):
        if is_loopback(address) and not is_loopback(settings.letta_base_url or address):
            return GatewayStatus(address, GatewayState.UNKNOWN, english("it is on Letta's machine"))
        return await _status_at(address)
    daemon = process.daemon(settings.home)
    running = daemon.recorded()
    if running is None:
        return GatewayStatus(address, GatewayState.DOWN, english("it was not started"), daemon.remedy)
    try:
        await _ask(running.address, async_hooks(daemon.peer))
    except (httpx.HTTPError, ValueError, UnverifiedPeer) as error:
        reason = english("its process does not answer (%(name)s)", name=type(error).__name__)
        return GatewayStatus(address, GatewayState.DOWN, reason, english("Its log: %(log)s", log=daemon.log))
    return GatewayStatus(address, GatewayState.RUNS)


async def _status_at(address: str) -> GatewayStatus:
    """Return whether a gateway answers at a configured URL, which may be known to Letta's machine only."""
    try:
        await _ask(address)
    except httpx.TransportError as error:
        state = GatewayState.DOWN if is_loopback(address) else GatewayState.UNKNOWN
        kind = type(error).__name__
        reason = english("it cannot be reached from here (%(error)s)", error=kind)
        if is_loopback(address):
            reason = english("it cannot be reached (%(error)s)", error=kind)
        return GatewayStatus(address, state, reason, english("Start it beside Letta: isabella gateway run"))
    except (httpx.HTTPError, ValueError):
        reason = english("the server there is not Isabella's gateway")
        return GatewayStatus(address, GatewayState.DOWN, reason, english("Correct ISABELLA_GATEWAY."))
    return GatewayStatus(address, GatewayState.RUNS)


async def _ask(address: str, hooks: Mapping[str, list[Any]] | None = None) -> None:
    """Ask for the health of a gateway.

    Raises:
        httpx.HTTPError: it does not answer, or with an error.
        ValueError: another program answers.
        UnverifiedPeer: a hook found that another process listens there.
    """
    async with httpx.AsyncClient(
        base_url=address, timeout=_SECONDS, event_hooks=hooks, **client_options(address)
    ) as client:
        document = (await client.get(_HEALTH)).raise_for_status().json()
    if not isinstance(document, dict) or document.get("service") != SERVICE:
        raise ValueError("not a gateway")


def read_traffic(home: Path, running: RunningDaemon) -> GatewayTraffic:
    """Return the traffic of a running gateway, after it has read its configuration again.

    Raises:
        GatewayError: it does not answer.
    """
    daemon = process.daemon(home)
    try:
        with daemon.client(running) as client:
            response = client.get("/control/traffic", params={"refresh": "yes"})
            return GatewayTraffic.model_validate(response.raise_for_status().json())
    except (httpx.HTTPError, ValueError, UnverifiedPeer) as error:
        raise _no_answer(daemon, running, error) from None


def _no_answer(daemon: Daemon, running: RunningDaemon, error: Exception) -> GatewayError:
    return GatewayError(
        english(
            "The gateway at %(address)s does not answer (%(name)s).",
            address=running.address,
            name=type(error).__name__,
        ),
        remedy=english("Its log: %(log)s", log=daemon.log),
    )


@dataclass
class GatewayClient:
    """The gateway of a home. Its process is found again if it was restarted.

    Args:
        settings: the settings, with the home of the gateway.
    """

    settings: Settings
    _running: RunningDaemon | None = field(default=None, init=False)
    _client: httpx.AsyncClient | None = field(default=None, init=False)

    async def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.aclose()

    async def traffic(self, after: int = 0) -> GatewayTraffic:
        """Return the gateway's record; of outcomes and stopped keys only those after this number.

        Raises:
            GatewayError: it does not answer.
        """
        return GatewayTraffic.model_validate(await self._request("GET", "/control/traffic", {"after": str(after)}))

    def mark(self) -> str | None:
        """Return the mark of the gateway's outcomes: it changes with each one. None if it cannot be read."""
        return OutcomeMark.read(mark_file(process.daemon(self.settings.home).folder))

    async def last_outcome(self, agent_id: str, since: float) -> Outcome | None:
        """Return how the last request of an agent that was not answered in full since then ended, if one was not.

        `since` is in seconds since the epoch.

        Raises:
            GatewayError: the gateway does not answer.
        """
        told = GatewayTraffic.model_validate(await self._request("GET", "/control/traffic", {"agent": agent_id}))
        return next((one for one in reversed(told.outcomes) if one.agent == agent_id and one.at >= since), None)

    async def end_calls(self, agent_id: str) -> None:
        """End the requests of an agent at the vendor. A gateway that does not answer notices by itself."""
        try:
            await self._request("DELETE", "/control/calls", {"agent": agent_id})
        except GatewayError as error:
            log.info("requests not ended", agent=agent_id, error=error.what)

    async def begin_trace(self, agent_id: str, traceparent: str) -> None:
        """Record an agent's requests within a span. A gateway that does not answer records none."""
        try:
            await self._request("PUT", "/control/traces", {"agent": agent_id, "traceparent": traceparent})
        except GatewayError as error:
            log.info("request not traced", agent=agent_id, error=error.what)

    async def end_trace(self, agent_id: str) -> None:
        """Record later requests of an agent outside of that span."""
        try:
            await self._request("DELETE", "/control/traces", {"agent": agent_id})
        except GatewayError as error:
            log.info("request not traced", agent=agent_id, error=error.what)

    async def _request(self, method: str, path: str, query: dict[str, str]) -> Any:
        daemon = process.daemon(self.settings.home)
        recorded = daemon.recorded()
        if recorded is None:
            raise GatewayError(english("The gateway is not running."), remedy=daemon.remedy)
        if recorded != self._running or self._client is None:
            await self.close()
            self._running = recorded
            self._client = httpx.AsyncClient(
                base_url=recorded.address,
                headers={daemon.token_header: recorded.token.get_secret_value()},
                timeout=_SECONDS,
                event_hooks=async_hooks(daemon.peer),
                **client_options(recorded.address),
            )
        try:
            response = await self._client.request(method, path, params=query)
            response.raise_for_status()
            return response.json()
        except (httpx.HTTPError, ValueError, UnverifiedPeer) as error:
            raise _no_answer(daemon, recorded, error) from None
