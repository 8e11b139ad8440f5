"""The header of a bundle: what its vendor signs, and all that anyone can read besides the plan.

The header is a signed document (`signed_document`). The plan and the sealed part follow in the file
(`sealed_bundle`); the header has their sizes and SHA-256, so one signature authenticates every byte
of the file.
"""

from dataclasses import dataclass
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.base.aead import NONCE_BYTES, TAG_BYTES
from cloister.base.reading import parsing
from cloister.bundle.signed_document import PUBLIC_KEY_BYTES, DocumentKind, hexadecimal
from cloister.errors import BundleError
from cloister.graph.canonical import Writer, whole
from cloister.graph.graph_file import read_fields

SUFFIX = ".bundle"
"""Of a bundle's file."""
SUITE = "Ed25519, HKDF-SHA256, AES-256-GCM"
ID_BYTES, DIGEST_BYTES = 16, 32
CHUNK_BYTES = 2**20
"""Bytes of the hidden part that one seal covers."""
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 64, 2**24
"""With MAX_PART_BYTES: at most 2^30 chunks, so their random nonces do not meet (base/aead.py)."""
KIND = DocumentKind(
    what="bundle",
    part="header",
    signer="vendor",
    magic=b"CLOB",
    format=1,
    context=b"cloister bundle header\0",
    most=4096,
    error=BundleError,
)
MAX_PART_BYTES = 2**36
"""Neither a plan nor a hidden part is larger."""
MAX_VERSION = 2**53 - 1
"""The largest whole number that every reader of JSON reads exactly."""


@dataclass(frozen=True)
class BundleHeader:
    """What the vendor signs.

    bundle_id       random, of this file alone: the key of its chunks is derived from it
    version         of the vendor's, larger in every newer bundle
    vendor          the public key that verifies the signature, 32 bytes
    plan_digest     SHA-256 of the plan, which is the plan's own digest
    module_digest   of the sealed manifest
    hidden_bytes    of the hidden part with its padding, before encryption
    chunk_bytes     of the hidden part in each chunk; the last one may have fewer
    sealed_digest   SHA-256 of all chunks as they stand in the file
    """

    bundle_id: bytes
    version: int
    vendor: bytes
    plan_digest: bytes
    plan_bytes: int
    module_digest: bytes
    hidden_bytes: int
    chunk_bytes: int
    sealed_digest: bytes

    @property
    def chunks(self) -> int:
        """How many there are."""
        return -(-self.hidden_bytes // self.chunk_bytes)

    @property
    def sealed_bytes(self) -> int:
        """Bytes of all chunks in the file."""
        return self.hidden_bytes + self.chunks * (NONCE_BYTES + TAG_BYTES)

    def chunk_size(self, index: int) -> int:
        """Bytes of the hidden part in a chunk."""
        return min(self.chunk_bytes, self.hidden_bytes - index * self.chunk_bytes)

    def to_bytes(self) -> bytes:
        """Prelude and header. The length depends on the numbers only, not on the digests."""
        return self._written().to_bytes()

    def _written(self) -> Writer:
        return KIND.write(
            {
                "suite": SUITE,
                "bundle_id": self.bundle_id.hex(),
                "version": self.version,
                "vendor": self.vendor.hex(),
                "plan_digest": self.plan_digest.hex(),
                "plan_bytes": self.plan_bytes,
                "module_digest": self.module_digest.hex(),
                "hidden_bytes": self.hidden_bytes,
                "chunk_bytes": self.chunk_bytes,
                "sealed_digest": self.sealed_digest.hex(),
            }
        )

    @classmethod
    def from_bytes(cls, head: bytes) -> "BundleHeader":
        """Inverse of `to_bytes`.

        Raises   BundleError for anything else
        """
        with parsing("the header of the bundle cannot be read", kind=BundleError):
            reader = KIND.reader(head)
            (suite, bundle_id, version, vendor, plan_digest, plan_bytes, module_digest,
             hidden_bytes, chunk_bytes, sealed_digest) = read_fields(
                reader.document, "suite", "bundle_id", "version", "vendor", "plan_digest",
                "plan_bytes", "module_digest", "hidden_bytes", "chunk_bytes", "sealed_digest",
            )  # fmt: skip
            if suite != SUITE:
                raise ValueError("it uses other algorithms than this version knows")
            header = cls(
                bundle_id=hexadecimal(bundle_id, ID_BYTES),
                version=whole(version, least=1, most=MAX_VERSION),
                vendor=hexadecimal(vendor, PUBLIC_KEY_BYTES),
                plan_digest=hexadecimal(plan_digest, DIGEST_BYTES),
                plan_bytes=whole(plan_bytes, least=1, most=MAX_PART_BYTES),
                module_digest=hexadecimal(module_digest, DIGEST_BYTES),
                hidden_bytes=whole(hidden_bytes, least=1, most=MAX_PART_BYTES),
                chunk_bytes=whole(chunk_bytes, least=MIN_CHUNK_BYTES, most=MAX_CHUNK_BYTES),
                sealed_digest=hexadecimal(sealed_digest, DIGEST_BYTES),
            )
            reader.finish(header._written())
            return header

    def signed_by(self, signer: Ed25519PrivateKey) -> bytes:
        """Prelude, header and signature."""
        return KIND.sign(self.to_bytes(), signer)


def is_bundle_file(path: str) -> bool:
    """Whether an argument names a bundle."""
    return path.endswith(SUFFIX)


def read_head(file: BinaryIO) -> tuple[bytes, bytes]:
    """Prelude with header, and signature; no byte of them was authenticated or parsed.

    Raises   BundleError for what is no bundle, OSError
    """
    return KIND.read_head(file)


def authenticate(head: bytes, signature: bytes, *, vendor: Ed25519PublicKey) -> BundleHeader:
    """The header, which is parsed once its signature has been verified.

    Raises   BundleError
    """
    KIND.authenticate(head, signature, vendor)
    return BundleHeader.from_bytes(head)
