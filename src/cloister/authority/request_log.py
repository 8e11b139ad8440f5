"""The request log: the requests to one party of a training run, and the answers that it could read.

The training server's log holds the answers of the key authority that it could read. The logs of a
ciphertext host and of the authority hold the requests that they received.

A file is one line that names the format, then records. A record is the length of its body, the
body and the body's SHA-256, so a torn tail or a damaged byte is found where it is. A body is a
message of `cloister.wire.https.bodies`: the request as it is sent, and the values that this party
read. The log is evidence for `cloister audit training`; training never reads it.
"""

import hashlib
import math
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from jaxtyping import Int16, Int64

from cloister.authority.requests import KINDS, LinearRequest, Request, read_request
from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.errors import EncryptionError, ProtocolError, ShapeError
from cloister.ring.linear import Geometry
from cloister.wire.https.bodies import Body, decode, encode

MAGIC = b"cloister releases 2\n"
UNREAD = np.empty(0, np.int64)
"""No values: of an answer that the party could not read."""
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, eq=False)
class Release:
    """A request of a run, and the integers that its answer unblinded.

    values   forward (n, oh, ow, oc), gradient the weights' shape, labels (n, classes): P - Y, or Y
             itself; `UNREAD`: a party was asked that learned no value of it
    shape    (h, w, c) of one sample
    Raises   ShapeError for values unlike the answer to such a request
    """

    request: Request
    step: int
    values: Int64[np.ndarray, "..."]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        request, geometry, values = self.request, self.request.geometry, self.values
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ShapeError(f"release: a sample's shape is (h, w, c), got {self.shape}")
        if geometry is not None and geometry.in_elements != math.prod(self.shape):
            raise ShapeError(f"release: {geometry} does not read samples of shape {self.shape}")
        if values.dtype != np.int64 or (self.is_read and not request.answered_by(values)):
            raise ShapeError(
                f"release: {request.kind} of {len(self.ids)} samples has values int64 "
                f"{request.answer_shape}, got {values.dtype} {values.shape}"
            )

    @property
    def is_read(self) -> bool:
        """Whether the party could read the answer."""
        return self.values.shape != UNREAD.shape

    @property
    def kind(self) -> str:
        """The request, and whether its answer could not be read."""
        return self.request.kind if self.is_read else f"{self.request.kind} request"

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """The samples of the request, in its order."""
        return self.request.ids

    @property
    def geometry(self) -> Geometry | None:
        """The first layer's map; None for labels."""
        return self.request.geometry

    @property
    def functional(self) -> Int16[np.ndarray, "..."]:
        """Weights (o, kh, kw, c) for forward, delta (n, oh, ow, oc) for gradient, else empty."""
        return self.request.operand


def asked(request: LinearRequest, *, step: int = 0) -> Release:
    """A request as its receiver sees it: which function of which samples, and no value."""
    return Release(request, step, UNREAD, request.geometry.in_shape)


class Recorder(Protocol):
    """Receives what a party is sent, as it is sent (`ReleaseLog` is one for a file)."""

    def append(self, release: Release) -> None:
        """Keep one release."""
        ...


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
    request = release.request
    described = {"kind": request.kind, "step": release.step, "shape": list(release.shape)}
    return encode(Body(request.fields | described, (*request.tensors, release.values)))


def _decode(body: bytes, where: str) -> Release:
    try:
        message = decode(body)
        kind = next((one for one in KINDS if one == message.text("kind")), None)
        shape = message.numbers("shape")
        if kind is None or len(shape) != 3:
            raise ProtocolError("message: its kind or a sample's shape is none")
        request, values = read_request(kind, message), message.tensors[-1]
        if len(message.tensors) != len(request.tensors) + 1:
            raise ProtocolError(f"message: holds {len(message.tensors)} tensors")
        return Release(request, message.number("step"), values, shape)
    except (ProtocolError, ShapeError) as error:
        raise EncryptionError(f"{where}: malformed ({error})") from error
