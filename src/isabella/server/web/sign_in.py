"""Signing in and out, and the page of sessions. `/login` is a page for browsers and JSON for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import anyio
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from isabella.errors import IsabellaError
from isabella.server import ROOT, START
from isabella.server.auth import (
    COOKIE,
    LOGIN,
    Access,
    AccessRefusal,
    FormRefused,
    address_of,
    is_same_origin,
    is_token,
    parse_form,
    read_body,
    session_in,
    session_of,
    wants_page,
)
from isabella.server.errors import Problem, answer
from isabella.server.runtime import Runtime
from isabella.server.sessions import SESSION_SECONDS
from isabella.server.web.rendering import Page, Renderer
from isabella.system.english import english

_LARGEST_LOGIN = 4096
_LOGIN_SECONDS = 5.0


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the console."""
    page = _SessionsPage(runtime, renderer)
    return [
        Route("/session", _session),
        Route("/sessions", page.show),
        Route("/sessions/end", page.end, methods=["POST"]),
        Route("/sign-out", page.sign_out, methods=["POST"]),
    ]


class SignIn:
    """`/login`: exchanges a link or the token for the cookie of a session."""

    def __init__(self, access: Access, renderer: Renderer) -> None:
        self._access = access
        self._renderer = renderer

    def route(self) -> Route:
        """Return the route."""
        return Route(LOGIN, self._answer, methods=["GET", "POST"], include_in_schema=False)

    def refuse(self, request: Request, refusal: AccessRefusal) -> Response:
        """Return the page for a request that is not admitted."""
        if refusal.status == 401:
            return self._page(request, 401, english("This browser has no valid session."))
        problem = refusal.problem
        return self._renderer.error_message(request, refusal.status, problem.message, problem.remedy, anonymous=True)

    async def _answer(self, request: Request) -> Response:
        if (token := self._access.token) is None:
            return RedirectResponse(START, status_code=303)
        if request.method == "POST":
            return await self._with_token(request, token)
        code = request.query_params.get("code")
        if code is None:
            return self._signed_out(request)
        if "prefetch" in request.headers.get("sec-purpose", ""):
            # A browser that loads the page in advance must not use the link up.
            return Response(status_code=503)
        if self._access.sessions.use_link(code):
            return self._begin(request, START)
        return await self._wrong(request, english("This link has been used, or has expired."))

    async def _with_token(self, request: Request, token: SecretStr) -> Response:
        if not is_same_origin(request.headers):
            return self._failed(request, 403, "foreign_origin", english("This form was sent by another site."))
        try:
            with anyio.fail_after(_LOGIN_SECONDS):
                fields = _fields(request, await read_body(request, _LARGEST_LOGIN))
        except (FormRefused, TimeoutError, ValueError, RecursionError) as error:
            what = (
                error.what
                if isinstance(error, FormRefused)
                else english("The token was not sent as a form or as JSON.")
            )
            return self._failed(request, 400, "invalid_request", what)
        if not is_token(token, fields.get("token", "").strip()):
            return await self._wrong(request, english("The token is wrong."))
        there = fields.get("next", "")
        return self._begin(request, there if there.startswith(f"{ROOT}/") else START)

    def _begin(self, request: Request, there: str) -> Response:
        response: Response = JSONResponse({"expires_in": int(SESSION_SECONDS)})
        if wants_page(request.headers):
            response = RedirectResponse(there, status_code=303, headers={"Referrer-Policy": "no-referrer"})
        response.set_cookie(
            COOKIE,
            self._access.sessions.begin(request.headers.get("user-agent", ""), address_of(request.scope)),
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def _wrong(self, request: Request, what: str) -> Response:
        await self._access.delay.wait(address_of(request.scope))
        return self._failed(request, 401, "unauthorized", what)

    def _failed(self, request: Request, status: int, code: str, what: str) -> Response:
        if wants_page(request.headers):
            return self._page(request, status, what)
        remedy = "`isabella login` prints a link; ISABELLA_HOME/token has the token."
        return answer(status, Problem(code=code, message=what, remedy=remedy), {"WWW-Authenticate": "Bearer"})

    def _signed_out(self, request: Request) -> Response:
        session = session_of(request.headers, self._access.sessions)
        if session is not None and wants_page(request.headers):
            return RedirectResponse(START, status_code=303)
        if session is not None:
            return JSONResponse({"expires_in": int(session.expires - datetime.now(UTC).timestamp())})
        if wants_page(request.headers):
            return self._page(request, 200, None)
        return self._failed(request, 401, "unauthorized", "Nobody is signed in.")

    def _page(self, request: Request, status: int, problem: str | None) -> Response:
        # Of a form that was sent, the page that it was for is no longer known.
        there = request.url.path if request.method == "GET" and request.url.path != LOGIN else START
        return self._renderer.page(
            request, "sign_in.html", status=status, here="", problem=problem, next=there, anonymous=True
        )


class _SessionsPage(Page):
    parts_template = "sessions.html"

    async def show(self, request: Request) -> Response:
        return self._renderer.page(
            request,
            "sessions.html",
            here="sessions",
            sessions=self._runtime.sessions.all(),
            current=session_in(request.scope),
        )

    async def end(self, request: Request) -> Response:
        fields = await self._form(request)
        session = session_in(request.scope)
        ended = fields.get("id", "")
        for other in self._runtime.sessions.all() if ended == "others" else ():
            if session is None or other.id != session.id:
                self._runtime.sessions.end(other.id)
        self._runtime.sessions.end(ended)
        return RedirectResponse(f"{ROOT}/sessions", status_code=303)

    async def sign_out(self, request: Request) -> Response:
        await self._form(request)
        if (session := session_in(request.scope)) is None:
            raise IsabellaError(
                english("This request has no session."), remedy=english("Sign out in the browser that is signed in.")
            )
        self._runtime.sessions.end(session.id)
        response = RedirectResponse(LOGIN, status_code=303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def _fields(request: Request, body: bytes) -> dict[str, str]:
    """Return the fields of a form or of a JSON object; raise `FormRefused` or `ValueError` if it is neither."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        return parse_form(body)
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError
    return {name: value for name, value in document.items() if isinstance(value, str)}


async def _session(_request: Request) -> Response:
    """Answer 204; without a valid session, the middleware has answered 401 before."""
    return Response(status_code=204)
