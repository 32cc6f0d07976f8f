"""The four vendors as data: addresses, models, refusals and headers, read from `vendors.toml`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

from isabella.errors import PracticeError

#: The vendors' names, in the order in which they are shown.
NAMES = ("cerebras", "groq", "mistral", "longcat")

_REFUSAL_OF_STATUS = {
    400: "bad_request",
    401: "wrong_key",
    402: "no_funds",
    403: "forbidden",
    404: "no_model",
    429: "too_fast",
    500: "broken",
    502: "bad_gateway",
    503: "overloaded",
}


@dataclass(frozen=True)
class ListedModel:
    """A model on a vendor's list.

    Attributes:
        item: the entry in the model list, as the vendor sends it.
        window: tokens of context that the model takes.
        chat: whether it holds conversations.
        reasons: whether it shows its reasoning.
        dimensions: the length of its embedding vectors; None where it makes none.
    """

    item: Mapping[str, Any]
    window: int
    chat: bool = True
    reasons: bool = False
    dimensions: int | None = None

    @property
    def id(self) -> str:
        """The name that requests call it by."""
        return str(self.item["id"])


@dataclass(frozen=True)
class RefusalShape:
    """How a vendor says no.

    Attributes:
        status: the HTTP status.
        body: the JSON text, with places (`%model%`, …) to fill in.
        retry_after: seconds that it asks clients to wait, where it says so.
    """

    status: int
    body: str
    retry_after: float | None = None

    def filled(self, **places: str) -> bytes:
        """The body with its places filled in; values are escaped as JSON strings are."""
        text = self.body
        for place, value in places.items():
            text = text.replace(f"%{place}%", json.dumps(value, ensure_ascii=False)[1:-1])
        return text.encode()


@dataclass(frozen=True)
class Profile:
    """One vendor as it answers on the wire.

    Attributes:
        name: the vendor's name in this project.
        title: the vendor's name for people.
        path: the part of the base URL after the host.
        key_form: how its keys look; `%` stands for random characters.
        completion_id: how its completion ids look.
        call_id: how its tool call ids look, and the number of random characters in them.
        reasoning: whether a model's reasoning is a field beside the content, a part of it, or not shown.
        limits: rate-limit headers and their values, or what to count for them.
        models: the models on its list, by id and by alias.
        listed: the entries of its model list.
        refusals: its ways to say no, by reason.
        usage_extension: an extra field that carries the usage at the end of a stream.
        correlation_header: an extra header that carries the request id.
    """

    name: str
    title: str
    path: str
    key_form: str
    completion_id: str
    call_id: tuple[str, int]
    reasoning: Literal["field", "parts", "none"]
    limits: Mapping[str, str | int]
    models: Mapping[str, ListedModel]
    listed: tuple[Mapping[str, Any], ...]
    refusals: Mapping[str, RefusalShape] = field(repr=False)
    usage_extension: str | None = None
    correlation_header: str | None = None

    def refusal_of(self, status: int) -> RefusalShape:
        """The vendor's refusal with this status; one of its server errors where it has no such refusal."""
        reason = _REFUSAL_OF_STATUS.get(status, "broken" if status >= 500 else "bad_request")
        found = self.refusals[reason]
        return found if found.status == status else RefusalShape(status, found.body, found.retry_after)


@cache
def profiles() -> Mapping[str, Profile]:
    """All vendors by name."""
    text = resources.files(__package__).joinpath("vendors.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return {name: _profile(name, data[name]) for name in NAMES}


def profile(name: str) -> Profile:
    """One vendor.

    Raises:
        PracticeError: there is no practice vendor of that name.
    """
    try:
        return profiles()[name]
    except KeyError:
        raise PracticeError(
            f"There is no practice vendor {name!r}.", remedy=f"There are {', '.join(NAMES)}."
        ) from None


def _profile(name: str, data: Mapping[str, Any]) -> Profile:
    absent = dict.fromkeys(data.get("null_fields", ()))
    models: dict[str, ListedModel] = {}
    listed: list[Mapping[str, Any]] = []
    for entry in data["models"]:
        model = ListedModel(
            item={**entry["item"], **absent},
            window=entry["window"],
            chat=entry.get("chat", True),
            reasons=entry.get("reasons", False),
            dimensions=entry.get("dimensions"),
        )
        listed.append(model.item)
        for known_as in (model.id, *model.item.get("aliases", ())):
            models[known_as] = model
    return Profile(
        name=name,
        title=data["title"],
        path=data["path"],
        key_form=data["key_form"],
        completion_id=data["completion_id"],
        call_id=(data["call_id"]["form"], data["call_id"]["length"]),
        reasoning=data["reasoning"],
        limits=data["limits"],
        models=models,
        listed=tuple(listed),
        refusals={reason: RefusalShape(**fields) for reason, fields in data["refusals"].items()},
        usage_extension=data.get("usage_extension"),
        correlation_header=data.get("correlation_header"),
    )
