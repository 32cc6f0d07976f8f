"""Somebody in front of a browser, for the tests of the console."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from playwright.sync_api import Browser, BrowserContext, Page, expect
from pydantic import SecretStr

from isabella.server.sessions import login_link
from tests.support.backend_server import TOKEN, Backend
from tests.support.views import VIEWS

_SECONDS = 30.0
_T = TypeVar("_T")

expect.set_options(timeout=_SECONDS * 1000)


@dataclass
class BrowserUser:
    """Somebody in front of a browser.

    Attributes:
        served: the backend.
        context: the browser's memory: cookies, and nothing else.
        page: the open page.
        trouble: what the browser complained of: scripts that failed, and what the policy forbade.
    """

    served: Backend
    context: BrowserContext
    page: Page
    trouble: list[str] = field(default_factory=list)
    _shown_before: int = 0

    def tab(self) -> Page:
        """Another tab of the same browser."""
        page = self.context.new_page()
        self._listen(page)
        return page

    def link(self) -> str:
        """A new link, as `isabella login` prints it."""
        return login_link(self.served.url, SecretStr(TOKEN))

    def enter(self) -> None:
        """Come in by the link that is printed."""
        self.page.goto(self.link())

    def sign_in(self) -> None:
        """Sign in without a page: the browser gets the cookie only."""
        response = self.context.request.get(self.link())
        assert response.ok, response.text()

    def open(self, path: str, page: Page | None = None) -> None:
        """Open a page, and wait until it hears what happens."""
        page = page or self.page
        page.goto(f"{self.served.url}/console/{path}")
        expect(page.locator("#main[data-connected]")).to_be_attached()

    def say(self, message: str) -> None:
        """Type a message, and send it with the keyboard."""
        self._shown_before = self.page.locator("#live .exchange").count()
        self.page.locator("#message").fill(message)
        self.page.locator("#message").press("Enter")

    def wait_for_answer(self) -> None:
        """Wait until what was said last is shown, and nothing is being said any more."""
        expect(self.page.locator("#live .exchange")).not_to_have_count(self._shown_before)
        expect(self.page.locator("#live .working, #live .dot.idle")).to_have_count(0)

    def _listen(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("console", lambda said: self._note(said.text) if said.type == "error" else None)

    def _note(self, text: str) -> None:
        # That an answer was a refusal is what some tests are about.
        if "Failed to load resource" not in text and "net::ERR" not in text and "Response Status Error" not in text:
            self.trouble.append(text)


@contextmanager
def browsing(served: Backend, browser: Browser, **options: Any) -> Iterator[BrowserUser]:
    """A user with a browser of his own, in a wide and light view by default.

    Whatever the browser complained of fails the test.
    """
    context = browser.new_context(**(VIEWS["1440-light"] | options))
    context.set_default_timeout(_SECONDS * 1000)
    user = BrowserUser(served, context, context.new_page())
    user._listen(user.page)
    yield user
    context.close()
    assert user.trouble == []


def aside(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call something that runs a loop of its own, which it cannot beside playwright's."""
    found: list[_T] = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)))
    thread.start()
    thread.join()
    return found[0]
