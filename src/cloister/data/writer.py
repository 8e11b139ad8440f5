"""Appending a client's part to an encrypted data set: encode, blind, write, register, commit.

Memory is flat: samples come in chunks and leave as they come. The arrays of a part first go to
temporary files, one for each, because their places depend on how many samples there are; then they
are joined behind the last commit of the data set file.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Protocol

import numpy as np
from jaxtyping import Int16, Int32, Int64, UInt8

from cloister.base import files
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.data.dataset import (
    ALIGNMENT,
    PIECE_BYTES,
    SLOT_OFFSETS,
    UNLABELLED,
    Commit,
    EncryptedDataset,
    Header,
    encode_block,
    encode_part_head,
    encode_slot,
    read_block,
)
from cloister.data.info import DatasetInfo, PartInfo, Register
from cloister.data.target_encoding import are_targets
from cloister.errors import EncryptionError, InputError, RangeError, ShapeError
from cloister.ring import pads
from cloister.ring.bounds import MAX_SAMPLES

PART_ID_BYTES = 16
PATIENCE_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True)
class Chunk:
    """Some samples of a client, in plain.

    flags    what each sample is for, `dataset.TRAIN` and its like
    Shapes   x: (n, h, w, c), encoded; labels: (n, classes), the integers of targets
             (`target_encoding`): one-hot, 0 and 1, or numbers; zeros of an unlabelled sample;
             flags: (n,). The writer checks what is appended (ShapeError, RangeError)
    Secret   x, labels
    """

    x: Int16[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n classes"]
    flags: UInt8[np.ndarray, " n"]


class Registrar(Protocol):
    """Where a part is registered: a data set whose terms its client has accepted.

    The one implementation is `cloister.authority.enrolment.Enrolment`.

    Secret   permutation
    """

    @property
    def info(self) -> DatasetInfo:
        """The description of the data set."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its authority."""
        ...

    @property
    def permutation(self) -> Int64[np.ndarray, " classes"]:
        """The position of each class, label or number in the encrypted targets."""
        ...

    @property
    def register(self) -> Register:
        """Registers a part."""
        ...


