"""What verified evidence says: claims of the platform, and how far they can be relied upon."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cloister.attest.check_tree import Check, shown


class Format(StrEnum):
    """Kinds of evidence; each has a section of this name in a policy file."""

    SEV_SNP = "sev-snp"
    TDX = "tdx"
    SGX = "sgx"
    NITRO = "nitro"
    NVIDIA_GPU = "nvidia-gpu"
    TPM = "tpm"
    SIMULATED = "insecure-simulated"


class Rooted(StrEnum):
    """Whose key stands at the root of the evidence."""

    HARDWARE = "hardware"
    SOFTWARE = "software"
    """Of a program, such as a TPM in software: it proves nothing about the machine."""


class Revocation(StrEnum):
    """What is known of the certificates' revocation."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class VerifiedEvidence:
    """Evidence whose signatures hold; nothing of it was compared with a policy yet.

    report_data    what the machine was asked to bind, as the platform keeps it
    claims         fields by name: bytes, numbers, texts, truth values and lists of texts
    relayable      it binds no channel and no host: any machine can present it as its own
    not_after      when the first of its certificates or pieces of collateral expires
    checks         every check that was made or left
    """

    format: Format
    report_data: bytes
    claims: Mapping[str, object]
    rooted: Rooted
    relayable: bool
    revocation: Revocation
    not_after: datetime
    checks: Check

    @property
    def hardware_rooted(self) -> bool:
        """Whether a processor's own key vouches for the machine that answers."""
        return self.rooted is Rooted.HARDWARE and not self.relayable

    def to_json(self) -> dict[str, object]:
        """All of it in plain values."""
        return {
            "format": self.format.value,
            "report_data": self.report_data.hex(),
            "claims": {name: _plain(value) for name, value in self.claims.items()},
            "rooted": self.rooted.value,
            "relayable": self.relayable,
            "hardware_rooted": self.hardware_rooted,
            "revocation": self.revocation.value,
            "not_after": self.not_after.isoformat(),
            "checks": self.checks.to_json(),
        }


def _plain(value: object) -> object:
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.hex() if isinstance(value, bytes) else shown(value)
