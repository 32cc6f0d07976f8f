"""The practice vendors as one ASGI program: each vendor under its own path, and their controls.

Written against ASGI itself: the benchmark measures other people's time to the first token through this program,
so there is nothing between the socket and the answer that is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from isabella.practice.exchange import Application, ClientGone, Receive, Scope, Send, VendorExchange, respond
from isabella.practice.transports import Transports
from isabella.practice.vendor import PracticeVendor


class Program:
    """The practice vendors.

    Args:
        vendors: the vendors by name.
        transports: the connections, for the faults that break them.
        control: answers what is asked under `/practice/`.
    """

    def __init__(self, vendors: Mapping[str, PracticeVendor], transports: Transports, control: Application) -> None:
        self._vendors = [(f"/{name}/", vendor) for name, vendor in vendors.items()]
        self._transports = transports
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        for prefix, vendor in self._vendors:
            if path.startswith(prefix):
                with suppress(ClientGone):
                    await VendorExchange(vendor, self._transports, scope, receive, send).answer()
                return
        if path.startswith("/practice/"):
            await self._control(scope, receive, send)
            return
        await respond(send, 404, b'{"detail":"Not Found"}', [])
