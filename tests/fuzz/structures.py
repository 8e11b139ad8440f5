"""Damage that keeps a structure: elements of DER, items of CBOR, blocks of PEM, lengths, parts.

What is changed at random is mostly refused by the first length or signature. These mutators write
the lengths anew, so that the change is found by the code that reads the contents.
"""

import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence

import cbor2
import numpy as np

from fuzz.mutate import ODD_LENGTHS, mutated_bytes

DEEP_DER = 200
DEEP_CBOR = 30_000
_PEM = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CRL)-----(.+?)-----END \1-----", re.DOTALL)
_CONSTRUCTED = 0x20
_ODD_TAGS = (0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0A, 0x0C, 0x13, 0x17, 0x18, 0x1F, 0x30,
             0x31, 0x80, 0xA0, 0xA3, 0xFF)  # fmt: skip
_ODD_CONTENTS = (b"", b"\0", b"\xff", b"\x80", b"\0" * 64, b"\xff" * 300, b"20991331250000Z",
                 b"\x06\x01\x80", b"\x30\x80\0\0")  # fmt: skip
_ODD_ITEMS: tuple[object, ...] = (
    None, True, -1, 0, 2**64 - 1, 2**600, -(2**600), 1.5, float("nan"), "", "x" * 500, b"",
    b"\0" * 47, b"\xff" * 2000, [], [[[]]], {}, {0: {1: 2}}, {None: None}, [0] * 300,
)  # fmt: skip
_ODD_CBOR = (
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", b"\x9b\0\0\0\0\x40\0\0\0", b"\x5b\0\0\0\0\x7f\0\0\0",
    b"\x7b\0\0\0\1\0\0\0\0", b"\xbb\0\0\0\0\x10\0\0\0", b"\x9f", b"\x5f\x41\0", b"\xff",
    b"\xf8\x18",
    b"\xc4\x82\x1a\x7f\xff\xff\xff\x01", b"\xc5\x82\x1a\x7f\xff\xff\xff\x01",
    b"\xd8\x1e\x82\x01\x00", b"\xd8\x23\x68(a+)+(b+", b"\xd8\x1d\x00", b"\xd8\x1c\x81\xd8\x1d\x00",
    b"\xd8\x24\x61x", b"\xd9\x01\x04\x41\1", b"\xc0\x61x", b"\xc1\xfb\x7f\xf0\0\0\0\0\0\0",
    b"\xc2\x5a\0\1\0\0" + bytes(65536), b"\xd9\xd9\xf7\xf6",
)  # fmt: skip
"""Heads that promise more than there is, and tags whose readers do work."""

Draw = np.random.Generator


def pick(rng: Draw, among: Sequence):
    """One of several."""
    return among[int(rng.integers(0, len(among)))]


def spliced(one: bytes, other: bytes, rng: Draw) -> bytes:
    """The beginning of one, and the end of the other; often cut at the same place."""
    at = int(rng.integers(0, len(one) + 1))
    then = min(at, len(other)) if rng.integers(0, 2) else int(rng.integers(0, len(other) + 1))
    return one[:at] + other[then:]


