"""Evidence of the TPM of this machine: a quote of the registers that say how it started."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cloister.attest.report_data import require_report_data
from cloister.attest.tpm import REGISTERS, TpmEvidence, qualifying
from cloister.attest.tpm_commands import open_tpm
from cloister.attest.tpm_structures import QUOTE, TpmStatement, quoted_registers
from cloister.attest.verified_evidence import Format
from cloister.errors import AttestationError

_TRIES = 5


@dataclass(frozen=True)
class TpmAttester:
    """A TPM: a device of the kernel, or the socket of a program that plays one (attester.py)."""

    path: Path
    format: Format = Format.TPM

    @property
    def name(self) -> str:
        """See Attester."""
        return f"{self.path}"

    def evidence(self, report_data: bytes) -> bytes:
        """See Attester; the key is the endorsement hierarchy's, the same at every start."""
        require_report_data(report_data)
        with open_tpm(self.path) as tpm, tpm.attestation_key() as key:
            for _ in range(_TRIES):
                signed = tpm.quote(key, qualifying(report_data), REGISTERS)
                registers = tpm.registers(REGISTERS)
                made = TpmEvidence(
                    signed.statement, signed.signature, key.public, key.parent, registers,
                    report_data,
                )  # fmt: skip
                if _fits(made):
                    return made.encode()
        raise AttestationError(f"{self.path}: registers change all the time; try again later")


def _fits(made: TpmEvidence) -> bool:
    """Whether no register was extended between the quote and the reading."""
    statement = TpmStatement.parse(made.statement, QUOTE)
    registers, digest = quoted_registers(statement.fields)
    return digest == hashlib.sha256(b"".join(made.registers[i] for i in registers)).digest()
