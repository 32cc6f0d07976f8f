"""Vendors: asked directly whether they accept a key and which models they have, and the last observation of each."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import anyio
import httpx2 as httpx
from pydantic import SecretStr

from isabella.system.english import english
from isabella.system.redaction import redact
from isabella.system.urls import AS_SENT_HEADER, GATEWAY_ERROR, client_options, is_gateway_url
from isabella.vendors.local_servers import completed
from isabella.vendors.model_lists import ListedModel, parse_models
from isabella.vendors.wordings import Reason, match_reason

_SAID_LIMIT = 160
#: Statuses with which a proxy or a portal refuses in the vendor's place, with a web page.
_OF_PROXIES = (401, 403, 407, 511)
_GRACE_SECONDS = 0.25  # in which a limit of httpx, whose error says more, comes first
#: Words in the code of a 403 that is about money or quota, not about the key.
_ABOUT_FUNDS = ("quota", "balance", "billing", "payment", "credit", "funds")


class VendorState(StrEnum):
    """The outcome of a vendor's last request."""

    ANSWERS = "answers"
    REFUSES_KEY = "refuses_key"
    REFUSES = "refuses"  # it knows the key, but refuses: no funds, too many requests, no permission
    FAILS = "fails"  # it answers with its own error, or with something that cannot be understood
    UNREACHABLE = "unreachable"
    NOT_ASKED = "not_asked"


_TROUBLE = (VendorState.REFUSES_KEY, VendorState.REFUSES, VendorState.FAILS, VendorState.UNREACHABLE)


