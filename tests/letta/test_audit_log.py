"""The audit log of a real backend: every route and command that changes something has one change in it."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from isabella.embedded import Letta
from isabella.server.auth import COOKIE, CSRF_HEADER
from isabella.server.web.conversations import ChatAddress
from isabella.system import audit
from isabella.system.audit import ActorKind, ChangeOutcome, Record
from tests.support.audit_table import COMMANDS, ROUTES
from tests.support.backend_server import TOKEN, Backend, published_backend
from tests.support.command import Command

GROQ, MISTRAL = "byok-groq/openai/gpt-oss-120b", "byok-mistral/mistral-medium-latest"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def served(empty_letta: Letta, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with practice vendors of its own, which the command line finds."""
    with published_backend(empty_letta, tmp_path_factory.mktemp("home")) as running:
        yield running
        for agent in running.letta.get("/v1/agents/").raise_for_status().json():
            running.letta.delete(f"/v1/agents/{agent['id']}")


class Recorder:
    """Does something, and returns the one change that the log has of it."""

    def __init__(self, served: Backend) -> None:
        self.served = served
        self.home = served.connection.home
        self.seen = {one.entry.id for one in audit.records(self.home)}

    def new(self) -> list[Record]:
        """The changes since the last look."""
        found = [one for one in audit.records(self.home) if one.entry.id not in self.seen]
        self.seen |= {one.entry.id for one in found}
        return found

    def request(self, route: str, subject: str, **options: Any) -> Record:
        """Send a request, with the token or a browser's session, and return its change."""
        method, _, path = route.partition(" ")
        headers = dict(options.pop("headers", {}))
        for name, value in options.pop("path", {}).items():
            path = path.replace(f"{{{name}}}", value)
        console = path.startswith("/console/")
        if console:
            cookie = self.served.runtime.sessions.begin("a browser", "127.0.0.1")
            headers |= {"cookie": f"{COOKIE}={cookie}", CSRF_HEADER: self.served.runtime.csrf}
        else:
            headers["authorization"] = f"Bearer {TOKEN}"
        with httpx2.Client(base_url=self.served.url, timeout=60) as client:
            answer = client.request(method, path, headers=headers, **options)
        assert answer.status_code < 300, (route, answer.status_code, answer.text)
        (one,) = self.new()
        assert one.entry.outcome is ChangeOutcome.DONE, one
        assert one.entry.change == ROUTES[route]
        assert one.entry.actor.kind is (ActorKind.SESSION if console else ActorKind.TOKEN)
        assert one.entry.actor.via == f"{method} {path}"
        assert one.entry.subject == subject
        return one


