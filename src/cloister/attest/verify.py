"""From a file of evidence to verified evidence, whatever its format."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cloister.attest import intel, intel_quote, nitro, nvidia_gpu, sev_snp, simulated, tpm
from cloister.attest.check_tree import Check
from cloister.attest.collateral import Collateral
from cloister.attest.verified_evidence import Format, VerifiedEvidence
from cloister.base.reading import open_regular, parsing
from cloister.errors import AttestationError

MAX_BYTES = 4 << 20
MAX_OFFSET = 64
"""Wrappers write a length or a version in front of evidence."""

Verifier = Callable[..., VerifiedEvidence]


def read_evidence(path: Path, *, what: str = "evidence") -> bytes:
    """A file's contents.

    Raises   InputError
    """
    with parsing(f"{what} {path}: cannot be read"), open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if not 0 < len(data) <= MAX_BYTES:
        raise AttestationError(f"{what} {path}: has {len(data)} bytes, of 1 to {MAX_BYTES}")
    return data


def verify(
    data: bytes, collateral: Collateral | None = None, *, now: datetime, check: Check | None = None
) -> VerifiedEvidence:
    """Verify evidence of any format: what it claims is signed by its platform's vendor.

    That is not yet a reason to trust the machine: `appraise` compares it with a policy.

    now     the time at which certificates have to be valid; it has a time zone
    check   the tree into which checks are entered, also of evidence that is refused

    Raises   AttestationError naming the field, what was expected and found, and what to do
    """
    if now.tzinfo is None:
        raise AttestationError("now: has no time zone; give one, such as 2026-01-31T12:00Z")
    tree = Check("evidence") if check is None else check
    collateral = Collateral() if collateral is None else collateral
    with tree.whole(), parsing("evidence: is damaged", kind=AttestationError):
        kind, run = _recognise(data, collateral)
        tree.name = f"{kind} evidence"
        return run(now=now.astimezone(UTC), check=tree)


def _recognise(data: bytes, collateral: Collateral) -> tuple[Format, Verifier]:
    """The format of evidence, and what verifies it."""
    if (packed := _packed_quote(data)) is not None:
        quote, log = packed
        added = Collateral(
            collateral.certificates, collateral.revocation_lists, collateral.documents,
            collateral.manifests, (*collateral.event_logs, *log),
        )  # fmt: skip
        return Format.TDX, partial(intel.verify, quote, added)
    if simulated.looks_like(data):
        return Format.SIMULATED, partial(simulated.verify, data)
    if tpm.looks_like(data):
        return Format.TPM, partial(tpm.verify, data)
    for offset in range(min(MAX_OFFSET, len(data))):
        part = data[offset:]
        if (report := sev_snp.find(part)) is not None:
            return Format.SEV_SNP, partial(sev_snp.verify, report, collateral)
        if intel_quote.looks_like(part):
            is_tdx = part[4] == intel_quote.TDX_TYPE
            return Format.TDX if is_tdx else Format.SGX, partial(intel.verify, part, collateral)
        if nitro.looks_like(part):
            return Format.NITRO, partial(nitro.verify, part)
        if gpus := nvidia_gpu.find(part):
            return Format.NVIDIA_GPU, partial(nvidia_gpu.verify, gpus, collateral)
    raise AttestationError(
        "evidence: no format is recognised; give an SEV-SNP report, a TDX or SGX quote, a Nitro "
        "document, an NVIDIA GPU report or a TPM quote"
    )


def _packed_quote(data: bytes) -> tuple[bytes, tuple[bytes, ...]] | None:
    """A TDX quote in JSON beside its event log, as guest agents return it."""
    text = data.lstrip()
    if not text.startswith(b"{") or b'"quote"' not in text:
        return None
    with parsing("evidence: is no JSON", kind=AttestationError):
        found = json.loads(text)
        quote = bytes.fromhex(found["quote"])
        log = found.get("event_log")
    return quote, () if log is None else (str(log).encode(),)
