"""Agents as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from isabella.cli.tables import console

if TYPE_CHECKING:
    from isabella.agents.registry import AgentRecord
    from isabella.agents.repair import BindingDiagnosis

_DONE = {"kept": "dim", "created": "green", "changed": "yellow", "failed": "red"}


def as_json(record: AgentRecord, finding: BindingDiagnosis | None) -> dict[str, Any]:
    """An agent in the form in which `--json` gives it."""
    llm = record.llm
    return {
        "id": record.id,
        "name": record.name,
        "ours": record.ours,
        "definition": record.definition.id if record.definition else None,
        "description": record.description,
        "handle": record.handle,
        "window": llm.window if llm else 0,
        "handles": list(record.definition.handles) if record.definition else [],
        "tools": sorted(record.tools),
        "blocks": sorted(record.blocks),
        "problem": finding.why if finding else None,
    }


def show_agents(agents: Sequence[dict[str, Any]]) -> None:
    """Print agents, a row each."""
    out = console()
    if not agents:
        out.print("There are no agents yet. Run `isabella agents ensure`.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("agent", "kept by", "model", "window", "problem"):
        table.add_column(heading, overflow="fold")
    for agent in agents:
        table.add_row(
            Text(agent["name"]),
            Text("Isabella" if agent["ours"] else "somebody else", style="" if agent["ours"] else "dim"),
            Text(agent["handle"]),
            Text(str(agent["window"])),
            Text(agent["problem"] or "-", style="red" if agent["problem"] else "dim"),
        )
    out.print(table)
    if any(agent["problem"] for agent in agents):
        out.print("`isabella agents repair` shows what would mend them.")


def show_ensured(done: Sequence[dict[str, Any]]) -> None:
    """Print how bringing agents in line went."""
    out = console()
    table = Table(box=None, pad_edge=False)
    for heading in ("agent", "done", "model", "what"):
        table.add_column(heading, overflow="fold")
    for one in done:
        table.add_row(
            Text(one["name"]),
            Text(one["done"], style=_DONE.get(one["done"], "")),
            Text(one["handle"] or "-"),
            Text("; ".join(one["changes"]) or one["reason"] or "-"),
        )
    out.print(table)
    for one in done:
        if one["remedy"]:
            out.print(Text(f"{one['name']}: {one['remedy']}"))


def show_agent(agent: dict[str, Any]) -> None:
    """Print one agent, with what it keeps in mind."""
    out = console()
    out.print(Text(agent["name"], style="bold"), Text(agent["description"]))
    out.print(Text(f"  id      {agent['id']}"))
    out.print(Text(f"  model   {agent['handle']}, {agent['window']} tokens"))
    if agent["handles"]:
        out.print(Text(f"  prefers {', '.join(agent['handles'])}"))
    out.print(Text(f"  tools   {', '.join(agent['tools']) or '-'}"))
    if agent["problem"]:
        out.print(Text(f"  problem {agent['problem']}", style="red"))
    for block in agent["blocks"]:
        out.print(Text(f"\n{block['label']}  ({len(block['value'])} of {block['limit']} characters)", style="bold"))
        out.print(Text(block["value"].strip() or "(empty)", style="" if block["value"].strip() else "dim"))


def show_repairs(repairs: Sequence[dict[str, Any]], *, done: bool) -> None:
    """Print what is broken, and what mends it."""
    out = console()
    if not repairs:
        out.print("Every agent can work.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("agent", "now", "mended" if done else "would be", "why"):
        table.add_column(heading, overflow="fold")
    for one in repairs:
        table.add_row(
            Text(one["name"]),
            Text(one["before"]),
            Text(one["after"] or "-", style="green" if one["done"] else "yellow"),
            Text(one["problem"] or ". ".join([one["why"], *one["notes"]]), style="red" if one["problem"] else ""),
        )
    out.print(table)
    if not done:
        out.print("Nothing was changed. `isabella agents repair --yes` binds them anew; memory and history stay.")
