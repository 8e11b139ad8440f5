"""Evidence in transport: a media type and the bytes, as a Conceptual Message Wrapper in CBOR.

Source   RFC 9999: a record is the array [type, value]
"""

import cbor2

from cloister.attest.verified_evidence import Format
from cloister.errors import AttestationError

_MEDIA_TYPE = "application/vnd.cloister.evidence+"
_HEADS = (1, 2, 3, 5)
"""Bytes of CBOR in front of a byte string, by its length."""


def wrap(kind: Format, evidence: bytes) -> bytes:
    """A record of evidence of this format."""
    return cbor2.dumps([_MEDIA_TYPE + kind.value, evidence])


def unwrap(record: bytes) -> tuple[Format, bytes]:
    """The format that a record states, and its evidence; nothing of it is verified.

    The record comes from a stranger, so it is not parsed: it has to be the bytes that `wrap` makes
    of its own end.

    Raises   AttestationError
    """
    for kind in Format:
        front = wrap(kind, b"")[:-1]
        if not record.startswith(front):
            continue
        for head_bytes in _HEADS:
            evidence = record[len(front) + head_bytes :]
            if wrap(kind, evidence) == record:
                return kind, evidence
    raise AttestationError(
        "evidence: expected a CMW record in CBOR's shortest form, of media type "
        f"{_MEDIA_TYPE}FORMAT with one of {', '.join(Format)}"
    )
