"""The catalog of known vendors, read from `vendors.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from isabella.config.quirks import Quirks


@dataclass(frozen=True)
class Vendor:
    """A company that serves models."""

    name: str  #: its name in Isabella, for instance `groq`
    title: str
    provider: str  #: the name of its provider in Letta, with which handles begin
    type: str
    base_url: str  #: the base URL of its OpenAI-compatible API
    api_key_env: str
    #: overrides the base URL; None for a vendor declared in isabella.toml, as is `type_env`
    base_url_env: str | None = None
    type_env: str | None = None
    key_prefix: str | None = None  #: the prefix of its keys, if they all have one
    keys_page: str | None = None  #: the page where keys are created
    default_model: str | None = None  #: the model to start with; None for the first that the vendor lists
    default_window: int = 32_768  #: context window in tokens of an unknown model
    models: Mapping[str, int] = field(default_factory=dict)  #: context windows in tokens by model id
    #: what its chat API accepts, where it differs from OpenAI's
    quirks: Quirks = field(default_factory=Quirks)

    @property
    def api_key_file_env(self) -> str:
        """The variable with the path of a file that holds the key."""
        return f"{self.api_key_env}_FILE"

    @property
    def call_id(self) -> str | None:
        """The required form of tool call ids, as a regular expression; None if any is accepted."""
        length = self.quirks.tool_call_id_length
        return None if length is None else f"[a-zA-Z0-9]{{{length}}}"


@cache
def known_vendors() -> tuple[Vendor, ...]:
    """Return the vendors of the catalog, in its order."""
    document = tomllib.loads(resources.files("isabella.config").joinpath("vendors.toml").read_text("utf-8"))
    return tuple(_vendor(**entry) for entry in document["vendors"])


def _vendor(*, variables: str, quirks: Mapping[str, Any] | None = None, **entry: Any) -> Vendor:
    return Vendor(
        quirks=Quirks(**(quirks or {})),
        api_key_env=f"{variables}_API_KEY",
        base_url_env=f"{variables}_BASE_URL",
        type_env=f"{variables}_PROVIDER_TYPE",
        **entry,
    )


def vendor_of_prefix(key: str) -> Vendor | None:
    """Return the vendor whose key prefix this key has."""
    return next((v for v in known_vendors() if v.key_prefix and key.startswith(v.key_prefix)), None)
