"""Part of the third layer: whose master key it is, ours, Letta's, or nobody's. Pure."""

from __future__ import annotations

from isabella.doctor.evidence import Evidence, ProviderEvidence
from isabella.doctor.findings import Finding, Layer, LayerResult, PassedCheck, Remedy, Severity, name_some
from isabella.letta.encryption import KeyMatch, looks_encrypted
from isabella.vendors.client import KeyVerdict


def judge_master_key(evidence: Evidence) -> LayerResult:
    """Judge whether Letta seals and opens keys under the master key that is configured."""
    configured, seen = evidence.configured, evidence.seen
    if not configured.master_key or seen.rows is None:
        return LayerResult()
    refused = [row for row in seen.rows if _refused_in_letta(row, evidence)]
    if (seen.process is not None and not seen.process.has_master_key) or refused:
        return LayerResult((_letta_has_none(evidence, refused),))
    others = [row for row in seen.rows if row.opens and _match(row) is KeyMatch.UNREADABLE]
    if others or (seen.process is not None and seen.process.same_master_key is False):
        return LayerResult((_another(evidence, others),))
    if seen.process is not None and seen.process.same_master_key:
        return LayerResult(fine=(PassedCheck(Layer.STORED, "Letta runs under the configured master key"),))
    return LayerResult()


def _refused_in_letta(row: ProviderEvidence, evidence: Evidence) -> bool:
    """Whether the vendor refuses what Letta shows of a key that is right, and that it takes from us."""
    asked = evidence.asked.get(row.stored.name)
    return (
        row.accepted is False
        and row.reading is not None
        and row.reading.match is KeyMatch.EQUAL
        and row.reading.sealed
        and asked is not None
        and asked.answer.verdict is KeyVerdict.ACCEPTED
    )


def _letta_has_none(evidence: Evidence, refused: list[ProviderEvidence]) -> Finding:
    seen = evidence.seen
    rows = seen.rows or ()
    sealed = tuple(row.stored.name for row in rows if row.stored.key_text and looks_encrypted(row.stored.key_text))
    plain = tuple(row.stored.name for row in rows if row.stored.key_text and row.stored.name not in sealed)
    lines = []
    if seen.process is not None and not seen.process.has_master_key:
        lines.append(f"LETTA_ENCRYPTION_KEY is not in the environment of Letta's process (pid {seen.process.pid})")
    if refused:
        names = tuple(row.stored.name for row in refused)
        lines.append(
            f"asked by Letta, the vendor refuses the stored key; asked directly, it takes it: {name_some(names)}"
        )
    if sealed:
        lines.append(f"sealed, so unusable for Letta: {name_some(sealed)}")
    if plain:
        lines.append(f"in plaintext: {name_some(plain)}")
    cause = "Letta stores keys in plaintext and shows them."
    if sealed:
        cause = (
            "Keys that were sealed before cannot be opened: up to 0.16.6 agents send DUMMY_API_KEY in their place, "
            "later ones send the sealed text itself to the vendor."
        )
    restart = "isabella letta down && isabella letta up"
    return Finding(
        code="letta-without-master-key",
        layer=Layer.STORED,
        severity=Severity.ERROR if sealed else Severity.WARNING,
        summary="Letta runs without the master key.",
        cause=cause,
        remedy=Remedy(
            f"Restart it with the master key: `{restart}`."
            if seen.embedded
            else "Start Letta with the LETTA_ENCRYPTION_KEY of .env in its environment, then run "
            "`isabella providers sync`.",
            command=restart if seen.embedded else None,
        ),
        evidence=tuple(lines),
        facts=("O6", "P2"),
    )


def _another(evidence: Evidence, others: list[ProviderEvidence]) -> Finding:
    process = evidence.seen.process
    lines = []
    if process is not None and process.same_master_key is False:
        lines.append(f"Letta's process (pid {process.pid}) has another LETTA_ENCRYPTION_KEY in its environment")
    if others:
        lines.append(f"Letta opens what we cannot: {name_some(tuple(row.stored.name for row in others))}")
    return Finding(
        code="master-key-not-lettas",
        layer=Layer.CONFIGURATION,
        severity=Severity.ERROR,
        summary="LETTA_ENCRYPTION_KEY is not the one that Letta runs with.",
        cause="Keys that Letta seals cannot be read back here, so nothing can be proven.",
        remedy=Remedy(
            "Put the LETTA_ENCRYPTION_KEY that Letta itself runs with into .env.",
            setting=("LETTA_ENCRYPTION_KEY", None),
        ),
        evidence=tuple(lines),
        facts=("P2", "P4"),
        explained_by=frozenset({"letta-contradiction"}),
    )


def _match(row: ProviderEvidence) -> KeyMatch | None:
    return None if row.reading is None else row.reading.match
