"""Takes the pictures of the console: each page, at both widths, in both themes."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2 as httpx
from playwright.sync_api import Page, expect, sync_playwright
from pydantic import SecretStr

from isabella.server.sessions import login_link

#: Width, height, and the theme that is shown at it.
SIZES = {"wide": (1920, 1080), "narrow": (360, 740)}
THEMES = ("light", "dark")

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_STORY = (
    "Please remember that my dog is called Rex.",
    "Remember that we hike on Sundays, if it does not rain.",
    "What is my dog called?",
)

#: Shows a folder under another name.
_RENAME = """([folder, name]) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(folder, name);
}"""


def tell(url: str, token: str) -> None:
    """Have a short conversation, so that there is something to see."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=120) as client:
        for message in _STORY:
            with client.stream("POST", "/api/agents/Isabella/turns", json={"message": message}) as answer:
                answer.read()
        passage = {"text": "Rex likes the lake, and is afraid of thunder.", "tags": ["rex"]}
        client.post("/api/agents/Isabella/passages", json=passage)


def take(url: str, token: str, folder: Path) -> list[Path]:
    """Take all pictures of the console at this address.

    Args:
        url: the backend.
        token: opens it.
        folder: where the pictures go.
    """
    program = next((found for name in _PROGRAMS if (found := shutil.which(name)) is not None), None)
    if program is None:
        raise SystemExit("No Chromium is on the PATH, so the console cannot be shown.")
    folder.mkdir(parents=True, exist_ok=True)
    taken: list[Path] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--hide-scrollbars"])
        for theme in THEMES:
            for size, (width, height) in SIZES.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme="dark" if theme == "dark" else "light",
                    device_scale_factor=1 if size == "wide" else 2,
                )
                page = context.new_page()
                page.goto(login_link(url, SecretStr(token)))
                for name in ("providers", "chat", "memory", "activity"):
                    _show(page, f"{url}/console/{name}", name)
                    taken.append(folder / f"console-{name}-{size}-{theme}.png")
                    page.screenshot(path=taken[-1])
                context.close()
        browser.close()
    return taken


def _show(page: Page, address: str, name: str) -> None:
    page.goto(address)
    expect(page.locator("#main[data-connected]")).to_be_attached()
    if name == "memory":
        page.locator(".block .why summary").first.click()
        expect(page.locator("ul.provenance").first).to_be_visible()
    page.locator("h1").first.evaluate("() => document.activeElement?.blur()")
    # The folder is a temporary one, and another in each run.
    page.evaluate(_RENAME, [str(Path.cwd()), "/srv/isabella"])
