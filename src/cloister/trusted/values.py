"""Values inside the trusted runtime, in ONNX's layout, channels-last, or both."""

import math
from collections.abc import Mapping

import numpy as np

import cloister.base._native as native
from cloister.errors import RangeError
from cloister.graph.graph import Graph
from cloister.graph.layout import from_channels_last, to_channels_last
from cloister.plan.quantised import multiplied
from cloister.trusted.program.memory_layout import ValueKey

_FEW_CHANNELS = 4


class Values:
    """Values of one batch by name; converts to the other layout when a step reads it."""

    def __init__(self, graph: Graph, feeds: Mapping[str, np.ndarray], *, rows: int) -> None:
        self._graph = graph
        self._onnx: dict[str, np.ndarray] = dict(feeds)
        self._last: dict[ValueKey, np.ndarray] = {}
        self._not_finite: set[ValueKey] = set()
        self._rows = rows

    def put(self, name: str, array: np.ndarray) -> None:
        """Keep a value in ONNX's layout."""
        self._onnx[name] = array

    def put_channels_last(self, key: ValueKey, array: np.ndarray, *, finite: bool = True) -> None:
        """Keep a value that a fused step has written, channels-last."""
        self._last[key] = array
        if not finite:
            self._not_finite.add(key)

    @property
    def all_finite(self) -> bool:
        """Whether no value that a fused step has read or written has NaN or infinity."""
        return not self._not_finite

    def is_finite(self, key: ValueKey) -> bool:
        """Whether a value that a fused step has read or written has neither NaN nor infinity."""
        return key not in self._not_finite

    def onnx(self, name: str) -> np.ndarray:
        """A value in ONNX's layout."""
        if name in self._graph.constants:
            return self._graph.constants[name]
        if name not in self._onnx:
            channels_first = (name, True) in self._last
            shape = self._graph.types[name].shape
            self._onnx[name] = from_channels_last(
                self._last[name, channels_first], shape, channels_first=channels_first
            )
        return self._onnx[name]

    def channels_last(
        self,
        name: str,
        size: tuple[int, int, int],
        channels_first: bool,
        factors: np.ndarray | None = None,
    ) -> np.ndarray:
        """A value, times factors if there are any, as float32 (n, h, w, c), for a fused step.

        Raises   RangeError when it has another shape than the model implies
        """
        key = (name, channels_first)
        if key not in self._last:
            value = self.onnx(name)
            array, finite = _packed(value, channels_first=channels_first)
            if not finite:
                self._not_finite.add(key)
            fits = array.size == self._rows * math.prod(size)
            self._last[key] = array.reshape(-1, *size) if fits else array
        found = self._last[key]
        if found.shape != (self._rows, *size):
            raise RangeError(
                f"value {name!r}: its shape {found.shape} is not the one that follows from the "
                "model; use the enclave policy"
            )
        return multiplied(found, factors)


def _packed(value: np.ndarray, *, channels_first: bool) -> tuple[np.ndarray, bool]:
    """An ONNX value as C-contiguous float32, channels-last, and whether all of it is finite.

    Of pictures the native kernel finds out both at once: NumPy takes twice as long, and five times
    where it turns them round.
    """
    turned = to_channels_last(value, channels_first=channels_first)
    n, h, w, channels = turned.shape
    if turned.flags.c_contiguous and turned.dtype == np.float32:
        return turned, native.all_finite(turned)
    if turned.flags.c_contiguous or channels > _FEW_CHANNELS:
        return np.ascontiguousarray(turned, np.float32), bool(np.isfinite(value).all())
    given = np.ascontiguousarray(value, np.float32).reshape(n, channels, h * w)
    packed = np.empty((n, h * w, channels), np.float32)
    finite = native.interleave(given, packed)
    return packed.reshape(turned.shape), finite
