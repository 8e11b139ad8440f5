"""The encrypted data set: one file of blinded samples, to which several clients append their parts.

    block 0 (4096 B)  magic "CLODATA1", two commit slots, then the header: length u32, SHA-256, JSON
    each part         magic "CLOPART1", length u32 and SHA-256 of the description, its JSON; padding
                      to 64 B; samples uint32 (n,h,w,c), labels uint32 (n,classes), flags u8 n;
                      padding to 64 B

A flag says what a sample is for: 0 to train, 1 to test, 2 to predict. The labels of the last are
blinded zeros.

A commit slot says up to which byte, and how many parts, the file is valid. The slots take turns
and carry a checksum, and a part's bytes are on stable storage before its slot is written: a part is
whole or absent, whichever process is killed at which moment. Bytes after the commit were written by
a client that died, and are overwritten. A file that is shorter than its commit has been cut, and
that is an error.

Everything here is public: samples and labels are blinded (`cloister.ring.pads`), and every
holder of the file sees their order, the split and the sizes.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.base.notebook import html_table
from cloister.base.reading import open_regular, parsing
from cloister.data.encoding import Encoding
from cloister.data.id_spans import NO_IDS, IdSpans
from cloister.data.info import PartInfo, Targets, check_described, targets_field
from cloister.errors import EncryptionError, InputError
from cloister.ring.bounds import MAX_PARTS, MAX_SAMPLES

MAGIC = b"CLODATA1"
PART_MAGIC = b"CLOPART1"
BLOCK_BYTES = 4096
ALIGNMENT = 64
SLOT = struct.Struct("<QQQ")
"""Sequence number, committed bytes, committed parts; the first 8 bytes of its SHA-256 follow."""
SLOT_OFFSETS = (64, 128)
HEADER_OFFSET = 192
SIZED = struct.Struct("<I32s")
TRAIN, TEST, UNLABELLED = range(3)
"""What a sample is for."""
PIECE_BYTES = 1 << 20
"""Of a part that is read once, from one end to the other."""
MAX_DESCRIPTION_BYTES = BLOCK_BYTES - HEADER_OFFSET - SIZED.size


@dataclass(frozen=True)
class Header:
    """The header of a data set, which all parts share."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    encoding: Encoding
    authority_fingerprint: str
    targets: Targets = "classes"

    def __post_init__(self) -> None:
        check_described(self.name, self.shape, self.classes, self.targets)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample with its target and flag."""
        h, w, c = self.shape
        return 4 * h * w * c + 4 * self.classes + 1


@dataclass(frozen=True)
class Commit:
    """How far the file is valid."""

    sequence: int
    nbytes: int
    parts: int


class _Part:
    """A part's place in the file, and its arrays once they are looked at."""

    def __init__(self, info: PartInfo, header: Header, offset: int) -> None:
        self.info, self._header, self.offset = info, header, offset
        self.nbytes = info.samples * header.sample_bytes

    def map(self, buffer: mmap.mmap) -> None:
        """Point the arrays into the mapped file."""
        self.content = memoryview(buffer)[self.offset : self.offset + self.nbytes]
        n, shape = self.info.samples, self._header.shape
        labels_at = self.offset + 4 * n * shape[0] * shape[1] * shape[2]
        flags_at = labels_at + 4 * n * self._header.classes
        self.data = np.frombuffer(
            buffer, "<u4", (labels_at - self.offset) // 4, self.offset
        ).reshape(n, *shape)
        self.labels = np.frombuffer(
            buffer, "<u4", n * self._header.classes, labels_at
        ).reshape(n, self._header.classes)  # fmt: skip
        self.flags = np.frombuffer(buffer, np.uint8, n, flags_at)


