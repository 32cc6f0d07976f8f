"""Answers that are worth their making only while the client waits for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from starlette.requests import Request
from starlette.responses import Response

#: The status that nginx logs in this case.
_CLIENT_CLOSED_REQUEST = 499


async def answer_while_connected(http: Request, respond: Callable[[], Awaitable[Response]]) -> Response:
    """Return a response, or end its making if the client closes the connection. The body must have been read.

    An exception of `respond` is raised as it is.
    """
    response: Response = Response(status_code=_CLIENT_CLOSED_REQUEST)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:

        async def cancel_at_disconnect() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel_at_disconnect)
        try:
            response = await respond()
        except Exception as error:  # noqa: BLE001 - raised again below, outside the group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return response
