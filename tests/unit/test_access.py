"""Who gets in: the table of docs/access.md, sessions, links, hosts, origins, headers, and slow answers to guesses."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2 as httpx
import pytest
from pydantic import SecretStr
from starlette.datastructures import Headers

from isabella.config.settings import load_settings
from isabella.errors import ConfigurationError
from isabella.server.app import create_app
from isabella.server.auth import GuessDelay, is_same_origin
from isabella.server.runtime import Runtime
from isabella.server.sessions import LINK_SECONDS, SESSION_SECONDS, Sessions, login_link
from isabella.system.http_server import address_group
from tests.support import access_table
from tests.support.access_table import ALLOWED, HOST, TOKEN, Outcomes

PAGE = {"Accept": "text/html"}
AT = f"http://{HOST}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Every route with every credential from every page."""
    return asyncio.run(access_table.outcomes(tmp_path_factory.mktemp("home")))


def test_the_table_is_current(found: Outcomes) -> None:
    """The document has the outcomes of this code."""
    assert access_table.table(found) == access_table.current(), "run: python -m tests.support.access_table"


def test_what_the_table_must_never_say(found: Outcomes) -> None:
    """Without a credential only these routes answer; no foreign page uses a session; no other name is answered."""
    static = {f"/console/static/{name}" for name in ("file", "manifest.webmanifest", "offline", "worker.js")}
    open_routes = {"/health", "/ready", "/login", *static}
    nobody, foreign = {"none", "wrong token", "ended session"}, {"other port", "other site", "allowed origin"}
    for (method, path), answers in found.items():
        for (credential, origin), answer in answers.items():
            if origin == "other host":
                assert answer.status == 421, (method, path)
            elif path not in open_routes and (
                credential in nobody or (credential == "session" and origin in foreign)
            ):
                assert answer.status in (401, 403), (method, path)


def test_headers_of_every_answer(found: Outcomes) -> None:
    """Nothing may be stored, framed or sniffed, whether it was admitted or not; one listed origin may read."""
    for (_, path), answers in found.items():
        for (_, origin), answer in answers.items():
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["x-frame-options"] == "DENY", path
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], path
            assert answer.headers["cache-control"] == "no-store", path
            assert answer.headers.get("access-control-allow-origin") == (
                ALLOWED if origin == "allowed origin" else None
            ), path
            assert "access-control-allow-credentials" not in answer.headers


# --- sign in --------------------------------------------------------------------------------------------------------


class Browser:
    """A client of a backend in this process, which keeps cookies."""

    def __init__(self, home: Path, **options: str) -> None:
        self.sessions = Sessions(SecretStr(TOKEN), home / "sessions.json")
        settings = load_settings(environment={"ISABELLA_HOME": str(home), **options})
        runtime = Runtime(SecretStr(TOKEN), settings, sessions=self.sessions)
        self.csrf = runtime.csrf
        self.app = create_app(runtime, access_table.nothing, delay=GuessDelay(first=0))
        self.cookies = httpx.Cookies()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=AT, cookies=self.cookies) as client:
                answer = await client.request(method, path, **options)
                self.cookies = client.cookies
                return answer

        return anyio.run(send)

    def link(self) -> str:
        """Return the path of a link."""
        return login_link("", SecretStr(TOKEN))

    @property
    def signed_in(self) -> bool:
        """Whether the session is valid."""
        return self.ask("GET", "/console/session").status_code == 204


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """A browser that is not signed in."""
    return Browser(tmp_path)


def test_a_link_works_once(browser: Browser) -> None:
    """It signs in the first browser; the second one gets a page that says why not; nothing shows the token."""
    link = browser.link()
    assert TOKEN not in link
    entered = browser.ask("GET", link, headers=PAGE)
    assert (entered.status_code, entered.headers["location"]) == (303, "/console/providers")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert browser.signed_in
    browser.cookies = httpx.Cookies()
    again = browser.ask("GET", link, headers=PAGE)
    assert again.status_code == 401
    assert "has been used" in again.text
    assert not browser.signed_in


