"""The second layer: what the vendors said to the configured keys. Pure."""

from __future__ import annotations

from isabella.doctor.evidence import Evidence, VendorEvidence
from isabella.doctor.findings import Finding, Layer, LayerResult, PassedCheck, Remedy, Severity, Unknown, sync_command
from isabella.providers.desired import Desired
from isabella.vendors.client import KeyVerdict, Trouble

#: Codes of findings after which nothing is known of the key itself.
SILENT = frozenset(
    {
        "vendor-dns",
        "vendor-tls",
        "vendor-timeout",
        "vendor-unreachable",
        "vendor-html",
        "vendor-failing",
        "base-url-wrong",
        "vendor-not-a-model-list",
    }
)


def judge(evidence: Evidence) -> LayerResult:
    """Judge what each vendor said."""
    total = LayerResult()
    for desired in evidence.configured.desired:
        asked = evidence.asked.get(desired.name)
        if asked is not None:
            total += _one(desired, asked, evidence.configured.named)
    return total


def _one(desired: Desired, asked: VendorEvidence, named: str | None) -> LayerResult:
    answer = asked.answer
    if answer.verdict is KeyVerdict.ACCEPTED:
        text = f"{desired.name}: {desired.vendor.title} takes the key ({answer.said})"
        return LayerResult(fine=(PassedCheck(Layer.VENDOR, text),))
    finding = _finding(desired, asked, named)
    if finding.code not in SILENT:
        return LayerResult((finding,))
    unknown = Unknown(
        Layer.VENDOR, f"whether {desired.vendor.title} takes the key", finding.summary.rstrip("."), desired.name
    )
    return LayerResult((finding,), (unknown,))


def _finding(desired: Desired, asked: VendorEvidence, named: str | None) -> Finding:
    answer, title = asked.answer, desired.vendor.title
    code, summary, cause, remedy = _meaning(desired, asked, named)
    status = "" if answer.status is None else f" with {answer.status}"
    severity = Severity.WARNING if code in ("vendor-rate-limited", "vendor-failing") else Severity.ERROR
    evidence = [f"GET {desired.base_url}/models answered{status}: {answer.said}"]
    if answer.status is None:
        evidence = [f"GET {desired.base_url}/models: {answer.said}"]
    if code == "key-refused":
        evidence.append(f"asked with {desired.masked_key} of {desired.key_source}")
    if asked.instead is not None:
        evidence.append(f"GET {asked.instead}/models answers {title}'s list")
    return Finding(
        code=code,
        layer=Layer.VENDOR,
        severity=severity,
        summary=summary,
        cause=cause,
        remedy=remedy,
        provider=desired.name,
        evidence=tuple(evidence),
        # A key that is the wrong one to begin with says nothing about the vendor.
        explained_by=frozenset({"key-of-another-vendor", "key-contradiction"})
        if code in ("key-refused", "base-url-wrong", "vendor-dns", "vendor-tls", "vendor-unreachable")
        else frozenset(),
    )


