"""Reading DER: just enough for the extensions that vendors put into certificates."""

from collections.abc import Iterator

from cloister.errors import AttestationError

SEQUENCE, OCTETS, OID, INTEGER, ENUMERATED, BOOLEAN = 0x30, 0x04, 0x06, 0x02, 0x0A, 0x01
_LONG = 0x80


def elements(data: bytes, what: str) -> Iterator[tuple[int, bytes]]:
    """The tag and the contents of each element of a sequence's contents.

    Raises   AttestationError for what is not DER
    """
    at = 0
    while at < len(data):
        if len(data) < at + 2:
            raise AttestationError(f"{what}: is not DER")
        tag, length = data[at], data[at + 1]
        at += 2
        if length >= _LONG:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            if not 1 <= size <= 4 or length < _LONG:
                raise AttestationError(f"{what}: is not DER")
            at += size
        if len(data) < at + length:
            raise AttestationError(f"{what}: is cut short")
        yield tag, data[at : at + length]
        at += length


def only(data: bytes, tag: int, what: str) -> bytes:
    """The contents of the one element that the bytes are.

    Raises   AttestationError
    """
    found = list(elements(data, what))
    if len(found) != 1 or found[0][0] != tag:
        raise AttestationError(f"{what}: is not one element of tag {tag:#x}")
    return found[0][1]


def dotted(contents: bytes) -> str:
    """An object identifier's contents, in numbers and points."""
    numbers, value = [], 0
    for octet in contents:
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            numbers.append(value)
            value = 0
    first = numbers[0] if numbers else 0
    head = (min(first // 40, 2), first - 40 * min(first // 40, 2))
    return ".".join(map(str, (*head, *numbers[1:])))
