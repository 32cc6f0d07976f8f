"""The controls of the practice vendors under `/practice/`: accepted keys, faults, request logs.

Every route but health asks for the control token, so that a stray process on the machine cannot change what the
vendors accept. Keys go in, and never come out again: they are shown masked, with their fingerprints.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from isabella.errors import PracticeError
from isabella.practice.exchange import Application
from isabella.practice.faults import VendorFault
from isabella.practice.requests import fingerprint
from isabella.practice.vendor import PracticeVendor
from isabella.system.redaction import mask

#: The header that carries the control token.
TOKEN_HEADER = "x-practice-token"  # noqa: S105

#: What the health route answers beside the vendors' names, so that another program on the port is recognised.
SERVICE = "isabella-practice"

_Endpoint = Callable[[Request], Awaitable[Response]]
_FAULT = TypeAdapter(VendorFault)


class KeysBody(BaseModel):
    """The body of a change of keys."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    accepted: list[str]


class StrictBody(BaseModel):
    """The body of a change of strictness."""

    model_config = ConfigDict(extra="forbid")

    strict: bool | None


class Control:
    """The controls as an ASGI program.

    Args:
        vendors: the vendors by name.
        token: what the header must carry.
        on_keys: called after the accepted keys of a vendor have changed.
    """

    def __init__(self, vendors: Mapping[str, PracticeVendor], token: str, on_keys: Callable[[], None]) -> None:
        self._vendors = vendors
        self._token = token.encode()
        self._on_keys = on_keys
        routed = Starlette(
            routes=[
                Route("/practice/health", self._health),
                Route("/practice/{vendor}/keys", self._guarded(self._get_keys), methods=["GET"]),
                Route("/practice/{vendor}/keys", self._guarded(self._put_keys), methods=["PUT"]),
                Route("/practice/{vendor}/strict", self._guarded(self._put_strict), methods=["PUT"]),
                Route("/practice/{vendor}/faults", self._guarded(self._get_faults), methods=["GET"]),
                Route("/practice/{vendor}/faults", self._guarded(self._add_fault), methods=["POST"]),
                Route("/practice/{vendor}/faults", self._guarded(self._put_faults), methods=["PUT"]),
                Route("/practice/{vendor}/faults", self._guarded(self._delete_faults), methods=["DELETE"]),
                Route("/practice/{vendor}/requests", self._guarded(self._get_requests), methods=["GET"]),
                Route("/practice/{vendor}/requests", self._guarded(self._delete_requests), methods=["DELETE"]),
            ]
        )
        # Starlette's own types want a scope that may be written to; it is one.
        self.application = cast("Application", routed)

    def _guarded(self, endpoint: _Endpoint) -> _Endpoint:
        async def guarded(request: Request) -> Response:
            given = request.headers.get(TOKEN_HEADER, "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._token):
                return _error(401, f"The control token is missing or wrong ({TOKEN_HEADER}).")
            if request.path_params["vendor"] not in self._vendors:
                return _error(404, f"There is no such vendor; there are {', '.join(self._vendors)}.")
            try:
                return await endpoint(request)
            except ValidationError as error:
                found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
                return _error(422, found)
            except PracticeError as error:
                return _error(422, str(error))

        return guarded

    def _vendor(self, request: Request) -> PracticeVendor:
        return self._vendors[request.path_params["vendor"]]

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "service": SERVICE, "vendors": list(self._vendors)})

    async def _get_keys(self, request: Request) -> Response:
        keys = self._vendor(request).keys
        return JSONResponse({"accepted": [{"masked": mask(key), "sha256": fingerprint(key)} for key in keys]})

    async def _put_keys(self, request: Request) -> Response:
        body = KeysBody.model_validate_json(await request.body())
        self._vendor(request).accept(body.accepted)
        self._on_keys()
        return await self._get_keys(request)

    async def _put_strict(self, request: Request) -> Response:
        self._vendor(request).strict = StrictBody.model_validate_json(await request.body()).strict
        return JSONResponse({"strict": self._vendor(request).strict})

    async def _get_faults(self, request: Request) -> Response:
        active = self._vendor(request).faults.active()
        return JSONResponse({"faults": [asdict(fault) | {"left": left} for fault, left in active]})

    async def _add_fault(self, request: Request) -> Response:
        self._vendor(request).faults.add(_FAULT.validate_json(await request.body()))
        return await self._get_faults(request)

    async def _put_faults(self, request: Request) -> Response:
        fault = _FAULT.validate_json(await request.body())
        self._vendor(request).faults.clear()
        self._vendor(request).faults.add(fault)
        return await self._get_faults(request)

    async def _delete_faults(self, request: Request) -> Response:
        self._vendor(request).faults.clear()
        return Response(status_code=204)

    async def _get_requests(self, request: Request) -> Response:
        try:
            after = int(request.query_params.get("after", "0"))
        except ValueError:
            return _error(422, "after: a number is needed")
        entries = self._vendor(request).log.entries(after=after)
        return JSONResponse({"requests": [asdict(entry) for entry in entries]})

    async def _delete_requests(self, request: Request) -> Response:
        self._vendor(request).log.forget()
        return Response(status_code=204)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)
