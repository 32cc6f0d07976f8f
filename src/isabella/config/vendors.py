"""The vendors known by name, read from `vendors.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Vendor:
    """A company that serves models.

    Attributes:
        name: how it is called here, for instance `groq`.
        title: how it calls itself.
        provider: the name of its provider in Letta; agents' handles begin with it.
        type: Letta's provider type for it.
        base_url: where its OpenAI-compatible API answers.
        api_key_env: the variable that holds its key.
        base_url_env: the variable that moves its base URL; None for a vendor declared in isabella.toml.
        type_env: the variable that changes its provider type; None for a vendor declared in isabella.toml.
        key_prefix: what its keys begin with, where they all do.
        keys_page: where keys are made.
        default_model: a model to start with; None means the first that the vendor lists.
        default_window: context window in tokens of a model about which nothing is known.
        models: context windows in tokens by model id.
        call_id: the form of tool call ids that it insists on, as a regular expression; None where it takes any.
    """

    name: str
    title: str
    provider: str
    type: str
    base_url: str
    api_key_env: str
    base_url_env: str | None = None
    type_env: str | None = None
    key_prefix: str | None = None
    keys_page: str | None = None
    default_model: str | None = None
    default_window: int = 32_768
    models: Mapping[str, int] = field(default_factory=dict)
    call_id: str | None = None

    @property
    def api_key_file_env(self) -> str:
        """The variable that names a file with the key in it."""
        return f"{self.api_key_env}_FILE"


@cache
def known_vendors() -> tuple[Vendor, ...]:
    """The vendors of the catalog, in its order."""
    document = tomllib.loads(resources.files("isabella.config").joinpath("vendors.toml").read_text("utf-8"))
    return tuple(_vendor(**entry) for entry in document["vendors"])


def _vendor(*, variables: str, **entry: Any) -> Vendor:
    return Vendor(
        api_key_env=f"{variables}_API_KEY",
        base_url_env=f"{variables}_BASE_URL",
        type_env=f"{variables}_PROVIDER_TYPE",
        **entry,
    )


def vendor_of_prefix(key: str) -> Vendor | None:
    """The vendor whose keys begin as this one does."""
    return next((v for v in known_vendors() if v.key_prefix and key.startswith(v.key_prefix)), None)
