"""Finding agents that cannot work, ours or not, and binding them anew. What is wrong is decided in `repair`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from isabella.addresses import is_placeholder_url
from isabella.agents.binding import Binding
from isabella.agents.models import ModelCatalog
from isabella.agents.repair import AvailableBindings, BindingDiagnosis, BindingFault, diagnose
from isabella.agents.residents import AgentRecord, AgentRegistry
from isabella.errors import IsabellaError, ModelUnknown


@dataclass(frozen=True)
class AgentRepair:
    """An agent that cannot work as it is, and what would mend it.

    Attributes:
        agent_id: Letta's id of it.
        name: what it is called.
        ours: whether Isabella keeps it.
        fault: what is wrong.
        why: one clause, for people.
        before: the handle and window that it has.
        binding: what it would be bound to; None where nothing works.
        done: whether it has been.
        problem: why it cannot be mended, or was not.
        notes: what is to be known about it since, one sentence each.
    """

    agent_id: str
    name: str
    ours: bool
    fault: BindingFault
    why: str
    before: str
    binding: Binding | None = None
    done: bool = False
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def after(self) -> str | None:
        """The handle and window that it would have."""
        return None if self.binding is None else f"{self.binding.handle} ({self.binding.window})"

    def as_json(self) -> dict[str, Any]:
        """The form in which `--json` gives it."""
        return {
            "id": self.agent_id,
            "name": self.name,
            "ours": self.ours,
            "fault": self.fault.value,
            "why": self.why,
            "before": self.before,
            "after": self.after,
            "done": self.done,
            "problem": self.problem,
            "notes": list(self.notes),
        }


async def available_bindings(residents: AgentRegistry, models: ModelCatalog, *, ask: bool) -> AvailableBindings:
    """What agents can be bound to: the providers in Letta, and their models.

    Args:
        residents: the agents' Letta.
        models: what the configuration knows.
        ask: also ask every vendor for its models.

    Raises:
        LettaError: the providers cannot be listed.
    """
    rows = await residents.wire.every("/v1/providers/")
    # Of one that is between two addresses, each agent's own is as good as any.
    live = {row["name"]: None if is_placeholder_url(row.get("base_url")) else row.get("base_url") for row in rows}
    windows, listed = await models.census() if ask else (models.catalog(), {})
    vendors = frozenset(provider.name for provider in models.providers)
    return AvailableBindings(live, windows, listed, client=models.client, vendors=vendors)


async def find_broken(residents: AgentRegistry, models: ModelCatalog) -> list[AgentRepair]:
    """Every agent that cannot work, with what would mend it. Changes nothing.

    Raises:
        LettaError: Letta cannot be read.
    """
    landscape = await available_bindings(residents, models, ask=True)
    found = []
    for resident in await residents.all():
        preferred = resident.definition.handles if resident.definition else ()
        finding = diagnose(resident.engine, landscape, preferred)
        if finding is not None:
            found.append(await _repair(resident, finding, models))
    return found


async def apply_repairs(residents: AgentRegistry, repairs: list[AgentRepair]) -> list[AgentRepair]:
    """Bind them anew; memory and history stay. One that fails does not stop the others."""
    mended = []
    for repair in repairs:
        if repair.binding is None:
            mended.append(repair)
            continue
        try:
            bound = await residents.bind(repair.agent_id, repair.binding)
        except IsabellaError as error:
            mended.append(replace(repair, problem=str(error)))
        else:
            mended.append(replace(repair, done=True, notes=bound.notes))
    return mended


async def _repair(resident: AgentRecord, finding: BindingDiagnosis, models: ModelCatalog) -> AgentRepair:
    engine = resident.engine
    repair = AgentRepair(
        agent_id=resident.id,
        name=resident.name,
        ours=resident.ours,
        fault=finding.fault,
        why=finding.why,
        before=f"{resident.handle} ({engine.window if engine else 0})",
        binding=finding.binding,
    )
    if repair.binding is not None:
        return repair
    try:
        return replace(repair, binding=await models.choose(finding.instead))
    except ModelUnknown as error:
        return replace(repair, problem=str(error))
