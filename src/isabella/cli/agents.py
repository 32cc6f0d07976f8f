"""`isabella agents`: list, ensure, show, switch, repair, export, import, delete."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from isabella.cli.commands import (
    ERROR,
    PENDING,
    AsJson,
    EnvFile,
    commands,
    complete_agent,
    complete_handle,
    configured_settings,
    print_json,
    run,
)
from isabella.errors import ConfigurationError

if TYPE_CHECKING:
    from isabella.agents.registry import AgentRecord
    from isabella.agents.service import AgentService

app = commands(
    no_args_is_help=True, help="List, create, switch, repair, export, import and delete the memory agents in Letta."
)

Result = TypeVar("Result")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The agent: its name, the id of its definition, or Letta's id.",
        autocompletion=complete_agent,
    ),
]


@app.command("list")
def list_command(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show every agent in Letta with its model and its problem, if it has one; Isabella's agents first.

    Exit code: 0, or 1 if Letta cannot be read.
    """

    async def read(agent_service: AgentService) -> list[dict[str, Any]]:
        records = sorted(await agent_service.registry.all(), key=lambda record: not record.managed)
        return await _described(agent_service, records)

    agents = _run(read, env_file, as_json)
    if as_json:
        print_json({"agents": agents})
    else:
        from isabella.cli.tables import show_agents

        show_agents(agents)