class EncryptedDatasetWriter:
    """Adds parts to a data set file, which is made if there is none."""

    def __init__(
        self, path: Path | str, enrolment: Registrar, *, patience_s: float = PATIENCE_S
    ) -> None:
        """Prepare to append as the enrolment says: a file's header decides nothing.

        patience_s   how long to wait for other clients that are adding their parts

        Raises   EncryptionError when the file belongs to another data set or authority
        """
        info = enrolment.info
        self._path, self._register = Path(path), enrolment.register
        self._patience_s = patience_s
        self._header = Header(
            info.name, info.shape, info.classes, info.encoding, enrolment.fingerprint, info.targets
        )
        if sorted(np.asarray(enrolment.permutation).tolist()) != list(range(info.classes)):
            raise InputError("the label permutation must name every class once")
        self._permutation = np.asarray(enrolment.permutation, np.int64)
        if self._path.exists():
            with self._path.open("rb") as file:
                self._is_ours(file)

    def append(self, chunks: Iterable[Chunk], *, rng: Csprng) -> PartInfo:
        """Encrypt and add one part; it is in the file when this returns, and absent if it raises.

        Secret   the pad key, drawn here and given to the enrolment's `register` alone
        Raises   EncryptionError, InputError (no samples, no room), RangeError, ShapeError
        """
        part, key = rng.random_bytes(PART_ID_BYTES).hex(), rng.random_bytes(KEY_BYTES)
        with _writable(self._path), contextlib.ExitStack() as stack:
            pieces = tuple(
                stack.enter_context(tempfile.TemporaryFile(dir=self._path.parent)) for _ in range(3)
            )
            samples = self._encrypt(chunks, key, pieces)
            if not samples:
                raise InputError("there are no samples to encrypt")
            digest = _digest(pieces)
            # Clients encrypt at the same time, and add their parts one after the other.
            with self._exclusive() as file:
                first = self._register(part, samples, digest, key)
                info = PartInfo(part, first, samples, digest)
                self._join(file, info, pieces)
        return info

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[BinaryIO]:
        """The file, held by this client alone; a file without a part is made anew.

        Raises   EncryptionError when other clients hold it for longer than patience lasts
        """
        deadline = time.monotonic() + self._patience_s
        with contextlib.ExitStack() as stack:
            while True:
                if not self._path.exists():
                    _create(self._path, self._header)
                file = _locked(self._path, stack)
                if file is not None and self._is_ours(file):
                    break
                if file is not None:
                    self._path.unlink()
                    stack.close()
                elif time.monotonic() > deadline:
                    raise EncryptionError(
                        f"{self._path}: another client is appending; try again, or wait longer "
                        "(--patience)"
                    )
                else:
                    time.sleep(POLL_S)
            try:
                yield file
            except BaseException:
                # A client that fails before its part is in leaves no file behind.
                if not read_block(self._path, file)[1].parts:
                    self._path.unlink()
                raise

    def _is_ours(self, file: BinaryIO) -> bool:
        """Whether the file is of this data set; a file without a part is of none.

        Raises   EncryptionError when it is of another one
        """
        found, commit = read_block(self._path, file)
        if found != self._header and commit.parts:
            difference = header_difference(found, self._header)
            raise EncryptionError(f"{self._path}: {difference}; choose another file")
        return found == self._header

    def _encrypt(self, chunks: Iterable[Chunk], key: bytes, pieces: tuple[IO[bytes], ...]) -> int:
        done = 0
        for chunk in chunks:
            n = len(chunk.x)
            self._check(chunk, done)
            # Numbered within the part: its key is its own, so is its numbering.
            ids = np.arange(done, done + n, dtype=np.int64)
            targets = np.empty_like(chunk.labels)
            targets[:, self._permutation] = chunk.labels
            arrays = (
                pads.blind(key, chunk.x, ids, domain=pads.DATA_DOMAIN).astype("<u4", copy=False),
                pads.blind(key, targets, ids, domain=pads.LABEL_DOMAIN).astype("<u4", copy=False),
                chunk.flags,
            )
            for piece, array in zip(pieces, arrays, strict=True):
                piece.write(np.ascontiguousarray(array).tobytes())
            done += n
        return done

    def _check(self, chunk: Chunk, done: int) -> None:
        header = self._header
        n = len(chunk.x)
        if done + n > MAX_SAMPLES:
            raise InputError(
                f"data set {header.name}: holds at most {MAX_SAMPLES} samples; use several data "
                "sets"
            )
        if chunk.x.shape[1:] != header.shape or chunk.x.dtype != np.int16:
            raise ShapeError(
                f"samples {done} to {done + n}: {chunk.x.dtype} {chunk.x.shape[1:]}, but data set "
                f"{header.name} holds encoded int16 samples of shape {header.shape}"
            )
        if chunk.labels.shape != (n, header.classes) or chunk.flags.shape != (n,):
            raise ShapeError(
                f"samples {done} to {done + n}: one target of {header.classes} integers and one "
                "flag for each sample"
            )
        if chunk.flags.dtype != np.uint8 or chunk.flags.max(initial=0) > UNLABELLED:
            raise RangeError(f"samples {done} to {done + n}: a flag is 0, 1 or 2, in uint8")
        bad = np.abs(chunk.x.astype(np.int32)).reshape(n, -1).max(axis=1) > header.encoding.bound
        if bad.any():
            where = done + int(np.flatnonzero(bad)[0])
            raise RangeError(f"sample {where}: a value exceeds {header.encoding.bits} bits")
        unlabelled = chunk.flags == UNLABELLED
        told = unlabelled & chunk.labels.any(axis=1)
        if told.any():
            where = done + int(np.flatnonzero(told)[0])
            raise RangeError(f"sample {where}: has a target, and the flag of an unlabelled one")
        wrong = ~are_targets(chunk.labels, header.targets) & ~unlabelled
        if wrong.any():
            where = int(np.flatnonzero(wrong)[0])
            raise RangeError(
                f"sample {done + where}: its target is not one of {header.classes} "
                f"{header.targets}, as data set {header.name} holds"
            )

    def _join(self, file: BinaryIO, info: PartInfo, pieces: tuple[IO[bytes], ...]) -> None:
        _, commit = read_block(self._path, file)
        # What lies behind the commit was written by a client that died.
        file.truncate(commit.nbytes)
        following = write_part(file, commit, info, itertools.chain(*map(_contents, pieces)))
        _sync(file)
        write_slot(file, following)
        _sync(file)


