"""The HTTP routes: health, readiness, providers."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from isabella.providers.headline import document
from isabella.server.readiness import Readiness

router = APIRouter()


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="Isabella's version.")


class Ready(BaseModel):
    """Whether requests that need providers can be answered."""

    status: Literal["starting", "ready", "degraded", "failed"]
    reasons: list[str] = Field(description="Why it is not simply ready, one sentence each.")


class LettaAddress(BaseModel):
    """The Letta that the report is about."""

    base_url: str
    version: str


class VendorStatus(BaseModel):
    """What a vendor did when it was asked last."""

    state: Literal["answers", "refuses_key", "refuses", "fails", "unreachable", "not_asked"]
    reason: str
    at: datetime = Field(description="When that was seen; for `not_asked`, since when it has not been asked.")


class Headline(BaseModel):
    """How the configured providers stand as a whole: of all stored keys and vendors, the worst."""

    level: Literal["ok", "unknown", "warning", "problem"]
    title: str
    text: str = Field(description="Which providers it is about, and why.")


class Provider(BaseModel):
    """One provider: what Letta held, what was done about it, and the proof."""

    name: str
    vendor: str
    type: str
    base_url: str | None
    key: str | None = Field(description="The configured key, masked.")
    key_source: str | None = Field(description="The variable and file that the key came from.")
    stored: Literal["in_sync", "stale", "absent", "unreadable", "plaintext", "mistyped", "moved", "foreign", "hidden"]
    action: Literal["keep", "update", "recreate", "create", "refuse", "none"]
    proof: Literal["proven", "unproven", "failed", "not_asked"]
    condition: str | None = Field(
        None,
        description="How it stands: InSync, Drifted, Refused, Misconfigured, Unproven, Failed, NoKey, Foreign.",
    )
    since: datetime | None = Field(None, description="Since when; a look that finds no change does not count.")
    vendor_status: VendorStatus | None = Field(None, description="What the vendor did when it was asked last.")
    models: int = Field(description="How many models Letta lists for it.")
    reason: str
    remedy: str | None
    notes: list[str]
    receipt: Literal["accepted", "refused", "failed"] | None = None


class Lost(BaseModel):
    """An agent whose model its vendor does not have any more."""

    agent: str
    model: str


class Count(BaseModel):
    """What the last refresh has found of one provider."""

    provider: str
    appeared: list[str]
    vanished: list[str]
    lost: list[Lost]
    problem: str | None = Field(description="Why its models are not known.")


class Census(BaseModel):
    """What the last refresh of the model lists has found."""

    at: datetime
    providers: list[Count]


class Providers(BaseModel):
    """The last report on the providers."""

    headline: Headline | None = Field(None, description="Null until the first report is made.")
    letta: LettaAddress | None = Field(description="Null until the first report is made.")
    as_of: datetime | None = Field(description="When the report was made.")
    providers: list[Provider]
    notices: list[str]
    census: Census | None = Field(None, description="The last nightly refresh of the vendors' model lists.")


def readiness(request: Request) -> Readiness:
    """The state of this backend."""
    state = request.app.state.readiness
    if not isinstance(state, Readiness):
        raise TypeError("the application was not made by create_app")
    return state


Current = Annotated[Readiness, Depends(readiness)]


@router.get("/health", summary="Is the process alive?", tags=["state"])
async def health() -> Health:
    """Answer as long as the process can answer anything."""
    return Health(version=version("isabella"))


@router.get(
    "/ready",
    summary="Can it do its work?",
    tags=["state"],
    responses={503: {"model": Ready, "description": "Not yet, or not at all; with the reasons."}},
)
async def ready(current: Current, response: Response) -> Ready:
    """Answer 200 when every provider is proven, or the start was allowed to be degraded; otherwise 503.

    `degraded` is said, too, where a vendor refuses or cannot be reached: the others go on answering.
    """
    if not current.serving:
        response.status_code = 503
    return Ready(status=current.status.value, reasons=current.reasons)


@router.get("/api/providers", summary="The providers in Letta", tags=["providers"])
async def providers(current: Current) -> Providers:
    """Show what the last run found, what it did, and what is proven. No key is shown beyond its last characters."""
    report = current.report
    if report is None:
        return Providers(headline=None, letta=None, as_of=None, providers=[], notices=current.reasons, census=None)
    census = None if current.census is None else current.census.as_json()
    return Providers.model_validate({**document(current.seen(report)), "as_of": current.as_of, "census": census})