@app.command()
def ensure(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Create missing agents, and apply changes of the agents file to existing ones. Memory is not changed.

    Exit code: 0 all agents match the file, otherwise 1.
    """

    async def ensured(agent_service: AgentService) -> list[dict[str, Any]]:
        return [outcome.as_json() for outcome in await agent_service.ensure()]

    outcomes = _run(ensured, env_file, as_json)
    if as_json:
        print_json({"agents": outcomes})
    else:
        from isabella.cli.tables import show_ensured

        show_ensured(outcomes)
    raise typer.Exit(ERROR if any(outcome["done"] == "failed" for outcome in outcomes) else 0)


@app.command()
def show(
    name: Name,
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Also show how long the parts of its next prompt are.")
    ] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Show an agent: its model, its tools, and its core memory.

    Exit code: 0, or 1 if no such agent exists.
    """

    async def read(agent_service: AgentService) -> dict[str, Any]:
        record = await agent_service.registry.find(name)
        (agent,) = await _described(agent_service, [record])
        agent["blocks"] = [
            {"label": block.label, "value": block.value, "limit": block.limit, "version": block.version}
            for block in await agent_service.memory.blocks(record.id)
        ]
        if prompt:
            from isabella.agents.prompt_budget import prompt_budget

            agent["prompt"] = (await prompt_budget(agent_service.letta, record.id)).as_json()
        return agent

    agent = _run(read, env_file, as_json)
    if as_json:
        print_json(agent)
    else:
        from isabella.cli.tables import show_agent

        show_agent(agent)


@app.command()
def switch(
    name: Name,
    handle: Annotated[
        str,
        typer.Argument(
            metavar="HANDLE",
            help="PROVIDER/MODEL, or PROVIDER for its default model.",
            autocompletion=complete_handle,
        ),
    ],
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Switch an agent to another model, from its next message on. Memory and history stay.

    Exit code: 0, or 1 if the handle would not work now.
    """

    async def bind(agent_service: AgentService) -> dict[str, Any]:
        record = await agent_service.registry.find(name)
        async with _turns_held(agent_service, record.id):
            bound = await agent_service.registry.switch(record, handle, agent_service.models)
        return {
            "name": record.name,
            "before": record.handle,
            "handle": bound.binding.handle,
            "window": bound.binding.window,
            "notes": list(bound.notes),
        }

    switched = _run(bind, env_file, as_json)
    if as_json:
        print_json(switched)
    else:
        print(f"{switched['name']} now uses {switched['handle']}, with a window of {switched['window']} tokens.")
        _print_lines(switched["notes"])


@app.command()
def repair(
    yes: Annotated[bool, typer.Option("--yes", help="Repair them; without it, the repairs are only shown.")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Find agents whose model no longer works, Isabella's or not, and re-bind them. Memory and history stay.

    Exit code: 0 no agent is broken, or all are repaired; 2 repairs are possible with --yes; 1 a repair is impossible.
    """

    async def repaired(agent_service: AgentService) -> list[dict[str, Any]]:
        from isabella.agents.repair import apply_repairs, find_broken

        repairs = await find_broken(agent_service.registry, agent_service.models)
        if yes:
            repairs = await apply_repairs(agent_service.registry, repairs)
        return [repair.as_json() for repair in repairs]

    repairs = _run(repaired, env_file, as_json)
    if as_json:
        print_json({"agents": repairs})
    else:
        from isabella.cli.tables import show_repairs

        show_repairs(repairs, done=yes)
    if any(repair["problem"] for repair in repairs):
        raise typer.Exit(ERROR)
    raise typer.Exit(PENDING if repairs and not yes else 0)


class Format(StrEnum):
    """A format of exported agents."""

    AGENT_FILE = "agent-file"
    MARKDOWN = "markdown"
    LETTA_CODE = "letta-code"


@app.command("export")
def export_command(
    name: Name,
    target: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="The file or folder to write; - for an agent file on standard output."),
    ],
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="agent-file: one file (.af) with the messages in the agent's context. markdown: a folder with "
            "everything, also the whole history, as Markdown and JSON Lines. letta-code: a memory folder of Letta "
            "Code.",
        ),
    ] = Format.AGENT_FILE,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the folder of an earlier export. A file is always replaced.")
    ] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Write an agent to a file or a folder, with its memory and without any key. Turns wait until it is read.

    Exit code: 0, or 1 if it cannot be exported.
    """
    if format is not Format.AGENT_FILE:
        _export_folder(name, target, format, replace, env_file, as_json)
        return

    async def export(agent_service: AgentService) -> str:
        from isabella.agents.import_export import configured_secrets, export_agent

        record = await agent_service.registry.find(name)
        secrets = configured_secrets(agent_service.models, agent_service.connection)
        return await export_agent(agent_service.registry, record, secrets)

    text = _run(export, env_file, as_json)
    if str(target) == "-":
        print(text)
        return
    from isabella.system.files import write_private

    try:
        # An agent's memory is private.
        write_private(target, text + "\n")
    except OSError as error:
        raise ConfigurationError(
            f"{target}: cannot be written: {error.strerror}.", remedy="Name another file."
        ) from None
    if as_json:
        print(json.dumps({"file": str(target), "characters": len(text)}))
    else:
        print(f"Wrote {name} to {target}: {len(text)} characters, readable only by you.")


def _export_folder(
    name: str, target: Path, format: Format, replace: bool, env_file: Path | None, as_json: bool
) -> None:
    async def exported_folder(agent_service: AgentService) -> dict[str, Any]:
        from isabella.agents.exports.letta_code import export_letta_code
        from isabella.agents.exports.markdown import export_markdown

        export = export_markdown if format is Format.MARKDOWN else export_letta_code
        record = await agent_service.registry.find(name)
        async with _turns_held(agent_service, record.id):
            exported = await export(agent_service, record, target, replace=replace)
        return {"name": record.name, "folder": str(target), "format": format.value, **asdict(exported)}

    done = _run(exported_folder, env_file, as_json)
    if as_json:
        print_json(done)
    else:
        print(
            f"Wrote {done['name']} to {target}, readable only by you: {done['messages']} messages in "
            f"{done['conversations']} conversations, {done['blocks']} memory blocks with {done['versions']} "
            f"versions, {done['passages']} passages."
        )


@app.command("import")
def import_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="An agent file (.af), - for standard input, or a folder that was exported with --format markdown, "
            "also in a ZIP file.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="The agent's new name. Default: its name in the file.")
    ] = None,
    with_tools: Annotated[
        bool | None,
        typer.Option(
            "--with-tools/--without-tools",
            help="Import, or omit, tools that can fetch URLs or run programs on Letta's machine. "
            "Without either option, a file with such tools is refused.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, and show what would be imported.")
    ] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Import an agent from a file or an exported folder, bound to a model that works here. Lists what was omitted.

    Exit code: 0, or 1 if the source is damaged, has tools that need one of the options, or the name is taken.
    """
    from isabella.agents.agent_file import LARGEST_FILE
    from isabella.agents.exports.read import require_manifest
    from isabella.system import files

    text = b""
    if source.is_dir():
        require_manifest(source)
    else:
        text = files.read_or_stdin(source, largest=LARGEST_FILE).data

    async def imported(agent_service: AgentService) -> dict[str, Any]:
        from isabella.agents.exports.importing import import_file, import_folder

        options: dict[str, Any] = {"name": name, "with_tools": with_tools, "dry_run": dry_run}
        if source.is_dir():
            return asdict(await import_folder(agent_service, source, **options))
        return asdict(await import_file(agent_service, text, **options))

    agent = {**_run(imported, env_file, as_json), "dry_run": dry_run}
    if as_json:
        print_json(agent)
    else:
        print(
            f"{'Would import' if dry_run else 'Imported'} {agent['name']}, which uses {agent['handle']}, with "
            f"{agent['messages']} messages and {agent['passages']} passages."
        )
        _print_lines(agent["notes"])
        _print_lines(f"Left out: {omitted}" for omitted in agent["left_out"])


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; without it, nothing is done.")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete an agent with its memory, except blocks that other agents have. Only an export made before restores it.

    Exit code: 0 deleted, 2 it would be deleted with --yes, 1 no such agent exists.
    """

    async def delete_if_confirmed(agent_service: AgentService) -> dict[str, Any]:
        from isabella.agents.lifecycle import delete_agent, losses_of

        registry = agent_service.registry
        record = await registry.find(name)
        losses = (await losses_of(registry, record)).as_json()
        if yes:
            async with _turns_held(agent_service, record.id):
                await delete_agent(agent_service, record)
        return {"id": record.id, "name": record.name, "deleted": yes, **losses}

    agent = _run(delete_if_confirmed, env_file, as_json)
    if as_json:
        print_json(agent)
    else:
        if yes:
            print(f"Deleted {agent['name']}.")
        else:
            from isabella.cli.tables import show_losses

            show_losses(agent)
        if agent["defined"]:
            print("The agents file defines it: the next start creates it again, without this memory.")
    raise typer.Exit(0 if yes else PENDING)


@asynccontextmanager
async def _turns_held(agent_service: AgentService, agent_id: str) -> AsyncIterator[None]:
    """Hold back the turns of an agent; those of other backends too if Letta's database is known."""
    from isabella.locks.provider_lock import open_locks
    from isabella.turns.queue import TurnQueue

    settings = agent_service.settings
    async with (
        open_locks(
            agent_service.connection.database_url,
            patience=settings.gate_timeout,
            several=settings.several_backends,
        ) as locks,
        TurnQueue(locks.advisory, patience=settings.turn_wait).take(agent_id).reached(),
    ):
        yield


async def _described(agent_service: AgentService, records: Iterable[AgentRecord]) -> list[dict[str, Any]]:
    """Return agents as `--json` prints them, with their problems."""
    from isabella.agents.repair import problems_of

    listed = list(records)
    problems = await problems_of(agent_service.registry, agent_service.models, listed)
    agents = []
    for record in listed:
        definition = record.definition
        agents.append(
            {
                "id": record.id,
                "name": record.name,
                "ours": record.managed,
                "definition": definition.id if definition else None,
                "description": record.description,
                "handle": record.handle,
                "window": record.llm.window if record.llm else 0,
                "handles": list(record.handles),
                "tools": sorted(record.tools),
                "blocks": sorted(record.blocks),
                "problem": problems.get(record.id),
            }
        )
    return agents


def _run(work: Callable[[AgentService], Awaitable[Result]], env_file: Path | None, as_json: bool) -> Result:
    from isabella.agents.service import open_agent_service

    async def opened() -> Result:
        async with open_agent_service(configured_settings(env_file, served=True)) as agent_service:
            return await work(agent_service)

    return run(opened, as_json)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
