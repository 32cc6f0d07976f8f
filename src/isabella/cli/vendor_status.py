"""What the running backend has seen of the vendors: only it is there when they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isabella.vendors.status import VendorObservation

if TYPE_CHECKING:
    from isabella.config.settings import Settings

_SECONDS = 5.0


def vendors_seen(settings: Settings, letta: str) -> dict[str, VendorObservation]:
    """What the vendors did when they were asked last, by provider. Nothing where no backend of this home answers.

    Args:
        settings: whose backend.
        letta: the address of the Letta that is meant; a backend on another one knows nothing of this one's providers.
    """
    import httpx2 as httpx

    from isabella.cli.chat import running_backend
    from isabella.cli.tables import say
    from isabella.errors import UnverifiedPeer
    from isabella.system.peers import hooks

    try:
        found = running_backend(settings)
        if found is None:
            return {}
        headers = {"Authorization": f"Bearer {found.token.get_secret_value()}"}
        with httpx.Client(
            base_url=found.address, headers=headers, timeout=_SECONDS, trust_env=False, event_hooks=hooks(found.peer)
        ) as client:
            told = client.get("/api/providers").raise_for_status().json()
        if told["letta"]["base_url"] != letta:
            return {}
        return {
            entry["name"]: VendorObservation.from_json(entry["vendor_status"])
            for entry in told["providers"]
            if entry["vendor_status"] is not None
        }
    except UnverifiedPeer as error:
        # The stored keys can be compared all the same.
        say(str(error))
        return {}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return {}
