"""MNIST's own files: a header of the axes' sizes, then bytes; compressed by gzip."""

import gzip
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cloister.base.reading import open_regular, parsing

_HEADER_BYTES = {1: 8, 3: 16}
"""Before the values, by the number of axes."""


def read_idx(path: Path, *, axes: int) -> UInt8[np.ndarray, "..."]:
    """The array in a file.

    Raises   InputError naming the file
    """
    with parsing(f"{path}: not a file of MNIST"), open_regular(path) as file:
        data = gzip.decompress(file.read())
        sizes = np.frombuffer(data, ">u4", axes, 4).tolist()
        return np.frombuffer(data, np.uint8, offset=_HEADER_BYTES[axes]).reshape(sizes)
