"""Archival memory by meaning, on a real Letta: one source for each agent, wherever the backend listens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from isabella.agents import embeddings
from isabella.embedded import Letta, Server
from isabella.practice import PracticeVendors
from isabella.practice.wire import embed
from tests.support.agent_env import PLAIN, AgentEnv
from tests.support.backend_server import Backend, backend


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stand-in for the local model."""
    monkeypatch.setattr(embeddings, "local_model_installed", lambda: True)
    monkeypatch.setattr(
        embeddings, "embed_locally", lambda texts: [embed(text, embeddings.DIMENSIONS) for text in texts]
    )


def found(served: Backend, agent: str, query: str) -> str:
    """The text of the nearest passage."""
    answer = served.client.get(f"/api/agents/{agent}/search", params={"q": query, "in": "archive"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["passages"][0]["text"])


def of(served: Backend, id: str) -> Any:
    """The agent of a definition, as Letta has it."""
    (row,) = served.letta.get("/v1/agents/", params={"tags": f"isabella:agent:{id}"}).json()
    return row


def test_an_agent_keeps_its_source_while_the_settings_and_the_port_change(
    letta_server: Letta, embedded: Server, tmp_path: Path, local: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Made with the local model, it stays with it though Mistral is wished for later; its address is followed."""
    with PracticeVendors() as vendors:
        here = AgentEnv(letta_server, vendors, tmp_path)
        here.define(PLAIN)
        options = {"agents_file": here.file}
        with backend(letta_server, tmp_path / "home", vendors, embeddings="local", **options) as first:
            for text in ("The boiler was repaired in May.", "Rex likes long walks."):
                first.client.post(f"/api/agents/{here.id}/passages", json={"text": text}).raise_for_status()
            assert found(first, here.id, "repairing the boiler") == "The boiler was repaired in May."
            config = of(first, here.id)["embedding_config"]
            assert (config["embedding_model"], config["embedding_dim"]) == (embeddings.MODEL, 256)
            assert first.client.get(f"/api/agents/{here.id}").json()["archive"] == "local"
        assert not [request for request in vendors.requests("mistral") if request.path.endswith("/embeddings")]

        here.define(PLAIN + PLAIN.replace('id = "%"', 'id = "%-new"').replace('"Agent %"', '"New %"'))
        with backend(letta_server, tmp_path / "home", vendors, embeddings="mistral", **options) as second:
            moved = of(second, here.id)["embedding_config"]
            assert moved["embedding_endpoint"].startswith(second.url)
            assert moved["embedding_endpoint"] != config["embedding_endpoint"]
            assert moved["embedding_model"] == embeddings.MODEL
            assert found(second, here.id, "walks with Rex") == "Rex likes long walks."
            assert of(second, f"{here.id}-new")["embedding_config"]["embedding_model"] == "mistral-embed"

            # A request with the secret that fails is logged, too, and neither Letta's log nor ours has the secret.
            secret = embeddings.address_secret(tmp_path / "home").get_secret_value()
            refused = second.client.post(
                f"{embeddings.PREFIX}/{secret}/v1/embeddings", json={"model": "x", "input": "x"}
            )
            assert refused.status_code == 404
            vendors.fault("mistral", on="embeddings", status=500)
            second.client.post(f"/api/agents/{here.id}-new/passages", json={"text": "x"})
            second.client.get(f"/api/agents/{here.id}-new/search", params={"q": "x"})
        status = embedded.status()
        logs = [*status.folder.rglob("*.log"), *status.letta_log.parent.rglob("*.log")]
        assert status.letta_log in logs
        assert [log.name for log in logs if secret in log.read_text(errors="replace")] == []
        assert secret not in caplog.text


def test_an_agent_that_has_passages_without_vectors_is_searched_by_text(letta_server: Letta, tmp_path: Path) -> None:
    """Vectors for new passages alone would hide the old ones; so such an agent stays with text search."""
    with PracticeVendors() as vendors:
        here = AgentEnv(letta_server, vendors, tmp_path)
        here.define(PLAIN)
        options = {"agents_file": here.file}
        with backend(letta_server, tmp_path / "home", vendors, embeddings="off", **options) as off:
            off.client.post(f"/api/agents/{here.id}/passages", json={"text": "The boiler is old."}).raise_for_status()
            assert found(off, here.id, "boiler") == "The boiler is old."
        with backend(letta_server, tmp_path / "home", vendors, embeddings="mistral", **options) as on:
            assert of(on, here.id)["embedding_config"] is None
            assert found(on, here.id, "boiler") == "The boiler is old."
            assert on.client.get(f"/api/agents/{here.id}").json()["archive"] == "text"


def document(text: str) -> bytes:
    """A PDF with one line on one page, and no table of its objects."""
    content = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET"
    objects = (
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(content)}>>\nstream\n{content}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    numbered = "".join(f"{number} 0 obj\n{body}\nendobj\n" for number, body in enumerate(objects, start=1))
    return f"%PDF-1.4\n{numbered}trailer<</Root 1 0 R>>\n%%EOF".encode()


def test_files_are_read_and_cut(letta_server: Letta, tmp_path: Path, local: None) -> None:
    """Letta loads what it needs for that at the first file only; the patched lock must not have left it out."""
    text = "The boiler was repaired in May. " * 40
    files = {
        "notes.txt": text.encode(),
        "page.html": f"<html><body><h1>House</h1><p>{text}</p></body></html>".encode(),
        "list.json": json.dumps({"boiler": text}).encode(),
        "house.py": f'"""House."""\n\nBOILER = "{text}"\n'.encode(),
        "letter.pdf": document("The boiler was repaired in May."),
    }
    with PracticeVendors() as vendors:
        here = AgentEnv(letta_server, vendors, tmp_path)
        here.define(PLAIN)
        with backend(letta_server, tmp_path / "home", vendors, embeddings="local", agents_file=here.file) as served:
            config = of(served, here.id)["embedding_config"]
            folder = served.letta.post("/v1/folders/", json={"name": here.id, "embedding_config": config}).json()[
                "id"
            ]
            for name, content in files.items():
                sent = served.letta.post(f"/v1/folders/{folder}/upload", files={"file": (name, content)})
                assert sent.status_code == 200, (name, sent.text)
                status = read_by_letta(served, folder, sent.json()["id"])
                assert (status["processing_status"], status["error_message"]) == ("completed", None), name
                assert status["total_chunks"] >= 1, name
            served.letta.delete(f"/v1/folders/{folder}").raise_for_status()


def read_by_letta(served: Backend, folder: str, file: str) -> Any:
    """Wait until Letta has read a file, or has given up, and return what it says of it."""
    for _ in range(600):
        status = served.letta.get(f"/v1/folders/{folder}/files/{file}").json()
        if status["processing_status"] in ("completed", "error"):
            return status
        time.sleep(0.1)
    raise AssertionError(status)
