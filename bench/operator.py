"""An operator who rotates keys: at the vendors and in `.env`, and waits for the backend to report it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx

from bench.backend import vendor_variables
from isabella.config.vendors import Vendor, usual_vendors
from isabella.practice import NAMES, PracticeVendors
from isabella.practice.vendor import fingerprint, new_key
from isabella.providers.health import HealthState
from isabella.system.redaction import mask

_PATIENCE = 120.0
_LOOK_EVERY = 0.1
#: A type other than the provider's default; changing it takes DELETE and POST.
_OTHER_TYPE = {"cerebras": "openai", "groq": "openai", "mistral": "openai", "longcat": "mistral"}
_VENDORS = {vendor.name: vendor for vendor in usual_vendors()}


class Operator:
    """Rotates keys as documented, and remembers every key of each vendor.

    Args:
        vendors: where keys are made and revoked.
        env_file: what the backend reads.
    """

    def __init__(self, vendors: PracticeVendors, env_file: Path) -> None:
        self._vendors = vendors
        self._env_file = env_file
        self._types = {name: _VENDORS[name].type for name in NAMES}
        self._keys = {name: [vendors.key(name).get_secret_value()] for name in NAMES}
        self.write()

    def write(self) -> None:
        """Write `.env` with the latest key of each vendor and the type of its provider."""
        variables = vendor_variables(self._vendors)
        for name, vendor in _VENDORS.items():
            variables[vendor.api_key_env] = self._keys[name][-1]
            variables[_type_variable(vendor)] = self._types[name]
        self._env_file.write_text("".join(f"{variable}={value}\n" for variable, value in variables.items()))

    def make(self, vendor: str) -> None:
        """Make a new key that the vendor does not accept yet."""
        self._keys[vendor].append(new_key(vendor))

    def accept(self, vendor: str) -> None:
        """Let the vendor accept the new key and the previous one."""
        self._vendors.accept(vendor, self._keys[vendor][:-3:-1])

    def revoke(self, vendor: str) -> None:
        """Let the vendor accept only the new key."""
        self._vendors.accept(vendor, self._keys[vendor][-1:])

    def change_type(self, vendor: str) -> None:
        """Switch the provider to its other type."""
        own = _VENDORS[vendor].type
        self._types[vendor] = _OTHER_TYPE[vendor] if self._types[vendor] == own else own

    async def until(self, kind: HealthState, vendors: Sequence[str], backend: httpx.AsyncClient) -> None:
        """Poll the backend until it reports this state for the latest key of each of these vendors."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            told = (await backend.get("/api/providers")).raise_for_status().json()["providers"]
            shown = {entry["vendor"]: entry for entry in told}
            behind = [name for name in vendors if not self._stands(shown[name], kind)]
            if not behind:
                return
            said = "; ".join(f"{name}: {shown[name]['reason']}" for name in behind)
            assert time.monotonic() < deadline, f"not {kind.value} after {_PATIENCE:g} s: {said}"
            await anyio.sleep(_LOOK_EVERY)

    def asked(self) -> int:
        """Return the number of requests at the vendors since their logs were cleared."""
        return sum(len(self._vendors.requests(name)) for name in NAMES)

    def foreign(self) -> int:
        """Return how many of them carried a key that was not made for that vendor."""
        count = 0
        for name in NAMES:
            own = {fingerprint(key) for key in self._keys[name]}
            count += sum(request.key_sha256 not in own for request in self._vendors.requests(name))
        return count

    def last_key_arrived(self, vendor: str) -> bool:
        """Return whether the last chat request at the vendor carried its latest key."""
        chats = [request for request in self._vendors.requests(vendor) if request.path.endswith("/chat/completions")]
        return bool(chats) and chats[-1].carries(self._keys[vendor][-1])

    def _stands(self, entry: dict[str, Any], kind: HealthState) -> bool:
        vendor = entry["vendor"]
        wanted = (kind.value, self._types[vendor], mask(self._keys[vendor][-1]))
        return (entry["condition"], entry["type"], entry["key"]) == wanted


def _type_variable(vendor: Vendor) -> str:
    assert vendor.type_env is not None
    return vendor.type_env
