"""Event logs of confidential virtual machines: what was extended into RTMR0 to RTMR3.

Source   TCG PC Client Platform Firmware Profile, "crypto agile log"; its register indices are those
         of the Confidential Computing Event Log (UEFI 2.10): index 1 to 4 are RTMR0 to RTMR3
"""

import json
from collections.abc import Iterator
from hashlib import sha384

from cloister.attest.fields import Fields
from cloister.base.reading import parsing
from cloister.errors import AttestationError

SHA384_ID = 0x000C
REGISTERS = 4
MAX_EVENTS = 1 << 16
_NO_ACTION = 0x00000003
_WHAT = "event log"


def replay(log: bytes) -> tuple[list[bytes], int]:
    """The four registers after all events, from zeros, and the number of events.

    Raises   AttestationError
    """
    registers, count = [bytes(48)] * REGISTERS, 0
    for register, digest in _json(log) if log.lstrip().startswith(b"[") else _binary(log):
        if not 0 <= register < REGISTERS:
            raise AttestationError(f"{_WHAT}: an event extends register {register}, of four")
        registers[register] = sha384(registers[register] + digest).digest()
        count += 1
    return registers, count


def _json(log: bytes) -> Iterator[tuple[int, bytes]]:
    with parsing(f"{_WHAT}: is damaged", kind=AttestationError):
        for event in json.loads(log):
            digest = bytes.fromhex(event["digest"])
            if type(event["imr"]) is not int or len(digest) != 48:
                raise ValueError("an event has no register or no SHA-384 digest")
            yield event["imr"], digest


def _binary(log: bytes) -> Iterator[tuple[int, bytes]]:
    fields = Fields(log, _WHAT)
    # The first event has the old form: register, type, SHA-1 digest, size, and describes the log.
    size = fields.number(28, 4)
    sizes = _digest_sizes(Fields(fields.raw(32, size), _WHAT))
    at = 32 + size
    for _ in range(MAX_EVENTS):
        if at + 12 > len(log) or fields.number(at, 4) == 0xFFFFFFFF:
            return
        register, kind, digests = (fields.number(at + offset, 4) for offset in (0, 4, 8))
        if (register, kind, digests) == (0, 0, 0):
            return
        at += 12
        found = None
        if digests > len(sizes):
            raise AttestationError(f"{_WHAT}: an event has {digests} digests")
        for _ in range(digests):
            algorithm = fields.number(at, 2)
            if algorithm not in sizes:
                raise AttestationError(f"{_WHAT}: has a digest of unknown kind {algorithm:#x}")
            digest = fields.raw(at + 2, sizes[algorithm])
            at += 2 + sizes[algorithm]
            found = digest if algorithm == SHA384_ID else found
        at += 4 + fields.number(at, 4)
        fields.raw(0, at)
        if kind == _NO_ACTION:
            continue
        if found is None:
            raise AttestationError(f"{_WHAT}: an event has no SHA-384 digest")
        yield register - 1, found
    raise AttestationError(f"{_WHAT}: has more than {MAX_EVENTS} events")


def _digest_sizes(head: Fields) -> dict[int, int]:
    """Sizes of digests by algorithm, from the event that describes the log."""
    if head.raw(0, 16) != b"Spec ID Event03\0":
        raise AttestationError(f"{_WHAT}: is not a crypto agile log")
    count = head.number(24, 4)
    if not 1 <= count <= 16:
        raise AttestationError(f"{_WHAT}: states {count} kinds of digests")
    return {head.number(28 + 4 * i, 2): head.number(30 + 4 * i, 2) for i in range(count)}
