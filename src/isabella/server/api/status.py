"""Routes of the backend's state: health, readiness, providers, metrics, and the doctor."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, HTTPException, Query, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, Field

from isabella.doctor.run import DoctorOptions, run_doctor
from isabella.errors import ConfigurationError
from isabella.providers.health import report_document
from isabella.server.errors import ERRORS
from isabella.server.runtime import CurrentReadiness, CurrentRuntime

router = APIRouter()

# Each doctor run asks every vendor, so there is one at a time.
_one_doctor = anyio.Semaphore(1, fast_acquire=True)


PartState = Literal["runs", "silent", "down", "given_up", "stopped"]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="Isabella's version.")
    parts: dict[str, PartState] = Field(
        description="The processes that this backend supervises: `postgres`, `letta`, `gateway`."
    )


class Condition(BaseModel):
    """The state of a supervised process."""

    name: Literal["postgres", "letta", "gateway"] = Field(validation_alias="word")
    state: PartState
    reason: str = Field(description="Why it does not run; empty if it does.")
    since: datetime = Field(description="When the state began.")
    restarts: int = Field(description="How often this backend has restarted it.")


class Ready(BaseModel):
    """Whether requests that need providers can be answered."""

    status: Literal["starting", "ready", "degraded", "interrupted", "failed"]
    reasons: list[str] = Field(description="Why the status is not `ready`, one sentence each.")
    conditions: list[Condition] = Field(description="The processes that this backend supervises, in their order.")


class LettaAddress(BaseModel):
    """The Letta server of the report."""

    base_url: str
    version: str


class VendorStatus(BaseModel):
    """The last answer of a vendor."""

    state: Literal["answers", "refuses_key", "refuses", "fails", "unreachable", "not_asked"]
    reason: str
    at: datetime = Field(description="When it answered; for `not_asked`, since when it has not been asked.")


class Headline(BaseModel):
    """The worst state of all configured providers, by stored key and by vendor."""

    level: Literal["ok", "unknown", "warning", "problem"]
    title: str
    text: str = Field(description="The providers in that state, and the reason.")
    remedy: str = Field("", description="What to do next; empty if there is nothing to do.")
    seen: datetime | None = Field(None, description="When it was seen; null if that is `as_of`.")


class GatewayStatusBody(BaseModel):
    """The gateway between Letta and the vendors."""

    address: str = Field(description="Its URL as Letta reaches it.")
    state: Literal["runs", "down", "unknown"]
    reason: str | None = Field(description="Why it does not run, or why that is not known.")
    remedy: str | None


class Provider(BaseModel):
    """A provider: its state in Letta, what the sync did, and the proof."""

    name: str
    vendor: str
    type: str
    base_url: str | None = Field(description="The configured base URL: the vendor's own, or that of the gateway.")
    stored_base_url: str | None = Field(None, description="The base URL in Letta.")
    upstream: str | None = Field(None, description="The vendor's own base URL, if `base_url` is that of the gateway.")
    key: str | None = Field(description="The configured key, masked.")
    key_source: str | None = Field(description="The variable and file of the key.")
    stored: Literal["in_sync", "stale", "absent", "unreadable", "plaintext", "mistyped", "moved", "foreign", "hidden"]
    action: Literal["keep", "update", "recreate", "create", "refuse", "none"]
    proof: Literal["proven", "unproven", "failed", "not_asked"]
    condition: str | None = Field(
        None,
        description="One of InSync, Drifted, Refused, Misconfigured, Unproven, Failed, NoKey, Foreign.",
    )
    since: datetime | None = Field(None, description="When `condition` last changed.")
    vendor_status: VendorStatus | None = Field(None, description="The last answer of the vendor.")
    models: int = Field(description="The number of models that Letta lists for it.")
    reason: str
    remedy: str | None
    notes: list[str]
    receipt: Literal["accepted", "refused", "failed"] | None = None


class LostModel(BaseModel):
    """An agent whose model the vendor no longer has."""

    agent: str = Field(validation_alias="name")
    model: str


class ModelCount(BaseModel):
    """The result of the last refresh for one provider."""

    provider: str
    appeared: list[str]
    vanished: list[str]
    lost: list[LostModel]
    problem: str | None = Field(description="Why its models are not known.")


class ModelRefreshResult(BaseModel):
    """The result of the last refresh of the model lists."""

    at: datetime
    providers: list[ModelCount]


class Providers(BaseModel):
    """The last report on the providers."""

    headline: Headline | None = Field(None, description="Null until the first report.")
    letta: LettaAddress | None = Field(description="Null until the first report.")
    gateway: GatewayStatusBody | None = Field(None, description="Null if Letta calls the vendors directly.")
    as_of: datetime | None = Field(description="When the report was made.")
    providers: list[Provider]
    notices: list[str]
    census: ModelRefreshResult | None = Field(
        None, description="The last nightly refresh of the vendors' model lists."
    )


class ExaminedLetta(BaseModel):
    """The Letta server that the doctor examined."""

    base_url: str | None
    version: str | None


class DoctorReport(BaseModel):
    """The findings of the doctor. It contains no keys, so it can be shared."""

    healthy: bool = Field(description="Whether there are no findings.")
    letta: ExaminedLetta
    verdict: list[str] = Field(description="One sentence per cause, with the remedy.")
    findings: list[dict[str, Any]] = Field(
        description="The causes: code, layer, severity, provider, agents, summary, evidence, cause, remedy, facts, "
        "and the consequences that disappear with them."
    )
    unknown: list[dict[str, Any]] = Field(description="What could not be determined, and why.")
    fine: list[dict[str, str]] = Field(description="Checks that passed.")
    notes: list[dict[str, Any]] = Field(description="Observations that are not faults.")
    practice: bool = Field(description="Whether practice vendors replace the real ones.")


@router.get("/health", summary="Check that the process is alive", tags=["state"])
async def health(readiness: CurrentReadiness) -> Health:
    """Answer 200 as long as the process answers requests."""
    return Health(version=version("isabella"), parts={part.word: part.state.value for part in readiness.parts})


@router.get(
    "/ready",
    summary="Check that the backend is ready",
    tags=["state"],
    responses={503: {"model": Ready, "description": "Not ready yet, or failed; with the reasons."}},
)
async def ready(readiness: CurrentReadiness, response: Response) -> Ready:
    """Answer 200 if every provider is proven, or a degraded start is allowed; otherwise 503.

    The status is `interrupted`, with 503, while Letta, Postgres or the gateway is restarted. It is `degraded`
    also if a vendor refuses or cannot be reached, while the other vendors still answer, if a gateway that this
    backend does not supervise cannot be reached, and if the last nightly backup failed. Supervised processes are
    looked at for the answer, so the first answer after a death reports it.
    """
    if readiness.supervisor is not None:
        await readiness.supervisor.refresh()
    if not readiness.serving or readiness.down:
        response.status_code = 503
    conditions = [Condition.model_validate(part, from_attributes=True) for part in readiness.parts]
    return Ready(status=readiness.status.value, reasons=readiness.reasons, conditions=conditions)


@router.get("/api/providers", summary="List the providers in Letta", tags=["providers"])
async def providers(readiness: CurrentReadiness) -> Providers:
    """Return the last report: what Letta held, what the sync did, and what is proven. Keys are masked."""
    report = readiness.report
    if report is None:
        return Providers(
            headline=None, letta=None, gateway=None, as_of=None, providers=[], notices=readiness.reasons, census=None
        )
    current = readiness.with_vendors(report)
    document = report_document(current) | {"headline": readiness.headline(current).as_json()}
    document |= {"as_of": readiness.as_of, "census": readiness.model_refresh}
    return Providers.model_validate(document, from_attributes=True)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    tags=["state"],
    response_class=Response,
    responses=ERRORS
    | {200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(runtime: CurrentRuntime) -> Response:
    """Return turns, syncs, and the state of providers, processes and backups; also while the backend starts.

    With a gateway also its totals: answers, refusals, tokens, stopped keys, and the rate limits that are left.
    """
    text = runtime.metrics.render(runtime.turn_service, runtime.readiness, runtime.gateway)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/api/doctor", summary="Diagnose the installation", tags=["doctor"], responses=ERRORS)
async def doctor(
    runtime: CurrentRuntime,
    provider: Annotated[list[str] | None, Query(description="Only these providers.")] = None,
    agent: Annotated[str | None, Query(description="Only this agent, and everything it depends on.")] = None,
    probe: Annotated[bool, Query(description="Also send one message through each provider.")] = False,
) -> DoctorReport:
    """Check configuration, vendors, providers, agents and exposure of the running backend. Changes nothing."""
    options = DoctorOptions(tuple(provider or ()), agent, probe)
    try:
        async with _one_doctor:
            result = await run_doctor(
                settings=runtime.latest_settings, connection=runtime.start_connection, options=options
            )
    except ConfigurationError as error:
        raise HTTPException(404, str(error)) from None
    return DoctorReport.model_validate(result.diagnosis.as_json())
