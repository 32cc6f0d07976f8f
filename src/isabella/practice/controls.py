"""The controls of practice vendors that run in another process: keys, faults, request logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import httpx2
from pydantic import SecretStr, TypeAdapter

from isabella.errors import PracticeError, UnverifiedPeer
from isabella.practice import keyring
from isabella.practice.control import SERVICE, TOKEN_HEADER
from isabella.practice.faults import VendorFault
from isabella.practice.profiles import NAMES
from isabella.practice.requests import Request
from isabella.system.peers import Peer, hooks

_REQUESTS = TypeAdapter(list[Request])
_TIMEOUT = 5.0


class Controls:
    """The controls of practice vendors at an address.

    Args:
        address: where they are, with the port and without a path.
        token: what they ask for.
        peer: by which their process is known before anything is sent there.
    """

    def __init__(self, address: str, token: SecretStr, peer: Peer) -> None:
        self._address = address
        self._token = token
        self._peer = peer

    def answers(self) -> bool:
        """Whether these very vendors answer: their health, and their controls with this token."""
        try:
            with self._client() as client:
                health = client.get("/practice/health").json()
                known = isinstance(health, dict) and health.get("service") == SERVICE
                return known and client.get(f"/practice/{NAMES[0]}/keys").status_code == 200
        except (httpx2.HTTPError, ValueError, UnverifiedPeer):
            return False

    def keys(self, vendor: str) -> list[str]:
        """The accepted keys, masked."""
        return [str(key["masked"]) for key in self._ask("GET", vendor, "keys")["accepted"]]

    def accept(self, vendor: str, keys: Sequence[str | SecretStr]) -> None:
        """Replace the vendor's list of accepted keys; it outlives a restart."""
        plain = [key.get_secret_value() if isinstance(key, SecretStr) else key for key in keys]
        self._ask("PUT", vendor, "keys", {"accepted": plain})

    def fault(self, vendor: str, fault: VendorFault) -> None:
        """Switch a fault on, beside those that are on."""
        self._ask("POST", vendor, "faults", asdict(fault))

    def faults(self, vendor: str) -> list[dict[str, Any]]:
        """The faults that are on, each with how many times are left of it."""
        return list(self._ask("GET", vendor, "faults")["faults"])

    def clear(self, vendor: str | None = None) -> None:
        """Switch all faults off, at one vendor or at all."""
        for name in NAMES if vendor is None else (vendor,):
            self._ask("DELETE", name, "faults")

    def strict(self, vendor: str, strict: bool | None = True) -> None:
        """Have the vendor refuse what the real one is known to refuse (see `strictness`); None: what is certain."""
        self._ask("PUT", vendor, "strict", {"strict": strict})

    def requests(self, vendor: str, *, after: int = 0) -> list[Request]:
        """What has arrived at the vendor, oldest first."""
        return _REQUESTS.validate_python(self._ask("GET", vendor, f"requests?after={after}")["requests"])

    def forget(self) -> None:
        """Clear the request logs of all vendors."""
        for name in NAMES:
            self._ask("DELETE", name, "requests")

    def rotate(self, vendor: str, accepted: Sequence[str], *, keep_old: bool = False) -> SecretStr:
        """Put a new key on the vendor's list, alone or before those in `accepted`."""
        key = keyring.new_key(vendor)
        self.accept(vendor, [key, *(accepted if keep_old else ())])
        return SecretStr(key)

    def _client(self) -> httpx2.Client:
        # A proxy that the environment names has no business between two processes of one machine.
        headers = {TOKEN_HEADER: self._token.get_secret_value()}
        return httpx2.Client(
            base_url=self._address, headers=headers, timeout=_TIMEOUT, trust_env=False, event_hooks=hooks(self._peer)
        )

    def _ask(self, method: str, vendor: str, what: str, body: object = None) -> Any:
        try:
            with self._client() as client:
                response = client.request(method, f"/practice/{vendor}/{what}", json=body)
                answer = response.json() if response.content else {}
        except (httpx2.HTTPError, ValueError) as error:
            raise PracticeError(
                f"The practice vendors at {self._address} do not answer ({type(error).__name__}).",
                remedy="Start them: isabella practice up",
            ) from None
        if response.is_error:
            raise PracticeError(f"The practice vendors refused: {answer.get('error', response.status_code)}")
        return answer