class EncryptedDataset:
    """An encrypted data set, mapped into memory and read where it is asked for."""

    def __init__(
        self, path: Path, header: Header, parts: Sequence[_Part], *, left_out: IdSpans = NO_IDS
    ) -> None:
        self._path, self._header, self._left_out = path, header, left_out
        self._parts = sorted(parts, key=lambda part: part.info.first)
        self._firsts = np.array([part.info.first for part in self._parts], np.int64)
        self._lasts = np.array([part.info.last for part in self._parts], np.int64)

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> "EncryptedDataset":
        """Open a data set; `verify` reads it once and compares every part's SHA-256.

        Raises   EncryptionError naming the file or the part, InputError when there is no file
        """
        path = Path(path)
        try:
            with open_regular(path) as file:
                header, commit = read_block(path, file)
                parts = _read_parts(path, file, header, commit)
                if verify:
                    for part in parts:
                        _verify(path, file, part)
                if parts:
                    # The mapping outlives the open file.
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    for part in parts:
                        part.map(mapped)
                        if part.flags.max(initial=0) > UNLABELLED:
                            raise EncryptionError(
                                f"{path}: part {part.info.part} flags a sample as no version of "
                                "Cloister does; get the file again"
                            )
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        return cls(path, header, parts)

    def without(self, ids: IdSpans) -> "EncryptedDataset":
        """The same, whose ids and splits leave some out: those that were withdrawn."""
        left_out = self._left_out | ids
        return EncryptedDataset(self._path, self._header, self._parts, left_out=left_out)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def name(self) -> str:
        """The data set's id at the authority."""
        return self._header.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one sample."""
        return self._header.shape

    @property
    def classes(self) -> int:
        """Width of a target: its classes, labels or numbers."""
        return self._header.classes

    @property
    def targets(self) -> Targets:
        """What a sample has to learn."""
        return self._header.targets

    @property
    def encoding(self) -> Encoding:
        """How plain values became integers."""
        return self._header.encoding

    @property
    def authority_fingerprint(self) -> str:
        """Fingerprint of the authority that holds the keys."""
        return self._header.authority_fingerprint

    @property
    def identity(self) -> str:
        """SHA-256 of the authority's fingerprint and of every part: it changes with each."""
        found = hashlib.sha256(self.authority_fingerprint.encode())
        for part in self.parts:
            described = json.dumps(asdict(part), sort_keys=True, separators=(",", ":"))
            found.update(hashlib.sha256(described.encode()).digest())
        return found.hexdigest()

    @property
    def header(self) -> Header:
        """The header, which all parts share."""
        return self._header

    @property
    def parts(self) -> tuple[PartInfo, ...]:
        """The clients' parts, by first id."""
        return tuple(part.info for part in self._parts)

    @property
    def samples(self) -> int:
        """Number of samples of all parts; ids may have gaps (a client that died)."""
        return sum(part.info.samples for part in self._parts)

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """All sample ids, ascending."""
        return self._select(None)

    @property
    def train_ids(self) -> Int64[np.ndarray, " n"]:
        """Ids of the training split, ascending."""
        return self._select(TRAIN)

    @property
    def test_ids(self) -> Int64[np.ndarray, " n"]:
        """Ids of the test split, ascending."""
        return self._select(TEST)

    @property
    def unlabelled_ids(self) -> Int64[np.ndarray, " n"]:
        """Ids of the samples without a label, which wait for a prediction, ascending."""
        return self._select(UNLABELLED)

    @property
    def split(self) -> dict[str, Int64[np.ndarray, " n"]]:
        """Ids by split: "train", "test" and "unlabelled"."""
        return {"train": self.train_ids, "test": self.test_ids, "unlabelled": self.unlabelled_ids}

    def _repr_html_(self) -> str:
        encoding = self.encoding
        rows = (
            ("samples", f"{self.samples:,}, {len(self.test_ids):,} of them for testing"),
            ("shape", self.shape), ("classes", self.classes),
            ("values", f"{encoding.low:g} to {encoding.high:g} in {encoding.bits} bits"),
            ("parts", len(self.parts)), ("authority", self.authority_fingerprint),
        )  # fmt: skip
        return html_table(f"encrypted data set {self.name}", rows)

    def contents(self, part: PartInfo) -> Iterator[memoryview]:
        """The bytes of one of its parts, in pieces.

        Raises   EncryptionError behind the last one, when they are not those of its SHA-256
        """
        (found,) = (held for held in self._parts if held.info == part)
        digest = hashlib.sha256()
        for start in range(0, found.nbytes, PIECE_BYTES):
            piece = found.content[start : start + PIECE_BYTES]
            digest.update(piece)
            yield piece
        if digest.hexdigest() != part.sha256:
            raise _altered(self._path, part)

    def data(self, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n h w c"]:
        """The blinded samples, in the order of `ids`.

        Raises   EncryptionError for an id that the file does not hold
        """
        return self._gather(ids, "data", self.shape)

    def labels(self, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """The blinded targets, in the order of `ids`: one-hot classes, labels or numbers.

        Raises   EncryptionError for an id that the file does not hold
        """
        return self._gather(ids, "labels", (self.classes,))

    def _gather(
        self, ids: np.ndarray, array: str, shape: tuple[int, ...]
    ) -> UInt32[np.ndarray, "n ..."]:
        wanted = np.asarray(ids, np.int64).reshape(-1)
        if len(self._parts) == 1 and len(wanted):
            part = self._parts[0]
            places = wanted - part.info.first
            # As unsigned numbers, places before the part are beyond its end.
            if places.view(np.uint64).max() < part.info.samples:
                return np.asarray(getattr(part, array).take(places, axis=0))
        owner = np.searchsorted(self._firsts, wanted, side="right") - 1
        known = owner >= 0
        if self._parts:
            known &= wanted < self._lasts[np.maximum(owner, 0)]
        if not known.all():
            missing = int(wanted[~known][0])
            raise EncryptionError(f"{self._path}: holds no sample {missing}; use its own ids")
        out = np.empty((len(wanted), *shape), np.uint32)
        for index in np.unique(owner).tolist():
            part, mine = self._parts[index], owner == index
            out[mine] = getattr(part, array)[wanted[mine] - part.info.first]
        return out

    def _select(self, flag: int | None) -> Int64[np.ndarray, " n"]:
        found = [np.empty(0, np.int64)]
        for part in self._parts:
            ids = np.arange(part.info.first, part.info.last, dtype=np.int64)
            found.append(ids if flag is None else ids[part.flags == flag])
        chosen = np.concatenate(found)
        return np.asarray(chosen[~self._left_out.holds(chosen)])


def encode_slot(commit: Commit) -> bytes:
    """The bytes of a commit slot."""
    packed = SLOT.pack(commit.sequence, commit.nbytes, commit.parts)
    return packed + hashlib.sha256(packed).digest()[:8]


def encode_block(header: Header) -> bytes:
    """Block 0 of a data set without parts.

    Raises   InputError when the header is too long
    """
    fields = {name: value for name, value in asdict(header).items() if name != "targets"}
    fields |= targets_field(header.targets)
    described = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    if len(described) > MAX_DESCRIPTION_BYTES:
        raise InputError(f"data set {header.name}: its description is too long")
    block = bytearray(BLOCK_BYTES)
    block[: len(MAGIC)] = MAGIC
    slot = encode_slot(Commit(1, BLOCK_BYTES, 0))
    block[SLOT_OFFSETS[1] : SLOT_OFFSETS[1] + len(slot)] = slot
    sized = SIZED.pack(len(described), hashlib.sha256(described).digest()) + described
    block[HEADER_OFFSET : HEADER_OFFSET + len(sized)] = sized
    return bytes(block)


def read_block(path: Path, file: BinaryIO) -> tuple[Header, Commit]:
    """Header and newest commit of an open data set file.

    Raises   EncryptionError
    """
    file.seek(0)
    block = file.read(BLOCK_BYTES)
    if block[: len(MAGIC)] != MAGIC:
        raise EncryptionError(f"{path}: is not an encrypted data set of this version")
    if len(block) < BLOCK_BYTES:
        raise EncryptionError(f"{path}: is truncated in its header; get it again")
    slots = []
    for offset in SLOT_OFFSETS:
        raw = block[offset : offset + SLOT.size + 8]
        if hashlib.sha256(raw[: SLOT.size]).digest()[:8] == raw[SLOT.size :]:
            slots.append(Commit(*SLOT.unpack(raw[: SLOT.size])))
    if not slots:
        raise EncryptionError(f"{path}: both commit slots are damaged; get it again")
    fields = _described(block[HEADER_OFFSET:], f"{path}: its header")
    try:
        header = Header(
            name=str(fields["name"]),
            shape=_sizes(fields["shape"]),
            classes=int(fields["classes"]),
            encoding=Encoding(**fields["encoding"]),
            authority_fingerprint=str(fields["authority_fingerprint"]),
            targets=fields.get("targets", "classes"),
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise EncryptionError(f"{path}: its header is not understood ({error})") from None
    return header, max(slots, key=lambda commit: commit.sequence)


def encode_part_head(info: PartInfo, *, at: int) -> bytes:
    """What stands in front of a part's arrays when it begins at byte `at`."""
    described = json.dumps(asdict(info), sort_keys=True, separators=(",", ":")).encode()
    head = PART_MAGIC + SIZED.pack(len(described), hashlib.sha256(described).digest()) + described
    return head + bytes(-(at + len(head)) % ALIGNMENT)


def _read_parts(path: Path, file: BinaryIO, header: Header, commit: Commit) -> list[_Part]:
    size = file.seek(0, 2)
    parts: list[_Part] = []
    if commit.parts > MAX_PARTS:
        raise EncryptionError(f"{path}: has {commit.parts} parts, at most {MAX_PARTS} are possible")
    offset = BLOCK_BYTES
    for number in range(commit.parts):
        where = f"{path}: part {number + 1} of {commit.parts}"
        file.seek(offset)
        head = file.read(BLOCK_BYTES)
        if len(head) < len(PART_MAGIC) + SIZED.size:
            raise EncryptionError(f"{where} is missing: the file is truncated; get it again")
        if head[: len(PART_MAGIC)] != PART_MAGIC:
            raise EncryptionError(f"{where} was altered; get the file again")
        fields = _described(head[len(PART_MAGIC) :], where)
        info = _part_info(fields, where)
        length, _ = SIZED.unpack_from(head, len(PART_MAGIC))
        start = offset + len(PART_MAGIC) + SIZED.size + length
        part = _Part(info, header, start + -start % ALIGNMENT)
        end = part.offset + part.nbytes
        if end > size:
            raise EncryptionError(f"{where} ({info.part}) is truncated; get the file again")
        check_apart(info, (other.info for other in parts), where)
        parts.append(part)
        offset = end + -end % ALIGNMENT
    if offset != commit.nbytes:
        raise EncryptionError(f"{path}: its parts end at byte {offset}, committed {commit.nbytes}")
    return parts


def check_apart(info: PartInfo, others: Iterable[PartInfo], where: str) -> None:
    """Refuse a part that repeats another one, or its ids: one pad would hide two samples.

    Raises   EncryptionError
    """
    for other in others:
        if other.part == info.part or other.sha256 == info.sha256:
            raise EncryptionError(f"{where} ({info.part}) is a replay of part {other.part}")
        if info.first < other.last and other.first < info.last:
            raise EncryptionError(f"{where} ({info.part}) holds ids of {other.part}")


def _part_info(fields: dict[str, Any], where: str) -> PartInfo:
    try:
        info = PartInfo(**fields)
    except TypeError:
        raise EncryptionError(f"{where}: its description is not understood") from None
    numbers = (info.first, info.samples)
    if not all(type(number) is int and number >= 0 for number in numbers) or (
        info.last > MAX_SAMPLES
    ):
        raise EncryptionError(f"{where}: its numbers are out of range")
    return info


def _described(data: bytes, where: str) -> dict[str, Any]:
    length, digest = SIZED.unpack_from(data)
    described = data[SIZED.size : SIZED.size + length]
    if length > MAX_DESCRIPTION_BYTES or hashlib.sha256(described).digest() != digest:
        raise EncryptionError(f"{where}: its description was altered; get the file again")
    with parsing(f"{where}: its description is not understood", kind=EncryptionError):
        fields = json.loads(described)
    if not isinstance(fields, dict):
        raise EncryptionError(f"{where}: its description is not understood")
    return fields


def _sizes(values: Sequence[int]) -> tuple[int, int, int]:
    h, w, c = (int(value) for value in values)
    return h, w, c


def _verify(path: Path, file: BinaryIO, part: _Part) -> None:
    digest = hashlib.sha256()
    file.seek(part.offset)
    rest = part.nbytes
    while rest:
        chunk = file.read(min(rest, PIECE_BYTES))
        if not chunk:
            raise EncryptionError(f"{path}: part {part.info.part} is truncated; get the file again")
        digest.update(chunk)
        rest -= len(chunk)
    if digest.hexdigest() != part.info.sha256:
        raise _altered(path, part.info)


def _altered(path: Path, part: PartInfo) -> EncryptionError:
    return EncryptionError(f"{path}: part {part.part} was altered; get the file again")
