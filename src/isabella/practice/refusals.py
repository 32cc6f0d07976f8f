"""What a practice vendor refuses: requests without an accepted key, malformed ones, too large ones, too many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from isabella.practice import strictness
from isabella.practice.limits import LimitDecision, go_duration
from isabella.practice.strictness import Objection
from isabella.practice.vendor import PracticeVendor, Route, VendorFault
from isabella.practice.wire import CHARACTERS_PER_TOKEN, PracticeModel, Profile, RefusalShape, overflow_wordings


@dataclass(frozen=True)
class PracticeRefusal:
    """A vendor's refusal of a request: its shape, the values for the placeholders, and the wait in seconds."""

    shape: RefusalShape
    values: Mapping[str, object]
    retry_after: float | None = None


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as a vendor understands it.

    Attributes:
        route: what it asks for; None if there is no such path.
        listed_model: the model in its path, if it asks for an entry of the model list.
        body: the fields of the body; empty if that is not `valid`, which is a JSON object.
        length: the length of the body in bytes.
    """

    profile: Profile
    path: str
    route: Route | None
    listed_model: str | None
    body: Mapping[str, Any]
    length: int
    valid: bool

    @property
    def model(self) -> PracticeModel | None:
        """The model that the body names, if the vendor has it."""
        name = self.body.get("model")
        return self.profile.models.get(name) if isinstance(name, str) else None

    @property
    def prompt_tokens(self) -> int:
        """The tokens that the body counts for."""
        return max(1, self.length // CHARACTERS_PER_TOKEN)

    @property
    def output_limit(self) -> int | None:
        """The limit of tokens for the answer, if it sets one."""
        limit = self.profile.output_limit(self.body)
        return limit if isinstance(limit, int) else None

    @cached_property
    def objections(self) -> tuple[Objection, ...]:
        """Everything in it that the real vendor is known to refuse."""
        if self.route != "chat":
            return ()
        return strictness.objections(self.profile, self.body, self.model)


class Judgement:
    """The judgement of a vendor on a request; a request that is not refused is charged to the vendor's limits.

    `accepted` says whether its key is accepted, None that there is no key.

    Attributes:
        refusal: the refusal; None if it is answered.
        admission: what the limits say to it; None if it did not come to that.
    """

    def __init__(
        self, vendor: PracticeVendor, request: ReceivedRequest, fault: VendorFault | None, *, accepted: bool | None
    ) -> None:
        self._vendor = vendor
        self._profile = vendor.profile
        self._request = request
        self.admission: LimitDecision | None = None
        self.refusal = self._judge(fault, accepted=accepted)

    def _judge(self, fault: VendorFault | None, *, accepted: bool | None) -> PracticeRefusal | None:
        listed = self._request.route == "models" and self._profile.open_list
        if not accepted and not listed:
            return self._refusal("no_key" if accepted is None else "wrong_key")
        if fault is not None and fault.status is not None:
            return PracticeRefusal(self._profile.refusal_of(fault.status), self._values())
        if self._request.route in (None, "models", "other"):
            return self._wrong_path()
        return self._malformed() or self._strict() or self._overflow(fault) or self._over_the_limit()

    def _wrong_path(self) -> PracticeRefusal | None:
        if self._request.route is None:
            return self._refusal("no_path")
        known = self._request.listed_model is None or self._request.listed_model in self._profile.models
        return None if known else self._refusal("no_model")

    def _malformed(self) -> PracticeRefusal | None:
        request = self._request
        if not request.valid:
            return self._refusal("bad_request", detail="The body is not a JSON object.")
        if request.model is None or (request.route == "chat") != request.model.chat:
            return self._refusal("no_model")
        required = "messages" if request.route == "chat" else "input"
        if not request.body.get(required):
            return self._refusal("bad_request", detail=f"{required}: field required")
        limit = self._profile.output_limit(request.body)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            return self._refusal("bad_request", detail="max_tokens: an integer of at least 1 is needed")
        return None

    def _strict(self) -> PracticeRefusal | None:
        """Return the refusal for the objections, those that are certain unless the vendor is told otherwise."""
        strict = self._vendor.strict
        refused = [each for each in self._request.objections if strict or (strict is None and each.certain)]
        if not refused:
            return None
        values: dict[str, object] = {"detail": refused[0].text}
        if problems := [each.problem for each in refused if each.problem is not None]:
            values["problems"] = problems
        return self._refusal(refused[0].refusal, **values)

    def _overflow(self, fault: VendorFault | None) -> PracticeRefusal | None:
        """Return the refusal of a prompt that is larger than the window."""
        model, prompt = self._request.model, self._request.prompt_tokens
        if self._request.route != "chat" or model is None:
            return None
        window, shape = model.window, self._profile.refusals["too_long"]
        if fault is not None and fault.kind == "overflow":
            window = prompt - 1 if fault.window is None else fault.window
            shape = shape if fault.overflow is None else overflow_wordings()[fault.overflow]
        if prompt <= window:
            return None
        figures = {"prompt": prompt, "window": window, "excess": prompt - window, "least": window + 1}
        return PracticeRefusal(shape, self._values() | figures)

    def _over_the_limit(self) -> PracticeRefusal | None:
        limit = self._request.output_limit
        reserved = self._profile.reserved if limit is None else min(limit, self._profile.most_reserved)
        self.admission = admission = self._vendor.limits.admit(self._request.prompt_tokens + reserved)
        if admission.exceeded is None:
            return None
        refusals = self._profile.refusals
        shape = refusals.get(admission.exceeded) or refusals.get("tokens_used_up") or refusals["too_fast"]
        figures = {"limit": admission.limit, "used": admission.used, "requested": admission.requested}
        values = self._values() | figures | {"wait": go_duration(admission.retry_after)}
        told = shape.status == 429 and self._profile.tells_retry_after
        return PracticeRefusal(shape, values, float(math.ceil(admission.retry_after)) if told else None)

    def _refusal(self, reason: str, **values: object) -> PracticeRefusal:
        return PracticeRefusal(self._profile.refusals[reason], self._values() | values)

    def _values(self) -> dict[str, object]:
        """Return the values that every refusal may need."""
        request = self._request
        named = request.body.get("model") if request.listed_model is None else request.listed_model
        return {"model": str(named), "path": request.path, "detail": "Invalid request."}
