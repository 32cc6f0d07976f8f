"""Asks the vendors, all at the same time; where an address is wrong, looks for the right one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from pydantic import SecretStr

from isabella.doctor.evidence import ProviderEvidence, VendorEvidence
from isabella.letta.encryption import KeyMatch
from isabella.providers.desired import Desired
from isabella.system.tasks import gather
from isabella.system.urls import is_placeholder_url
from isabella.vendors.client import KeyVerdict, VendorAnswer, ask_vendor

#: Seconds that a vendor may take.
PATIENCE = 3.5
_SECOND_LOOK = 2.0


async def ask_vendors(desired: Sequence[Desired]) -> dict[str, VendorEvidence]:
    """What each vendor says to its configured key, by provider."""
    with_key = [one for one in desired if one.key is not None and one.obstacle is None]
    found = await gather([partial(_one, one) for one in with_key], at_once=16)
    return {one.name: asked for one, asked in zip(with_key, found, strict=True)}


async def ask_with_stored_keys(
    desired: Sequence[Desired], asked: dict[str, VendorEvidence], rows: Sequence[ProviderEvidence]
) -> dict[str, VendorEvidence]:
    """Where a vendor refuses the configured key, and Letta holds another: what does it say to that one?"""
    stored = {row.stored.name: row for row in rows}
    calls = {}
    for one in desired:
        row, said = stored.get(one.name), asked.get(one.name)
        if row is None or said is None or row.reading is None or row.reading.key is None:
            continue
        # It is shown to nobody but to whom Letta shows it.
        address = row.stored.base_url
        if address is None or is_placeholder_url(address):
            continue
        if said.answer.verdict is KeyVerdict.REFUSED and row.reading.match is KeyMatch.DIFFERENT:
            calls[one.name] = partial(_ask, address, row.reading.key)
    answers = await gather(calls.values())
    return asked | {
        name: replace(asked[name], stored_answer=answer) for name, answer in zip(calls, answers, strict=True)
    }


async def _ask(base_url: str, key: SecretStr) -> VendorAnswer:
    return await ask_vendor(base_url, key, timeout=_SECOND_LOOK)


async def _one(desired: Desired) -> VendorEvidence:
    key = desired.key
    if key is None:
        raise AssertionError("only a vendor with a key is asked")
    answer = await ask_vendor(desired.base_url, key, timeout=PATIENCE)
    if answer.verdict is not KeyVerdict.WRONG_ADDRESS:
        return VendorEvidence(answer)
    beside = nearby_base_urls(desired.base_url, desired.vendor.base_url)
    answers = await gather([partial(_ask, address, key) for address in beside])
    for address, other in zip(beside, answers, strict=True):
        if other.verdict is KeyVerdict.ACCEPTED:
            return VendorEvidence(answer, address)
    return VendorEvidence(answer)


def nearby_base_urls(base_url: str, own: str) -> list[str]:
    """Addresses on the same host that may have been meant.

    Args:
        base_url: the configured one.
        own: the vendor's own.
    """
    trimmed = base_url
    for ending in ("/chat/completions", "/completions", "/models"):
        trimmed = trimmed.removesuffix(ending)
    bare = trimmed
    while bare.endswith("/v1"):
        bare = bare.removesuffix("/v1")
    parts = urlsplit(base_url)
    own_path = urlsplit(own).path
    found = [trimmed, f"{bare}/v1", f"{bare}/openai/v1", f"{bare.removesuffix('/openai')}/v1", bare]
    found.append(f"{parts.scheme}://{parts.netloc}{own_path}")
    return [address for address in dict.fromkeys(found) if address != base_url]
