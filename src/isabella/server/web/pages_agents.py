"""The page of agents: create, import, rename, duplicate, export and delete them, and show what a model gets."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isabella.agents.agent_file import LARGEST_FILE
from isabella.agents.exports.importing import import_file
from isabella.agents.import_export import ImportedAgent
from isabella.agents.lifecycle import (
    NewAgent,
    create_agent,
    delete_agent,
    duplicate_agent,
    losses_of,
    rename_agent,
    templates,
)
from isabella.agents.prompt_budget import read_prompt
from isabella.agents.registry import AgentRecord
from isabella.agents.repair import problems_of
from isabella.errors import AgentUnknown, IsabellaError
from isabella.server.agent_download import download_agent
from isabella.server.auth import read_upload
from isabella.server.runtime import Runtime
from isabella.server.web.languages import gettext
from isabella.server.web.pages_chat import agent_id_of, find_agent, sort_agents, usable_handles
from isabella.server.web.rendering import Page, Renderer
from isabella.system.english import english
from isabella.system.redaction import redact

_MESSAGES_SHOWN = 100
_LONGEST_NAME = 100
_REFRESH_SECONDS = 3.0


def routes(runtime: Runtime, renderer: Renderer) -> list[Route]:
    """Return the routes of the page."""
    page = _Page(runtime, renderer)
    below = "/agents/{agent}"
    return [
        Route("/agents", page.show),
        Route("/agents/live", page.live),
        Route("/agents/models", page.models),
        Route("/agents/create", page.create, methods=["POST"]),
        Route("/agents/import", page.import_file, methods=["POST"]),
        Route(below, page.prompt),
        Route(f"{below}/part", page.part),
        Route(f"{below}/actions", page.actions),
        Route(f"{below}/export", page.export),
        Route(f"{below}/rename", page.rename, methods=["POST"]),
        Route(f"{below}/duplicate", page.duplicate, methods=["POST"]),
        Route(f"{below}/delete", page.delete, methods=["POST"]),
    ]


class _Page(Page):
    parts_template = "agents_parts.html"

    async def show(self, request: Request) -> Response:
        service = self._runtime.agents
        records, problems = await self._listed()
        return self._renderer.page(
            request,
            "agents.html",
            here="agents",
            agents=records,
            problems=problems,
            templates=templates(service.definitions),
            version=_version(records),
        )

    async def live(self, request: Request) -> Response:
        return self._stream(self._changes(request.query_params.get("v", "")))

    async def _changes(self, version: str) -> AsyncGenerator[str, None]:
        """Yield what changes in the list of agents. A form that is open in a row stays as it is."""
        sent: dict[str, str] | None = None
        notifier = self._runtime.event_log.notifier
        while True:
            count = notifier.count
            with suppress(IsabellaError):  # the status line says what does not work
                agents, problems = await self._listed()
                if sent is None and version == _version(agents):
                    sent = dict.fromkeys((one.id for one in agents), "")
                rows = {
                    one.id: self._part("about", agent=one, problem=problems.get(one.id), oob=True) for one in agents
                }
                if sent is None:
                    yield self._part("rows", agents=agents, problems=problems, oob=True)
                elif html := self._updates(agents, problems, rows, sent):
                    yield "\n".join(html)
                sent = rows
            await notifier.wait(count, _REFRESH_SECONDS)

    def _updates(
        self,
        agents: Sequence[AgentRecord],
        problems: Mapping[str, str],
        rows: Mapping[str, str],
        sent: Mapping[str, str],
    ) -> list[str]:
        html = [self._part("removed", id=id) for id in sent.keys() - rows.keys()]
        html += [rows[id] for id in rows if id in sent and sent[id] != rows[id]]
        for before, one in zip((None, *agents), agents, strict=False):
            if one.id not in sent:
                after = None if before is None else before.id
                html.append(self._part("added", agent=one, problem=problems.get(one.id), after=after))
        return html

    async def models(self, _request: Request) -> Response:
        """Return the models that a new agent can have now."""
        return self._fragment("models", handles=await usable_handles(self._runtime))

    async def create(self, request: Request) -> Response:
        fields = await self._form(request)
        wanted = NewAgent(
            name=fields.get("name", "").strip(),
            definition=fields.get("definition") or None,
            handle=fields.get("handle") or None,
            persona=fields.get("persona") or None,
        )
        created = await create_agent(self._runtime.agents, wanted)
        return await self._done(
            english("%(name)s was created on %(handle)s.", name=created.name, handle=created.handle), created.id
        )

    async def import_file(self, request: Request) -> Response:
        """Import an agent file, or the ZIP file of an export, sent as the body."""
        content = await read_upload(request, self._runtime.csrf, LARGEST_FILE)
        service, query = self._runtime.agents, request.query_params
        imported = await import_file(
            service,
            content,
            name=query.get("name", "").strip() or None,
            with_tools=query.get("tools") == "yes",
        )
        await service.memory.observe(imported.id)
        return await self._done(
            english("%(name)s was imported on %(handle)s.", name=imported.name, handle=imported.handle),
            imported.id,
            imported,
        )

    async def actions(self, request: Request) -> Response:
        """Return an agent's actions, or the form of one of them: `rename`, `duplicate`, `export` or `delete`."""
        record = await self._requested(request)
        match request.query_params.get("form"):
            case "rename":
                return self._fragment("renaming", agent=record)
            case "duplicate":
                return self._fragment("duplicating", agent=record, name=await self._free_name(record.name))
            case "export":
                return self._fragment("exporting", agent=record)
            case "delete":
                losses = await losses_of(self._runtime.agents.registry, record)
                return self._fragment("deleting", agent=record, losses=losses)
        return self._fragment("actions", agent=record, focus=True)

    async def export(self, request: Request) -> Response:
        """Return everything of an agent, as a ZIP file."""
        return await download_agent(request, self._runtime, await self._requested(request))

    async def rename(self, request: Request) -> Response:
        fields, record = await self._form(request), await self._requested(request)
        renamed = await rename_agent(self._runtime.agents.registry, record, fields.get("name", "").strip())
        self._runtime.turns.deps.agent_cache.forget(record.id)
        return await self._done(
            english("%(old)s is now called %(new)s.", old=record.name, new=renamed.name), record.id
        )

    async def duplicate(self, request: Request) -> Response:
        fields, record = await self._form(request), await self._requested(request)
        copied = await duplicate_agent(self._runtime.agents, record, fields.get("name", "").strip())
        return await self._done(
            english("%(copy)s is a copy of %(name)s.", copy=copied.name, name=record.name), copied.id, copied
        )

    async def delete(self, request: Request) -> Response:
        await self._form(request)
        service, record = self._runtime.agents, await self._requested(request)
        async with service.memory.hold(record.id):
            await delete_agent(service, record)
        self._runtime.turns.deps.agent_cache.forget(record.id)
        self._runtime.event_log.answers.forget(record.id)
        return await self._done(english("%(name)s was deleted.", name=record.name))

    async def prompt(self, request: Request) -> Response:
        """Show what an agent's model gets with the next message."""
        id, service = agent_id_of(request), self._runtime.agents
        agents = sort_agents(await service.registry.all())
        agent = find_agent(agents, id)
        prompt = await read_prompt(service.letta, id)
        numbers = {part: number for number, part in enumerate(prompt.parts)}
        messages = prompt.of("message")
        whole = request.query_params.get("all") == "yes"
        return self._renderer.page(
            request,
            "agent_prompt.html",
            here="agents",
            agents=agents,
            agent=agent,
            prompt=prompt,
            budget=prompt.budget,
            numbers=numbers,
            messages=messages if whole else messages[-_MESSAGES_SHOWN:],
            earlier=0 if whole else max(0, len(messages) - _MESSAGES_SHOWN),
        )

    async def part(self, request: Request) -> Response:
        """Return the whole text of a part of a prompt."""
        prompt = await read_prompt(self._runtime.agents.letta, agent_id_of(request))
        number = request.query_params.get("n", "")
        if not (number.isdigit() and len(number) < 6 and int(number) < len(prompt.parts)):
            raise AgentUnknown(
                english("The prompt has no such part."), remedy=english("It has changed; load the page again.")
            )
        return Response(redact(prompt.parts[int(number)].text), media_type="text/plain; charset=utf-8")

    async def _requested(self, request: Request) -> AgentRecord:
        return await self._runtime.agents.registry.get(agent_id_of(request))

    async def _free_name(self, name: str) -> str:
        """Return a name for a copy that no agent has."""
        taken = {record.name.casefold() for record in await self._runtime.agents.registry.all()}
        numbers = ("", *(f" {number}" for number in range(2, len(taken) + 3)))
        names = (gettext("%(name)s copy") % {"name": name[: _LONGEST_NAME - 15]} + number for number in numbers)
        return next(each for each in names if each.casefold() not in taken)

    async def _done(self, text: str, id: str = "", imported: ImportedAgent | None = None) -> Response:
        """Record what was done, and return the list of agents with it."""
        self._runtime.event_log.add_notice(text)
        agents, problems = await self._listed()
        notes = () if imported is None else imported.notes
        left_out = () if imported is None else imported.left_out
        return self._fragment(
            "listed", agents=agents, problems=problems, done=text, fresh=id, notes=notes, left_out=left_out
        )

    async def _listed(self) -> tuple[Sequence[AgentRecord], dict[str, str]]:
        service = self._runtime.agents
        records = sort_agents(await service.registry.all())
        return records, await problems_of(service.registry, service.models, records)


def _version(agents: Sequence[AgentRecord]) -> str:
    """Return a word for which agents a page lists."""
    return hashlib.sha256(" ".join(one.id for one in agents).encode()).hexdigest()[:10]