@dataclass(frozen=True)
class VendorObservation:
    """An observation of a vendor."""

    state: VendorState
    reason: str  # its own words or what went wrong, redacted, for people
    at: datetime  # the time; for a vendor that was not asked, the time since when

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--json` and the HTTP API show."""
        return {"state": self.state.value, "reason": self.reason, "at": self.at.isoformat(timespec="seconds")}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> VendorObservation:
        """Return the observation in the form of `as_json`; another form raises ValueError, KeyError or TypeError."""
        state, at = VendorState(document["state"]), datetime.fromisoformat(document["at"])
        return cls(state, str(document["reason"]), at)


class KeyVerdict(StrEnum):
    """A vendor's verdict on a key."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # the key itself is refused
    OUT_OF_FUNDS = "out_of_funds"  # the key is known, but its account has nothing left
    RATE_LIMITED = "rate_limited"  # the key is known, but has sent too many requests
    WRONG_ADDRESS = "wrong_address"  # the base URL is wrong
    FAILING = "failing"  # the vendor fails
    UNREACHABLE = "unreachable"  # no answer: nothing is known about the key, and it may be right


_STATES = {
    KeyVerdict.ACCEPTED: VendorState.ANSWERS,
    KeyVerdict.REFUSED: VendorState.REFUSES_KEY,
    KeyVerdict.OUT_OF_FUNDS: VendorState.REFUSES,
    KeyVerdict.RATE_LIMITED: VendorState.REFUSES,
    KeyVerdict.WRONG_ADDRESS: VendorState.FAILS,
    KeyVerdict.FAILING: VendorState.FAILS,
    KeyVerdict.UNREACHABLE: VendorState.UNREACHABLE,
}


class Trouble(StrEnum):
    """The cause that prevented a vendor's answer."""

    DNS = "dns"  # the host name is not known
    TLS = "tls"  # no trustworthy connection
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # refused, reset, or broken off
    HTML = "html"  # a web page instead of JSON: a proxy, or a portal


@dataclass(frozen=True)
class VendorAnswer:
    """A vendor's answer."""

    verdict: KeyVerdict  # its verdict on the key
    said: str  # its own words or what went wrong, redacted, for people
    status: int | None = None  # the HTTP status, if there was an answer
    #: context windows in tokens by model id; None if the vendor does not state the window
    models: Mapping[str, int | None] = field(default_factory=dict)
    #: ids of models that are inactive or for something else than conversations
    unfit: frozenset[str] = frozenset()
    #: everything that the vendor states about its models, by model id
    listed: Mapping[str, ListedModel] = field(default_factory=dict)
    retry_after: float | None = None  # seconds after which the vendor asks to be called again
    trouble: Trouble | None = None  # what prevented an answer of the vendor itself

    @property
    def takes_key(self) -> bool | None:
        """Whether the key is valid; None if that is not known."""
        if self.verdict in (KeyVerdict.ACCEPTED, KeyVerdict.OUT_OF_FUNDS, KeyVerdict.RATE_LIMITED):
            return True
        return False if self.verdict is KeyVerdict.REFUSED else None

    @property
    def vendor_status(self) -> VendorObservation:
        """The observation of the vendor that this answer makes, as of now."""
        if self.trouble is Trouble.HTML and self.status in _OF_PROXIES:
            reason = english(
                "%(status)s: a web page came in place of the vendor's answer, as from a proxy or a portal",
                status=self.status,
            )
            return VendorObservation(VendorState.UNREACHABLE, reason, datetime.now(UTC))
        if self.verdict is KeyVerdict.ACCEPTED:
            reason = english("it accepts the key and lists %(said)s", said=self.said)
        else:
            reason = self.said if self.status is None else f"{self.status}: {self.said}"
        return VendorObservation(_STATES[self.verdict], reason, datetime.now(UTC))


async def ask_vendor(base_url: str, key: SecretStr, *, timeout: float = 10.0) -> VendorAnswer:
    """Read a vendor's model list with a key. It raises nothing for failures of the vendor.

    `base_url` is that of its OpenAI-compatible API, `timeout` is in seconds.
    """
    limit = httpx.Timeout(timeout, connect=min(timeout, 5.0))
    headers = _headers(base_url, key)
    try:
        async with httpx.AsyncClient(timeout=limit, headers=headers, **client_options(base_url)) as client:
            # httpx limits each wait for a piece of the answer; this limits all of them together.
            with anyio.fail_after(timeout + _GRACE_SECONDS):
                response = await client.get(f"{base_url}/models")
            wait = response.headers.get("retry-after")
            if is_gateway_url(base_url) and (refused := _gateway_refusal(response)) is not None:
                return VendorAnswer(KeyVerdict.UNREACHABLE, refused, trouble=Trouble.CONNECTION)
            answer = classify_answer(response.status_code, _json(response), retry_after=wait)
            if answer.listed:
                answer = accepted_answer(await completed(client, base_url, answer.listed))
    except (httpx.TimeoutException, TimeoutError):
        return VendorAnswer(
            KeyVerdict.UNREACHABLE,
            english("no answer within %(seconds)s s", seconds=format(timeout, "g")),
            trouble=Trouble.TIMEOUT,
        )
    except httpx.RequestError as error:
        said = redact(str(error)) or type(error).__name__
        return VendorAnswer(KeyVerdict.UNREACHABLE, said, trouble=_trouble(error))
    if "html" in response.headers.get("content-type", "").lower():
        return replace(answer, trouble=Trouble.HTML)
    return answer


def _headers(base_url: str, key: SecretStr) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
    return headers | {AS_SENT_HEADER: "1"} if is_gateway_url(base_url) else headers


def _gateway_refusal(response: httpx.Response) -> str | None:
    """Return the words of a refusal by the gateway itself, which says nothing of the key; None for the vendor's."""
    document = _json(response)
    error = document.get("error") if response.is_error and isinstance(document, dict) else None
    if not isinstance(error, dict) or error.get("type") != GATEWAY_ERROR:
        return None
    return _message(document) or english(
        "the gateway refused with status %(status_code)s", status_code=response.status_code
    )


async def ask_about_key(url: str, key: SecretStr) -> VendorAnswer:
    """Ask a route that exists for valid keys only. It raises nothing for failures of the vendor."""
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        async with httpx.AsyncClient(timeout=10.0, headers=headers, **client_options(url)) as client:
            response = await client.get(url)
    except httpx.RequestError as error:
        said = redact(str(error)) or type(error).__name__
        return VendorAnswer(KeyVerdict.UNREACHABLE, said, trouble=_trouble(error))
    if response.is_success:
        return VendorAnswer(KeyVerdict.ACCEPTED, english("it knows the key"), response.status_code)
    return classify_answer(response.status_code, _json(response))


def classify_answer(status: int, document: Any, *, retry_after: str | None = None) -> VendorAnswer:
    """Classify an answer by its status and the shape of its JSON; by its words only where these say nothing."""
    said = _message(document) or english("status %(status)s", status=status)
    wait = float(retry_after) if retry_after and retry_after.replace(".", "", 1).isdecimal() else None
    match status:
        case 200 if (listed := parse_models(document)) is not None:
            return accepted_answer(listed)
        case 200:
            return VendorAnswer(KeyVerdict.WRONG_ADDRESS, english("the answer is not a list of models"), status)
        case 402:
            return VendorAnswer(KeyVerdict.OUT_OF_FUNDS, said, status)
        case 403 if any(word in _codes(document) for word in _ABOUT_FUNDS):
            return VendorAnswer(KeyVerdict.OUT_OF_FUNDS, said, status)
        # A 401 or 403 without JSON comes from a proxy, not from the vendor.
        case 401 | 403 if document is not None:
            return VendorAnswer(KeyVerdict.REFUSED, said, status)
        # Gemini and xAI refuse a wrong key with 400, which elsewhere says nothing of the key.
        case 400 if match_reason(Reason.KEY_REFUSED, json.dumps(document)):
            return VendorAnswer(KeyVerdict.REFUSED, said, status)
        # xAI says so with 429, Fireworks with 412.
        case 412 | 429 if match_reason(Reason.OUT_OF_FUNDS, f"{said} {_codes(document)}"):
            return VendorAnswer(KeyVerdict.OUT_OF_FUNDS, said, status)
        case 429:
            return VendorAnswer(KeyVerdict.RATE_LIMITED, said, status, retry_after=wait)
        case 404 | 405 | 301 | 302 | 307 | 308:
            return VendorAnswer(KeyVerdict.WRONG_ADDRESS, said, status)
        case _:
            return VendorAnswer(KeyVerdict.FAILING, said, status)


def accepted_answer(listed: Mapping[str, ListedModel]) -> VendorAnswer:
    """Return the answer of a vendor that lists these models."""
    windows = {id: model.window for id, model in listed.items()}
    unfit = frozenset(id for id, model in listed.items() if not (model.active and model.converses))
    said = english("1 model") if len(listed) == 1 else english("%(count)s models", count=len(listed))
    return VendorAnswer(KeyVerdict.ACCEPTED, said, 200, windows, unfit, listed)


def _trouble(error: BaseException) -> Trouble:
    """Return the kind of a failure, by the first cause of an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return Trouble.DNS
        if isinstance(cause, ssl.SSLError):
            return Trouble.TLS
        cause = cause.__cause__ or cause.__context__
    return Trouble.CONNECTION


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _error_object(document: Any) -> dict[str, Any]:
    if isinstance(document, list) and document:
        document = document[0]  # Gemini answers with an array
    if not isinstance(document, dict):
        return {}
    inner = document.get("error")
    if isinstance(inner, str):
        return {**document, "message": inner}
    return inner if isinstance(inner, dict) else document


def _message(document: Any) -> str | None:
    error = _error_object(document)
    said = error.get("message") or error.get("detail")
    return redact(said)[:_SAID_LIMIT] if isinstance(said, str) else None


def _codes(document: Any) -> str:
    error = _error_object(document)
    return " ".join(str(error.get(name, "")) for name in ("code", "type")).lower()


class VendorStatusBoard:
    """The last observations of all vendors, by the provider's name in Letta. `now` returns the time."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._began = now()
        self._seen: dict[str, VendorObservation] = {}
        self._listed: set[str] = set()  # providers whose observation comes from a model list
        self.changed: Callable[[], None] = lambda: None  # runs after an observation has changed

    def observe(
        self, provider: str, state: VendorState, reason: str, at: datetime | None = None, *, listing: bool = False
    ) -> None:
        """Store an observation of the vendor with the key that Letta holds, unless it is older than the last one.

        `listing` means that the vendor only listed its models. It does so for a key without funds, too, so a list
        changes nothing while the vendor refuses messages.
        """
        status = VendorObservation(state, reason, at or self._now())
        former = self._seen.get(provider)
        if former is not None and (former == status or former.at > status.at):
            return
        if listing and former is not None and former.state in _TROUBLE and provider not in self._listed:
            return
        (self._listed.add if listing else self._listed.discard)(provider)
        self._seen[provider] = status
        self.changed()

    def of(self, provider: str) -> VendorObservation:
        """Return the last observation of a provider's vendor."""
        return self._seen.get(provider) or VendorObservation(
            VendorState.NOT_ASKED, english("not asked since the backend was started"), self._began
        )
