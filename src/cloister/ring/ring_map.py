"""Linear maps exact modulo 2^32: the worker's arithmetic, by the native kernel."""

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, UInt32

import cloister.base._native as native
from cloister.errors import InputError, ShapeError
from cloister.ring.linear import Geometry, LinearMap


@dataclass(frozen=True)
class RingMemory:
    """Upper bounds of the bytes that a map takes.

    held      as long as it lives: its packed weights; a caller's weights are not among them
    scratch   from a product of that batch on; smaller batches take no more
    """

    held: int
    scratch: int


def ring_memory(
    geometry: Geometry, *, batch: int = 1, element_bytes: int = 4, threads: int = 1
) -> RingMemory:
    """The memory that a map would take, from its geometry alone, before any is allocated."""
    return RingMemory(*native.ring_map_memory(geometry.native(), batch, element_bytes, threads))


class RingMap:
    """A linear map with packed weights, ready to be applied many times.

    Callers take turns: scratch memory is kept between calls.
    """

    def __init__(self, linear: LinearMap) -> None:
        self._geometry = linear.geometry
        self._lock = threading.Lock()
        self._native = native.RingMap(
            linear.geometry.native(), np.ascontiguousarray(linear.weights)
        )

    @property
    def geometry(self) -> Geometry:
        """Shape of the map."""
        return self._geometry

    @property
    def on_tiles(self) -> bool:
        """Whether AMX multiplies: the instruction set of its making has it, and the shape suits."""
        return self._native.on_tiles

    def apply(
        self,
        x: UInt32[np.ndarray, "n h w c"] | Int16[np.ndarray, "n h w c"],
        *,
        out: UInt32[np.ndarray, "n oh ow oc"] | None = None,
        threads: int = 1,
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """Compute A x modulo 2^32.

        Shapes   x: (n, *in_shape); result: (n, *out_shape), written to `out` when it is given,
                 whose images may lie apart.
        Domain   x uint32 (a blinded request, two products) or int16 (a plain one, one product).
        Error    none: x = hi * 2^16 + lo in balanced digits, int16 by int16 products summed in
                 32-bit accumulators that wrap. On tiles (AMX) bytes by bytes, 7 and 4 products.
        Source   Slalom (arXiv:1806.03287) section 3; deviation: a ring instead of float32 limbs.
        Raises   ShapeError, InputError (threads below 1)
        """
        if threads < 1:
            raise InputError(f"linear map: threads must be at least 1, got {threads}")
        if x.dtype not in (np.uint32, np.int16):
            raise ShapeError(f"linear map: x must be uint32 or int16, got {x.dtype}")
        _check("x", x, self._geometry.in_shape)
        shape = (x.shape[0], *self._geometry.out_shape)
        if out is None:
            out = np.empty(shape, np.uint32)
        elif out.dtype != np.uint32 or out.shape != shape or not out.flags.writeable:
            raise ShapeError(
                f"linear map: out must be writable uint32 {shape}, got {out.dtype} {out.shape}"
            )
        elif np.may_share_memory(x, out):
            raise ShapeError("linear map: out must not overlap x; pass another array")
        _check("out", out, self._geometry.out_shape, apart=True)
        with self._lock:  # its scratch memory serves one product at a time
            self._native.apply(x, out, threads)
        return out


def _check(
    name: str, array: np.ndarray, shape: tuple[int, int, int], *, apart: bool = False
) -> None:
    if array.ndim != 4 or array.shape[1:] != shape:
        raise ShapeError(f"linear map: {name} must be (n, *{shape}), got {array.shape}")
    images = array[:1] if apart and array.strides[0] >= array[:1].nbytes else array
    if not images.flags.c_contiguous:
        raise ShapeError(f"linear map: {name} must be C-contiguous; use np.ascontiguousarray")
