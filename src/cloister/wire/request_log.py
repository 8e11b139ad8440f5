"""The release log: what one party of a training run was sent.

The training server's log holds the answers of the key authority that it could read; a ciphertext
host's and the authority's hold what they were asked.

A file is one line that names the format, then records. A record is the length of its body, the
body and the body's SHA-256, so a torn tail or a damaged byte is found where it is. The log is
evidence for `cloister audit training`; training never reads it.
"""

import hashlib
import math
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
from jaxtyping import Int64

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.errors import EncryptionError, ShapeError
from cloister.ring.linear import Geometry

ReleaseKind = Literal["forward", "gradient", "labels", "forward request", "gradient request"]

MAGIC = b"cloister releases 1\n"
MAX_RANK = 4
_KINDS: tuple[ReleaseKind, ...] = (
    "forward", "gradient", "labels", "forward request", "gradient request",
)  # fmt: skip
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size
# kind, whether a geometry follows, rank of the functional, rank of the values, step, samples, shape
_HEAD = struct.Struct("<BBBBqQ3I")
_GEOMETRY = struct.Struct("<17q")
_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, eq=False)
class Release:
    """Integers that a function key of one request unmasked, and the function they belong to.

    kind         what was asked: forward A x, gradient sum of delta x, or labels; a request is what
                 a party was asked that learned no value of it
    ids          the samples of the request, in its order
    geometry     the first layer's map; None for labels
    functional   weights (o, kh, kw, c) for forward, delta (n, oh, ow, oc) for gradient, else empty
    values       forward (n, oh, ow, oc), gradient the weights' shape, labels (n, classes): P - Y,
                 or Y itself; of a request none
    shape        (h, w, c) of one sample
    """

    kind: ReleaseKind
    step: int
    ids: Int64[np.ndarray, " n"]
    geometry: Geometry | None
    functional: np.ndarray
    values: np.ndarray
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ShapeError(f"release: kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if self.ids.dtype != np.int64 or self.ids.ndim != 1:
            raise ShapeError(f"release: ids must be int64 (n,), got {self.ids.dtype}")
        if self.functional.dtype != np.int16 or self.values.dtype != np.int64:
            raise ShapeError(
                f"release: functional must be int16 and values int64, got "
                f"{self.functional.dtype} and {self.values.dtype}"
            )
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ShapeError(f"release: a sample's shape is (h, w, c), got {self.shape}")
        if (self.geometry is None) != (self.kind == "labels"):
            raise ShapeError(f"release: {self.kind} and geometry {self.geometry} contradict")
        _check_shapes(self)


class Recorder(Protocol):
    """Receives what a party is sent, as it is sent (`ReleaseLog` is one for a file)."""

    def append(self, release: Release) -> None:
        """Keep one release."""
        ...


def asked(
    kind: ReleaseKind,
    ids: Int64[np.ndarray, " n"],
    geometry: Geometry,
    functional: np.ndarray,
    *,
    step: int = 0,
) -> Release:
    """A request as its receiver sees it: which function of which samples, and no value."""
    none = np.empty(0, np.int64)
    return Release(kind, step, ids, geometry, functional, none, geometry.in_shape)


class ReleaseLog:
    """Appends releases to a file.

    An existing log is continued; a record that a crash cut off at its end is removed first.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        # Created without truncation: a log is evidence, and a resumed run continues it.
        self._file = os.fdopen(files.open_in_place(path, "any", private=True), "r+b")
        try:
            self._continue()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ReleaseLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, release: Release) -> None:
        """Write one release; it is in the file when this returns, on the disk after `close`."""
        body = _encode(release)
        digest = hashlib.sha256(body).digest()
        # A host answers many connections at once.
        with self._lock:
            self._file.write(b"".join((_LENGTH.pack(len(body)), body, digest)))
            self._file.flush()

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _continue(self) -> None:
        if not self._file.seek(0, os.SEEK_END):
            self._file.write(MAGIC)
            self._file.flush()
            return
        self._file.seek(0)
        _check_magic(self._file, self._path)
        end = self._file.tell()
        while _body(self._file, self._path, tail_ok=True) is not None:
            end = self._file.tell()
        self._file.truncate(end)
        self._file.seek(end)


def read_releases(path: Path, *, tail_ok: bool = False) -> Iterator[Release]:
    """The releases of a log, in order; one is in memory at a time.

    tail_ok   leave out a last record that a crash cut off, instead of raising
    Raises    EncryptionError when the file is no log, is damaged, or is cut off
    """
    with parsing(f"{path}: cannot be read", kind=EncryptionError), open_regular(path) as file:
        _check_magic(file, path)
        position = 0
        while (body := _body(file, path, tail_ok=tail_ok)) is not None:
            yield _decode(body, f"{path}: release {position}")
            position += 1


def _check_magic(file: BinaryIO, path: Path) -> None:
    if file.read(len(MAGIC)) != MAGIC:
        raise EncryptionError(
            f"{path}: not a release log; name the file given as "
            "--release-log, --request-log or --log"
        )


def _body(file: BinaryIO, path: Path, *, tail_ok: bool) -> bytes | None:
    """The next record's body; None at the end, and at a torn end when that is allowed."""
    start = file.tell()
    left = os.fstat(file.fileno()).st_size - start
    if left == 0:
        return None
    head = file.read(_LENGTH.size)
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else left
    # Bounded by the file itself before anything is allocated.
    if length > left - _LENGTH.size - _DIGEST_BYTES:
        if tail_ok:
            return None
        raise EncryptionError(
            f"{path}: cut off in the record at byte {start}; the run was interrupted while "
            "writing it (read with --tail-ok to leave it out)"
        )
    body = file.read(length)
    if hashlib.sha256(body).digest() != file.read(_DIGEST_BYTES):
        raise EncryptionError(f"{path}: damaged in the record at byte {start}")
    return body


def _encode(release: Release) -> bytes:
    geometry, functional, values = release.geometry, release.functional, release.values
    kind, mapped = _KINDS.index(release.kind), geometry is not None
    counts = (functional.ndim, values.ndim, release.step, len(release.ids))
    parts = [
        _HEAD.pack(kind, mapped, *counts, *release.shape),
        b"" if geometry is None else _GEOMETRY.pack(*geometry.to_tuple()),
        *map(_SIZE.pack, (*functional.shape, *values.shape)),
    ]
    arrays = (
        release.ids.astype("<i8"), release.functional.astype("<i2"), release.values.astype("<i8"),
    )  # fmt: skip
    return b"".join([*parts, *(array.tobytes() for array in arrays)])


def _decode(body: bytes, where: str) -> Release:
    try:
        return _parse(body, where)
    except (struct.error, ShapeError) as error:
        raise EncryptionError(f"{where}: malformed ({error})") from error


def _parse(body: bytes, where: str) -> Release:
    kind, has_geometry, weights_rank, values_rank, step, samples, *shape = _HEAD.unpack_from(body)
    offset = _HEAD.size
    if kind >= len(_KINDS) or has_geometry > 1 or max(weights_rank, values_rank) > MAX_RANK:
        raise EncryptionError(f"{where}: malformed (kind, geometry or rank out of range)")
    geometry = None
    if has_geometry:
        geometry = Geometry.from_tuple(_GEOMETRY.unpack_from(body, offset))
        offset += _GEOMETRY.size
    sizes = []
    for _ in range(weights_rank + values_rank):
        sizes.append(_SIZE.unpack_from(body, offset)[0])
        offset += _SIZE.size
    shapes = ((samples,), tuple(sizes[:weights_rank]), tuple(sizes[weights_rank:]))
    dtypes = map(np.dtype, ("<i8", "<i2", "<i8"))
    layouts = list(zip(dtypes, shapes, strict=True))
    wanted = offset + sum(dtype.itemsize * math.prod(size) for dtype, size in layouts)
    if wanted != len(body) or any(size > len(body) for _, dims in layouts for size in dims):
        raise EncryptionError(f"{where}: malformed ({len(body)} B, its arrays need {wanted} B)")
    arrays = []
    for dtype, size in layouts:
        flat = np.frombuffer(body, dtype, math.prod(size), offset)
        arrays.append(flat.reshape(size).astype(dtype.newbyteorder("=")))
        offset += flat.nbytes
    ids, functional, values = arrays
    height, width, channels = shape
    return Release(_KINDS[kind], step, ids, geometry, functional, values, (height, width, channels))


def _check_shapes(release: Release) -> None:
    samples, geometry = len(release.ids), release.geometry
    functional, values = release.functional.shape, release.values.shape
    if geometry is None:
        fits = functional == (0,) and len(values) == 2 and values[0] == samples
    else:
        weights, outputs = geometry.weight_shape, (samples, *geometry.out_shape)
        forward = release.kind.startswith("forward")
        given, answered = (weights, outputs) if forward else (outputs, weights)
        none = release.kind.endswith("request")
        fits = functional == given and values == ((0,) if none else answered)
    if not fits:
        raise ShapeError(
            f"release: {release.kind} of {samples} samples with {geometry}: functional "
            f"{functional} and values {values} do not belong together"
        )
    if geometry is not None and math.prod(geometry.in_shape) != math.prod(release.shape):
        raise ShapeError(f"release: {geometry} does not read samples of shape {release.shape}")