def with_odd_length(data: bytes, places: Sequence[tuple[int, int]], rng: Draw) -> bytes:
    """A length or count at one of the places (offset, bytes; little-endian) set to an odd one."""
    at, width = pick(rng, places)
    now = int.from_bytes(data[at : at + width], "little")
    near = (now - 1, now + 1, now // 2, 2 * now, len(data), len(data) - at)
    value = int(pick(rng, (*ODD_LENGTHS, *near))) & (256**width - 1)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def parts_changed(parts: Sequence[bytes], others: Sequence[bytes], rng: Draw) -> list[bytes]:
    """One part damaged, emptied, doubled, taken from another message, or two of them swapped."""
    made = list(parts)
    i, j = (int(n) for n in rng.integers(0, len(made), 2))
    match int(rng.integers(0, 6)):
        case 0:
            made[i] = mutated_bytes(made[i], rng)
        case 1:
            made[i] = b""
        case 2:
            made[i] = made[i] * 2
        case 3:
            made[i] = others[i % len(others)]
        case 4:
            made[i] = pick(rng, others)
        case _:
            made[i], made[j] = made[j], made[i]
    return made


# ---- DER


def mutated_der(data: bytes, rng: Draw) -> bytes:
    """One element changed, and the lengths of all around it right, or wrong on purpose."""
    if rng.integers(0, 20) == 0:
        return _deep_der()
    places = list(_der_places(data))
    if not places:
        return mutated_bytes(data, rng)
    path = pick(rng, places)
    return _der_changed(data, path, rng)


def _deep_der() -> bytes:
    out = b"\x05\x00"
    for _ in range(DEEP_DER):
        out = _der(0x30, out)
    return out


def _elements(data: bytes) -> list[tuple[int, bytes]] | None:
    """Tags and contents of a row of elements, None for what is no DER."""
    found, at = [], 0
    while at < len(data):
        if at + 2 > len(data):
            return None
        tag, length = data[at], data[at + 1]
        at += 2
        if length >= 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4 or at + size > len(data):
                return None
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            return None
        found.append((tag, data[at : at + length]))
        at += length
    return found


def _der_places(data: bytes, above: tuple[int, ...] = ()):
    """The path of every element: its number among its siblings, level by level."""
    elements = _elements(data) if data else None
    if elements is None or len(above) > 12:
        return
    for i, (tag, contents) in enumerate(elements):
        yield (*above, i)
        if tag & _CONSTRUCTED or tag in (0x03, 0x04):
            # The contents of strings are DER in extensions and keys.
            skip = 1 if tag == 0x03 and contents[:1] == b"\0" else 0
            if not skip:
                yield from _der_places(contents, (*above, i))


def _der_changed(data: bytes, path: tuple[int, ...], rng: Draw) -> bytes:
    elements = _elements(data)
    made = [_der(tag, contents) for tag, contents in elements]
    tag, contents = elements[path[0]]
    if len(path) > 1:
        made[path[0]] = _der(tag, _der_changed(contents, path[1:], rng))
        return b"".join(made)
    match int(rng.integers(0, 9)):
        case 0:
            made[path[0]] = _der(int(pick(rng, _ODD_TAGS)), contents)
        case 1:
            made[path[0]] = _der(tag, pick(rng, _ODD_CONTENTS))
        case 2:
            made[path[0]] = b""
        case 3:
            made[path[0]] *= int(rng.integers(2, 40))
        case 4:
            made[path[0]] = bytes([tag, 0x84]) + struct.pack(">I", int(rng.integers(0, 2**32)))
        case 5:
            made[path[0]] = _der(tag, mutated_bytes(contents, rng))
        case 6:
            other = pick(rng, elements)
            made[path[0]] = _der(*other)
        case 7:
            made[path[0]] = _deep_der()
        case _:
            rng.shuffle(made)
    return b"".join(made)


def _der(tag: int, contents: bytes) -> bytes:
    if len(contents) < 0x80:
        return bytes([tag, len(contents)]) + contents
    size = -(-len(contents).bit_length() // 8)
    return bytes([tag, 0x80 | size]) + len(contents).to_bytes(size, "big") + contents


# ---- PEM


def mutated_pem(data: bytes, rng: Draw) -> bytes:
    """One block changed in its DER, doubled, left out, or two of them in another order."""
    blocks = [(label, b64decode(body + b"==")) for label, body in _PEM.findall(data)]
    if not blocks:
        return mutated_bytes(data, rng)
    i, j = (int(n) for n in rng.integers(0, len(blocks), 2))
    match int(rng.integers(0, 7)):
        case 0:
            blocks[i], blocks[j] = blocks[j], blocks[i]
        case 1:
            del blocks[i]
        case 2:
            blocks[i : i + 1] = [blocks[i]] * int(rng.integers(2, 20))
        case _:
            label, der = blocks[i]
            blocks[i] = (label, mutated_der(der, rng))
    return b"".join(pem(*block) for block in blocks)


def pem(label: bytes, der: bytes) -> bytes:
    """One block."""
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, b64encode(der), label)


# ---- CBOR


def mutated_cbor(data: bytes, rng: Draw) -> bytes:
    """One item of CBOR replaced, left out or nested; or a head that promises what is not there."""
    match int(rng.integers(0, 12)):
        case 0:
            return pick(rng, (b"\x81", b"\x9f", b"\xa1\x00", b"\xd8\x20", b"\xc6")) * DEEP_CBOR
        case 1:
            return data[: int(rng.integers(0, len(data)))] + pick(rng, _ODD_CBOR)
        case 2:
            odd = pick(rng, _ODD_CBOR)
            at = int(rng.integers(0, len(data)))
            return data[:at] + odd + data[at + len(odd) :]
    found = cbor2.loads(data)
    places: list[tuple[object, object]] = []
    _cbor_places(found, places)
    if not places:
        return cbor2.dumps(pick(rng, _ODD_ITEMS))
    holder, key = pick(rng, places)
    odd = pick(rng, _ODD_ITEMS)
    if rng.integers(0, 6) == 0:
        odd = cbor2.CBORTag(int(pick(rng, (18, 24, 55799, 2**63))), odd)
    match int(rng.integers(0, 5)):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict) and isinstance(odd, int | str | bytes | None):
            holder[odd] = holder.pop(key)
        case 2 if isinstance(holder[key], bytes):
            holder[key] = mutated_bytes(holder[key], rng)
        case _:
            holder[key] = odd
    return cbor2.dumps(found)


def _cbor_places(item: object, places: list[tuple[object, object]]) -> None:
    if isinstance(item, cbor2.CBORTag):
        _cbor_places(item.value, places)
    keys = list(item) if isinstance(item, dict) else range(len(item) if type(item) is list else 0)
    for key in keys:
        places.append((item, key))
        _cbor_places(item[key], places)
