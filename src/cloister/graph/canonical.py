"""Canonical bytes: a JSON document and the tensors it describes, written in the one way there is.

    prelude    magic of 4 bytes, version u32, length of the document u64
    document   JSON in ASCII, keys sorted, no spaces
    tensors    in the order of their descriptions in the document, in ONNX's own form (raw_bytes);
               each begins at a multiple of 64 bytes, and the bytes between are zero

A tensor is described as [element type, sizes], with a text tensor's texts as a third entry. A
reader writes the document anew from the contents that it read, and refuses a file with other bytes.
So equal contents have equal bytes, and a file cannot have a field that no reader reads.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from cloister.base import files
from cloister.base.reading import open_regular
from cloister.errors import InputError
from cloister.graph.element_types import (
    ELEMENT_TYPES,
    TEXT,
    element_number,
    from_raw,
    raw_bytes,
    raw_size,
)

PRELUDE = struct.Struct("<4sIQ")
ALIGNMENT = 64
MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_FILE_BYTES = 2**36
MAX_RANK = 32

T = TypeVar("T")


class Writer:
    """Collects a document's tensors while the document is made."""

    def __init__(self, magic: bytes, version: int) -> None:
        self._start = (magic, version)
        self._tensors: list[np.ndarray] = []
        self._head = b""

    def tensor(self, array: np.ndarray) -> list[object]:
        """The description of a tensor, which is put behind those that came before."""
        number, shape = element_number(array.dtype), list(array.shape)
        if number == TEXT:
            return [number, shape, [str(text) for text in array.reshape(-1).tolist()]]
        self._tensors.append(array)
        return [number, shape]

    def finish(self, document: object) -> "Writer":
        """Take the document, of which all tensors have been collected."""
        text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        if len(text) > MAX_DOCUMENT_BYTES:
            raise InputError("the model has too many nodes and names to be written as one file")
        self._head = PRELUDE.pack(*self._start, len(text)) + text
        return self

    def parts(self) -> Iterator[bytes | memoryview]:
        """The bytes, piece by piece: the tensors are not copied."""
        yield self._head
        size = len(self._head)
        for array in self._tensors:
            yield bytes(-size % ALIGNMENT)
            data = raw_bytes(array)
            yield data
            size += -size % ALIGNMENT + len(data)

    def to_bytes(self) -> bytes:
        """All bytes in one piece."""
        return b"".join(self.parts())

    def save(self, path: Path) -> None:
        """Write a file.

        Raises   OSError
        """
        with files.replacing(path, private=False) as file:
            for part in self.parts():
                file.write(part)

    def has_head(self, head: bytes) -> bool:
        """Whether these are the bytes up to the tensors."""
        return self._head == head


class Reader:
    """A document, and its tensors in order. Every read is bounded by what is there.

    Its methods raise what they stumble over: `base.reading.parsing` goes around.
    """

    def __init__(self, data: np.ndarray, magic: bytes, version: int) -> None:
        self._data = data
        found, stated, length = PRELUDE.unpack(data[: PRELUDE.size].tobytes())
        _require_kind(found, stated, magic, version)
        if length > min(MAX_DOCUMENT_BYTES, len(data) - PRELUDE.size):
            raise ValueError(f"its document of {length} B is cut off or too long")
        self._at = PRELUDE.size + length
        self._head = data[: self._at].tobytes()
        self.document = json.loads(self._head[PRELUDE.size :])

    def tensor(self, described: object) -> np.ndarray:
        """The next tensor: a view of the data, or a copy where several elements share a byte."""
        kind, shape, *more = entries(described)
        number, sizes = whole(kind), tuple(map(size, entries(shape)))
        if len(sizes) > MAX_RANK or number not in ELEMENT_TYPES:
            raise ValueError(f"a tensor has element type {number} and {len(sizes)} axes")
        if number == TEXT:
            return np.array(texts(more[0]), object).reshape(sizes)
        start = self._at + -self._at % ALIGNMENT
        end = start + raw_size(number, sizes)
        if end > len(self._data):
            raise ValueError(f"cut off: its tensors need {end} B, and it has {len(self._data)} B")
        if self._data[self._at : start].any():
            raise ValueError("bytes between its tensors are not zero")
        self._at = end
        return from_raw(self._data[start:end], number, sizes)

    def finish(self, written: Writer) -> None:
        """Make sure that all was read, and that it stands there as it would be written.

        Raises   ValueError
        """
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} B follow its last tensor")
        if not written.has_head(self._head):
            raise ValueError("written otherwise than this version writes it")


def as_array(data: bytes | memoryview) -> np.ndarray:
    """Bytes to be read, which the caller does not change any more."""
    return np.frombuffer(data, np.uint8)


def read_file(path: Path, magic: bytes, version: int) -> np.ndarray:
    """The bytes of a file, in memory of their own.

    Raises   ValueError when it is of another kind, OSError
    """
    with open_regular(path) as file:
        length = os.fstat(file.fileno()).st_size
        start = file.read(PRELUDE.size)
        if len(start) < PRELUDE.size or length > MAX_FILE_BYTES:
            raise ValueError(f"it has {length} B")
        found, stated, _ = PRELUDE.unpack(start)
        _require_kind(found, stated, magic, version)
        file.seek(0)
        data = np.fromfile(file, np.uint8, length)
    data.setflags(write=False)
    return data


def _require_kind(found: bytes, stated: int, magic: bytes, version: int) -> None:
    if found != magic:
        raise ValueError("it begins otherwise")
    if stated != version:
        raise ValueError(f"it has version {stated}, and this version reads {version}")


# ---- what a document may hold


def text(value: object) -> str:
    """A text that has bytes: without half of a pair of surrogates."""
    if not isinstance(value, str):
        raise ValueError(f"a text is needed, not {type(value).__name__}")
    value.encode()
    return value


def whole(value: object, *, least: int = -(2**63), most: int = 2**63 - 1) -> int:
    """A whole number between bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError("a whole number is not one, or out of bounds")
    return value


def size(value: object) -> int:
    """A size of an axis."""
    return whole(value, least=0)


def real(value: object) -> float:
    """A number with a fraction."""
    if not isinstance(value, float):
        raise ValueError(f"a number is needed, not {type(value).__name__}")
    return value


def truth(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"true or false is needed, not {type(value).__name__}")
    return value


def entries(value: object) -> Sequence[object]:
    """A list."""
    if not isinstance(value, list):
        raise ValueError(f"a list is needed, not {type(value).__name__}")
    return value


def texts(value: object) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(map(text, entries(value)))


def mapping(value: object, read: Callable[[object], T]) -> dict[str, T]:
    """Values by name, in the order in which names are written."""
    if not isinstance(value, dict):
        raise ValueError(f"a mapping is needed, not {type(value).__name__}")
    return {text(name): read(value[name]) for name in sorted(value)}
