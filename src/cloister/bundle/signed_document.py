"""A signed document: JSON in its canonical form, under an Ed25519 signature over every byte.

    prelude     magic of 4 bytes, format u32, length of the document u64
    document    JSON in ASCII in its canonical form (graph/canonical.py)
    signature   Ed25519 over the kind's context, prelude and document: 64 bytes

Prelude and document are the head. A reader bounds the head, then verifies its signature, then
parses it.
"""

import io
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.errors import CloisterError
from cloister.graph.canonical import PRELUDE, Reader, Writer, as_array, text

PUBLIC_KEY_BYTES, SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True)
class DocumentKind:
    """What tells the documents of one kind from all others.

    what      names the file in messages, `part` its document
    signer    who signs, in messages
    context   begins the signed bytes: a signature for one kind is none for another
    most      bytes of a document
    error     of a document that is refused
    """

    what: str
    part: str
    signer: str
    magic: bytes
    format: int
    context: bytes
    most: int
    error: type[CloisterError]

    @property
    def most_bytes(self) -> int:
        """Of a file that is one document alone."""
        return PRELUDE.size + self.most + SIGNATURE_BYTES

    def write(self, fields: dict[str, object]) -> Writer:
        """The head of a document."""
        return Writer(self.magic, self.format).finish(fields)

    def reader(self, head: bytes) -> Reader:
        """A reader of a head."""
        return Reader(as_array(head), self.magic, self.format)

    def sign(self, head: bytes, signer: Ed25519PrivateKey) -> bytes:
        """Head and signature."""
        return head + signer.sign(self.context + head)

    def read_head(self, file: BinaryIO) -> tuple[bytes, bytes]:
        """Head and signature; no byte of them was authenticated or parsed.

        Raises   `error`, OSError
        """
        start = file.read(PRELUDE.size)
        if len(start) < PRELUDE.size or not start.startswith(self.magic):
            raise self.error(f"is not a {self.what}")
        _, found, length = PRELUDE.unpack(start)
        if found != self.format:
            raise self.error(
                f"has format {found}, and this version of Cloister reads {self.format}"
            )
        if length > self.most:
            raise self.error(f"its {self.part} is longer than {self.most} B; the file is damaged")
        document, signature = file.read(length), file.read(SIGNATURE_BYTES)
        if len(document) < length or len(signature) < SIGNATURE_BYTES:
            raise self.error(f"is cut off within its {self.part}; get it again")
        return start + document, signature

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """Head and signature of bytes that are one document alone.

        Raises   `error`
        """
        head, signature = self.read_head(io.BytesIO(data))
        if len(data) > len(head) + len(signature):
            raise self.error(f"bytes follow its signature; get the {self.what} again")
        return head, signature

    def authenticate(self, head: bytes, signature: bytes, public: Ed25519PublicKey) -> None:
        """Refuse a head that was not signed by a key.

        Raises   `error`
        """
        try:
            public.verify(signature, self.context + head)
        except InvalidSignature:
            raise self.error(
                f"has no valid signature of {self.signer} {public.public_bytes_raw().hex()[:16]}: "
                f"it was changed, or is another {self.signer}'s"
            ) from None


def hexadecimal(value: object, count: int) -> bytes:
    """So many bytes, of a text in a document.

    Raises   ValueError
    """
    found = bytes.fromhex(text(value))
    if len(found) != count:
        raise ValueError(f"{len(found)} B stand where {count} B belong")
    return found