def test_every_route_that_changes_something_has_one_change(served: Backend) -> None:
    """Agents, their memory and their models, over the API and on the pages, with what the change was about."""
    recorder = Recorder(served)
    ask = recorder.request
    done = {route for route, kind in ROUTES.items() if kind.startswith(("session.", "provider."))}

    def did(route: str, subject: str, **options: Any) -> Record:
        done.add(route)
        return ask(route, subject, **options)

    did("POST /api/agents", "Ada", json={"name": "Ada", "handle": GROQ})
    did("PATCH /api/agents/{name}", "Ada", path={"name": "Ada"}, json={"name": "Ada L"})
    did("POST /api/agents/{name}/duplicate", "Ada L", path={"name": "Ada L"}, json={"name": "Grace"})
    switched = did("POST /api/agents/{name}/switch", "Grace", path={"name": "Grace"}, json={"handle": MISTRAL})
    assert switched.entry.details == {"model": GROQ, "to": MISTRAL}
    export = served.client.get("/api/agents/Grace/export").content
    assert served.client.get("/api/agents/Grace/export", params={"format": "markdown"}).content.startswith(b"PK")
    assert recorder.new() == []
    did("POST /api/agents/import", "Linus", content=export, params={"name": "Linus"})
    did("DELETE /api/agents/{name}", "Grace", path={"name": "Grace"})

    id, name = served.id_of("Ada L"), {"name": "Ada L"}
    block = {**name, "label": "human"}
    version = served.client.get("/api/agents/Ada L/blocks/human").json()["version"]
    text = "A text of the user, which is not for the log."
    put = did("PUT /api/agents/{name}/blocks/{label}", id, path=block, json={"value": text, "version": version})
    assert put.entry.details == {"block": "human", "characters": len(text)}
    served.client.put("/api/agents/Ada L/blocks/human", json={"value": "B", "version": "*"})
    recorder.new()
    version = served.client.get("/api/agents/Ada L/blocks/human").json()["version"]
    back = did(
        "POST /api/agents/{name}/blocks/{label}/restore", id, path=block, json={"number": 1, "version": version}
    )
    assert back.entry.details["restored"] == 1
    did("POST /api/agents/{name}/passages", id, path=name, json={"text": text})
    (passage,) = served.client.get("/api/agents/Ada L/passages").json()["passages"]
    did("DELETE /api/agents/{name}/passages/{passage_id}", id, path={**name, "passage_id": passage["id"]})
    talk = served.client.post("/api/agents/Ada L/conversations", json={"name": "Plans"}).json()["id"]
    assert recorder.new() == []
    archived = {"archived": True}
    did("PATCH /api/agents/{name}/conversations/{id}", talk, path={**name, "id": talk}, json=archived)

    at = {"agent": id, "address": id}
    page: Callable[..., Record] = lambda route, subject, **fields: did(  # noqa: E731
        f"POST /console/{route}", subject, path=at, data=fields, headers=FORM
    )
    page("agents/create", "Edsger", name="Edsger", handle=GROQ)
    page("agents/{agent}/rename", "Ada L", name="Ada")
    page("agents/{agent}/duplicate", "Ada", name="Barbara")
    at["agent"] = served.id_of("Barbara")
    page("agents/{agent}/delete", "Barbara")
    did("POST /console/agents/import", "Ken", content=export, params={"name": "Ken"})
    at["agent"] = id
    page("chat/{address}/switch", "Ada", handle=MISTRAL)
    at["address"] = str(ChatAddress(id, talk))
    page("chat/{address}/conversations/archive", talk, archived="false")
    version = served.client.get("/api/agents/Ada/blocks/human").json()["version"]
    page("memory/{agent}/save", id, label="human", value="C", version=version)
    version = served.client.get("/api/agents/Ada/blocks/human").json()["version"]
    page("memory/{agent}/restore", id, label="human", number="1", version=version)
    for form in ("delete", "selected"):
        page("memory/{agent}/add", id, text=text)
        (passage,) = served.client.get("/api/agents/Ada/passages").json()["passages"]
        fields = {"id": passage["id"]} if form == "delete" else {passage["id"]: "yes", "sure": "yes"}
        page(f"memory/{{agent}}/{form}", id, **fields)

    assert done == {route for route, kind in ROUTES.items() if "." in kind.partition(" ")[0]}
    log = (recorder.home / "audit" / "audit.jsonl").read_text()
    assert text not in log
    assert TOKEN not in log


def test_a_sync_on_the_page_is_attributed_to_its_session(served: Backend) -> None:
    """What Letta holds is changed behind Isabella: the line has prefix and last four characters of the new key."""
    recorder = Recorder(served)
    (groq,) = (one for one in served.letta.get("/v1/providers/").json() if one["name"] == "byok-groq")
    served.letta.patch(f"/v1/providers/{groq['id']}", json={"api_key": "gsk_somebody_elses"}).raise_for_status()
    cookie = served.runtime.sessions.begin("a browser", "127.0.0.1")
    headers = {"cookie": f"{COOKIE}={cookie}", CSRF_HEADER: served.runtime.csrf, **FORM}
    notifier = served.runtime.event_log.notifier
    count = notifier.count
    with httpx2.Client(base_url=served.url, timeout=60, headers=headers) as browser:
        assert browser.post("/console/providers/sync", data={"only": "byok-groq"}).status_code == 200
    # A sync is in the log of events when it has ended.
    served.call(notifier.wait, count, 60.0)
    found = recorder.new()
    (one,) = found
    assert (one.entry.change, one.entry.subject, one.entry.outcome) == (
        "provider.updated",
        "byok-groq",
        ChangeOutcome.DONE,
    )
    assert one.entry.actor.kind is ActorKind.SESSION
    key = served.vendors.key("groq").get_secret_value()
    assert one.entry.details["key"].endswith(key[-4:])
    assert key not in (recorder.home / "audit" / "audit.jsonl").read_text()


