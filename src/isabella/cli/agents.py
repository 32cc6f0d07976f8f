"""`isabella agents`: list, ensure, show, switch, repair, export, import, delete."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from isabella.cli.commands import commands
from isabella.cli.options import AsJson, EnvFile
from isabella.errors import ConfigurationError, IsabellaError

if TYPE_CHECKING:
    from isabella.agents.service import AgentService

app = commands(
    no_args_is_help=True,
    help="The memory agents in Letta: who there is, on which model, and what mends them.",
)

Result = TypeVar("Result")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name, the id of its definition, or Letta's id.")]

ERROR, PENDING = 1, 2


@app.command("list")
def list_command(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show every agent in Letta, Isabella's first, and what is wrong with it.

    Exit code: 0, or 1 where Letta cannot be read.
    """
    from isabella.cli import agent_tables

    async def look(agent_service: AgentService) -> list[dict[str, Any]]:
        from isabella.agents.repair import available_bindings, diagnose

        available = await available_bindings(agent_service.registry, agent_service.models, ask=False)
        return [
            agent_tables.as_json(record, diagnose(record.llm, available))
            for record in sorted(await agent_service.registry.all(), key=lambda one: not one.ours)
        ]

    found = _run(look, env_file, as_json)
    if as_json:
        print(json.dumps({"agents": found}, indent=2))
    else:
        agent_tables.show_agents(found)


