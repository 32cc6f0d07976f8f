"""The files that make the console installable on a phone: manifest, icons, service worker and offline page.

Browsers request these without a session, so they are below the path of the static files.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlencode

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from isabella.server import ROOT, START
from isabella.server.static_files import STATIC_FILES, static_url
from isabella.server.web.languages import LANGUAGES, Language, current, gettext, speaking

#: The colours of the header in the light and the dark theme, as in `console.css`.
COLORS = {"light": "#ffffff", "dark": "#1c2026"}
_GROUND = "#f6f6f3"


def manifest() -> dict[str, object]:
    """Return the web app manifest."""
    png = {"type": "image/png"}
    return {
        "id": f"{ROOT}/",
        "name": "Isabella",
        "short_name": "Isabella",
        "description": gettext("Memory agents on Letta, with proven keys."),
        "lang": current().tag,
        "start_url": START,
        "scope": f"{ROOT}/",
        "display": "standalone",
        "theme_color": COLORS["light"],
        "background_color": _GROUND,
        "icons": [
            {"src": static_url("icon.svg"), "sizes": "any", "type": "image/svg+xml"},
            {"src": static_url("icon-192.png"), "sizes": "192x192", **png},
            {"src": static_url("icon-512.png"), "sizes": "512x512", **png},
            {"src": static_url("icon-maskable-512.png"), "sizes": "512x512", "purpose": "maskable", **png},
        ],
    }


class Installable:
    """The files that a browser needs to install the console, and the page that it shows offline."""

    def __init__(self, environment: Environment) -> None:
        self._offline = {one.tag: _offline(environment, one) for one in LANGUAGES.values()}

    def worker_url(self) -> str:
        """Return the URL of the service worker, which changes with the language and all that it keeps."""
        tag = current().tag
        digest = hashlib.sha256(self._offline[tag].encode()).hexdigest()[:10]
        offline = f"{ROOT}/static/offline?language={tag}&v={digest}"
        kept = [offline, *map(static_url, ("console.css", "icon.svg", "offline.js"))]
        return f"{static_url('worker.js')}&{urlencode([('keep', one) for one in kept])}"

    def routes(self) -> list[Route]:
        """Return the routes, which need no session."""
        return [
            Route("/static/manifest.webmanifest", self._manifest),
            Route("/static/offline", self._offline_page),
            Route("/static/worker.js", self._worker),
        ]

    async def _manifest(self, _request: Request) -> Response:
        return JSONResponse(manifest(), media_type="application/manifest+json")

    async def _offline_page(self, request: Request) -> Response:
        return HTMLResponse(self._offline.get(request.query_params.get("language", ""), self._offline[current().tag]))

    async def _worker(self, _request: Request) -> Response:
        # By default, a worker serves only pages below its own path.
        headers = {"Service-Worker-Allowed": f"{ROOT}/"}
        return FileResponse(STATIC_FILES / "worker.js", media_type="text/javascript", headers=headers)


def _offline(environment: Environment, language: Language) -> str:
    with speaking(language):
        return environment.get_template("offline.html").render(language=language)
