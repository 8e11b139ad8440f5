"""What a server may ask for of samples: forward values and gradients.

A request names, for each of its samples, the function that an answer gives away of it, and the rows
of weights that its functions are made of. What decides (rules, price, noise) is told no more; so no
kind of request has rules of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Int16, Int64, UInt32

from cloister.authority.functions import Cuts, Function, Rows, Slice, magnitudes
from cloister.data.info import RING_LIMIT, DatasetInfo
from cloister.errors import FunctionError
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.pads import gradient
from cloister.ring.ring_map import RingMap

Kind = Literal["forward", "gradient"]
Asked = Iterator[tuple[Function, Int64[np.ndarray, " m"]]]
Pads = Iterable[tuple[slice, UInt32[np.ndarray, "m h w c"]]]
"""The masks of a request's samples, with their places: all in order, some at a time."""


class Request(Protocol):
    """A request for a key, whose arrays are the authority's own copies."""

    @property
    def kind(self) -> Kind:
        """What is asked for."""
        ...

    @property
    def geometry(self) -> Geometry:
        """Of the layer that is asked about."""
        ...

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Shape of the values that are given away of one sample."""
        ...

    def functions(self) -> Asked:
        """The functions, each with the places of its samples in the request; all, and each once."""
        ...

    @property
    def rows(self) -> Int16[np.ndarray, "rows h w c"]:
        """The weights of all functions, without repeating those that differ by their place."""
        ...

    @property
    def cuts(self) -> Cuts:
        """What padding leaves of these rows."""
        ...

    def check_range(self, info: DatasetInfo, noises: Sequence[int] = ()) -> None:
        """Refuse what could make an answer wrap: |value| < 2^31 must be certain.

        noises   largest noise that each function adds to a sample's values
        Raises   FunctionError
        """
        ...

    def term(self, pads: Pads, *, threads: int) -> UInt32[np.ndarray, "..."]:
        """The unmasking term.  Secret: pads, result."""
        ...

    def blur(
        self,
        term: UInt32[np.ndarray, "..."],
        places: Int64[np.ndarray, " m"],
        noise: UInt32[np.ndarray, "m ..."],
    ) -> None:
        """Subtract the noise of some samples from the term, in place."""
        ...


@dataclass(frozen=True, eq=False)
class Forward:
    """A x_i for each sample: one function for all, and a value of its own for each."""

    linear: LinearMap
    samples: int
    kind: Kind = "forward"

    @property
    def geometry(self) -> Geometry:
        """See `Request`."""
        return self.linear.geometry

    @property
    def value_shape(self) -> tuple[int, ...]:
        """See `Request`."""
        return self.geometry.out_shape

    @cached_property
    def function(self) -> Rows:
        """What is given away of every sample."""
        return Rows(self.linear)

    def functions(self) -> Asked:
        """See `Request`."""
        yield self.function, np.arange(self.samples)

    @property
    def rows(self) -> Int16[np.ndarray, "o kh kw c"]:
        """See `Request`."""
        return self.linear.weights

    @property
    def cuts(self) -> Cuts:
        """See `Request`."""
        return Cuts.of_forward(self.geometry)

    def check_range(self, info: DatasetInfo, noises: Sequence[int] = ()) -> None:
        """See `Request`."""
        _check_range(info, self.function.norm, max(noises, default=0), what="an output's weights")

    def term(self, pads: Pads, *, threads: int) -> UInt32[np.ndarray, "n oh ow oc"]:
        """See `Request`."""
        term = np.empty((self.samples, *self.geometry.out_shape), np.uint32)
        ring = RingMap(self.linear)
        for some, pad in pads:
            ring.apply(pad, out=term[some], threads=threads)
        return term

    def blur(
        self,
        term: UInt32[np.ndarray, "n oh ow oc"],
        places: Int64[np.ndarray, " m"],
        noise: UInt32[np.ndarray, "m oh ow oc"],
    ) -> None:
        """See `Request`."""
        term[places] -= noise


@dataclass(frozen=True, eq=False)
class Gradient:
    """The sum over a batch of delta_i x_i: a function for each sample, one value of all of them."""

    geometry: Geometry
    delta: Int16[np.ndarray, "n oh ow oc"]
    kind: Kind = "gradient"

    @property
    def value_shape(self) -> tuple[int, ...]:
        """See `Request`."""
        return self.geometry.weight_shape

    @cached_property
    def slices(self) -> list[Slice]:
        """What is given away of each sample."""
        return [Slice(self.geometry, delta) for delta in self.delta]

    def functions(self) -> Asked:
        """See `Request`."""
        for place, function in enumerate(self.slices):
            yield function, np.array([place])

    @property
    def rows(self) -> Int16[np.ndarray, "rows oh ow 1"]:
        """See `Request`."""
        return self.delta.transpose(0, 3, 1, 2).reshape(-1, *self.geometry.out_size, 1)

    @property
    def cuts(self) -> Cuts:
        """See `Request`."""
        return Cuts.of_gradient(self.geometry)

    def check_range(self, info: DatasetInfo, noises: Sequence[int] = ()) -> None:
        """See `Request`."""
        flat = magnitudes(self.delta).reshape(-1, self.delta.shape[-1])
        norm = int(flat.sum(axis=0, dtype=np.int64).max(initial=0))
        _check_range(info, norm, sum(noises), what="a channel's deltas")

    def term(self, pads: Pads, *, threads: int) -> UInt32[np.ndarray, "o kh kw c"]:
        """See `Request`."""
        term = np.zeros(self.geometry.weight_shape, np.uint32)
        for some, pad in pads:
            # Modulo 2^32, in which the whole sum is.
            term += gradient(self.geometry, self.delta[some], pad, threads=threads)
        return term

    def blur(
        self,
        term: UInt32[np.ndarray, "o kh kw c"],
        places: Int64[np.ndarray, " m"],
        noise: UInt32[np.ndarray, "m o kh kw c"],
    ) -> None:
        """See `Request`."""
        term -= noise.sum(axis=0, dtype=np.uint32)


def _check_range(info: DatasetInfo, norm: int, noise: int, *, what: str) -> None:
    if norm * info.encoding.bound >= RING_LIMIT:
        raise FunctionError(
            f"data set {info.name}: {what} sum to {norm} in magnitude, at most "
            f"{info.row_norm_limit} is allowed; use a coarser scale"
        )
    if norm * info.encoding.bound + noise >= RING_LIMIT:
        raise FunctionError(
            f"data set {info.name}: {what} are too large to be blurred; use a coarser scale"
        )