@app.command()
def ensure(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Make what is missing, and change what the agents' file changed. Memory is left alone.

    Exit code: 0 all in line, otherwise 1.
    """
    from isabella.cli import agent_tables

    async def bring(agent_service: AgentService) -> list[dict[str, Any]]:
        return [ensured.as_json() for ensured in await agent_service.ensure()]

    done = _run(bring, env_file, as_json)
    if as_json:
        print(json.dumps({"agents": done}, indent=2))
    else:
        agent_tables.show_ensured(done)
    raise typer.Exit(ERROR if any(one["done"] == "failed" for one in done) else 0)


@app.command()
def show(name: Name, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show an agent: its model, tools, and what it keeps in mind.

    Exit code: 0, or 1 where there is no such agent.
    """
    from isabella.cli import agent_tables

    async def look(agent_service: AgentService) -> dict[str, Any]:
        from isabella.agents.repair import available_bindings, diagnose

        record = await agent_service.registry.find(name)
        available = await available_bindings(agent_service.registry, agent_service.models, ask=False)
        found = agent_tables.as_json(record, diagnose(record.llm, available))
        found["blocks"] = [
            {"label": block.label, "value": block.value, "limit": block.limit, "version": block.version}
            for block in await agent_service.memory.blocks(record.id)
        ]
        return found

    found = _run(look, env_file, as_json)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        agent_tables.show_agent(found)


@app.command()
def switch(
    name: Name,
    handle: Annotated[str, typer.Argument(metavar="HANDLE", help="PROVIDER/MODEL, or PROVIDER for its usual model.")],
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Switch an agent to another model, from its next message on. Memory and history stay.

    Exit code: 0, or 1 where the handle would not work now.
    """

    async def bind(agent_service: AgentService) -> dict[str, Any]:
        record = await agent_service.registry.find(name)
        async with _holding(agent_service, record.id):
            bound = await agent_service.registry.switch(record, handle, agent_service.models)
        return {
            "name": record.name,
            "before": record.handle,
            "handle": bound.binding.handle,
            "window": bound.binding.window,
            "notes": list(bound.notes),
        }

    done = _run(bind, env_file, as_json)
    if as_json:
        print(json.dumps(done, indent=2))
    else:
        print(f"{done['name']} speaks through {done['handle']} now, with a window of {done['window']} tokens.")
        _print_notes(done["notes"])


@app.command()
def repair(
    yes: Annotated[bool, typer.Option("--yes", help="Bind them anew; without it, they are only shown.")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Find agents, Isabella's or not, that cannot work as they are, and bind them anew. Memory and history stay.

    Exit code: 0 nothing is broken, or all is mended; 2 something would be mended with --yes; 1 something cannot be.
    """
    from isabella.cli import agent_tables

    async def work(agent_service: AgentService) -> list[dict[str, Any]]:
        from isabella.agents.repair import apply_repairs, find_broken

        found = await find_broken(agent_service.registry, agent_service.models)
        return [one.as_json() for one in (await apply_repairs(agent_service.registry, found) if yes else found)]

    found = _run(work, env_file, as_json)
    if as_json:
        print(json.dumps({"agents": found}, indent=2))
    else:
        agent_tables.show_repairs(found, done=yes)
    if any(one["problem"] for one in found):
        raise typer.Exit(ERROR)
    raise typer.Exit(PENDING if found and not yes else 0)


@app.command("export")
def export_command(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; - for standard output.")],
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Write an agent into a file, with its memory and without any key.

    Exit code: 0, or 1 where it cannot be exported.
    """

    async def take_out(agent_service: AgentService) -> str:
        from isabella.agents.import_export import configured_secrets, export_agent

        record = await agent_service.registry.find(name)
        return await export_agent(
            agent_service.registry, record, configured_secrets(agent_service.models, agent_service.connection)
        )

    text = _run(take_out, env_file, as_json)
    if str(file) == "-":
        print(text)
        return
    from isabella.system.files import write_private

    try:
        # What somebody told an agent is nobody else's business.
        write_private(file, text + "\n")
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be written: {error.strerror}.") from None
    if as_json:
        print(json.dumps({"file": str(file), "characters": len(text)}))
    else:
        print(f"{file} holds {name}, {len(text)} characters; only you can read it.")


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An agent file (.af); - for standard input.")],
    name: Annotated[str | None, typer.Option("--name", help="What to call it; by default as the file does.")] = None,
    with_tools: Annotated[
        bool | None,
        typer.Option(
            "--with-tools/--without-tools",
            help="Take along, or leave out, tools that can fetch addresses or run programs on Letta's machine. "
            "Without either, a file with such tools is refused.",
        ),
    ] = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Bring an agent in from a file, bound to a model that works here. What is left out is named.

    Exit code: 0, or 1 where the file is broken, brings tools that were not asked for, or the name is taken.
    """
    from isabella.agents.agent_file import LARGEST_FILE
    from isabella.system import files

    text = files.read_or_stdin(file, largest=LARGEST_FILE).data

    async def bring(agent_service: AgentService) -> dict[str, Any]:
        from isabella.agents.import_export import import_agent

        brought = await import_agent(
            agent_service.registry, agent_service.models, text, name=name, with_tools=with_tools
        )
        return asdict(brought)

    done = _run(bring, env_file, as_json)
    if as_json:
        print(json.dumps(done, indent=2))
    else:
        print(f"{done['name']} is here, speaks through {done['handle']}, and brought {done['passages']} passages.")
        _print_notes(done["notes"])
        for one in done["left_out"]:
            print(f"Left out: {one}")


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; without it, nothing is done.")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete an agent with its memory. There is no way back but an export made before.

    Exit code: 0 deleted, 2 it would be with --yes, 1 there is no such agent.
    """

    async def work(agent_service: AgentService) -> dict[str, Any]:
        record = await agent_service.registry.find(name)
        if yes:
            await agent_service.registry.delete(record.id)
        again = record.definition is not None
        return {"id": record.id, "name": record.name, "deleted": yes, "defined": again}

    done = _run(work, env_file, as_json)
    if as_json:
        print(json.dumps(done, indent=2))
    elif not yes:
        print(f"{done['name']} ({done['id']}) would be deleted, with its memory. Add --yes to do it.")
    else:
        print(f"{done['name']} is deleted.")
    if done["defined"] and not as_json:
        print("The agents' file defines it, so the next start makes a new one, without this one's memory.")
    raise typer.Exit(0 if yes else PENDING)


@asynccontextmanager
async def _holding(agent_service: AgentService, agent_id: str) -> AsyncIterator[None]:
    """Keep turns of an agent back, in all backends where Letta's database is known."""
    from isabella.locks.provider_lock import open_locks
    from isabella.turns.queue import TurnQueue

    settings = agent_service.settings
    async with (
        open_locks(settings, agent_service.connection) as locks,
        TurnQueue(locks.advisory, patience=settings.turn_wait).take(agent_id).reached(),
    ):
        yield


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(note)


def _run(work: Callable[[AgentService], Awaitable[Result]], env_file: Path | None, as_json: bool) -> Result:
    """Run it on the agents; with --json, a failure is an object too, beside the message on standard error."""
    import asyncio

    from isabella.agents.service import open_agent_service
    from isabella.practice.overlay import load_served_settings
    from isabella.system.logging import configure_logs

    configure_logs()

    async def opened() -> Result:
        async with open_agent_service(load_served_settings(env_file)) as agent_service:
            return await work(agent_service)

    try:
        return asyncio.run(opened())
    except IsabellaError as error:
        if as_json:
            print(json.dumps({"error": {"what": error.what, "remedy": error.remedy}}))
        raise
