"""A linear map as a worker keeps it, with the memory that it takes."""

import numpy as np
from jaxtyping import UInt32

from cloister.errors import ShapeError
from cloister.ring.linear import Geometry, LinearMap
from cloister.worker import cpu_maps, torch_maps
from cloister.worker.budget import MapMemory
from cloister.worker.targets import Cost

WORD_BYTES = 4
TYPES = (np.dtype(np.uint32), np.dtype(np.int16))


def map_memory(
    geometry: Geometry, *, device: str, threads: int, batch: int = 1, element_bytes: int = 4
) -> MapMemory:
    """The memory that a map takes on a device, for requests of this batch.

    Raises   RangeError when a request would take far more than its own size
    """
    if device == "cpu":
        return cpu_maps.map_memory(
            geometry, batch=batch, element_bytes=element_bytes, threads=threads
        )
    return torch_maps.map_memory(geometry, batch=batch, element_bytes=element_bytes)


class LinearTarget:
    """A linear map on the CPU or a PyTorch device."""

    def __init__(self, linear: LinearMap, *, device: str, threads: int) -> None:
        self.geometry = linear.geometry
        self._device = device
        self._threads = threads
        self._map = (
            cpu_maps.CpuMap(linear, threads=threads)
            if device == "cpu"
            else torch_maps.make_map(linear, device=device)
        )
        # Of the last batch and element size; clients rarely change them.
        self._known: tuple[tuple[int, int], Cost] = ((0, 0), Cost())

    def cost(self, tensors: tuple[np.ndarray, ...]) -> Cost:
        """See Target."""
        x = self._request(tensors)
        return self.batch_cost(len(x), x.itemsize)

    def batch_cost(self, batch: int, element_bytes: int) -> Cost:
        """The memory that an answer to a request of this batch takes.

        Raises   RangeError, see Target
        """
        key = batch, element_bytes
        known, cost = self._known
        if known != key:
            cost = self._cost(*key)
            self._known = key, cost
        return cost

    def run(self, tensors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """See Target."""
        return (self._map.apply(tensors[0]),)

    def write_to(
        self, out: UInt32[np.ndarray, "n oh ow oc"], x: UInt32[np.ndarray, "n h w c"]
    ) -> None:
        """Apply the map; images of `out` may lie apart."""
        if isinstance(self._map, cpu_maps.CpuMap):
            self._map.apply(x, out=out)
        else:
            out[...] = self._map.apply(x)

    def _request(self, tensors: tuple[np.ndarray, ...]) -> np.ndarray:
        if len(tensors) != 1:
            raise ShapeError(f"a linear map takes one tensor, got {len(tensors)}")
        (x,) = tensors
        if x.dtype not in TYPES or x.shape[1:] != self.geometry.in_shape:
            raise ShapeError(
                f"linear map: input must be uint32 or int16 (n, {self.geometry.in_shape}), "
                f"got {x.dtype} {x.shape}"
            )
        return x

    def _cost(self, batch: int, element_bytes: int) -> Cost:
        memory = map_memory(
            self.geometry,
            device=self._device,
            threads=self._threads,
            batch=batch,
            element_bytes=element_bytes,
        )
        return Cost(memory.total, WORD_BYTES * batch * self.geometry.out_elements)
