"""Linear maps modulo 2^32 on the CPU, by the native kernels."""

import numpy as np
from jaxtyping import UInt32

from cloister.field.linear import LinearMap
from cloister.field.ring import RingMap


class CpuMap:
    """A linear map ready to be applied; keeps packed weights, not the map it was made of."""

    def __init__(self, linear: LinearMap, *, threads: int = 1) -> None:
        self.in_shape = linear.geometry.in_shape
        self._ring = RingMap(linear)
        self._threads = threads

    def apply(self, x: np.ndarray) -> UInt32[np.ndarray, "n oh ow oc"]:
        """The map's value at uint32 or int16 inputs (n, h, w, c).

        Raises   ShapeError
        """
        return self._ring.apply(x, threads=self._threads)
