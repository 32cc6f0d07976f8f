"""Exported folders that come back: only as they were written, and never anything from outside of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from isabella.agents import agent_file
from isabella.agents.exports import read
from isabella.agents.exports.markdown import FORMAT, FORMAT_VERSION
from isabella.agents.exports.read import ExportedAgent, read_export
from isabella.errors import AgentFileRefused, ExportRefused

MESSAGES = "conversations/00-default/messages.jsonl"
OTHER = "conversations/01-pets/messages.jsonl"


def said(number: int, role: str = "user", **fields: Any) -> dict[str, Any]:
    """A message."""
    return {"id": f"message-{number}", "at": "2026-11-01T10:00:00+00:00", "role": role, "text": f"{number}", **fields}


def content() -> dict[str, Any]:
    """The files of an export: JSON documents, and lists of lines."""
    own = {
        "definition": "isabella",
        "metadata": {"isabella": {"handles": ["cerebras/x"], "written": {"name": "abc"}}},
        "reflected": {"reflection": "message-2"},
        "window": 65536,
    }
    return {
        "agent.json": {
            "agents": [{"id": "agent-0", "name": "Ann", "system": "You are Ann.", "llm_config": {"handle": "a/b"}}],
            "isabella": own,
        },
        "memory/blocks.jsonl": [{"label": "human", "value": "Rex", "limit": 100, "description": "", "metadata": {}}],
        "memory/history.jsonl": [
            {"label": "human", "number": 1, "at": "2026-11-01", "author": "first", "value": ""},
            {"label": "human", "number": 2, "at": "2026-11-02", "author": "person", "value": "Rex"},
        ],
        "archive/passages.jsonl": [{"text": "A passage.", "tags": ["one"], "created_at": None}],
        "conversations/conversations.jsonl": [
            {
                "id": "default",
                "name": "Default",
                "folder": "conversations/00-default",
                "context": ["message-2", "message-3"],
            },
            {
                "id": "conv-1",
                "name": "Pets",
                "archived": True,
                "folder": "conversations/01-pets",
                "context": ["message-5"],
            },
        ],
        MESSAGES: [said(1), said(2, "assistant"), said(3), said(9, "other", row=[{"message_type": "novel"}])],
        OTHER: [said(4), said(5, "assistant")],
    }


def put(root: Path, documents: Mapping[str, Any], **manifest: Any) -> Path:
    """Write an export whose manifest fits."""
    files = {}
    for path, document in documents.items():
        if isinstance(document, bytes):
            data = document
        elif isinstance(document, list):
            data = "".join(json.dumps(line) + "\n" for line in document).encode()
        else:
            data = json.dumps(document).encode()
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        files[path] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    head = {"format": FORMAT, "version": FORMAT_VERSION, "files": files, **manifest}
    (root / "manifest.json").write_text(json.dumps(head))
    return root


def read_all(root: Path) -> ExportedAgent:
    """Read an export with all its conversations."""
    return read_export(root, several=True)


def test_everything_is_read(tmp_path: Path) -> None:
    """Messages of all conversations in order, contexts, former texts, and the place in the agents file."""
    exported = read_all(put(tmp_path, content()))
    file = exported.file
    texts = [message["content"][0]["text"] for message in file.agent["messages"]]
    assert texts == ["You are Ann.", "1", "2", "3", "4", "5"]
    assert file.agent["in_context_message_ids"] == ["message-0", "message-2", "message-3"]
    assert [(one.id, one.archived, len(one.messages)) for one in exported.conversations] == [
        ("default", False, 3),
        ("conv-1", True, 2),
    ]
    assert exported.conversations[1].context == ["message-5"]
    assert [(one.number, one.value) for one in exported.versions["human"]] == [(1, ""), (2, "Rex")]
    assert [passage.text for passage in file.passages] == ["A passage."]
    assert (file.name, file.handle, exported.definition, exported.window) == ("Ann", "a/b", "isabella", 65536)
    assert exported.own.written == {"name": "abc"}
    assert exported.left_out == ("messages of kinds that Letta cannot import (1)",)


def test_other_conversations_are_named_if_they_cannot_be_imported(tmp_path: Path) -> None:
    """They are left out as a whole, not mixed into the default one."""
    exported = read_export(put(tmp_path, content()), several=False)
    assert len(exported.file.agent["messages"]) == 4
    assert any("conversations beside the default one (1)" in one for one in exported.left_out)


def test_the_oldest_messages_are_left_out_if_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest ones are taken, those in the context first of all, and the number of the others is named."""
    put(tmp_path, content() | {MESSAGES: [said(number) for number in range(100, 200)] + [said(2), said(3)]})
    monkeypatch.setattr(read, "_MOST_IMPORTED", 1000)
    exported = read_all(tmp_path)
    assert exported.conversations[0].context == ["message-2", "message-3"]
    kept = [message.id for one in exported.conversations for message in one.messages]
    assert kept[-4:] == ["message-2", "message-3", "message-4", "message-5"]
    assert len(kept) < 15
    assert f"the oldest messages ({104 - len(kept)}), beyond what one import takes" in exported.left_out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: (root / MESSAGES).unlink(), "incomplete: conversations/00-default/messages.jsonl is missing"),
        (lambda root: (root / MESSAGES).write_bytes((root / MESSAGES).read_bytes()[:-9]), "damaged: .* bytes"),
        (lambda root: (root / MESSAGES).write_bytes(b"\xff" + (root / MESSAGES).read_bytes()[1:]), "was changed"),
        (lambda root: (root / "manifest.json").unlink(), "not an Isabella export, or is incomplete"),
        (lambda root: (root / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
        (lambda root: (root / "manifest.json").write_text("[" * 100_000), "manifest.json is damaged"),
        (lambda root: (root / "manifest.json").write_text('{"format": "x"}'), "not an Isabella export"),
        (lambda root: (root / "manifest.json").write_text("[]"), "not an Isabella export"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Any, says: str) -> None:
    """Missing, cut, changed and foreign files; the error names the file."""
    damage(put(tmp_path, content()))
    with pytest.raises(ExportRefused, match=says):
        read_all(tmp_path)


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    """Also in files that are for people only."""
    documents = content() | {"memory/human.md": b"# human\n\nRex\n"}
    for path in documents:
        put(tmp_path, documents)
        data = bytearray((tmp_path / path).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / path).write_bytes(data)
        with pytest.raises(ExportRefused, match=f"{path} is not as it was written"):
            read_all(tmp_path)


def test_a_memory_folder_and_a_later_version_are_named(tmp_path: Path) -> None:
    """Each with what to do instead."""
    put(tmp_path, content(), version=FORMAT_VERSION + 1)
    with pytest.raises(ExportRefused, match="has the version 2; this Isabella reads 1"):
        read_all(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "MEMORY.md").touch()
    with pytest.raises(ExportRefused, match="memory folder of Letta Code"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory/blocks.jsonl": b'{"label": "\xff"}\n'}, "memory/blocks.jsonl, line 1: it is not UTF-8"),
        ({MESSAGES: b"{\n"}, "messages.jsonl, line 1: it is not JSON"),
        ({MESSAGES: [1]}, "messages.jsonl, line 1: it is not a JSON object"),
        ({MESSAGES: [said(2), said(3), said(2)]}, "line 3: another message has the same id"),
        ({MESSAGES: [said(2), said(3, "robot")]}, "line 2: role"),
        ({MESSAGES: [said(2, text="\x00"), said(3)]}, "line 1: text: .*NUL"),
        ({MESSAGES: [said(3)]}, "there is no message 'message-2'"),
        ({MESSAGES: [said(2, at="yesterday"), said(3)]}, "created_at"),
        ({"memory/history.jsonl": [{"label": "human"}]}, "line 1: it is not a version"),
        ({"memory/blocks.jsonl": [{"label": "a"}, {"label": "a"}]}, "two blocks have the label 'a'"),
        ({"archive/passages.jsonl": [{"tags": []}]}, "passages"),
        ({"agent.json": {"agents": []}}, "agent.json: it does not have one agent"),
        ({"agent.json": {"agents": [7]}}, "its agent is not a JSON object"),
        ({"agent.json": b"{"}, "agent.json: it is not JSON"),
        ({"agent.json": {"agents": [{"id": "a"}], "isabella": {"reflected": 7}}}, "agent.json: reflected"),
        ({"conversations/conversations.jsonl": []}, "the default conversation"),
        (
            {"conversations/conversations.jsonl": [{"id": "default", "folder": "../elsewhere"}]},
            "it does not have the file",
        ),
    ],
)
def test_a_forged_folder_is_refused_with_the_place(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """Its manifest fits, its content does not."""
    put(tmp_path, content() | changes)
    with pytest.raises(AgentFileRefused, match=says):
        read_all(tmp_path)


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    """Neither by a path in the manifest nor over a link."""
    (tmp_path / "secret").write_text("{}")
    inside = put(tmp_path / "in", content())
    manifest = json.loads((inside / "manifest.json").read_text())
    for path in ("../secret", str(tmp_path / "secret"), "", "a\x00b"):
        (inside / "manifest.json").write_text(
            json.dumps({**manifest, "files": {path: {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}})
        )
        with pytest.raises(ExportRefused, match="is not in the folder"):
            read_all(inside)
    put(inside, content())
    (inside / "memory").rename(tmp_path / "moved")
    (inside / "memory").symlink_to(tmp_path / "moved")
    with pytest.raises(ExportRefused, match="is a link"):
        read_all(inside)


def test_a_folder_is_as_little_trusted_as_an_agent_file(tmp_path: Path) -> None:
    """Its settings are read as those of any agent file."""
    documents = content()
    documents["agent.json"]["agents"][0] |= {"tags": ["role:subagent", "theirs"], "hidden": True}
    exported = read_all(put(tmp_path, documents))
    assert exported.file.tags == ["theirs"]
    assert "`hidden`" in exported.file.left_out
    assert "hidden" not in exported.file.agent
    assert agent_file.MEMORY_TOOLS.isdisjoint(exported.file.tools)
