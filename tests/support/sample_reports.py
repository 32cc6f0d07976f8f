"""Entries of reports, as samples for the tests of what tells them, counts them and remembers them."""

from __future__ import annotations

from dataclasses import replace

from isabella.providers.plan import Action, ProviderState
from isabella.providers.report import Proof, ProviderReport

#: Found as it should be.
IN_SYNC = ProviderReport(
    name="cerebras",
    vendor="cerebras",
    type="cerebras",
    base_url="https://api.cerebras.ai/v1",
    key="csk-…0001",
    key_source="CEREBRAS_API_KEY (.env)",
    stored=ProviderState.IN_SYNC,
    action=Action.KEEP,
    proof=Proof.PROVEN,
    reason="read back and equal",
)
#: Found with another key, and mended.
MENDED = replace(IN_SYNC, stored=ProviderState.STALE, action=Action.UPDATE, reason="Letta holds another key")
#: The same, only looked at.
DRIFTED = replace(MENDED, proof=Proof.NOT_ASKED)
#: Its vendor does not take the configured key.
REFUSED = replace(
    MENDED, action=Action.REFUSE, proof=Proof.FAILED, refused_by_vendor=True, reason="Cerebras refuses the key"
)
#: In Letta, but declared by nobody.
FOREIGN = replace(
    IN_SYNC,
    name="somebody's",
    key=None,
    key_source=None,
    stored=ProviderState.FOREIGN,
    action=Action.NONE,
    proof=Proof.NOT_ASKED,
    configured=False,
)
