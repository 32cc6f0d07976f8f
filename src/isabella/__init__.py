"""Isabella: memory agents on Letta, whose providers provably hold the keys you configured.

    import isabella

    report = await isabella.ensure_providers(isabella.load_settings())
    assert report.all_proven

In your own FastAPI backend: `app = FastAPI(lifespan=isabella.lifespan())`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isabella.api import compare_providers, ensure_providers, verify_providers
    from isabella.config.choices import Strategy
    from isabella.config.settings import Settings, load_settings
    from isabella.errors import IsabellaError
    from isabella.letta.client import Connection
    from isabella.providers.report import Proof, ProviderReport, Receipt, Report
    from isabella.server.app import lifespan

__all__ = [
    "Connection",
    "IsabellaError",
    "Proof",
    "ProviderReport",
    "Receipt",
    "Report",
    "Settings",
    "Strategy",
    "compare_providers",
    "ensure_providers",
    "lifespan",
    "load_settings",
    "verify_providers",
]

# Imported when first used: the command line must not load a web framework to print its help.
_HOMES = {
    "isabella.api": ("compare_providers", "ensure_providers", "verify_providers"),
    "isabella.config.settings": ("Settings", "load_settings"),
    "isabella.config.choices": ("Strategy",),
    "isabella.errors": ("IsabellaError",),
    "isabella.letta.client": ("Connection",),
    "isabella.providers.report": ("Proof", "ProviderReport", "Receipt", "Report"),
    "isabella.server.app": ("lifespan",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