def _meaning(desired: Desired, asked: VendorEvidence, named: str | None) -> tuple[str, str, str, Remedy]:
    """Code, summary, cause and remedy."""
    answer, title = asked.answer, desired.vendor.title
    variable = desired.vendor.base_url_env
    host_remedy = (
        f"Check {variable or 'base_url in isabella.toml'} ({desired.base_url}) and this machine's way to it."
    )
    match answer.verdict, answer.trouble:
        case KeyVerdict.REFUSED, _:
            return _refused(desired, asked, named)
        case KeyVerdict.OUT_OF_FUNDS, _:
            return (
                "vendor-out-of-funds",
                f"{title} knows the key, but its account has nothing left.",
                f"{title} answered {answer.status}: {answer.said}. Agents will fail until it is topped up.",
                Remedy(f"Add credit to the account at {title}, or use a key of another account."),
            )
        case KeyVerdict.RATE_LIMITED, _:
            wait = "" if answer.retry_after is None else f" It asks to wait {answer.retry_after:g} s."
            return (
                "vendor-rate-limited",
                f"{title} knows the key, but is asked too often.",
                f"{title} answered 429: {answer.said}.{wait}",
                Remedy("Wait, ask less often, or raise the limit of the account; the key itself is good."),
            )
        case _, Trouble.DNS:
            return (
                "vendor-dns",
                f"the name in its address ({desired.base_url}) is not known.",
                "The name server knows no such host: it is misspelt, or this machine has no name server.",
                Remedy(host_remedy, setting=(variable, None) if variable else None),
            )
        case _, Trouble.TLS:
            return (
                "vendor-tls",
                f"no trustworthy connection to {desired.base_url}.",
                f"TLS failed: {answer.said}. A proxy with a certificate of its own, a wrong clock, or http and https "
                "mixed up.",
                Remedy(
                    f"{host_remedy} For a proxy with its own certificate set SSL_CERT_FILE.",
                    setting=(variable, None) if variable else None,
                ),
            )
        case _, Trouble.TIMEOUT:
            return (
                "vendor-timeout",
                f"{title} does not answer in time.",
                f"{desired.base_url}: {answer.said}. That says nothing about the key.",
                Remedy(f"{host_remedy} If other programs reach it, try again later."),
            )
        case KeyVerdict.UNREACHABLE, _:
            return (
                "vendor-unreachable",
                f"{title} cannot be reached.",
                f"{desired.base_url}: {answer.said}. That says nothing about the key.",
                Remedy(host_remedy, setting=(variable, None) if variable else None),
            )
        case _ if asked.instead is not None:
            return (
                "base-url-wrong",
                f"its base URL is wrong; {asked.instead} answers.",
                f"At {desired.base_url} there is nothing of the kind. The base URL is the part before /models, and "
                "most vendors want /v1 at its end, once.",
                Remedy(
                    f"Set {variable or 'base_url in isabella.toml'} to {asked.instead}, "
                    f"then run `{sync_command(desired.name, named)}`.",
                    command=sync_command(desired.name, named),
                    setting=(variable, asked.instead) if variable else None,
                ),
            )
        case _, Trouble.HTML:
            return (
                "vendor-html",
                "a web page answers in place of the vendor.",
                f"{desired.base_url} answered {answer.status} with HTML: a proxy, a captive portal or a load "
                "balancer stands in between.",
                Remedy("Look at HTTPS_PROXY and NO_PROXY of this process, and of Letta's."),
            )
        case KeyVerdict.WRONG_ADDRESS, _ if answer.status == 200:
            return (
                "vendor-not-a-model-list",
                f"what answers at {desired.base_url} is no model vendor.",
                f"It answered 200, but {answer.said}.",
                Remedy(host_remedy, setting=(variable, None) if variable else None),
            )
        case KeyVerdict.WRONG_ADDRESS, _:
            return (
                "base-url-wrong",
                f"its base URL is wrong ({answer.status}).",
                f"There is no /models below {desired.base_url}.",
                Remedy(
                    f"Correct {variable or 'base_url in isabella.toml'}; without it the vendor's own "
                    f"address is used: {desired.vendor.base_url}.",
                    setting=(variable, "") if variable else None,
                ),
            )
        case _:
            return (
                "vendor-failing",
                f"{title} is failing.",
                f"{desired.base_url} answered {answer.status}: {answer.said}. That says nothing about the key.",
                Remedy(f"Look at {title}'s status page and try again later."),
            )


def _refused(desired: Desired, asked: VendorEvidence, named: str | None) -> tuple[str, str, str, Remedy]:
    answer, title = asked.answer, desired.vendor.title
    page = f" (made at {desired.vendor.keys_page})" if desired.vendor.keys_page else ""
    variable = desired.key_source.split(" ", 1)[0]
    cause = f"{title} refuses the key itself ({answer.status}): it was revoked, mistyped, or is another account's."
    if asked.stored_answer is not None and asked.stored_answer.takes_key:
        cause += " The one that Letta holds it takes: the configured one is out of date, and agents go on working."
    return (
        "key-refused",
        f"{title} refuses the configured key.",
        cause,
        Remedy(
            f"Put a valid key{page} where {desired.key_source} is, then run `{sync_command(desired.name, named)}`.",
            command=sync_command(desired.name, named),
            setting=(variable, None),
        ),
    )
