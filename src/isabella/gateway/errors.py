"""The gateway's own refusals, in OpenAI's shape."""

from __future__ import annotations

import json

from isabella.config.gateway_address import SERVICE

Headers = list[tuple[bytes, bytes]]

#: Letta's clients try a refused request twice more unless this header says no, so a failover begins 10 s late.
_NO_RETRY = (b"x-should-retry", b"false")


def error_body(code: str, message: str) -> tuple[bytes, Headers]:
    """Return the body of an error and its headers."""
    body, headers = json_body({"error": {"message": message, "type": SERVICE, "param": None, "code": code}})
    return body, [*headers, _NO_RETRY]


def json_body(document: object) -> tuple[bytes, Headers]:
    """Return a JSON document as a body, and its headers."""
    body = json.dumps(document).encode()
    return body, [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
