"""A env for the doctor's tests: a healthy system of a real Letta and practice vendors, to plant faults in."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2 as httpx
import psycopg
from typer import Typer, testing
from typer.main import get_command

from isabella.api import ensure_providers
from isabella.cli import app
from isabella.config.settings import load_settings
from isabella.config.vendors import usual_vendors
from isabella.embedded import Letta
from isabella.letta.llm_config import Binding
from isabella.letta.releases import GENERIC, at_least
from isabella.practice import PracticeVendors
from isabella.system.urls import client_options

VENDORS = {vendor.name: vendor.provider for vendor in usual_vendors()}


@cache
def _command(typer: Typer) -> Any:
    """Build all commands once: to do that takes longer than to run one."""
    return get_command(typer)


@dataclass
class DoctorEnv:
    """One system, healthy until somebody plants a fault.

    Attributes:
        folder: the working folder, with `.env` in it.
        letta: the real server.
        vendors: the practice vendors.
        environment: the variables of the shell.
        env: what stands in `.env`.
        right: what is right for each variable, as its owner knows.
        client: which of Letta's clients the agents are bound with.
        needed: what else an agent needs to be made there (fact O12).
    """

    folder: Path
    letta: Letta
    vendors: PracticeVendors
    environment: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    right: dict[str, str] = field(default_factory=dict)
    client: str = GENERIC
    needed: Mapping[str, Any] = field(default_factory=dict)

    # --- the healthy state ------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Make everything healthy, whatever was done before. What is as it should be is left alone."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()
        self.vendors.clear()
        letta = self.letta
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/"),
            "ISABELLA_HOME": str(self.folder.parent / "isabella-home"),
        }
        assert letta.master_key is not None
        self.right = {
            "LETTA_BASE_URL": letta.base_url,
            "LETTA_API_KEY": letta.password.get_secret_value(),
            "LETTA_ENCRYPTION_KEY": letta.master_key.get_secret_value(),
            "ISABELLA_DATABASE_URL": letta.database_url.get_secret_value(),
        }
        for vendor in VENDORS:
            self.right[f"{vendor.upper()}_API_KEY"] = self.vendors.key(vendor).get_secret_value()
            self.right[f"{vendor.upper()}_BASE_URL"] = self.vendors.base_url(vendor)
        self.env = dict(self.right)
        self.write()
        self._reset_letta()

    def _reset_letta(self) -> None:
        for provider in self.api("GET", "/v1/providers/?limit=100"):
            if provider["name"] not in VENDORS.values():
                self.api("DELETE", f"/v1/providers/{provider['id']}")
        asyncio.run(ensure_providers(load_settings(self.folder / ".env", self.environment), probe=False))
        wanted = {
            vendor.provider: Binding(
                vendor.provider, vendor.default_model or "", self.vendors.base_url(vendor.name), 65_536, self.client
            )
            for vendor in usual_vendors()
        }
        for agent in self.api("GET", "/v1/agents/?limit=100"):
            binding = wanted.pop(agent["name"], None)
            if binding is None:
                self.api("DELETE", f"/v1/agents/{agent['id']}")
            elif (
                not binding.as_llm_config().items() <= agent["llm_config"].items()
                or (agent.get("compaction_settings") or {}).get("model") is not None
            ):
                bound = {**agent["llm_config"], **binding.as_llm_config()}
                self.change(agent["name"], llm_config=bound, **self._own_summaries)
        for name, binding in wanted.items():
            self.agent(name, binding)

    # --- planting ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write `.env`, private."""
        path = self.folder / ".env"
        path.write_text("".join(f"{name}={text}\n" for name, text in self.env.items()))
        path.chmod(0o600)

    def set(self, **variables: str) -> None:
        """Set variables in `.env`."""
        self.env |= variables
        self.write()

    def unset(self, *names: str) -> None:
        """Remove variables from `.env`."""
        for name in names:
            self.env.pop(name, None)
        self.write()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """A request to Letta, which has to succeed."""
        response = self._client.request(method, path, json=body)
        assert response.is_success, response.text
        return response.json() if response.content else None

    @cached_property
    def _client(self) -> httpx.Client:
        """Keeps no connection, because tests restart Letta."""
        headers = {"Authorization": f"Bearer {self.letta.password.get_secret_value()}", "Connection": "close"}
        return httpx.Client(
            base_url=self.letta.base_url, headers=headers, timeout=30, **client_options(self.letta.base_url)
        )

    def sql(self, statement: str, *values: Any) -> None:
        """A statement in Letta's database."""
        with psycopg.connect(self.letta.database_url.get_secret_value(), autocommit=True) as connection:
            connection.execute(statement.encode(), values)

    def provider(self, name: str) -> dict[str, Any]:
        """The live provider of this name."""
        (found,) = self.api("GET", f"/v1/providers/?name={name}")
        return dict(found)

    def store(self, name: str, **changes: str) -> None:
        """PATCH a provider; the key is required in every PATCH (fact P3)."""
        vendor = next(vendor for vendor, provider in VENDORS.items() if provider == name)
        changes.setdefault("api_key", self.right[f"{vendor.upper()}_API_KEY"])
        self.api("PATCH", f"/v1/providers/{self.provider(name)['id']}", changes)

    def delete(self, name: str) -> None:
        """DELETE a provider."""
        self.api("DELETE", f"/v1/providers/{self.provider(name)['id']}")

    def agent(self, name: str, binding: Binding | None = None, **config: Any) -> str:
        """Create an agent, bound explicitly, with changes of its `llm_config`."""
        made = (binding.as_llm_config() if binding is not None else {}) | config
        body = {"name": name, "include_base_tools": False, "llm_config": made, **self.needed}
        id = self.api("POST", "/v1/agents/", body)["id"]
        if self._own_summaries:
            self.api("PATCH", f"/v1/agents/{id}", self._own_summaries)
        return str(id)

    @property
    def _own_summaries(self) -> dict[str, Any]:
        """What keeps Letta from summing up by a handle of its own (fact M15); before 0.16.5 it notes none."""
        return {"compaction_settings": {"model": None}} if at_least(self.letta.version, "0.16.5") else {}

    def rebind(self, name: str, **config: Any) -> None:
        """Change the `llm_config` of an agent that is there."""
        (found,) = self.api("GET", f"/v1/agents/?name={name}")
        self.change(name, llm_config={**found["llm_config"], **config})

    def change(self, name: str, **fields: Any) -> None:
        """PATCH an agent."""
        (found,) = self.api("GET", f"/v1/agents/?name={name}")
        self.api("PATCH", f"/v1/agents/{found['id']}", fields)

    def native(self, handle: str, name: str = "native") -> None:
        """Create an agent by a handle alone, as somebody would who does not know better."""
        self.api("POST", "/v1/agents/", {"name": name, "include_base_tools": False, "model": handle})

    # --- looking ----------------------------------------------------------------------------------------------------

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run `isabella` in this shell's environment; exit code and standard output."""
        before, where = dict(os.environ), Path.cwd()
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        try:
            with patch.object(testing, "_get_command", _command):
                result = testing.CliRunner().invoke(app, list(arguments), catch_exceptions=True)
        finally:
            os.chdir(where)
            os.environ.clear()
            os.environ.update(before)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    def doctor(self, *arguments: str) -> dict[str, Any]:
        """Ask the doctor; the exit code has to fit the document."""
        code, out = self.run("doctor", "--json", *arguments)
        document = json.loads(out)
        assert code == (0 if document["healthy"] else 2)
        for name, secret in self.right.items():
            if not name.endswith("_BASE_URL"):
                assert secret not in out, f"{name} is shown"
        return dict(document)

    # --- healing ----------------------------------------------------------------------------------------------------

    def follow(self, finding: Mapping[str, Any], *, fix: bool) -> bool:
        """Do literally what a finding's remedy says. Returns whether it said anything that can be done literally."""
        remedy = finding["remedy"]
        if fix and remedy["fix"] is not None:
            self.run("doctor", "--fix", "--json")
            return True
        setting, command = remedy["setting"], remedy["command"]
        if setting is not None:
            self._correct(setting["variable"], setting["value"])
        if command is not None:
            self.type(command)
        return setting is not None or command is not None

    def _correct(self, name: str, value: str | None) -> None:
        """Correct a variable where it stands; a value that only its owner knows is the right one."""
        text = self.right.get(name) if value is None else value
        place = self.environment if name in self.environment else self.env
        if text:
            place[name] = text
        else:
            place.pop(name, None)
        self.write()

    def type(self, command: str) -> None:
        """Type a command into the shell of this env."""
        if command.startswith("unset "):
            self.environment.pop(command.removeprefix("unset "))
        elif command.startswith("isabella "):
            self.run(*shlex.split(command)[1:])
        else:
            environment = {**self.environment, "LETTA_API_KEY": self.right["LETTA_API_KEY"]}
            subprocess.run(["bash", "-c", command], cwd=self.folder, env=environment, check=True, capture_output=True)


@contextmanager
def open_door(letta: Letta) -> Iterator[str]:
    """A way to Letta that asks for no password: its address. As if it ran without one."""

    class Door(BaseHTTPRequestHandler):
        def answer(self) -> None:
            inner = HTTPConnection(letta.base_url.removeprefix("http://"), timeout=20)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {"Authorization": f"Bearer {letta.password.get_secret_value()}"}
            if body:
                headers["Content-Type"] = "application/json"
            inner.request(self.command, self.path, body, headers)
            answer = inner.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("content-type", "application/json"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = answer

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