def write_part(
    file: BinaryIO, commit: Commit, info: PartInfo, contents: Iterable[bytes | memoryview]
) -> Commit:
    """Write a part behind a commit; gives the commit that counts it, for `write_slot`."""
    file.seek(commit.nbytes)
    file.write(encode_part_head(info, at=commit.nbytes))
    for content in contents:
        file.write(content)
    file.write(bytes(-file.tell() % ALIGNMENT))
    return Commit(commit.sequence + 1, file.tell(), commit.parts + 1)


def write_slot(file: BinaryIO, commit: Commit) -> None:
    """Write a commit, once all that it counts is on stable storage."""
    file.seek(SLOT_OFFSETS[commit.sequence % 2])
    file.write(encode_slot(commit))


def check_registered(dataset: EncryptedDataset, registered: Iterable[PartInfo]) -> list[PartInfo]:
    """Refuse a file whose parts are not those the authority has on record.

    Gives the parts on record that the file does not hold: those of clients that were killed before
    they were in it, or of another copy of the file.

    Raises   EncryptionError naming the part
    """
    known = {part.part: part for part in registered}
    for part in dataset.parts:
        if known.get(part.part) != part:
            raise EncryptionError(
                f"{dataset.path}: part {part.part} is not registered as it stands at the "
                f"authority {dataset.authority_fingerprint[:16]}; encrypt it again"
            )
    held = {part.part for part in dataset.parts}
    return [part for name, part in known.items() if name not in held]


def _create(path: Path, header: Header) -> None:
    """A data set without parts, under its name only when it is whole."""
    # Of two clients that create it, the second must not destroy a part. Everything in it may be
    # seen, and it is there to be handed on.
    with _writable(path), contextlib.suppress(FileExistsError):
        files.create(path, encode_block(header), private=False)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Name the file where the disk is full or the folder cannot be written.

    Raises   InputError
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); its earlier parts are whole: "
            "make room, then encrypt again"
        ) from None


def _locked(path: Path, stack: contextlib.ExitStack) -> BinaryIO | None:
    """The file, held until the stack is closed; None: another client holds it or has removed it."""
    try:
        descriptor = files.open_in_place(path, "old", private=False)
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(os.fdopen(descriptor, "r+b"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held the lock before may have removed the file, or put another in its place.
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return None
            stack.push(opened.pop_all())
    except (BlockingIOError, FileNotFoundError):
        return None
    return file


def _contents(piece: IO[bytes]) -> Iterator[bytes]:
    piece.seek(0)
    while chunk := piece.read(PIECE_BYTES):
        yield chunk


def _digest(pieces: tuple[IO[bytes], ...]) -> str:
    digest = hashlib.sha256()
    for chunk in itertools.chain(*map(_contents, pieces)):
        digest.update(chunk)
    return digest.hexdigest()


def header_difference(found: Header, wanted: Header) -> str:
    """How the header of a file is not the one that is wanted."""
    if found.authority_fingerprint != wanted.authority_fingerprint:
        return (
            f"belongs to authority {found.authority_fingerprint[:16]}, "
            f"not {wanted.authority_fingerprint[:16]}"
        )
    if found.name != wanted.name:
        return f"is data set {found.name}, not {wanted.name}"
    targets = [(header.shape, header.classes, header.targets) for header in (found, wanted)]
    if targets[0] != targets[1]:
        return (
            f"holds samples {found.shape} of {found.classes} {found.targets}, "
            f"not {wanted.shape} of {wanted.classes} {wanted.targets}"
        )
    return "has another encoding"


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
