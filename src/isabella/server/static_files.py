"""The static files of the console, with URLs that change with their content."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from isabella.server import ROOT

#: The folder of the static files.
STATIC_FILES = Path(__file__).parent / "web" / "static"


@cache
def static_url(name: str) -> str:
    """Return the URL of a static file, with a hash of its content."""
    content = STATIC_FILES.joinpath(*name.split("/")).read_bytes()
    return f"{ROOT}/static/{name}?v={hashlib.sha256(content).hexdigest()[:10]}"
