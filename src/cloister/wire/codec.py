"""Strict binary form of messages: bounded, and checked before anything is allocated.

    prelude     magic "CLOW", version u8, kind u8, tensors u16, head length u32, payload length u64
    fields      by kind, fixed: see `_FIELDS`; texts as length u16 and UTF-8
    per tensor  dtype u8, rank u8, zero u16, byte count u64, sizes u64 * rank
    payload     the tensors' bytes in order, C order, little endian

Everything up to the payload is the *head*. Transports carry the payload behind the head, or place
it in shared memory. The byte count repeats what dtype and sizes say; a difference is an error.
"""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cloister.base.tensor_limits import DTYPES, MAX_RANK
from cloister.errors import ProtocolError, ShapeError
from cloister.ring.linear import GEOMETRY_BYTES, Geometry, LinearMap
from cloister.ring.pad_block import BLOCK_ROWS_MAX, SEED_BYTES
from cloister.wire.messages import (
    MAX_FAILURE_CHARS,
    MAX_TARGETS,
    Answer,
    Apply,
    Failure,
    Hello,
    Loaded,
    LoadLinear,
    LoadSegment,
    MakePads,
    Message,
    TensorSpec,
    Welcome,
)

MAGIC = b"CLOW"
FORMAT_VERSION = 1
MAX_TENSORS = 256
MAX_HEAD_BYTES = 16384
MAX_TEXT_BYTES = 4 * MAX_FAILURE_CHARS
DEFAULT_MAX_PAYLOAD_BYTES = 1 << 32

PRELUDE = struct.Struct("<4sBBHIQ")
_TENSOR = struct.Struct("<BBHQ")
_SIZE = struct.Struct("<Q")
_TEXT = struct.Struct("<H")

_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}

