"""What a phone needs to install the console, and what the service worker keeps: the offline page, and no memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2 as httpx
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from isabella.config.settings import load_settings
from isabella.server.app import create_app
from isabella.server.runtime import Runtime
from isabella.server.sessions import Sessions
from isabella.server.web.rendering import Renderer


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A browser without a session."""
    token = SecretStr("a-token-for-the-tests")
    runtime = Runtime(token, load_settings(environment={}), sessions=Sessions(token))
    with TestClient(create_app(runtime, anyio.lowlevel.checkpoint), base_url="http://127.0.0.1") as client:
        yield client


def get(client: TestClient, url: str) -> httpx.Response:
    """A file that is there for everybody, under the policy of every answer."""
    response = client.get(url)
    assert response.status_code == 200, url
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    return response


def test_the_manifest_and_its_icons(client: TestClient) -> None:
    """Every icon is there, and as large as the manifest says; the start page is within its scope."""
    response = get(client, "/console/static/manifest.webmanifest")
    assert response.headers["content-type"] == "application/manifest+json"
    assert "manifest-src 'self'" in response.headers["content-security-policy"]
    manifest = response.json()
    assert manifest["start_url"].startswith(manifest["scope"])
    sizes = {icon["sizes"]: icon for icon in manifest["icons"]}
    assert {"192x192", "512x512"} <= sizes.keys()
    assert any(icon.get("purpose") == "maskable" for icon in manifest["icons"])
    for icon in manifest["icons"]:
        content = get(client, icon["src"]).content
        if icon["type"] == "image/png":
            width, height = struct.unpack(">II", content[16:24])
            assert icon["sizes"] == f"{width}x{height}"


def test_the_worker_keeps_the_offline_page_and_its_files(client: TestClient) -> None:
    """It is asked for at a URL that names all of them, each of which is there without a session."""
    url = Renderer(Runtime()).installable.worker_url()
    worker = get(client, url)
    assert worker.headers["service-worker-allowed"] == "/console/"
    assert "javascript" in worker.headers["content-type"]
    kept = parse_qs(urlsplit(url).query)["keep"]
    assert [urlsplit(one).path.rpartition("/")[2] for one in kept] == [
        *("offline", "console.css", "icon.svg", "offline.js")
    ]
    pages = [get(client, one).text for one in kept]
    assert "Isabella does not answer" in pages[0]
    # The page needs nothing that is not kept.
    for reference in ("console.css", "icon.svg", "offline.js"):
        (needed,) = [one for one in kept if reference in one]
        assert needed in pages[0]
    assert pages[0].count("/console/static/") == 3


@pytest.mark.parametrize(
    "path", ["/console", "/console/", "/console/providers", "/console/chat", "/console/status/live"]
)
def test_without_a_session_a_browser_gets_the_sign_in_page(client: TestClient, path: str) -> None:
    """Not JSON, which is for programs."""
    page = client.get(path, headers={"Accept": "text/html,*/*;q=0.8"}, follow_redirects=True)
    assert page.status_code == 401
    assert page.headers["content-type"].startswith("text/html")
    assert "isabella login" in page.text
    assert client.get(path, headers={"Accept": "application/json"}).headers["content-type"] == "application/json"
