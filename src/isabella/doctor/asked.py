"""Asks the vendors, all at the same time; where an address is wrong, looks for the right one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from pydantic import SecretStr

from isabella.addresses import is_nowhere
from isabella.concurrency import together
from isabella.doctor.evidence import Asked, Row
from isabella.providers.desired import Desired
from isabella.providers.sealing import Match
from isabella.vendors.inquiry import Answer, Verdict, ask_vendor

#: Seconds that a vendor may take.
PATIENCE = 3.5
_SECOND_LOOK = 2.0


async def ask(desired: Sequence[Desired]) -> dict[str, Asked]:
    """What each vendor says to its configured key, by provider."""
    with_key = [one for one in desired if one.key is not None and one.obstacle is None]
    found = await together([partial(_one, one) for one in with_key], at_once=16)
    return {one.name: asked for one, asked in zip(with_key, found, strict=True)}


async def ask_with_stored_keys(
    desired: Sequence[Desired], asked: dict[str, Asked], rows: Sequence[Row]
) -> dict[str, Asked]:
    """Where a vendor refuses the configured key, and Letta holds another: what does it say to that one?"""
    stored = {row.stored.name: row for row in rows}
    calls = {}
    for one in desired:
        row, said = stored.get(one.name), asked.get(one.name)
        if row is None or said is None or row.reading is None or row.reading.key is None:
            continue
        # It is shown to nobody but to whom Letta shows it.
        address = row.stored.base_url
        if address is None or is_nowhere(address):
            continue
        if said.answer.verdict is Verdict.REFUSED and row.reading.match is Match.DIFFERENT:
            calls[one.name] = partial(_ask, address, row.reading.key)
    answers = await together(calls.values())
    return asked | {
        name: replace(asked[name], stored_answer=answer) for name, answer in zip(calls, answers, strict=True)
    }


async def _ask(base_url: str, key: SecretStr) -> Answer:
    return await ask_vendor(base_url, key, timeout=_SECOND_LOOK)


async def _one(desired: Desired) -> Asked:
    key = desired.key
    if key is None:
        raise AssertionError("only a vendor with a key is asked")
    answer = await ask_vendor(desired.base_url, key, timeout=PATIENCE)
    if answer.verdict is not Verdict.WRONG_ADDRESS:
        return Asked(answer)
    beside = addresses_beside(desired.base_url, desired.vendor.base_url)
    answers = await together([partial(_ask, address, key) for address in beside])
    for address, other in zip(beside, answers, strict=True):
        if other.verdict is Verdict.ACCEPTED:
            return Asked(answer, address)
    return Asked(answer)


def addresses_beside(base_url: str, own: str) -> list[str]:
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
