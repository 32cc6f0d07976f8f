"""Every command that shows what models, vendors, files and others wrote, on a real Letta that is full of traps."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isabella.agents.service import AgentService
from isabella.cli import app
from isabella.config.vendors import usual_vendors
from isabella.embedded import Letta
from isabella.embedded.instance import InstancePaths
from isabella.errors import IsabellaError
from tests.support.agent_env import AgentEnv, agent_env

#: Clipboard, screen, C1, carriage return, backspace, DEL and an override of the writing direction.
EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\x9d0;t\x9c\rEVIL\b\b\x7f\u202elive\u202c"
SHOWN = "\\u001b]52;c;ZXZpbA=="


def harmful(text: str) -> list[str]:
    """The characters that must not reach a terminal."""
    return [c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in "\u202e\u202c"]


@dataclass(frozen=True)
class Trap:
    """A agent_env with traps in all that can hold a text.

    Attributes:
        agent: the name of an agent.
        folder: holds an agent file and a log.
    """

    agent: str
    folder: Path


@pytest.fixture(scope="module")
def trap(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    """Traps in memory, archive, history, descriptions, names of tools and providers, in files and in logs."""
    folder = tmp_path_factory.mktemp("terminal")
    with agent_env(letta_server, folder) as make, pytest.MonkeyPatch.context() as patch:
        here = make()
        for name, value in _environment(here).items():
            patch.setenv(name, value)
        here.run(lambda agent_service: _plant(agent_service, here))
        (folder / "evil.af").write_text(json.dumps({"agents": [{"id": "agent-0", "name": "x", "tools": [EVIL]}]}))
        (folder / "malformed.af").write_text(
            json.dumps({"agents": [{"id": "agent-0", "tool_rules": [{"type": EVIL}]}]})
        )
        (folder / "letta.log").write_text(f"ERROR Failed to decrypt data {EVIL}\n" * 3)
        yield Trap(here.name, folder)


def _environment(here: AgentEnv) -> dict[str, str]:
    assert here.letta.master_key is not None
    found = {
        "LETTA_BASE_URL": here.letta.base_url,
        "LETTA_API_KEY": here.letta.password.get_secret_value(),
        "LETTA_ENCRYPTION_KEY": here.letta.master_key.get_secret_value(),
        "ISABELLA_DATABASE_URL": here.letta.database_url.get_secret_value(),
        "ISABELLA_HOME": str(here.folder / "home"),
        "ISABELLA_AGENTS_FILE": str(here.file),
        "ISABELLA_EMBEDDINGS": "off",
    }
    for vendor in usual_vendors():
        found[vendor.api_key_env] = here.key(vendor.name)
        if vendor.base_url_env is not None:
            found[vendor.base_url_env] = here.vendors.base_url(vendor.name)
    return found


async def _plant(agent_service: AgentService, here: AgentEnv) -> None:
    await agent_service.ensure()
    agent = await agent_service.registry.find(here.id)
    wire = agent_service.letta.http
    await wire.patch(f"/v1/agents/{agent.id}", {"description": EVIL})
    await wire.patch(f"/v1/blocks/{agent.blocks['human']}", {"value": f"The user's cat is called {EVIL}Minka."})
    await agent_service.archive.add(agent.id, f"The boiler {EVIL}", [])
    await wire.post(f"/v1/agents/{agent.id}/messages", {"messages": [{"role": "user", "content": f"Boiler {EVIL}"}]})
    broken = {"name": f"Broken {here.id}", "description": EVIL, "model": "byok-groq/openai/gpt-oss-120b"}
    await wire.post("/v1/agents/", broken)
    provider = {"name": f"x{EVIL}{here.id}", "provider_type": "openai", "api_key": "sk-of-somebody", "base_url": EVIL}
    await wire.post("/v1/providers/", provider)


def _run(trap: Trap, arguments: str, lines: str | None = None) -> str:
    meant = {
        "AGENT": trap.agent,
        "EVIL": EVIL,
        "EVIL.af": f"{trap.folder}/evil.af",
        "BAD.af": f"{trap.folder}/malformed.af",
        "LOG": f"{trap.folder}/letta.log",
    }
    result = CliRunner().invoke(app, [meant.get(word, word) for word in arguments.split()], input=lines)
    assert result.exception is None or isinstance(result.exception, (SystemExit, IsabellaError)), result.exception
    return str(result.output)


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        ("agents list", False),
        ("agents list --json", True),
        ("agents show AGENT", True),
        ("agents show AGENT --json", True),
        ("agents export AGENT -", True),
        ("agents ensure", False),
        ("agents repair", False),
        ("agents repair --json", False),
        ("agents switch AGENT EVIL --json", True),
        ("agents show EVIL --json", True),
        ("agents delete EVIL --json", True),
        ("agents import EVIL.af --json", True),
        ("agents import BAD.af --json", False),
        ("providers plan", True),
        ("providers plan --json", True),
        ("providers status", True),
        ("providers status --only EVIL --json", True),
        ("doctor", False),
        ("doctor --json", False),
        ("doctor --log LOG", True),
        ("doctor explain --log LOG", True),
        ("doctor explain --log LOG --json", True),
        ("doctor explain Failed to decrypt data EVIL", True),
        ("settings", False),
        ("EVIL", True),
        ("agents EVIL", True),
    ],
)
def test_a_command(trap: Trap, arguments: str, shows: bool) -> None:
    """No control character is in what it prints, the trap is visible where it is shown, and JSON is JSON."""
    printed = _run(trap, arguments)
    assert printed
    assert harmful(printed) == []
    assert not shows or "]52;c;ZXZpbA==" in printed
    if "--json" in arguments or arguments.endswith("-"):
        assert json.loads(printed)


def test_letta_logs(trap: Trap) -> None:
    """A log holds what vendors and clients sent."""
    paths = InstancePaths(Path(os.environ["ISABELLA_HOME"]))
    paths.letta_log.parent.mkdir(parents=True, exist_ok=True)
    paths.letta_log.write_text(f"a line {EVIL}\n")
    printed = _run(trap, "letta logs")
    assert SHOWN in printed
    assert harmful(printed) == []


def test_a_chat(trap: Trap) -> None:
    """An answer, memory, what was found, an unknown command and a refused model."""
    asked = (
        "What is my cat called?",
        "/memory",
        "/search boiler",
        f"/model x/{EVIL}",
        f"/x{EVIL}",
        f"/remember {EVIL}",
    )
    lines = "".join(f"{line}\n" for line in (*asked, "/search EVIL"))
    printed = _run(trap, "chat --agent AGENT", lines.replace("\r", ""))
    assert printed.count(SHOWN) >= 4
    assert "Minka" in printed
    assert harmful(printed) == []
