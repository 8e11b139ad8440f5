"""Inputs and outputs of every kind as bytes, for a session whose trusted side is another process.

A value is an array of any of ONNX's element types, a text, a number, a truth value, None, a list or
a map. The bytes are canonical (graph/canonical.py): the document describes the values, and the
elements of arrays follow it. A reader allocates nothing that the bytes do not fill.

    null, true, 1, 0.5, "a"   themselves
    ["array", description]
    ["list", value, ..]
    ["map", [key, value], ..]   keys are texts or whole numbers, in the map's order
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cloister.base.reading import parsing
from cloister.errors import CloisterError, InputError, ProtocolError
from cloister.graph.canonical import Reader, Writer, as_array, entries, text, whole

MAGIC, VERSION = b"CLOV", 1
MAX_DEPTH = 16
"""Values within values. Types of ONNX have three: sequences of maps of numbers."""
_PLAIN = (bool, int, float, str)


def pack(values: Mapping[str, Any]) -> bytes:
    """The bytes of values by name.

    Raises   InputError for a value that is of another kind
    """
    return _written(values).to_bytes()


def unpack(
    data: bytes | memoryview | np.ndarray, *, kind: type[CloisterError] = ProtocolError
) -> dict[str, Any]:
    """The values of bytes; arrays are views of them where the form of an element allows it.

    Raises   `kind`
    """
    with parsing("values: cannot be read", kind=kind):
        given = data if isinstance(data, np.ndarray) else as_array(data)
        reader = Reader(given, MAGIC, VERSION)
        found = _read(reader.document, reader, MAX_DEPTH)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise ValueError("they have no names")
        reader.finish(_written(found))
        return found


def _written(values: Mapping[str, Any]) -> Writer:
    writer = Writer(MAGIC, VERSION)
    return writer.finish(_described(dict(values), writer, MAX_DEPTH, "values"))


def _described(value: object, writer: Writer, depth: int, what: str) -> object:
    if depth < 0:
        raise InputError(f"{what}: holds values within values, deeper than {MAX_DEPTH}")
    if isinstance(value, np.generic) and not isinstance(value, _PLAIN):
        value = value.item()
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.ndarray():
            with parsing(f"{what}: an array of {value.dtype} cannot be sent", quoted=False):
                return ["array", writer.tensor(value)]
        case list() | tuple():
            return ["list", *(_described(one, writer, depth - 1, what) for one in value)]
        case Mapping():
            pairs = []
            for key, one in value.items():
                if isinstance(key, bool) or not isinstance(key, int | str):
                    raise InputError(f"{what}: a map has the key {key!r}, no text or whole number")
                pairs.append([key, _described(one, writer, depth - 1, f"{what}: {key!r}")])
            return ["map", *pairs]
    raise InputError(f"{what}: {type(value).__name__} cannot be sent; give arrays, lists or maps")


def _read(found: object, reader: Reader, depth: int) -> Any:  # noqa: ANN401  (a value of any kind)
    if depth < 0:
        raise ValueError("values within values")
    match found:
        case None | bool() | int() | float() | str():
            return found
        case ["array", described]:
            return reader.tensor(described)
        case ["list", *values]:
            return [_read(one, reader, depth - 1) for one in values]
        case ["map", *pairs]:
            made: dict[Any, Any] = {}
            for pair in pairs:
                key, value = entries(pair)
                made[text(key) if isinstance(key, str) else whole(key)] = _read(
                    value, reader, depth - 1
                )
            return made
    raise ValueError("a value is of no known kind")
