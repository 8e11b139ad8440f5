"""Reads an ONNX file without holding its weights twice.

A parsed protobuf message keeps the file's bytes and its own copy of every field, and freeing a
field frees nothing. So a scanner reads the file first: it reads large constants straight into
arrays of their own, and only the rest, the skeleton, becomes a message. The scanner knows four
messages and leaves all others in the skeleton, for ONNX's own parser to judge.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from cloister.base.reading import open_regular
from cloister.errors import ModelError
from cloister.graph.onnx.export import BYTES, FIXED32, VARINT, varint

LARGE_BYTES = 1 << 16
MAX_FILE_BYTES = 2**31 - 1
"""The largest ONNX file, and the largest message in memory."""
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
FIXED64 = 1
MAX_VARINT_BYTES = 10
DTYPES: Mapping[int, np.dtype] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.UINT32: np.dtype(np.uint32),
    TensorProto.UINT64: np.dtype(np.uint64),
}


_Rewrite = Callable[[int, int], bytes]


class _OddError(Exception):
    """The scanner does not understand these bytes."""


class _Field(NamedTuple):
    """One field of a message: where it starts, where its content lies."""

    number: int
    wire_type: int
    start: int
    content: int
    end: int


@dataclass
class ModelFile:
    """A model's message without its large constants, and those, by initializer index."""

    skeleton: onnx.ModelProto
    constants: dict[int, np.ndarray] = field(default_factory=dict)


def read_model(path: Path) -> ModelFile:
    """Read a model.

    Domain   the file may change while it is read: every byte is read once, into private memory
    Raises   ModelError when it is cut off or no model; OSError when it cannot be read
    """
    with open_regular(path) as file:
        try:
            scanner = _ProtobufScanner(file)
            skeleton = scanner.model()
        except _OddError:
            file.seek(0)
            scanner, skeleton = None, file.read()
        try:
            model = onnx.load_model_from_string(skeleton)
        except (DecodeError, ValueError) as error:
            line = " ".join(str(error).split())[:300]
            raise ModelError(f"{path}: not an ONNX model, or cut off ({line})") from None
        constants = {} if scanner is None else scanner.constants(path)
    return ModelFile(model, constants)


class _ProtobufScanner:
    """Reads a file's messages field by field, keeping its place in each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._initializers = 0
        self._found: dict[int, tuple[TensorProto, int, int]] = {}

    def model(self) -> bytes:
        """The skeleton's bytes.

        Raises   _OddError
        """
        if sys.byteorder != "little":
            raise _OddError
        return self._rewritten(0, self._size, MODEL_GRAPH, self._graph)

    def constants(self, path: Path) -> dict[int, np.ndarray]:
        """The large constants, read from the file.

        Raises   ModelError
        """
        return {index: self._array(path, *found) for index, found in self._found.items()}

    def _array(self, path: Path, tensor: TensorProto, content: int, end: int) -> np.ndarray:
        dtype = DTYPES[tensor.data_type]
        count = (end - content) // dtype.itemsize
        self._file.seek(content)
        flat = np.fromfile(self._file, dtype, count)
        if len(flat) != count:
            raise ModelError(f"{path}: cut off inside constant {tensor.name!r}; copy it again")
        array = flat.reshape(tuple(tensor.dims))
        array.setflags(write=False)
        return array

    def _graph(self, start: int, end: int) -> bytes:
        return self._rewritten(start, end, GRAPH_INITIALIZER, self._initializer)

    def _rewritten(self, start: int, end: int, number: int, rewrite: _Rewrite) -> bytes:
        """A message with the content of its fields `number` rewritten, everything else as it is."""
        parts: list[bytes] = []
        for one in self._fields(start, end):
            if one.number == number and one.wire_type == BYTES:
                content = rewrite(one.content, one.end)
                parts += [varint(one.number << 3 | BYTES), varint(len(content)), content]
            else:
                parts.append(self._bytes(one.start, one.end))
        return b"".join(parts)

    def _initializer(self, start: int, end: int) -> bytes:
        index, self._initializers = self._initializers, self._initializers + 1
        if end - start < LARGE_BYTES:
            return self._bytes(start, end)
        fields = list(self._fields(start, end))
        data = [one for one in fields if one.number == TENSOR_RAW_DATA]
        if len(data) == 1 and data[0].wire_type == BYTES:
            rest = b"".join(self._bytes(f.start, f.end) for f in fields if f is not data[0])
            tensor = _parsed(rest)
            if tensor is not None and _holds(tensor, data[0].end - data[0].content):
                self._found[index] = (tensor, data[0].content, data[0].end)
                return rest
        return self._bytes(start, end)

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        at = start
        while at < end:
            tag, content = self._read_varint(at, end)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == BYTES:
                length, content = self._read_varint(content, end)
                after = content + length
            elif wire_type == VARINT:
                _, after = self._read_varint(content, end)
            elif wire_type in (FIXED64, FIXED32):
                after = content + (8 if wire_type == FIXED64 else 4)
            else:
                raise _OddError
            if not number or after > end:
                raise _OddError
            yield _Field(number, wire_type, at, content, after)
            at = after

    def _read_varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        self._file.seek(at)
        data = self._file.read(min(MAX_VARINT_BYTES, end - at))
        for i, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value, at + i + 1
        raise _OddError

    def _bytes(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(end - start)
        if len(data) != end - start:
            raise _OddError
        return data


def _parsed(data: bytes) -> TensorProto | None:
    try:
        return TensorProto.FromString(data)
    except (DecodeError, ValueError):
        return None


def _holds(tensor: TensorProto, nbytes: int) -> bool:
    """Whether a tensor is one of plain numbers and its raw data are exactly its elements."""
    dtype = DTYPES.get(tensor.data_type)
    known = {descriptor.name for descriptor, _ in tensor.ListFields()}
    if dtype is None or not known <= {"dims", "data_type", "name", "doc_string", "data_location"}:
        return False
    if tensor.data_location != TensorProto.DEFAULT or min(tensor.dims, default=0) < 0:
        return False
    return math.prod(int(size) for size in tensor.dims) * dtype.itemsize == nbytes
