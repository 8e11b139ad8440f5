"""Bodies of HTTPS messages: a few named values and tensors, strict and bounded.

    prelude     magic "CLOH", version u8, tensors u8, zero u16, JSON length u32, payload length u64
    fields      canonical JSON object: sorted keys, no spaces, ASCII
    per tensor  dtype u8, rank u8, zero u16, zero u32, sizes u64 * rank
    payload     the tensors' bytes in order, C order, little endian

A reader compares a tensor's size with the bytes that are there before it allocates memory for it.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloister.base.tensor_limits import DTYPES, MAX_RANK
from cloister.errors import ProtocolError

MAGIC = b"CLOH"
FORMAT_VERSION = 2
MAX_TENSORS = 16
MAX_FIELDS_BYTES = 1 << 20
PRELUDE = struct.Struct("<4sBBHIQ")
_TENSOR = struct.Struct("<BBHI")
CONTENT_TYPE = "application/octet-stream"
PREFIX = "/v1/"
"""Of the path that names an operation."""
MAX_MESSAGE_CHARS = 600
"""Of an error's text."""
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}


@dataclass(frozen=True, eq=False)
class Body:
    """One message: JSON values by name, and arrays.

    `text`, `number`, `array` take a part out and check its type; they raise ProtocolError.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[np.ndarray, ...] = ()

    def text(self, name: str) -> str:
        """A field that is a text."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise ProtocolError(f"message: field {name!r} must be a text")
        return value

    def number(self, name: str) -> int:
        """A field that is an integer."""
        value = self.fields.get(name)
        if type(value) is not int:
            raise ProtocolError(f"message: field {name!r} must be an integer")
        return value

    def numbers(self, name: str) -> tuple[int, ...]:
        """A field that is a list of integers."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise ProtocolError(f"message: field {name!r} must be a list of integers")
        return tuple(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A field that is an object."""
        value = self.fields.get(name)
        if not isinstance(value, dict):
            raise ProtocolError(f"message: field {name!r} must be an object")
        return value

    def array(self, index: int, dtype: type[np.generic], rank: int) -> np.ndarray:
        """Tensor `index`, when it has this type and number of axes."""
        if index >= len(self.tensors):
            raise ProtocolError(f"message: tensor {index} is missing")
        tensor = self.tensors[index]
        if tensor.dtype != np.dtype(dtype) or tensor.ndim != rank:
            raise ProtocolError(
                f"message: tensor {index} must be {np.dtype(dtype)} with {rank} axes, "
                f"got {tensor.dtype} {tensor.shape}"
            )
        return tensor


def encode(body: Body) -> bytes:
    """The bytes of a message.

    Raises   ProtocolError when it is outside the bounds
    """
    described = json.dumps(
        dict(body.fields), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode("ascii")
    if len(described) > MAX_FIELDS_BYTES or len(body.tensors) > MAX_TENSORS:
        raise ProtocolError("message: too many fields or tensors to be sent")
    specs, pieces = [], []
    for tensor in body.tensors:
        code = _CODES.get(tensor.dtype)
        if code is None or tensor.ndim > MAX_RANK:
            raise ProtocolError(f"message: a tensor {tensor.dtype} {tensor.shape} cannot be sent")
        specs.append(_TENSOR.pack(code, tensor.ndim, 0, 0))
        specs.append(struct.pack(f"<{tensor.ndim}Q", *tensor.shape))
        pieces.append(np.ascontiguousarray(tensor).data)
    head = PRELUDE.pack(
        MAGIC, FORMAT_VERSION, len(pieces), 0, len(described), sum(one.nbytes for one in pieces)
    )
    return b"".join((head, described, *specs, *pieces))


def decode(data: bytes | bytearray | memoryview) -> Body:
    """The message that `encode` wrote; arrays are read-only views of `data`.

    Raises   ProtocolError naming the part; also for missing and for trailing bytes
    """
    view = memoryview(data).toreadonly()
    if len(view) < PRELUDE.size:
        raise ProtocolError("message: truncated in prelude")
    magic, version, count, zero, length, payload = PRELUDE.unpack_from(view)
    if magic != MAGIC or version != FORMAT_VERSION or zero:
        raise ProtocolError("message: magic or version is wrong; the other side is no Cloister")
    if count > MAX_TENSORS or length > MAX_FIELDS_BYTES:
        raise ProtocolError("message: too many tensors or fields")
    position = PRELUDE.size + length
    if position > len(view):
        raise ProtocolError("message: truncated in fields")
    fields = _fields(bytes(view[PRELUDE.size : position]))
    specs = []
    for index in range(count):
        dtype, shape, position = _spec(view, position, index)
        specs.append((dtype, shape))
    sizes = [math.prod(shape) * dtype.itemsize for dtype, shape in specs]
    if sum(sizes) != payload or position + payload != len(view):
        raise ProtocolError(f"message: {len(view)} B, expected exactly {position + sum(sizes)} B")
    tensors = []
    for (dtype, shape), size in zip(specs, sizes, strict=True):
        # NumPy refuses an empty view.
        flat = (
            np.frombuffer(view[position : position + size], dtype) if size else np.empty(0, dtype)
        )
        tensors.append(flat.reshape(shape))
        position += size
    return Body(fields, tuple(tensors))


def _spec(
    view: memoryview, position: int, index: int
) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    if position + _TENSOR.size > len(view):
        raise ProtocolError(f"message: truncated in tensor {index}")
    code, rank, zero, zero_too = _TENSOR.unpack_from(view, position)
    position += _TENSOR.size
    if code >= len(DTYPES) or rank > MAX_RANK or zero or zero_too:
        raise ProtocolError(f"message: tensor {index}: dtype {code}, rank {rank} is not allowed")
    if position + 8 * rank > len(view):
        raise ProtocolError(f"message: truncated in tensor {index}")
    shape = struct.unpack_from(f"<{rank}Q", view, position)
    # Each size alone is bounded too: next to a zero, the product would hide an absurd one.
    if any(size > len(view) for size in shape):
        raise ProtocolError(f"message: tensor {index}: shape {shape} is too large")
    return DTYPES[code], shape, position + 8 * rank


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data.decode("ascii"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ProtocolError("message: fields are not a JSON object") from None
    if not isinstance(fields, dict):
        raise ProtocolError("message: fields are not a JSON object")
    return fields


def _refuse(constant: str) -> None:
    raise ValueError(constant)
