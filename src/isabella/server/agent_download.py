"""The download of an agent: its Markdown export in a ZIP file."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from functools import partial
from typing import IO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from isabella.agents.exports.zipped import export_zip
from isabella.agents.registry import AgentRecord
from isabella.server.disconnects import answer_while_connected
from isabella.server.runtime import Runtime

MEDIA_TYPE = "application/zip"

_CHUNK = 256 * 1024


async def download_agent(request: Request, runtime: Runtime, record: AgentRecord) -> Response:
    """Return the export of an agent. Its making ends if the client closes the connection.

    The answer begins when the export is complete, so that an error is an answer, and not a file that breaks off.
    One export is made at a time. Raises `ExportRefused`, `ExportFailed` or `LettaError`.
    """

    async def respond() -> Response:
        name = f"{_plain(record.name)}-{datetime.now(UTC):%Y-%m-%d}"
        async with runtime.exporting:
            return _Download(await export_zip(runtime.agents, record, name), f"{name}.zip")

    return await answer_while_connected(request, respond)


class _Download(StreamingResponse):
    """A file, which is closed in every case."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Length": str(os.fstat(file.fileno()).st_size),
        }
        super().__init__(iter(partial(file.read, _CHUNK), b""), media_type=MEDIA_TYPE, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


def _plain(name: str) -> str:
    """Return the name of an agent as the beginning of the name of a file, in ASCII."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "agent"
