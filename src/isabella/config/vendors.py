"""The catalog of known vendors, read from `vendors.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
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
    model_env: str | None = None  #: overrides the default model; None for a vendor declared in isabella.toml
    key_prefix: str | None = None  #: the prefix of its keys, if they all have one
    keys_page: str | None = None  #: the page where keys are created
    models_page: str | None = None  #: the page that describes its models
    on_demand: bool = False  #: whether it is left out of every list until it is set up
    key_optional: bool = False  #: whether it may have no key, as a server of one's own
    #: a route below the base URL that is refused without a valid key, if the model list is not
    key_route: str | None = None
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
    def api_key_command_env(self) -> str:
        """The variable with a command that prints the key."""
        return f"{self.api_key_env}_COMMAND"

    @property
    def api_key_keyring_env(self) -> str:
        """The variable with the entry of the keyring that holds the key."""
        return f"{self.api_key_env}_KEYRING"

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The names of the variables that give its key, the one that wins first."""
        return self.api_key_env, self.api_key_file_env, self.api_key_command_env, self.api_key_keyring_env

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of all variables that configure it."""
        names = (*self.key_variables, self.base_url_env, self.type_env, self.model_env)
        return tuple(name for name in names if name is not None)

    @property
    def call_id(self) -> str | None:
        """The required form of tool call ids, as a regular expression; None if any is accepted."""
        length = self.quirks.tool_call_id_length
        return None if length is None else f"[a-zA-Z0-9]{{{length}}}"


@cache
def known_vendors() -> tuple[Vendor, ...]:
    """Return the vendors of the catalog, in its order."""
    return tuple(_vendor(**entry) for entry in _document()["vendors"])


def usual_vendors() -> tuple[Vendor, ...]:
    """Return the vendors that are listed whether they are set up or not."""
    return tuple(vendor for vendor in known_vendors() if not vendor.on_demand)


def catalog_date() -> date:
    """Return the day on which the catalog was compared with public sources."""
    checked: date = _document()["checked"]
    return checked


def _document() -> dict[str, Any]:
    return tomllib.loads(resources.files("isabella.config").joinpath("vendors.toml").read_text("utf-8"))


def _vendor(*, variables: str, quirks: Mapping[str, Any] | None = None, **entry: Any) -> Vendor:
    return Vendor(
        quirks=Quirks(**(quirks or {})),
        api_key_env=f"{variables}_API_KEY",
        base_url_env=f"{variables}_BASE_URL",
        type_env=f"{variables}_PROVIDER_TYPE",
        model_env=f"{variables}_MODEL",
        **entry,
    )


def vendor_of_prefix(key: str) -> Vendor | None:
    """Return the vendor whose key prefix this key has: of several, the one with the longest, or the first."""
    having = [vendor for vendor in known_vendors() if vendor.key_prefix and key.startswith(vendor.key_prefix)]
    return max(having, key=lambda vendor: len(vendor.key_prefix or ""), default=None)
