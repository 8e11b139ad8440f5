"""ONNX's element types: their numbers, their NumPy types, and the bytes of a tensor's elements."""

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

TEXT = 8
ELEMENT_TYPES: Mapping[int, np.dtype] = {
    number: np.dtype(kind)
    for number, kind in {
        1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32,
        7: np.int64, TEXT: object, 9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32,
        13: np.uint64, 14: np.complex64, 15: np.complex128, 16: ml_dtypes.bfloat16,
        17: ml_dtypes.float8_e4m3fn, 18: ml_dtypes.float8_e4m3fnuz, 19: ml_dtypes.float8_e5m2,
        20: ml_dtypes.float8_e5m2fnuz, 21: ml_dtypes.uint4, 22: ml_dtypes.int4,
        23: ml_dtypes.float4_e2m1fn, 24: ml_dtypes.float8_e8m0fnu, 25: ml_dtypes.uint2,
        26: ml_dtypes.int2, 27: ml_dtypes.float6_e2m3fn, 28: ml_dtypes.float6_e3m2fn,
    }.items()
}  # fmt: skip
"""By the number that ONNX gives them."""
_NUMBERS = {dtype: number for number, dtype in ELEMENT_TYPES.items()}
_PACKED_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2, 27: 6, 28: 6}
"""Element types of which several share a byte."""


def element_number(dtype: np.dtype) -> int:
    """The number of an element type.

    Raises   KeyError for one that ONNX does not have
    """
    return TEXT if dtype.kind == "U" else _NUMBERS[dtype.newbyteorder("=")]


def raw_bytes(array: np.ndarray) -> memoryview:
    """The elements as ONNX stores them: in C order, little endian, small ones packed.

    Domain   no texts
    Cost     no copy of a C-contiguous array
    """
    number = element_number(array.dtype)
    flat = np.ascontiguousarray(array).reshape(-1)
    if number in _PACKED_BITS:
        return _packed(flat.view(np.uint8), _PACKED_BITS[number]).data
    return flat.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8).data


def raw_size(number: int, shape: tuple[int, ...]) -> int:
    """How many bytes `raw_bytes` makes of a tensor."""
    bits = _PACKED_BITS.get(number, 8 * ELEMENT_TYPES[number].itemsize)
    return -(-math.prod(shape) * bits // 8)


def from_raw(data: np.ndarray, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of these bytes: a view of them, or a copy where several elements share a byte.

    Domain   `raw_size` bytes, aligned for the type
    Raises   ValueError for bytes that `raw_bytes` never writes
    """
    if number in _PACKED_BITS:
        bits = _PACKED_BITS[number]
        spread = np.unpackbits(data, count=math.prod(shape) * bits, bitorder="little")
        codes = np.packbits(spread.reshape(-1, bits), axis=1, bitorder="little").reshape(-1)
        if not np.array_equal(_packed(codes, bits), data):
            raise ValueError("a tensor's last byte holds more than its elements")
        return codes.view(ELEMENT_TYPES[number]).reshape(shape)
    array = data.view(ELEMENT_TYPES[number].newbyteorder("<")).reshape(shape)
    if array.dtype == np.bool_ and data.size and data.max() > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    return array


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    spread = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(spread.reshape(-1), bitorder="little")
