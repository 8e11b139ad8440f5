"""An entry of the ledger of releases: JSON in its canonical form, and a digest that ends a chain.

    digest of entry n = SHA-256(label || digest of entry n - 1 || text of entry n)

So the digest of one entry commits to every entry before it. Whoever keeps a digest, as the runtime
that was given a key does, can later tell whether the ledger still has that entry.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cloister.base.reading import parsing
from cloister.errors import EncryptionError
from cloister.tickets.ticket import MAX_TIME

LABEL = b"cloister ledger of releases v1\0"
DIGEST_BYTES = 32
GENESIS = bytes(DIGEST_BYTES)
"""Stands where the first entry has no entry before it."""
MAX_TEXT_CHARS = 1 << 14


class EntryKind(StrEnum):
    """What an entry records."""

    CREATED = "created"
    BUNDLE = "bundle"
    """A bundle whose key the broker holds."""
    TERMS = "terms"
    """The limits of a licence, or that it is revoked."""
    RELEASE = "release"


_TEXT, _COUNT, _TRUTH = (str,), (int,), (bool,)
_FIELDS: Mapping[EntryKind, Mapping[str, tuple[type, ...]]] = {
    EntryKind.CREATED: {"certificate": _TEXT},
    EntryKind.BUNDLE: {"bundle": _TEXT, "key_sha256": _TEXT},
    EntryKind.TERMS: {
        "license": _TEXT, "chips": (int, type(None)), "meters": _COUNT, "revoked": _TRUTH,
    },
    EntryKind.RELEASE: {
        "license": _TEXT, "bundle": _TEXT, "ticket": _TEXT, "meter": _TEXT, "format": _TEXT,
        "measurement": _TEXT, "chip": _TEXT, "hardware_rooted": _TRUTH,
    },
}  # fmt: skip
"""What a reader of the ledger relies on."""


@dataclass(frozen=True)
class LedgerEntry:
    """One entry.

    number   1 for the first
    time     UTC, in seconds
    fields   texts, whole numbers, truth values and lists of texts, by name
    digest   of this entry and of all before it
    """

    number: int
    kind: EntryKind
    time: int
    fields: Mapping[str, object]
    digest: bytes

    @property
    def text(self) -> str:
        """What the digest covers besides the entry before."""
        return written(self.number, self.kind, self.time, self.fields)

    def to_json(self) -> dict[str, object]:
        """All of it in plain values."""
        told = {"number": self.number, "kind": self.kind.value, "time": self.time}
        return {**told, **self.fields, "digest": self.digest.hex()}


def next_entry(
    kind: EntryKind, fields: Mapping[str, object], *, time: int, number: int, before: bytes
) -> LedgerEntry:
    """The entry that follows one whose digest is `before`."""
    text = written(number, kind, time, fields)
    return LedgerEntry(number, kind, time, fields, _digest(before, text))


def read_entry(text: str, digest: bytes, *, number: int, before: bytes) -> LedgerEntry:
    """A stored entry, after it was compared with its digest and its number.

    Raises   EncryptionError naming the entry
    """
    what = f"entry {number}"
    if len(text) > MAX_TEXT_CHARS or _digest(before, text) != digest:
        raise EncryptionError(
            f"{what}: its digest is wrong: this entry or one before it was changed"
        )
    with parsing(f"{what}: is damaged", kind=EncryptionError):
        found = json.loads(text)
        stated, kind, time = found.pop("number"), EntryKind(found.pop("kind")), found.pop("time")
    if stated != number or type(time) is not int or not 0 <= time <= MAX_TIME:
        raise EncryptionError(f"{what}: says that it is entry {stated}, at time {time}")
    for name, kinds in _FIELDS[kind].items():
        if type(found.get(name)) not in kinds:
            raise EncryptionError(f"{what}: has no {name}, or one of another type")
    return LedgerEntry(number, kind, time, found, digest)


def written(number: int, kind: EntryKind, time: int, fields: Mapping[str, object]) -> str:
    """An entry's canonical text."""
    every = {"number": number, "kind": kind.value, "time": time, **fields}
    return json.dumps(every, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(before: bytes, text: str) -> bytes:
    return hashlib.sha256(LABEL + before + text.encode("ascii")).digest()
