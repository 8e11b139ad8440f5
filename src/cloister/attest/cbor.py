"""Reading CBOR (RFC 8949): items without tags, which is all that formats of evidence have.

A tag says what the reader makes of an item, such as a regular expression, whose compilation takes
as long as its writer likes.
"""

from collections import defaultdict
from collections.abc import Callable
from io import BytesIO

import cbor2

from cloister.base.reading import parsing
from cloister.errors import AttestationError

MAX_DEPTH = 16


def first_item(data: bytes, what: str) -> tuple[object, int]:
    """The first item, and where it ends.

    Raises   AttestationError, also for a tag and for a key that a map has twice
    """
    stream = BytesIO(data)
    with parsing(f"{what}: is no CBOR", kind=AttestationError):
        # The library asks this mapping before its own decoders, for whatever tag it finds.
        refusing: defaultdict[int, Callable[..., object]] = defaultdict(lambda: _refuse)
        return cbor2.load(
            stream, semantic_decoders=refusing, max_depth=MAX_DEPTH, allow_duplicate_keys=False
        ), stream.tell()


def only_item(data: bytes, what: str) -> object:
    """The one item that the bytes are.

    Raises   AttestationError
    """
    found, end = first_item(data, what)
    if end != len(data):
        raise AttestationError(f"{what}: {len(data) - end} bytes behind it")
    return found


def _refuse(*_: object) -> object:
    raise ValueError("it has a tag")