@pytest.mark.parametrize("code", ["", "x", "..", "1.2.3", "9999999999.nonce.signature", "\ud800", "inf.a.b"])
def test_codes_that_nobody_signed(code: str) -> None:
    """They sign nobody in."""
    assert not Sessions(SecretStr(TOKEN)).use_link(code)


def test_a_link_of_another_token_or_after_its_time() -> None:
    """Neither works."""
    now = [0.0]
    sessions = Sessions(SecretStr(TOKEN), now=lambda: now[0])
    code = parse_qs(urlsplit(login_link("", SecretStr(TOKEN))).query)["code"][0]
    assert not Sessions(SecretStr("another-token")).use_link(code)
    now[0] = float(code.partition(".")[0])
    assert not sessions.use_link(code)
    now[0] -= LINK_SECONDS
    assert sessions.use_link(code)


def test_a_link_is_not_used_up_by_a_browser_that_looks_ahead(browser: Browser) -> None:
    """A page that is loaded in advance does not sign in."""
    link = browser.link()
    assert browser.ask("GET", link, headers={"Sec-Purpose": "prefetch"}).status_code == 503
    assert browser.ask("GET", link).status_code == 200


def test_the_token_is_pasted_on_the_page(browser: Browser) -> None:
    """The page for a browser has the form, and leads on to the page that was asked for, but to no other site."""
    page = browser.ask("GET", "/console/activity", headers=PAGE)
    assert page.status_code == 401
    assert 'name="token"' in page.text
    assert 'value="/console/activity"' in page.text
    assert browser.csrf not in page.text
    wrong = browser.ask("POST", "/login", data={"token": "wrong"}, headers=PAGE)
    assert wrong.status_code == 401
    assert "The token is wrong." in wrong.text
    for there, to in (("/console/activity", "/console/activity"), ("//evil.example", "/console/providers")):
        entered = browser.ask("POST", "/login", data={"token": f" {TOKEN}\n", "next": there}, headers=PAGE)
        assert (entered.status_code, entered.headers["location"]) == (303, to)
    assert browser.signed_in
    assert browser.ask("GET", "/login", headers=PAGE).status_code == 303


