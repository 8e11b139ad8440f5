"""Evidence in transport: a media type and the bytes, as a Conceptual Message Wrapper in CBOR.

Source   RFC 9999: a record is the array [type, value]
"""

import cbor2

from cloister.attest.cbor import only_item
from cloister.attest.verified_evidence import Format
from cloister.base.reading import parsing
from cloister.errors import AttestationError

_MEDIA_TYPE = "application/vnd.cloister.evidence+"


def wrap(kind: Format, evidence: bytes) -> bytes:
    """A record of evidence of this format."""
    return cbor2.dumps([_MEDIA_TYPE + kind.value, evidence])


def unwrap(record: bytes) -> tuple[Format, bytes]:
    """The format that a record states, and its evidence; nothing of it is verified.

    Raises   AttestationError
    """
    with parsing("evidence: is no CMW record", kind=AttestationError):
        found = only_item(record, "evidence: CMW record")
        if not isinstance(found, list) or [type(one) for one in found] != [str, bytes]:
            raise AttestationError("evidence: a CMW record is an array of media type and bytes")
        media_type, evidence = found
        # One encoding alone: bytes behind the record, or longer forms, would be bound by nobody.
        if cbor2.dumps(found) != record:
            raise AttestationError("evidence: the CMW record is not in CBOR's shortest form")
    name = media_type.removeprefix(_MEDIA_TYPE)
    if not media_type.startswith(_MEDIA_TYPE) or name not in tuple(Format):
        raise AttestationError(
            f"evidence: media type {media_type!r} is not known; expected {_MEDIA_TYPE} and one of "
            f"{', '.join(Format)}"
        )
    return Format(name), evidence
