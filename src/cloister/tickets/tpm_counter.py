"""A counter of a TPM: an NV index that only goes up, whose values the TPM signs.

The machine's owner may stand between the meter and the TPM, so the meter believes no bare answer:
the TPM certifies each value over a fresh nonce, by the key that the counter's identity names. An
owner who removes the index and makes it anew gets a counter that begins above every value that any
counter of the TPM ever had.

A program can play a TPM. Whoever names a counter in a ticket has to know that the identity is that
of a TPM of hardware.

Source   TCG, Trusted Platform Module Library, part 1: Architecture (1.59), section 37.2.4; part 3,
         TPM2_NV_Increment, TPM2_NV_Certify
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloister.attest.tpm_commands import COUNTER_BYTES, NO_INDEX, Tpm, TpmKeyHandle, open_tpm
from cloister.attest.tpm_structures import NV, TpmKey, TpmStatement, certified_index
from cloister.base.rng import Csprng
from cloister.errors import AttestationError, CounterError, TpmError
from cloister.tickets.ticket import MAX_SERIAL, CounterKind

INDEX = 0x01800100
"""The index that is used unless another one is named; the owner's begin at 0x01800000."""
OWN_INDICES = range(0x01800000, 0x01C00000)
NONCE_BYTES = 32
_IDENTITY = b"cloister tpm counter\0"


@dataclass(frozen=True)
class TpmCounter:
    """See MonotonicCounter.

    key    SHA-256 of the public part of the key that signs values
    name   of the index: what it is for, signed beside its value
    """

    path: Path
    index: int
    key: bytes
    name: bytes
    rng: Csprng
    kind = CounterKind.TPM

    @property
    def identity(self) -> bytes:
        """SHA-256 over the key and the index's name."""
        return hashlib.sha256(_IDENTITY + self.key + self.name).digest()

    @classmethod
    def open(cls, path: Path, *, rng: Csprng, index: int = INDEX) -> "TpmCounter":
        """The counter of a TPM; where there is none, a new one.

        Raises   CounterError
        """
        if index not in OWN_INDICES:
            raise CounterError(
                f"counter {path}: index {index:#x} is not the owner's; choose one from "
                f"{OWN_INDICES.start:#x} on"
            )
        with _counting(path), open_tpm(path) as tpm, tpm.attestation_key() as key:
            try:
                name = tpm.index_name(index)
            except TpmError as error:
                if error.code != NO_INDEX:
                    raise
                tpm.define_counter(index)
                name = tpm.index_name(index)
            found = cls(path.absolute(), index, TpmKey.parse(key.public).name, name, rng)
            found._certified(tpm, key)
        return found

    def read(self) -> int:
        """See MonotonicCounter."""
        with _counting(self.path), open_tpm(self.path) as tpm, tpm.attestation_key() as key:
            return self._certified(tpm, key)

    def advance(self, before: int, to: int) -> None:
        """See MonotonicCounter; a TPM adds one at a time, and the value is read after each.

        A TPM has no step that adds only where it is at a value. Of two callers with one `before`,
        whoever reads what the other one has added stops, so at most one returns.
        """
        if not 0 <= before < to <= MAX_SERIAL:
            raise CounterError(f"counter {self.path}: cannot go from {before} to {to}")
        with _counting(self.path), open_tpm(self.path) as tpm, tpm.attestation_key() as key:
            self._require(self._certified(tpm, key), before)
            for value in range(before + 1, to + 1):
                tpm.increment(self.index)
                self._require(self._certified(tpm, key), value)

    def _require(self, found: int, expected: int) -> None:
        if found != expected:
            raise CounterError(
                f"counter {self.path}: is at {found}, and at {expected} for its caller; another "
                "process advanced it"
            )

    def _certified(self, tpm: Tpm, handle: TpmKeyHandle) -> int:
        """The counter's value, as the TPM signs it over a fresh nonce."""
        key, nonce = TpmKey.parse(handle.public), self.rng.random_bytes(NONCE_BYTES)
        signed = tpm.certify(handle, self.index, nonce, COUNTER_BYTES)
        statement = TpmStatement.parse(signed.statement, NV)
        key.verify(signed.signature, signed.statement)
        name, contents = certified_index(statement.fields)
        for what, found, expected in (
            ("key", key.name, self.key),
            ("signer", statement.qualified_signer, key.qualified(handle.parent)),
            ("nonce", statement.qualifying, nonce),
            ("index", name, self.name),
        ):
            if found != expected:
                raise CounterError(
                    f"counter {self.path}: {what}: expected {expected.hex()}, found {found.hex()}; "
                    "it is another counter, or somebody answers in the TPM's place"
                )
        value = int.from_bytes(contents, "big")
        if len(contents) != COUNTER_BYTES or value > MAX_SERIAL:
            raise CounterError(f"counter {self.path}: {contents.hex()} is no value of a counter")
        return value


@contextmanager
def _counting(path: Path) -> Iterator[None]:
    """Errors of the TPM are the counter's."""
    try:
        yield
    except AttestationError as error:
        raise CounterError(f"counter {path}: {error}") from None