_KINDS: tuple[type[Message], ...] = (
    Hello, Welcome, LoadLinear, LoadSegment, Loaded, Apply, Answer, Failure, MakePads,
)  # fmt: skip
_KIND_CODES = {kind: code for code, kind in enumerate(_KINDS)}
# Fields of fixed size in order, integers but for geometry and seed; then the number of texts.
_FIELDS: dict[type[Message], tuple[struct.Struct, int]] = {
    Hello: (struct.Struct("<H"), 0),
    Welcome: (struct.Struct("<H"), 2),
    LoadLinear: (struct.Struct(f"<Q{GEOMETRY_BYTES}s"), 0),
    LoadSegment: (struct.Struct("<Q"), 0),
    Loaded: (struct.Struct("<Q"), 0),
    Apply: (struct.Struct("<QQ"), 0),
    Answer: (struct.Struct("<Q"), 0),
    Failure: (struct.Struct("<Q"), 1),
    MakePads: (struct.Struct(f"<Q{SEED_BYTES}sQIQ"), 0),
}
_TENSOR_COUNTS: dict[type[Message], int | None] = {
    Hello: 0, Welcome: 0, LoadLinear: 1, LoadSegment: 1, Loaded: 0,
    Apply: None, Answer: None, Failure: 0, MakePads: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """A message ready to be carried: the head, and each tensor's bytes."""

    head: bytes
    payload: Iterable[memoryview]

    def to_bytes(self) -> bytes:
        """Head and payload in one piece."""
        return b"".join((self.head, *self.payload))


@dataclass(frozen=True)
class Head:
    """A decoded head: everything about a message but its tensors' contents."""

    kind: type[Message]
    numbers: tuple[Any, ...]
    texts: tuple[str, ...]
    specs: tuple[TensorSpec, ...]
    nbytes: int

    @property
    def payload_bytes(self) -> int:
        """Size of what follows the head."""
        return sum(spec.nbytes for spec in self.specs)

    def message(self, tensors: tuple[np.ndarray, ...]) -> Message:
        """The message, given arrays that satisfy `specs`.

        Raises   ProtocolError when numbers and tensors contradict each other
        """
        if self.kind is Hello:
            return Hello(self.numbers[0])
        if self.kind is Welcome:
            return Welcome(self.numbers[0], *self.texts)
        if self.kind is LoadLinear:
            return LoadLinear(self.numbers[0], _linear(self.numbers[1], tensors[0]))
        if self.kind is LoadSegment:
            return LoadSegment(self.numbers[0], tensors[0].tobytes())
        if self.kind is Loaded:
            return Loaded(self.numbers[0])
        if self.kind is Apply:
            return Apply(self.numbers[0], self.numbers[1], tensors)
        if self.kind is Answer:
            return Answer(self.numbers[0], tensors)
        if self.kind is MakePads:
            return _make_pads(self.numbers, tensors[0])
        return Failure(self.numbers[0], self.texts[0])


def encode(message: Message) -> Encoded:
    """The binary form of a message; tensors are not copied unless their layout demands it.

    Raises   ProtocolError when the message itself is outside the protocol's bounds
    """
    numbers, texts, tensors = _parts(message)
    tensors = tuple(np.require(tensor, requirements="C") for tensor in tensors)
    specs = tuple(TensorSpec.of(tensor) for tensor in tensors)
    head = encode_head(type(message), numbers, specs, texts=texts)
    return Encoded(head, tuple(as_bytes(tensor) for tensor in tensors))


def encode_head(
    kind: type[Message],
    numbers: tuple[int | bytes, ...],
    specs: tuple[TensorSpec, ...],
    *,
    texts: tuple[str, ...] = (),
) -> bytes:
    """The one encoding of a head.

    Raises   ProtocolError when it is outside the protocol's bounds
    """
    fields, _ = _FIELDS[kind]
    described, payload_bytes = _encode_specs(specs)
    worded = b"".join(map(_encode_text, texts))
    length = PRELUDE.size + fields.size + len(worded) + len(described)
    if len(specs) > MAX_TENSORS or length > MAX_HEAD_BYTES:
        raise ProtocolError(f"message {kind.__name__}: more than {MAX_TENSORS} tensors or too long")
    try:
        packed = fields.pack(*numbers)
    except struct.error as error:
        raise ProtocolError(f"message {kind.__name__}: a number is out of range") from error
    prelude = PRELUDE.pack(
        MAGIC, FORMAT_VERSION, _KIND_CODES[kind], len(specs), length, payload_bytes
    )
    return b"".join((prelude, packed, worded, described))


def decode_head(
    data: bytes | memoryview, *, max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
) -> Head:
    """Decode the head at the start of `data`; what follows it is not looked at.

    Raises   ProtocolError naming the field
    """
    reader = _Reader(data)
    magic, version, kind_code, tensors, length, payload_bytes = reader.unpack(PRELUDE, "prelude")
    if magic != MAGIC:
        raise ProtocolError("message: magic is wrong; the other side is no Cloister worker")
    if version != FORMAT_VERSION:
        raise ProtocolError(f"message: format version {version}, expected {FORMAT_VERSION}")
    if kind_code >= len(_KINDS):
        raise ProtocolError(f"message: kind {kind_code} is unknown")
    if length > MAX_HEAD_BYTES:
        raise ProtocolError(f"message: head length {length} exceeds {MAX_HEAD_BYTES}")
    if payload_bytes > max_payload_bytes:
        raise ProtocolError(f"message: payload of {payload_bytes} B exceeds {max_payload_bytes} B")
    kind = _KINDS[kind_code]
    wanted = _TENSOR_COUNTS[kind]
    if tensors > MAX_TENSORS or (wanted is not None and tensors != wanted):
        raise ProtocolError(f"message {kind.__name__}: tensor count {tensors} is not allowed")
    fields, text_count = _FIELDS[kind]
    numbers = reader.unpack(fields, "fields")
    texts = tuple(reader.text(position) for position in range(text_count))
    specs = tuple(reader.spec(position, max_payload_bytes) for position in range(tensors))
    if reader.position != length:
        raise ProtocolError(f"message: head length {length}, but {reader.position} B were used")
    head = Head(kind, numbers, texts, specs, length)
    if head.payload_bytes != payload_bytes:
        raise ProtocolError(
            f"message: payload length {payload_bytes}, but its tensors take {head.payload_bytes} B"
        )
    if kind is LoadSegment and (specs[0].dtype != np.uint8 or len(specs[0].shape) != 1):
        raise ProtocolError(f"message LoadSegment: model bytes must be uint8 (n,), got {specs[0]}")
    if kind is MakePads:
        _check_block(numbers, specs[0], max_payload_bytes)
    if kind is LoadLinear and specs[0].dtype != np.int16:
        raise ProtocolError(f"message LoadLinear: weights must be int16, got {specs[0]}")
    return head


def decode(
    data: bytes | memoryview, *, max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
) -> Message:
    """Decode one whole message; its arrays are private copies.

    Raises   ProtocolError naming the field; also for missing and for trailing bytes
    """
    head = decode_head(data, max_payload_bytes=max_payload_bytes)
    total = head.nbytes + head.payload_bytes
    if len(data) != total:
        raise ProtocolError(f"message: {len(data)} B, expected exactly {total} B")
    tensors = []
    offset = head.nbytes
    for spec in head.specs:
        flat = np.frombuffer(data, spec.dtype, math.prod(spec.shape), offset)
        tensors.append(flat.reshape(spec.shape).copy())
        offset += spec.nbytes
    return head.message(tuple(tensors))


def as_bytes(tensor: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return memoryview(tensor.reshape(-1).view(np.uint8).data)


def _parts(
    message: Message,
) -> tuple[tuple[int | bytes, ...], tuple[str, ...], tuple[np.ndarray, ...]]:
    match message:
        case Hello(version):
            return (version,), (), ()
        case Welcome(version, name, device):
            return (version,), (name, device), ()
        case LoadLinear(target_id, linear):
            return (target_id, linear.geometry.to_bytes()), (), (linear.weights,)
        case LoadSegment(target_id, model):
            return (target_id,), (), (np.frombuffer(model, np.uint8),)
        case Loaded(target_id):
            return (target_id,), (), ()
        case Apply(request_id, target_id, tensors):
            return (request_id, target_id), (), tensors
        case Answer(request_id, tensors):
            return (request_id,), (), tensors
        case MakePads(request_id, seed, first_id, rows, targets, offsets, words):
            places = _places(targets, offsets)
            return (request_id, seed, first_id, rows, words), (), (places,)
        case Failure(request_id, text):
            return (request_id,), (text,), ()


def _linear(geometry: bytes, weights: np.ndarray) -> LinearMap:
    try:
        return LinearMap(Geometry.from_bytes(geometry), weights)
    except ShapeError as error:
        raise ProtocolError(f"message LoadLinear: {error}") from error


def _places(targets: tuple[int, ...], offsets: tuple[int, ...]) -> np.ndarray:
    """Target and offset of each node, as sent."""
    try:
        return np.array([targets, offsets], np.uint32)
    except (OverflowError, ValueError) as error:
        raise ProtocolError("message MakePads: a target or offset is out of range") from error


def _check_block(numbers: tuple[Any, ...], places: TensorSpec, max_payload_bytes: int) -> None:
    """Refuse a block that no plan has, before a word of it gets memory."""
    _, _, first_id, rows, words = numbers
    if places.dtype != np.uint32 or len(places.shape) != 2 or places.shape[0] != 2:
        raise ProtocolError(f"message MakePads: targets must be uint32 (2, n), got {places}")
    if not 1 <= places.shape[1] <= MAX_TARGETS:
        raise ProtocolError(f"message MakePads: {places.shape[1]} targets, at most {MAX_TARGETS}")
    if not 1 <= rows <= BLOCK_ROWS_MAX or first_id + rows > 1 << 63:
        raise ProtocolError(f"message MakePads: {rows} rows from pad {first_id} are not allowed")
    if not 1 <= 4 * rows * words <= max_payload_bytes:
        raise ProtocolError(f"message MakePads: {rows} rows of {words} words are too large")


def _make_pads(numbers: tuple[Any, ...], places: np.ndarray) -> MakePads:
    request_id, seed, first_id, rows, words = numbers
    # Read once: the memory may be shared.
    targets, offsets = (tuple(row) for row in places.tolist())
    for name, found in (("targets", targets), ("offsets", offsets)):
        if list(found) != sorted(set(found)):
            raise ProtocolError(f"message MakePads: {name} do not increase")
    if offsets[-1] >= words:
        raise ProtocolError(f"message MakePads: offset {offsets[-1]} is beyond {words} words")
    return MakePads(request_id, seed, first_id, rows, targets, offsets, words)


def _encode_text(text: str) -> bytes:
    data = text.encode("utf-8", errors="replace")
    if len(data) > MAX_TEXT_BYTES:
        raise ProtocolError(f"message: a text of {len(data)} B exceeds {MAX_TEXT_BYTES} B")
    return _TEXT.pack(len(data)) + data


@lru_cache(maxsize=1024)
def _encode_specs(specs: tuple[TensorSpec, ...]) -> tuple[bytes, int]:
    """The descriptions of a message's tensors, and the size of its payload."""
    parts = []
    for spec in specs:
        code, rank = _DTYPE_CODES.get(spec.dtype), len(spec.shape)
        if code is None or rank > MAX_RANK:
            raise ProtocolError(f"tensor {spec.dtype} of rank {rank} cannot be sent")
        parts.append(_TENSOR.pack(code, rank, 0, spec.nbytes))
        parts.extend(map(_SIZE.pack, spec.shape))
    return b"".join(parts), sum(spec.nbytes for spec in specs)


class _Reader:
    """Reads the fields of a head in order, each bounded by the bytes that are there."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self.position = 0

    def unpack(self, layout: struct.Struct, field: str) -> tuple[Any, ...]:
        if self.position + layout.size > len(self._data):
            raise ProtocolError(f"message: truncated in {field}")
        values = layout.unpack_from(self._data, self.position)
        self.position += layout.size
        return values

    def text(self, position: int) -> str:
        (length,) = self.unpack(_TEXT, f"text {position}")
        end = self.position + length
        if length > MAX_TEXT_BYTES or end > len(self._data):
            raise ProtocolError(f"message: text {position} is too long or truncated")
        raw = bytes(self._data[self.position : end])
        self.position = end
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolError(f"message: text {position} is not UTF-8") from error

    def spec(self, position: int, max_bytes: int) -> TensorSpec:
        code, rank, zero, nbytes = self.unpack(_TENSOR, f"tensor {position}")
        if code >= len(DTYPES):
            raise ProtocolError(f"message: tensor {position}: dtype {code} is unknown")
        if rank > MAX_RANK or zero:
            raise ProtocolError(f"message: tensor {position}: rank {rank} exceeds {MAX_RANK}")
        shape = tuple(
            self.unpack(_SIZE, f"tensor {position}, size {axis}")[0] for axis in range(rank)
        )
        # Each size alone is bounded too: next to a zero, the product would hide a size NumPy
        # cannot represent.
        if any(size > max_bytes for size in shape):
            raise ProtocolError(f"message: tensor {position}: shape {shape} is too large")
        spec = TensorSpec(DTYPES[code], shape)
        if spec.nbytes > max_bytes or spec.nbytes != nbytes:
            raise ProtocolError(
                f"message: tensor {position}: {nbytes} B stated, {spec} takes {spec.nbytes} B"
            )
        return spec