@pytest.fixture
def command(served: Backend, tmp_path: Path) -> Command:
    """A terminal of the operator."""
    connection = served.connection
    assert connection.password is not None
    assert connection.master_key is not None
    command = Command(tmp_path, {"ISABELLA_HOME": str(connection.home)})
    vendors = ("cerebras", "groq", "mistral", "longcat")
    command.configure(
        ISABELLA_TOKEN=TOKEN,
        LETTA_BASE_URL=connection.base_url,
        LETTA_API_KEY=connection.password.get_secret_value(),
        LETTA_ENCRYPTION_KEY=connection.master_key.get_secret_value(),
        ISABELLA_EMBEDDINGS="off",
        **{f"{name.upper()}_API_KEY": served.vendors.key(name).get_secret_value() for name in vendors},
        **{f"{name.upper()}_BASE_URL": served.vendors.base_url(name) for name in vendors},
    )
    return command


def test_every_command_that_changes_something_has_one_change(served: Backend, command: Command) -> None:
    """The user of the terminal and the command; commands on the embedded Letta itself are in tests of their own."""
    recorder, done = Recorder(served), set(_ELSEWHERE)

    def run(words: str, subject: str, *arguments: str, code: int = 0) -> Record:
        done.add(words)
        ended = command.run(*words.split(), *arguments)
        assert ended.code == code, ended.out + ended.err
        (one,) = recorder.new()
        assert (one.entry.change, one.entry.subject) == (COMMANDS[words], subject)
        assert one.entry.outcome is ChangeOutcome.DONE
        user = pwd.getpwuid(os.getuid()).pw_name
        assert one.entry.actor == audit.Actor(ActorKind.OPERATOR, user, via=f"isabella {words}")
        return one

    (groq,) = (one for one in served.letta.get("/v1/providers/").json() if one["name"] == "byok-groq")
    served.letta.patch(f"/v1/providers/{groq['id']}", json={"api_key": "gsk_somebody_elses"}).raise_for_status()
    run("providers sync", "byok-groq")
    ended = command.run("providers", "sync")
    assert (ended.code, recorder.new()) == (0, [])

    served.client.post("/api/agents", json={"name": "Niklaus", "handle": GROQ}).raise_for_status()
    recorder.new()
    run("agents switch", "Niklaus", "Niklaus", MISTRAL)
    exported = command.folder / "niklaus.af"
    assert command.run("agents", "export", "Niklaus", str(exported)).code == 0
    assert recorder.new() == []
    run("agents import", "Tony", str(exported), "--name", "Tony")
    run("agents delete", "Tony", "Tony", "--yes")
    for words, option in (("agents repair", "--yes"), ("doctor", "--fix")):
        _break(served, "Niklaus")
        run(words, "Niklaus", option)
    (isabella,) = (one for one in served.client.get("/api/agents").json()["agents"] if one["name"] == "Isabella")
    served.letta.delete(f"/v1/agents/{isabella['id']}").raise_for_status()
    run("agents ensure", "Isabella")

    env = command.folder / ".env"
    key = "sk-or-v1-AuditCanary0123456789abcd"
    with env.open("a") as file:
        file.write(f"OPENROUTER_API_KEY={key}\n")
    run("vendors add", ".env", "openrouter", "--no-check", "--model", "a/b")
    removed = run("vendors remove", ".env", "openrouter")
    assert removed.entry.details["variables"]["OPENROUTER_API_KEY"] == "removed"
    assert done == {words for words, kind in COMMANDS.items() if "." in kind.partition(" ")[0]}
    shown = command.run("audit", "--change", "agent.switched", "--json")
    assert json.loads(shown.out.splitlines()[-1])["subject"] == "Niklaus"
    assert "AuditCanary" not in (recorder.home / "audit" / "audit.jsonl").read_text()


#: Commands whose changes other tests look for: of the embedded Letta, its backups, and the service manager.
_ELSEWHERE = (
    "up",
    "letta up",
    "letta rekey",
    "backup create",
    "backup restore",
    "backup key",
    "service install",
    "service uninstall",
)


def _break(served: Backend, agent: str) -> None:
    """Bind an agent to a provider that is not in Letta."""
    id = served.id_of(agent)
    config = served.letta.get(f"/v1/agents/{id}").json()["llm_config"]
    gone = {**config, "provider_name": "byok-gone", "handle": f"byok-gone/{config['model']}"}
    served.letta.patch(f"/v1/agents/{id}", json={"llm_config": gone}).raise_for_status()
