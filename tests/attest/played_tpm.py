"""A TPM's statements made here, with a key made here: what no TPM would sign."""

from dataclasses import dataclass, field
from hashlib import sha256
from struct import pack

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attest.forge import ec_key
from cloister.attest.tpm import REGISTERS, TpmEvidence, qualifying
from cloister.attest.tpm_structures import ENDORSEMENT, GENERATED, NV, QUOTE, selection_of

DATA = bytes(range(64))
ATTRIBUTES = 0x50072


def sized(data):
    return pack(">H", len(data)) + data


@dataclass
class PlayedTpm:
    """A TPM by a program; every field of its statements can be set."""

    key: object = field(default_factory=lambda: ec_key("tpm", ec.SECP256R1))
    attributes: int = ATTRIBUTES
    name_hash: int = 0x0B
    scheme: tuple = (0x18, 0x0B)
    curve: int = 3
    symmetric: int = 0x10
    kdf: int = 0x10
    magic: int = GENERATED
    kind: int = QUOTE
    parent: bytes = pack(">I", ENDORSEMENT)
    qualifying: bytes | None = None
    safe: int = 1
    selection: bytes | None = None
    behind: bytes = b""
    behind_key: bytes = b""
    registers: dict = field(default_factory=lambda: {i: bytes([i]) * 32 for i in REGISTERS})
    resets: int = 3
    restarts: int = 2
    firmware: bytes = bytes(range(8))

    @property
    def public(self):
        numbers = self.key.public_key().public_numbers()
        head = pack(">HHI", 0x23, self.name_hash, self.attributes) + sized(b"")
        head += pack(">HHHHH", self.symmetric, *self.scheme, self.curve, self.kdf)
        points = (sized(one.to_bytes(32, "big")) for one in (numbers.x, numbers.y))
        return head + b"".join(points) + self.behind_key

    @property
    def preamble(self):
        """What is the same in statements of every kind."""
        name = pack(">H", 0x0B) + sha256(self.public).digest()
        signer = pack(">H", 0x0B) + sha256(self.parent + name).digest()
        bound = qualifying(DATA) if self.qualifying is None else self.qualifying
        return (
            pack(">IH", self.magic, self.kind) + sized(signer) + sized(bound)
            + pack(">QIIB", 1000, self.resets, self.restarts, self.safe) + self.firmware
        )  # fmt: skip

    @property
    def statement(self):
        chosen = selection_of(self.registers) if self.selection is None else self.selection
        digest = sha256(b"".join(value for _, value in sorted(self.registers.items()))).digest()
        return self.preamble + chosen + sized(digest) + self.behind

    def certified(self, contents, *, name, offset=0):
        """A statement of an NV index."""
        self.kind = NV
        return self.preamble + sized(name) + pack(">H", offset) + sized(contents)

    def signature(self, data):
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        both = b"".join(sized(one.to_bytes(32, "big")) for one in (r, s))
        return pack(">HH", *self.scheme) + both

    def evidence(self, **changed):
        made = {
            "statement": self.statement, "signature": self.signature(self.statement),
            "key": self.public, "parent": self.parent, "registers": self.registers,
            "report_data": DATA,
        }  # fmt: skip
        return TpmEvidence(**{**made, **changed}).encode()
