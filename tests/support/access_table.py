"""Every route of the backend, with every credential, from every kind of page: the table of docs/access.md.

`python -m tests.support.access_table` writes it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message
from structlog.testing import capture_logs

from isabella.agents.embeddings import address_secret
from isabella.config.settings import load_settings
from isabella.server.app import create_app
from isabella.server.auth import COOKIE, CSRF_HEADER, GuessDelay
from isabella.server.runtime import Runtime

DOCUMENT = Path(__file__).parents[2] / "docs" / "access.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"

TOKEN = "a-token-for-the-table"
ALLOWED = "https://chat.example"
HOST = "127.0.0.1:8000"

CREDENTIALS = ("none", "wrong token", "token", "session", "ended session", "embeddings secret")
#: What a browser says of the page that sent a request, by the column of the table.
ORIGINS: Mapping[str, Mapping[str, str]] = {
    "program": {},
    "console": {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"},
    "link": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    "other port": {"origin": "http://127.0.0.1:9000", "sec-fetch-site": "same-site"},
    "other site": {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    "allowed origin": {"origin": ALLOWED, "sec-fetch-site": "cross-site"},
    "other host": {"host": "evil.example"},
}
_AGENT = "agent-00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Answer:
    """The status and the headers of an answer; its body is not waited for."""

    status: int
    headers: Headers


async def ask(app: ASGIApp, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """Ask an application, and leave when its answer begins. Fails if a refused body was read."""
    began: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    asked_for: list[None] = []
    raw = {"host": HOST, "content-length": str(len(body)), **headers}

    async def receive() -> Message:
        if asked_for:
            await asyncio.Event().wait()
        asked_for.append(None)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start" and not began.done():
            began.set_result(Answer(message["status"], Headers(raw=message["headers"])))

    route, _, query = path.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
        "method": method,
        "scheme": "http",
        "path": route,
        "raw_path": route.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    task: asyncio.Task[None] = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
    either: set[asyncio.Future[Any]] = {task, began}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not began.done():
        # An answer that begins within an exception handler comes before the exception that Starlette raises again.
        task.result()
    task.cancel()
    await asyncio.wait({task})
    found = began.result()
    if found.status in (401, 403, 421) and route.partition("/")[2].partition("/")[0] not in ("login", "console"):
        assert not asked_for, (method, path)
    return found


#: The answers by method and path, and then by credential and origin.
Outcomes = Mapping[tuple[str, str], Mapping[tuple[str, str], Answer]]


class Backend:
    """A backend without services, whose answers tell what was admitted."""

    def __init__(self, home: Path) -> None:
        # An address at which nobody listens, so that no request takes long.
        environment = {"LETTA_BASE_URL": "http://127.0.0.1:9", "ISABELLA_CORS_ORIGINS": ALLOWED}
        settings = load_settings(environment=environment, home=home, config_file=home / "isabella.toml")
        self.runtime = Runtime(SecretStr(TOKEN), settings)
        self.app = create_app(self.runtime, nothing, delay=GuessDelay(first=0))
        self._secret = address_secret(home).get_secret_value()

    async def ask(self, method: str, path: str, credential: str, origin: str) -> Answer:
        """Ask with a credential from a page."""
        sessions = self.runtime.sessions
        headers, body = dict(ORIGINS[origin]), b"{}" if method != "GET" else b""
        if credential in ("token", "wrong token"):
            given = TOKEN if credential == "token" else "wrong"
            headers["authorization"] = f"Bearer {given}"
            body = f"token={given}".encode() if path == "/login" and method == "POST" else body
        elif credential in ("session", "ended session"):
            cookie = sessions.begin("a browser", "127.0.0.1")
            headers["cookie"] = f"{COOKIE}={cookie}"
            if credential == "ended session":
                sessions.end(sessions.all()[0].id)
        elif credential == "embeddings secret":
            path = path.replace("{secret}", self._secret)
            # What Letta sends beside it.
            headers["authorization"] = "Bearer DUMMY_API_KEY"
        if origin == "console":
            headers[CSRF_HEADER] = self.runtime.csrf
        return await ask(self.app, method, path.replace("{secret}", "wrong"), headers, body)

    def routes(self) -> Iterator[tuple[str, str]]:
        """Yield the method and the path of every route, and of a path that does not exist."""
        yield "GET", "/nothing"
        yield from _routes(self.app.routes)


async def nothing() -> None:
    """A start that opens nothing."""


def _routes(routes: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from _routes(included.routes, prefix)
        elif isinstance(route, Mount):
            yield from _routes(route.routes or [Route("/file", nothing)], prefix + route.path)
        else:
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
                yield method, prefix + route.path


def _filled(path: str) -> str:
    return (
        path.replace("{agent}", _AGENT)
        .replace("{secret}", "\0")
        .replace("{", "")
        .replace("}", "")
        .replace("\0", "{secret}")
    )


async def outcomes(home: Path) -> Outcomes:
    """Ask for every route with every credential from every page."""
    backend = Backend(home)
    with capture_logs():
        async with anyio.create_task_group() as backend.runtime.tasks:
            found = {
                (method, path): {
                    (credential, origin): await backend.ask(method, _filled(path), credential, origin)
                    for credential in CREDENTIALS
                    for origin in ORIGINS
                }
                for method, path in backend.routes()
            }
            backend.runtime.tasks.cancel_scope.cancel()
    return found


def table(found: Outcomes) -> str:
    """Return the table: routes with the same outcomes together, the refusals by their status."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for (method, path), answers in found.items():
        rows = tuple(
            f"| {credential} | " + " | ".join(_cell(answers[credential, origin]) for origin in ORIGINS) + " |"
            for credential in CREDENTIALS
        )
        groups.setdefault(rows, []).append(f"`{method} {path}`")
    head = f"| | {' | '.join(ORIGINS)} |\n|---|{'---|' * len(ORIGINS)}\n"
    return "\n".join(f"{', '.join(paths)}\n\n{head}" + "\n".join(rows) + "\n" for rows, paths in groups.items())


def _cell(answer: Answer) -> str:
    return str(answer.status) if answer.status in (401, 403, 421) else "yes"


def current() -> str:
    """Return the table in the document."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Write the table into the document."""
    with tempfile.TemporaryDirectory() as folder:
        made = table(asyncio.run(outcomes(Path(folder))))
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(text.partition(BEGIN)[0] + BEGIN + made + END + text.partition(END)[2])


if __name__ == "__main__":
    main()
