"""The fifth layer: what a real completion through Letta has shown. Pure."""

from __future__ import annotations

from isabella.doctor.checks.vendor_keys import SILENT
from isabella.doctor.evidence import Evidence
from isabella.doctor.findings import Finding, Layer, LayerResult, PassedCheck, Remedy, Severity
from isabella.providers.report import Receipt

#: Findings about a provider that explain why a completion fails.
_EXPLAINS = SILENT | frozenset(
    {
        "key-refused",
        "key-of-another-vendor",
        "vendor-out-of-funds",
        "vendor-rate-limited",
        "provider-absent",
        "provider-deleted",
        "provider-type-unknown",
        "name-taken-by-base",
        "key-stale",
        "key-erased",
        "key-empty-in-letta",
        "key-sealed-otherwise",
        "letta-without-master-key",
        "base-url-moved",
    }
)


def judge(evidence: Evidence) -> LayerResult:
    """Judge the receipts, where any were asked for."""
    total = LayerResult()
    for name, proceeds in (evidence.receipts or {}).items():
        if proceeds.receipt is Receipt.ACCEPTED:
            text = f"{name}: an agent said one line through Letta, and the vendor accepted it"
            total += LayerResult(fine=(PassedCheck(Layer.RECEIPT, text),))
            continue
        refused = proceeds.receipt is Receipt.REFUSED
        total += LayerResult(
            (
                Finding(
                    code="receipt-refused" if refused else "receipt-failed",
                    layer=Layer.RECEIPT,
                    severity=Severity.ERROR,
                    summary="the vendor refuses what Letta sends." if refused else "a line through Letta fails.",
                    cause=f"Everything up to here is as it should be, and yet a completion fails: {proceeds.said}",
                    remedy=Remedy(f"Look up what it says: isabella doctor explain '{_plain(proceeds.said)}'"),
                    provider=name,
                    evidence=(proceeds.said,),
                    explained_by=_EXPLAINS,
                ),
            )
        )
    return total


def _plain(text: str) -> str:
    return text.replace("'", "")[:120]