def test_programs_get_json(browser: Browser) -> None:
    """What a browser gets as a page, a program gets as JSON, from `/login` and from every other path."""
    assert browser.ask("GET", "/login", headers=PAGE).status_code == 200
    for answer in (
        browser.ask("GET", "/login"),
        browser.ask("GET", "/console/providers"),
        browser.ask("GET", "/login?code=x"),
        browser.ask("POST", "/login", json={"token": "wrong"}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    entered = browser.ask("POST", "/login", json={"token": TOKEN})
    assert entered.json() == {"expires_in": int(SESSION_SECONDS)}
    assert browser.signed_in
    assert browser.ask("GET", "/login").status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"token=" + b"x" * 5000, "application/x-www-form-urlencoded", 400),
        (b"token=%ff", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 4000, "application/json", 400),
        (b'{"token": "\\ud800"}', "application/json", 401),
        (b'{"token": ["x"]}', "application/json", 401),
        (b"", "application/json", 400),
        (b"", "text/plain", 401),
    ],
)
def test_what_is_no_token(browser: Browser, body: bytes, kind: str, status: int) -> None:
    """It is refused, and never an internal error."""
    answer = browser.ask("POST", "/login", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status


def test_sessions_are_listed_and_ended(browser: Browser) -> None:
    """One browser ends the session of another, or all others; signing out ends its own."""
    other = browser.sessions.begin("Old <b>phone</b>", "192.0.2.7")
    browser.ask("GET", browser.link(), headers=PAGE | {"User-Agent": "My browser"})
    page = browser.ask("GET", "/console/sessions", headers=PAGE)
    assert "This browser" in page.text
    assert "Old &lt;b&gt;phone&lt;/b&gt;" in page.text
    session = browser.sessions.find(other)
    assert session is not None
    assert other not in page.text
    csrf = {"X-Isabella-Csrf": browser.csrf}
    assert browser.ask("POST", "/console/sessions/end", data={"id": session.id}).status_code == 403
    assert browser.ask("POST", "/console/sessions/end", data={"id": session.id}, headers=csrf).status_code == 303
    assert browser.sessions.find(other) is None
    others = [browser.sessions.begin("", "") for _ in range(3)]
    browser.ask("POST", "/console/sessions/end", data={"id": "others"}, headers=csrf)
    assert not any(browser.sessions.find(one) for one in others)
    assert browser.signed_in
    out = browser.ask("POST", "/console/sign-out", headers=csrf)
    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert browser.sessions.all() == []


def test_sessions_outlive_a_restart_and_no_new_token(tmp_path: Path) -> None:
    """The file has no cookie, only its owner reads it, and another token ends every session."""
    file = tmp_path / "home" / "sessions.json"
    cookie = Sessions(SecretStr(TOKEN), file).begin("a browser", "127.0.0.1")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cookie not in file.read_text()
    assert TOKEN not in file.read_text()
    assert Sessions(SecretStr(TOKEN), file).find(cookie) is not None
    assert Sessions(SecretStr("another-token"), file).find(cookie) is None


def test_a_used_link_stays_used_after_a_restart(tmp_path: Path) -> None:
    """A restart does not make it valid again."""
    code = parse_qs(urlsplit(login_link("", SecretStr(TOKEN))).query)["code"][0]
    assert Sessions(SecretStr(TOKEN), tmp_path / "sessions.json").use_link(code)
    assert not Sessions(SecretStr(TOKEN), tmp_path / "sessions.json").use_link(code)


def test_a_session_expires() -> None:
    """After its time it is over, in the list, too."""
    now = [0.0]
    sessions = Sessions(SecretStr(TOKEN), now=lambda: now[0])
    cookie = sessions.begin("a browser", "127.0.0.1")
    now[0] = SESSION_SECONDS - 1
    assert sessions.find(cookie) is not None
    now[0] = SESSION_SECONDS
    assert sessions.all() == []
    assert sessions.find(cookie) is None


def test_sessions_are_bounded() -> None:
    """Signing in again and again ends the sessions that were used least recently."""
    now = [0.0]
    sessions = Sessions(SecretStr(TOKEN), now=lambda: now[0])
    first = sessions.begin("first", "")
    for _ in range(60):
        now[0] += 1000
        assert sessions.find(first) is not None
        sessions.begin("another", "")
    assert len(sessions.all()) == 50
    assert sessions.find(first) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"key": 1}', b"{}", b"null"])
