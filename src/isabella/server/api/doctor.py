"""The doctor over HTTP: the same examination as `isabella doctor`, of what this backend stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, Field

from isabella.config.settings import Settings
from isabella.doctor.run import DoctorOptions, run_doctor
from isabella.errors import ConfigurationError
from isabella.letta.connection import Connection
from isabella.server.errors import ERRORS

router = APIRouter(tags=["doctor"], responses=ERRORS)

# One examination at a time: each of them asks every vendor.
_one_at_a_time = anyio.Semaphore(1, fast_acquire=True)


@dataclass(frozen=True)
class DoctorTarget:
    """What is examined: what the backend was started with.

    Attributes:
        settings: the settings, practice vendors included.
        connection: the Letta.
    """

    settings: Settings
    connection: Connection


class LettaSeen(BaseModel):
    """The Letta that was looked at."""

    base_url: str | None
    version: str | None


class DoctorReport(BaseModel):
    """What the doctor found. No key is in it, and it can be pasted anywhere."""

    healthy: bool = Field(description="Nothing was found.")
    letta: LettaSeen
    verdict: list[str] = Field(description="One sentence for each cause, with what to do about it.")
    findings: list[dict[str, Any]] = Field(
        description="The causes: code, layer, severity, provider, agents, summary, evidence, cause, remedy, facts, "
        "and the consequences that go away with them."
    )
    unknown: list[dict[str, Any]] = Field(description="What could not be found out, and what stands in the way.")
    fine: list[dict[str, str]] = Field(description="What was looked at and is as it should be.")
    notes: list[dict[str, Any]] = Field(description="What is worth knowing, though it is no fault.")
    practice: bool = Field(description="Practice vendors stand in for the real ones.")


@router.get("/api/doctor", summary="Which layer is at fault, why, and what to do about it")
async def doctor(
    request: Request,
    provider: Annotated[list[str] | None, Query(description="Only these providers.")] = None,
    agent: Annotated[str | None, Query(description="Only this agent, and what it stands on.")] = None,
    probe: Annotated[bool, Query(description="Have an agent on each provider say one line, too.")] = False,
) -> DoctorReport:
    """Look at configuration, vendors, providers, agents and exposure. Changes nothing."""
    target = getattr(request.app.state, "target", None)
    settings = target.settings if isinstance(target, DoctorTarget) else None
    connection = target.connection if isinstance(target, DoctorTarget) else None
    options = DoctorOptions(tuple(provider or ()), agent, probe)
    try:
        async with _one_at_a_time:
            doctor_run = await run_doctor(settings=settings, connection=connection, options=options)
    except ConfigurationError as error:
        raise HTTPException(404, str(error)) from None
    return DoctorReport.model_validate(doctor_run.diagnosis.as_json())
