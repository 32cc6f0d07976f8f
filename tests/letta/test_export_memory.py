"""The memory of a backend while an agent with a long history is downloaded."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import httpx2 as httpx
import psutil
import pytest

from bench.agent_rows import add_messages, remove_messages
from bench.backend import TOKEN, serving, vendor_variables
from bench.conversation import HANDLES, defined
from bench.setup import Setup
from isabella.embedded import Letta
from isabella.practice import PracticeVendors

AGENT = "talkative-download"
MESSAGES = 4000
#: Characters of a message, and of the answer, which repeats it.
LENGTH = 8000
#: Bytes of memory for each message: a fraction of its text, which is in the backend page by page.
LIMIT = 1500
_LOOK_EVERY = 0.02


@dataclass
class Downloads:
    """A backend in a process of its own, and a client of it."""

    letta: Letta
    client: httpx.Client
    process: psutil.Process
    folder: Path

    def get(self, path: str) -> Path:
        """Download into a file, piece by piece."""
        target = self.folder / "download.zip"
        with self.client.stream("GET", path) as response, target.open("wb") as file:
            assert response.status_code == 200, response.read()
            for piece in response.iter_raw():
                file.write(piece)
        assert target.stat().st_size == int(response.headers["content-length"])
        return target

    def grown(self, work: Callable[[], object]) -> int:
        """Return by how many bytes the memory of the backend is larger at most while something is done."""
        before = peak = self.process.memory_info().rss
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(_LOOK_EVERY):
                peak = max(peak, self.process.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            work()
        finally:
            done.set()
            watching.join()
        after = self.process.memory_info().rss
        print(f"RSS: {before / 1e6:.1f} MB before, {peak / 1e6:.1f} at most, {after / 1e6:.1f} after")
        return max(peak, after) - before


@pytest.fixture
def downloads(letta_server: Letta, tmp_path: Path) -> Iterator[Downloads]:
    """One agent that has had one turn."""
    home = tmp_path / "home"
    home.mkdir()
    agents = home / "agents.toml"
    agents.write_text(defined(AGENT, [HANDLES["cerebras"]]))
    variables = {"ISABELLA_AGENTS_FILE": str(agents), "ISABELLA_EMBEDDINGS": "off"}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        PracticeVendors() as vendors,
        serving(Setup.in_home(letta_server, home), variables | vendor_variables(vendors)) as (address, process),
        httpx.Client(base_url=address, headers=headers, timeout=300, trust_env=False) as client,
    ):
        said = {"message": f"Say {'something long, ' * (LENGTH // 16)}"}
        assert '"completed"' in client.post(f"/api/agents/{AGENT}/turns", json=said).text
        yield Downloads(letta_server, client, process, tmp_path)
        remove_messages(letta_server)
        client.delete(f"/api/agents/{AGENT}").raise_for_status()


@pytest.mark.timeout(300)
def test_a_download_costs_no_memory_for_its_messages(downloads: Downloads) -> None:
    """It is read from Letta, packed and sent piece by piece, by the API and by the console."""
    agent = downloads.client.get(f"/api/agents/{AGENT}").json()["id"]
    paths = [f"/api/agents/{AGENT}/export?format=markdown", f"/console/agents/{agent}/export"]
    # What a download needs anyway, however long the history is.
    for path in paths:
        downloads.get(path)
    add_messages(downloads.letta, agent, MESSAGES)
    for path in paths:
        grown = downloads.grown(partial(downloads.get, path))
        with ZipFile(downloads.folder / "download.zip") as archive:
            manifest = next(name for name in archive.namelist() if name.endswith("manifest.json"))
            assert json.loads(archive.read(manifest))["counts"]["messages"] > MESSAGES
            assert sum(one.file_size for one in archive.infolist()) > MESSAGES * LENGTH
        assert grown < MESSAGES * LIMIT, f"{path}: {grown / MESSAGES:.0f} bytes for each message"
