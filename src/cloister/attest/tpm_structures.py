"""TPM 2.0 structures: public keys, signatures, and what a TPM signs of itself.

Source   TCG, Trusted Platform Module Library, part 2: Structures (1.59), sections 10 to 12
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from cloister.attest.check_tree import refused, require_equal
from cloister.attest.signatures import verify_ecdsa
from cloister.errors import AttestationError

GENERATED = 0xFF544347
QUOTE, NV = 0x8018, 0x8014
"""Kinds of signed statements: of platform configuration registers, of an NV index."""
SHA1, SHA256, SHA384, SHA512, NULL = 0x0004, 0x000B, 0x000C, 0x000D, 0x0010
RSA, ECC, RSASSA, RSAPSS, ECDSA = 0x0001, 0x0023, 0x0014, 0x0016, 0x0018
HASHES: Mapping[int, type[hashes.HashAlgorithm]] = {
    SHA256: hashes.SHA256,
    SHA384: hashes.SHA384,
    SHA512: hashes.SHA512,
}
_CURVES: Mapping[int, type[ec.EllipticCurve]] = {3: ec.SECP256R1, 4: ec.SECP384R1}
_RSA_BITS = (2048, 3072, 4096)
_F4 = 65537
MAX_BYTES = 4096

FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
USER_WITH_AUTH, RESTRICTED, DECRYPT, SIGN = 1 << 6, 1 << 16, 1 << 17, 1 << 18
_ATTESTS = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN
OWNER, ENDORSEMENT, PLATFORM = 0x40000001, 0x4000000B, 0x4000000C


class TpmFields:
    """Bytes of a TPM's structure, read from the first to the last; numbers are big-endian.

    what   names the structure in errors

    Raises   AttestationError from every method when bytes are missing or left
    """

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > MAX_BYTES:
            raise AttestationError(f"{what}: {len(data)} bytes are more than a TPM ever writes")
        self._data, self._what, self._at = data, what, 0

    def raw(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._data):
            raise AttestationError(f"{self._what}: cut short: {len(self._data)} bytes, needs {end}")
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        """The next number, of `size` bytes."""
        return int.from_bytes(self.raw(size), "big")

    def sized(self) -> bytes:
        """The next byte string, behind its length of two bytes (TPM2B)."""
        return self.raw(self.number(2))

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.raw(len(self._data) - self._at)

    def end(self) -> None:
        """Require that nothing is left."""
        if left := len(self._data) - self._at:
            raise AttestationError(f"{self._what}: {left} bytes behind it, which have no meaning")


@dataclass(frozen=True)
class TpmKey:
    """The public part of a signing key that signs only what its TPM says (TPMT_PUBLIC).

    name     SHA-256 of the public part: the key's name, without its algorithm
    scheme   signature scheme and hash, which the key does not change
    """

    public: bytes
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    scheme: tuple[int, int]

    @property
    def name(self) -> bytes:
        """See above."""
        return sha256(self.public).digest()

    @classmethod
    def parse(cls, public: bytes) -> "TpmKey":
        """Read a public part.

        Raises   AttestationError also for a key that signs what anybody asks: a program could have
                 it sign a statement that no TPM made
        """
        what = "TPM key"
        fields = TpmFields(public, what)
        kind, name_hash, attributes = fields.number(2), fields.number(2), fields.number(4)
        require_equal(f"{what}: hash of its name", name_hash, SHA256, remedy="make an SHA-256 one")
        if attributes & _ATTESTS != _ATTESTS or attributes & DECRYPT:
            raise refused(
                f"{what}: attributes", expected="restricted signing key that no TPM gives out",
                found=f"{attributes:#x}", remedy="attest with another key",
            )  # fmt: skip
        fields.sized()  # a policy for its use
        require_equal(f"{what}: symmetric algorithm", fields.number(2), NULL, remedy="no signer's")
        scheme = (fields.number(2), fields.number(2))
        if scheme[0] not in (RSASSA, RSAPSS, ECDSA) or scheme[1] not in HASHES:
            raise refused(
                f"{what}: scheme", expected="RSASSA, RSAPSS or ECDSA with SHA-256 or longer",
                found=(hex(scheme[0]), hex(scheme[1])), remedy="attest with another key",
            )  # fmt: skip
        key = _rsa(fields) if kind == RSA else _ecc(fields) if kind == ECC else None
        fields.end()
        if key is None or isinstance(key, rsa.RSAPublicKey) == (scheme[0] == ECDSA):
            raise AttestationError(f"{what}: kind {kind:#x} does not go with its scheme")
        return cls(public, key, scheme)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Check a signature (TPMT_SIGNATURE) by this key in its scheme.

        Raises   AttestationError
        """
        what = "TPM signature"
        fields = TpmFields(signature, what)
        require_equal(
            f"{what}: scheme", (fields.number(2), fields.number(2)), self.scheme,
            remedy="it is not the key's",
        )  # fmt: skip
        digest = HASHES[self.scheme[1]]()
        wrong = f"{what}: is wrong; the statement was changed, or another key signed it"
        if isinstance(self.key, ec.EllipticCurvePublicKey):
            size = -(-self.key.curve.key_size // 8)
            r, s = fields.sized(), fields.sized()
            fields.end()
            if max(len(r), len(s)) > size:
                raise AttestationError(wrong)
            both = r.rjust(size, b"\0") + s.rjust(size, b"\0")
            verify_ecdsa(self.key, both, data, digest=digest, wrong=wrong)
            return
        value = fields.sized()
        fields.end()
        pss = padding.PSS(padding.MGF1(digest), padding.PSS.AUTO)
        form = pss if self.scheme[0] == RSAPSS else padding.PKCS1v15()
        try:
            self.key.verify(value, data, form, digest)
        except InvalidSignature:
            raise AttestationError(wrong) from None

    def qualified(self, parent: bytes) -> bytes:
        """The key's qualified name under a parent: a hierarchy's handle, or a qualified name."""
        algorithm = SHA256.to_bytes(2, "big")
        return algorithm + sha256(parent + algorithm + self.name).digest()


def _rsa(fields: TpmFields) -> rsa.RSAPublicKey:
    bits, exponent = fields.number(2), fields.number(4)
    modulus = fields.sized()
    if bits not in _RSA_BITS or exponent not in (0, _F4) or len(modulus) != bits // 8:
        raise refused(
            "TPM key: RSA bits and exponent", expected=(_RSA_BITS, _F4), found=(bits, exponent),
            remedy="attest with another key",
        )  # fmt: skip
    try:
        return rsa.RSAPublicNumbers(_F4, int.from_bytes(modulus, "big")).public_key()
    except ValueError:
        raise AttestationError("TPM key: its modulus is none") from None


def _ecc(fields: TpmFields) -> ec.EllipticCurvePublicKey:
    curve, kdf = fields.number(2), fields.number(2)
    x, y = (int.from_bytes(fields.sized(), "big") for _ in range(2))
    if curve not in _CURVES or kdf != NULL:
        raise refused(
            "TPM key: curve", expected="P-256 or P-384", found=hex(curve),
            remedy="attest with another key",
        )  # fmt: skip
    try:
        return ec.EllipticCurvePublicNumbers(x, y, _CURVES[curve]()).public_key()
    except ValueError:
        raise AttestationError("TPM key: is no point of its curve") from None


@dataclass(frozen=True)
class TpmStatement:
    """What a TPM signed (TPMS_ATTEST), up to its own part, which follows by kind.

    qualifying       what the caller had it sign beside
    clock_safe       no value of its clock was stated twice
    reset_count      starts of the TPM; restart_count: those after which it kept its registers
    """

    kind: int
    qualified_signer: bytes
    qualifying: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    clock_safe: bool
    firmware_version: bytes
    fields: TpmFields

    @classmethod
    def parse(cls, data: bytes, kind: int) -> "TpmStatement":
        """Read a statement of a kind.

        Raises   AttestationError
        """
        what = "TPM statement"
        fields = TpmFields(data, what)
        require_equal(
            f"{what}: magic", fields.number(4), GENERATED, remedy="no TPM made it by itself"
        )
        require_equal(f"{what}: kind", fields.number(2), kind, remedy="give one of this kind")
        signer, qualifying = fields.sized(), fields.sized()
        clock, resets, restarts, safe = (fields.number(size) for size in (8, 4, 4, 1))
        if safe > 1:
            raise AttestationError(f"{what}: whether its clock is safe is neither 0 nor 1")
        return cls(
            kind, signer, qualifying, clock, resets, restarts, bool(safe), fields.raw(8), fields
        )


def quoted_registers(fields: TpmFields) -> tuple[list[int], bytes]:
    """Which registers of the SHA-256 bank a quote is of, and the digest of their values.

    Raises   AttestationError
    """
    selection = selected_registers(fields)
    digest = fields.sized()
    fields.end()
    return selection, digest


def selected_registers(fields: TpmFields) -> list[int]:
    """Registers of a selection (TPML_PCR_SELECTION) of one bank, SHA-256's.

    Raises   AttestationError
    """
    count = fields.number(4)
    require_equal("TPM quote: banks of registers", count, 1, remedy="quote the SHA-256 bank alone")
    bank, size = fields.number(2), fields.number(1)
    require_equal("TPM quote: bank", hex(bank), hex(SHA256), remedy="quote the SHA-256 bank")
    require_equal("TPM quote: size of the selection", size, 3, remedy="a TPM has 24 registers")
    bits = int.from_bytes(fields.raw(size), "little")
    return [index for index in range(24) if bits >> index & 1]


def selection_of(registers: Sequence[int]) -> bytes:
    """A selection of registers of the SHA-256 bank."""
    bits = sum(1 << index for index in registers)
    head = (1).to_bytes(4, "big") + SHA256.to_bytes(2, "big") + b"\x03"
    return head + bits.to_bytes(3, "little")


def certified_index(fields: TpmFields) -> tuple[bytes, bytes]:
    """Name and contents of the NV index that a statement is of, from its first byte on.

    Raises   AttestationError
    """
    name, offset, contents = fields.sized(), fields.number(2), fields.sized()
    fields.end()
    require_equal("TPM statement: offset", offset, 0, remedy="it is of a part of the index")
    return name, contents
