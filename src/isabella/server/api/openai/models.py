"""The agents as models."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from isabella.agents.registry import AgentRecord
from isabella.errors import AgentUnknown
from isabella.server.api.openai.asides import SUFFIX, agent_of
from isabella.server.api.openai.errors import REFUSALS, refusal
from isabella.server.errors import OPENAI
from isabella.server.runtime import Agents

router = APIRouter(prefix=OPENAI, tags=["openai"])


class AgentModelCard(BaseModel):
    """An agent, as a model."""

    id: str = Field(description="The agent's name, or with `:aside` its model without the agent.")
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = Field(description="`isabella`, or `letta` for an agent that Isabella does not manage.")


class ModelList(BaseModel):
    """The agents, as models."""

    object: Literal["list"] = "list"
    data: list[AgentModelCard]


@router.get("/models", summary="List agents as models", responses=REFUSALS)
async def models(agent_service: Agents) -> ModelList:
    """List the agents in the OpenAI format, those that Isabella manages first, and after them their asides."""
    agents = sorted(await agent_service.registry.all(), key=lambda agent: not agent.managed)
    return ModelList(data=[_model_card(agent, suffix) for suffix in ("", SUFFIX) for agent in agents])


@router.get(
    "/models/{model:path}", summary="Show an agent as a model", responses=REFUSALS, response_model=AgentModelCard
)
async def model(agent_service: Agents, model: Annotated[str, Path(max_length=200)]) -> Response:
    """Show one agent in the OpenAI format."""
    try:
        agent = await agent_service.registry.find(agent_of(model))
    except AgentUnknown as error:
        return refusal(error)
    return JSONResponse(_model_card(agent, SUFFIX if model.endswith(SUFFIX) else "").model_dump())


def _model_card(agent: AgentRecord, suffix: str) -> AgentModelCard:
    return AgentModelCard(id=f"{agent.name}{suffix}", owned_by="isabella" if agent.managed else "letta")
