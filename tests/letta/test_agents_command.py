"""`isabella agents` on a real Letta: what it prints, its exit codes, and its refusals."""

from __future__ import annotations

import json
import re
import secrets
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isabella.agents.service import AgentService
from isabella.cli.agents import app
from isabella.config.vendors import usual_vendors
from isabella.embedded import Letta
from isabella.errors import IsabellaError
from tests.support.agent_env import AgentEnv, agent_env


@pytest.fixture(scope="module")
def new(letta_server: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], AgentEnv]]:
    """Makes colonies for the tests of this file."""
    with agent_env(letta_server, tmp_path_factory.mktemp("cli")) as make:
        yield make


@pytest.fixture
def here(new: Callable[[], AgentEnv], monkeypatch: pytest.MonkeyPatch) -> AgentEnv:
    """A agent_env that the environment names."""
    made = new()
    for name, value in environment(made).items():
        monkeypatch.setenv(name, value)
    return made


def environment(here: AgentEnv) -> Mapping[str, str]:
    """The variables that name a agent_env."""
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


def agents(*arguments: str, input: bytes | None = None) -> tuple[int, str]:
    """Run `isabella agents`: exit code and output; a refusal is code 1 and its message."""
    result = CliRunner().invoke(app, [*arguments], input=input)
    if isinstance(result.exception, IsabellaError):
        return 1, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def answer(*arguments: str, code: int = 0) -> Any:
    """The JSON object that a command prints."""
    exit_code, output = agents(*arguments, "--json")
    assert exit_code == code, output
    return json.loads(output)


def test_ensure_says_what_it_did_and_list_shows_it(here: AgentEnv) -> None:
    """Created, then kept; the table and the JSON name the agent and its model."""
    assert answer("ensure")["agents"][0]["done"] == "created"
    assert answer("ensure")["agents"][0]["done"] == "kept"
    (mine,) = [agent for agent in answer("list")["agents"] if agent["definition"] == here.id]
    assert (mine["handle"], mine["problem"]) == ("cerebras/gpt-oss-120b", None)
    code, table = agents("list")
    assert code == 0
    assert here.name in table
    code, shown = agents("show", here.id, "--prompt")
    assert code == 0
    assert re.search(r"prompt {2}\(about \d+ tokens of a window of 65536\)", shown)
    assert all(part in shown for part in ("persona", "memory blocks", "conversation"))
    assert "prompt" not in answer("show", here.id)
    assert "human" in shown
    assert "(empty)" in shown


def test_switch_and_its_refusal(here: AgentEnv) -> None:
    """A good handle is taken, by provider alone too; a bad one is refused with those that work."""
    answer("ensure")
    assert answer("switch", here.id, "longcat")["handle"] == "longcat/LongCat-2.0"
    code, said = agents("switch", here.id, "nobody/model")
    assert code == 1
    assert "byok-mistral/mistral-medium-latest" in said
    assert agents("switch", "nobody of that name", "longcat")[0] == 1


def test_repair_shows_then_does(here: AgentEnv) -> None:
    """Without --yes it changes nothing and ends with 2; with it the agent is bound, and nothing is left to do."""

    async def plant(agent_service: AgentService) -> str:
        body = {"name": f"Planted {here.id}", "model": "byok-groq/openai/gpt-oss-120b"}
        return str((await agent_service.letta.http.post("/v1/agents/", body))["id"])

    id = here.run(plant)
    shown = {agent["id"]: agent for agent in answer("repair", code=2)["agents"]}
    assert (shown[id]["fault"], shown[id]["done"]) == ("key_ignored", False)
    assert id in {agent["id"] for agent in answer("repair", code=2)["agents"]}
    code, table = agents("repair")
    assert code == 2
    assert "Nothing was changed" in table
    done = {agent["id"]: agent for agent in answer("repair", "--yes")["agents"]}
    assert done[id]["done"]
    assert answer("repair")["agents"] == []


def test_export_import_delete(here: AgentEnv, tmp_path: Path) -> None:
    """A file that only its owner may read; in again under another name; deletion only with --yes."""
    answer("ensure")
    file, twin = tmp_path / "agent.af", f"Twin {secrets.token_hex(3)}"
    answer("export", here.id, str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert agents("import", str(file))[0] == 1
    assert answer("import", str(file), "--name", twin)["name"] == twin
    code, said = agents("import", "-", "--name", "Ghost", input=b"no json")
    assert code == 1
    assert "not an agent file" in said
    assert agents("import", str(tmp_path / "nowhere.af"))[0] == 1
    assert answer("delete", twin, code=2)["deleted"] is False
    assert answer("delete", twin, "--yes")["deleted"] is True
    assert agents("show", twin)[0] == 1


def test_export_and_import_of_a_folder(here: AgentEnv, tmp_path: Path) -> None:
    """An existing folder is refused unless it is replaced; a dry run changes nothing; a damaged folder is refused."""
    answer("ensure")
    folder, twin = tmp_path / "out", f"Twin {secrets.token_hex(3)}"
    export = ("export", here.id, str(folder), "--format", "markdown")
    assert answer(*export)["blocks"] == 1
    code, said = agents(*export)
    assert code == 1
    assert "--replace" in said
    assert answer(*export, "--replace")["folder"] == str(folder)
    code, said = agents("import", str(folder), "--name", twin, "--dry-run")
    assert (code, said.startswith(f"Would import {twin}")) == (0, True)
    assert agents("show", twin)[0] == 1
    assert answer("import", str(folder), "--name", twin)["dry_run"] is False
    assert answer("delete", twin, "--yes")["deleted"] is True
    (folder / "persona.md").write_text("You obey me.")
    code, said = agents("import", str(folder), "--name", twin)
    assert code == 1
    assert "persona.md" in said
    assert agents("show", twin)[0] == 1


def test_import_names_what_it_leaves_out(here: AgentEnv, tmp_path: Path) -> None:
    """Without a word about its tools the file is refused, with what to do; what is left out is a line each."""
    answer("ensure")
    file, name = tmp_path / "agent.af", f"Guest {secrets.token_hex(3)}"
    answer("export", here.id, str(file))
    document = json.loads(file.read_text())
    document["agents"][0] |= {"tools": ["web_search"], "hidden": True}
    file.write_text(json.dumps(document))
    code, said = agents("import", str(file), "--name", name)
    assert code == 1
    assert "web_search" in said
    assert "--without-tools" in said
    code, said = agents("import", str(file), "--name", name, "--without-tools")
    assert code == 0
    assert said.splitlines()[1:] == ["Left out: `hidden`", "Left out: tools: web_search"]
    assert "web_search" not in answer("show", name)["tools"]
    found = answer("import", str(file), "--name", f"{name} too", "--with-tools")
    assert found["left_out"] == ["`hidden`"]
    assert "web_search" in answer("show", f"{name} too")["tools"]


def test_a_malformed_file_is_a_refusal_with_its_line(here: AgentEnv) -> None:
    """Every command says what is wrong with the agents' file, and --json says it in an object."""
    here.file.write_text('[[agents]]\nid = "x"\nname = "a/b"\npersona = "p"\n')
    code, said = agents("list")
    assert code == 1
    assert "line 3" in said
    result = CliRunner().invoke(app, ["ensure", "--json"])
    assert "line 3" in json.loads(result.stdout)["error"]["what"]


def test_the_help_loads_nothing_heavy() -> None:
    """Neither the SDK, nor pydantic, nor rich is imported to show what there is."""
    program = (
        "import sys; from isabella.cli import app\n"
        "heavy = {'letta_client', 'pydantic', 'rich.table', 'httpx2', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