def test_a_damaged_file_of_sessions(tmp_path: Path, content: bytes) -> None:
    """Browsers sign in again, and the file is made anew."""
    file = tmp_path / "sessions.json"
    file.write_bytes(content)
    cookie = Sessions(SecretStr(TOKEN), file).begin("", "")
    assert Sessions(SecretStr(TOKEN), file).find(cookie) is not None
    assert json.loads(file.read_text())["sessions"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The sessions are valid until the backend stops."""
    (tmp_path / "sessions.json").mkdir()
    sessions = Sessions(SecretStr(TOKEN), tmp_path / "sessions.json")
    assert sessions.find(sessions.begin("", "")) is not None


# --- guesses --------------------------------------------------------------------------------------------------------


@contextmanager
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses of a delay, which do not happen."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    yield pauses


def test_wrong_tokens_are_answered_later_and_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each wrong token of an address doubles the pause, as a bearer token or on the page; the right one has none."""
    with slept(monkeypatch) as pauses:
        settings = load_settings(environment={"ISABELLA_HOME": str(tmp_path)})
        app = create_app(
            Runtime(SecretStr(TOKEN), settings, sessions=Sessions(SecretStr(TOKEN))), access_table.nothing
        )

        def ask(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> int:
            return asyncio.run(access_table.ask(app, method, path, headers, body)).status

        for _ in range(7):
            assert ask("GET", "/api/agents", {"authorization": "Bearer wrong"}) == 401
        assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
        assert ask("POST", "/login", {}, b"token=wrong") == 401
        assert ask("GET", "/login?code=wrong", {}) == 401
        assert pauses[7:] == [5.0, 5.0]
        assert ask("GET", "/api/agents", {"authorization": f"Bearer {TOKEN}"}) == 503
        assert ask("POST", "/login", {}, f"token={TOKEN}".encode()) == 200
        assert ask("GET", "/api/agents", {}) == 401
        assert len(pauses) == 9


def test_guesses_at_once_wait_in_bounded_number() -> None:
    """However many come, only so many answers wait, and so many addresses are remembered."""
    delay = GuessDelay(first=3600.0, longest=3600.0)

    async def guess() -> int:
        async with anyio.create_task_group() as tasks:
            for number in range(2000):
                tasks.start_soon(delay.wait, f"192.0.2.{number}")
            await anyio.wait_all_tasks_blocked()
            waiting = len(anyio.get_running_tasks()) - 1
            tasks.cancel_scope.cancel()
        return waiting

    assert anyio.run(guess) == 256
    assert len(delay._failures) == 1000


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::1", None),
        ("127.0.0.1", None),
        ("testclient", "testclient"),
    ],
)
def test_addresses_that_count_as_one(host: str, address: str | None) -> None:
    """An IPv6 client has a whole network of addresses."""
    assert address_group(host) == address


# --- hosts and origins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.0.2.1", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("localhost.:8000", True),
        ("isabella.example", True),
        ("Isabella.Example:443", True),
        ("configured.example", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("evil.example:80@127.0.0.1", False),
        ("127.0.0.1/evil.example", False),
        ("[", False),
        ("", False),
        ("a b", False),
    ],
)
def test_names_of_the_backend(tmp_path: Path, host: str, known: bool) -> None:
    """IP addresses and configured names are its own; a name that somebody else resolves to it is not."""
    names = {"ISABELLA_HOST": "configured.example", "ISABELLA_ALLOWED_HOSTS": "isabella.example, other.example"}
    answer = asyncio.run(access_table.ask(Browser(tmp_path, **names).app, "GET", "/health", {"host": host}))
    assert (answer.status == 200) is known


def test_a_listed_origin_is_asked_for_nothing_but_the_token(tmp_path: Path) -> None:
    """Its preflight is answered, and every other one is not."""
    browser = Browser(tmp_path, ISABELLA_CORS_ORIGINS=ALLOWED)
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    answer = browser.ask("OPTIONS", "/v1/chat/completions", headers=asks | {"Origin": ALLOWED})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ALLOWED
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers
    for origin in ("https://evil.example", f"{ALLOWED}.evil.example", "null", "http://chat.example"):
        refused = browser.ask("OPTIONS", "/v1/chat/completions", headers=asks | {"Origin": origin})
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
    plain = Browser(tmp_path).ask("OPTIONS", "/v1/chat/completions", headers=asks | {"Origin": ALLOWED})
    assert plain.status_code == 401


@pytest.mark.parametrize("value", ["*", "chat.example", "https://chat.example/", "https://chat.example/x", "null"])
def test_what_is_no_origin(value: str) -> None:
    """The start fails, and names the variable."""
    with pytest.raises(ConfigurationError, match="ISABELLA_CORS_ORIGINS"):
        load_settings(environment={"ISABELLA_CORS_ORIGINS": value})


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-site"}, False),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}, False),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, True),
    ],
)
def test_whose_page_asks(headers: dict[str, str], own: bool) -> None:
    """Only what the browser says to be this very origin counts as one of our own pages."""
    assert is_same_origin(Headers(headers)) is own
