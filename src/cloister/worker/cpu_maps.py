"""Linear maps modulo 2^32 on the CPU, by the native kernels."""

import logging
from functools import cache

import numpy as np
from jaxtyping import UInt32

import cloister.base._native as native
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.ring_map import RingMap, ring_memory
from cloister.worker.budget import MapMemory, bounded

_log = logging.getLogger("cloister.worker")

MAX_SCRATCH_BYTES = 64 << 20
"""Of one thread, beyond MAX_SCRATCH_RATIO times the request: for padded copies of the input."""
MAX_SCRATCH_RATIO = 8


def map_memory(geometry: Geometry, *, batch: int, element_bytes: int, threads: int) -> MapMemory:
    """The memory that a map takes for requests of this batch.

    Raises   RangeError when padding, dilation or upsampling blow a request up beyond the limits
    """
    memory = ring_memory(geometry, batch=batch, element_bytes=element_bytes, threads=threads)
    request = batch * geometry.in_elements * element_bytes
    limit = threads * (MAX_SCRATCH_BYTES + MAX_SCRATCH_RATIO * request)
    return MapMemory(memory.held, bounded(memory.scratch, limit=limit, request=request))


class CpuMap:
    """A linear map ready to be applied; keeps packed weights, not the map it was made of."""

    def __init__(self, linear: LinearMap, *, threads: int = 1) -> None:
        _log_refusal()
        self._ring = RingMap(linear)
        self._threads = threads

    def apply(
        self, x: np.ndarray, *, out: UInt32[np.ndarray, "n oh ow oc"] | None = None
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """The map's value at uint32 or int16 inputs (n, h, w, c), in `out` when it is given.

        Raises   ShapeError
        """
        return self._ring.apply(x, out=out, threads=self._threads)


@cache
def _log_refusal() -> None:
    """Log once that this process works without AMX although the processor has it."""
    if native.amx_refused():
        _log.info("the system refuses AMX (arch_prctl); products use AVX-512, or less, instead")
