"""Isabella: memory agents on Letta, whose providers provably hold the keys you configured.

    import isabella

    report = await isabella.ensure_providers(isabella.load_settings())
    assert report.all_proven

In a FastAPI backend of your own: `app = FastAPI(lifespan=isabella.lifespan())`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isabella.assurance import compare_providers, ensure_providers, verify_providers
    from isabella.backend.lifespan import lifespan
    from isabella.connection import Connection
    from isabella.errors import IsabellaError
    from isabella.providers.report import Proof, ProviderReport, Receipt, Report
    from isabella.settings import Settings, load_settings
    from isabella.strategy import Strategy

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
    "Connection": "isabella.connection",
    "IsabellaError": "isabella.errors",
    "Proof": "isabella.providers.report",
    "ProviderReport": "isabella.providers.report",
    "Receipt": "isabella.providers.report",
    "Report": "isabella.providers.report",
    "Settings": "isabella.settings",
    "Strategy": "isabella.strategy",
    "compare_providers": "isabella.assurance",
    "ensure_providers": "isabella.assurance",
    "lifespan": "isabella.backend.lifespan",
    "load_settings": "isabella.settings",
    "verify_providers": "isabella.assurance",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
