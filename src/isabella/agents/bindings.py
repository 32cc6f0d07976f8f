"""Agents' `llm_config`: read, merged and written here, and nowhere else.

Letta replaces the whole object with every PATCH (fact M25). So what a binding does not name is read first and written
back: temperature, max_tokens, reasoning effort, and whatever else the agent's owner has set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from isabella.agents.context import FittedContext, required_id_form
from isabella.agents.metadata import AgentMetadata, LoweredLimit
from isabella.errors import LettaRefused
from isabella.letta.client import LettaClient
from isabella.letta.llm_config import Binding, is_older

#: Fields that describe one model, and are wrong for another.
_OF_ONE_MODEL = ("display_name", "model_wrapper", "compatibility_type", "tier")


@dataclass(frozen=True)
class BindingResult:
    """What an agent is bound to now.

    Attributes:
        binding: the binding, with the client that its type of agent needs.
        lowered: the limit of its answers that the model's window does not allow; None where it does.
        agent_type: Letta's type of the agent.
        fitted: what was changed about its context; None where nothing was.
    """

    binding: Binding
    lowered: LoweredLimit | None = None
    agent_type: str | None = None
    fitted: FittedContext | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What its owner should know, one sentence each."""
        said = []
        if self.lowered is not None:
            said.append(
                f"max_tokens is {self.lowered.to} for now: {self.lowered.wanted} does not fit into a window of "
                f"{self.binding.window} tokens. A larger window brings it back."
            )
        if self.fitted is not None:
            said.append(self.fitted.note)
        if is_older(self.agent_type) and required_id_form(self.binding) is not None:
            said.append(
                f"This vendor refuses what Letta sends for agents of type {self.agent_type}, after the first tool "
                "call at the latest. Switch the agent to another vendor."
            )
        return tuple(said)


def creation_fields(binding: Binding) -> dict[str, Any]:
    """The part of the body that creates an agent which binds it."""
    return {"llm_config": binding.as_llm_config()}


def import_fields(settings: Mapping[str, Any], binding: Binding) -> dict[str, Any]:
    """The part of an agent file that binds the agent, with the settings that the file has."""
    return {"llm_config": _merged(settings, binding, None)[0]}


async def bind(
    letta: LettaClient,
    agent_id: str,
    binding: Binding,
    others: Mapping[str, Any] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> BindingResult:
    """Bind an agent, and keep every other setting of its `llm_config`.

    Args:
        letta: the client.
        agent_id: Letta's id of it.
        binding: what to bind it to; the client is chosen by the agent's type.
        others: fields of the agent that are changed with it.
        settings: an `llm_config` whose settings come before those that the agent has.

    Raises:
        LettaError: Letta refuses or fails.
    """
    row = await letta.agents.get(agent_id)
    binding = binding.suited(row.agent_type)
    update = dict(others or {})
    metadata = update.get("metadata") or row.metadata
    noted = AgentMetadata.read(metadata)
    config, lowered = _merged({**(row.llm_config or {}), **(settings or {})}, binding, noted.lowered)
    if lowered != noted.lowered:
        update["metadata"] = replace(noted, lowered=lowered).into(metadata)
    # Left to itself, Letta looks the model for summaries up by its handle, and meets facts M1, M3 and M4 there.
    update |= {"llm_config": config, "compaction_settings": {"model": None}}
    try:
        await letta.agents.update(agent_id, update)
    except LettaRefused as refused:
        # Up to 0.16.4 a model for summaries cannot be unset, and none is noted unless one was given (fact M24).
        if refused.status != 422:
            raise
        del update["compaction_settings"]
        await letta.agents.update(agent_id, update)
    return BindingResult(binding, lowered, row.agent_type)


def _merged(
    current: Mapping[str, Any], binding: Binding, lowered: LoweredLimit | None
) -> tuple[dict[str, Any], LoweredLimit | None]:
    """The settings that there are with the fields of a binding in them, and what became of `max_tokens`."""
    config = {**current, **binding.as_llm_config()}
    if current.get("model") != binding.model:
        config = {name: value for name, value in config.items() if name not in _OF_ONE_MODEL}
    wanted = config.get("max_tokens")
    if lowered is not None and wanted == lowered.to:
        wanted = lowered.wanted
    if not isinstance(wanted, int):
        return config, None
    now = LoweredLimit(wanted, to=binding.window // 2) if wanted >= binding.window > 1 else None
    config["max_tokens"] = wanted if now is None else now.to
    return config, now
