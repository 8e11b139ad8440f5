"""The messages a trusted runtime and a worker exchange, as frozen data.

Request ids are chosen by the trusted side, start at 1 and are never used twice on one link; 0 in a
`Failure` means that it concerns no request. Target ids name loaded linear maps and segments; they
belong to one connection.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from cloister.errors import printable
from cloister.ring.linear import LinearMap

PROTOCOL_VERSION = 1
MAX_FAILURE_CHARS = 500
MAX_TARGETS = 4096
"""Of one connection."""

T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a tensor that is sent or expected."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    @staticmethod
    def of(tensor: np.ndarray) -> "TensorSpec":
        """The spec an array satisfies."""
        return TensorSpec(tensor.dtype, tensor.shape)

    @cached_property
    def nbytes(self) -> int:
        """Exact size of the tensor's bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def admits(self, spec: "TensorSpec") -> bool:
        """Whether a tensor of this spec is what is expected."""
        return spec == self

    def __str__(self) -> str:
        return f"{self.dtype.name} {self.shape}"


@dataclass(frozen=True)
class UnsizedSpec:
    """Type of a tensor that is expected, and of which the sender decides the size.

    sizes    those that are known, None for each other one; None: of any rank
    nbytes   what it takes at most
    """

    dtype: np.dtype
    sizes: tuple[int | None, ...] | None
    nbytes: int

    def admits(self, spec: TensorSpec) -> bool:
        """Whether a tensor of this spec is what is expected."""
        sizes = (None,) * len(spec.shape) if self.sizes is None else self.sizes
        fits = len(sizes) == len(spec.shape) and all(
            known in (None, size) for known, size in zip(sizes, spec.shape, strict=True)
        )
        # Of an empty tensor too, the other sizes have to be ones that an array can have.
        room = math.prod(max(size, 1) for size in spec.shape) * spec.dtype.itemsize
        return fits and spec.dtype == self.dtype and room <= self.nbytes

    def __str__(self) -> str:
        sizes = "any shape" if self.sizes is None else f"({', '.join(map(_size, self.sizes))})"
        return f"{self.dtype.name} {sizes} of at most {self.nbytes} B"


def _size(size: int | None) -> str:
    return "?" if size is None else str(size)


Expected = TensorSpec | UnsizedSpec
"""What an answer must look like."""


class Unchecked(Generic[T]):
    """Something a worker sent: right in type, shape and size, arbitrary in value.

    Its content is reachable in one way only, so that a search for `expose_unchecked` finds every
    place that reads a worker's words. Content of a shared-memory link may still change while it is
    read: a reader loads each word once.
    """

    __slots__ = ("_content",)

    def __init__(self, content: T) -> None:
        self._content = content

    def expose_unchecked(self) -> T:
        """The content, to be checked by the caller or declared unprotected by the plan."""
        return self._content

    def __repr__(self) -> str:
        return "Unchecked(...)"


@dataclass(frozen=True)
class Hello:
    """Opens a connection: the trusted side's protocol version."""

    version: int = PROTOCOL_VERSION


@dataclass(frozen=True)
class Welcome:
    """The worker's answer to `Hello`; name and device are its own claims."""

    version: int
    name: str
    device: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name, most=MAX_FAILURE_CHARS))
        object.__setattr__(self, "device", printable(self.device, most=MAX_FAILURE_CHARS))


@dataclass(frozen=True, eq=False)
class LoadLinear:
    """Keep a linear map under a target id."""

    target_id: int
    linear: LinearMap


@dataclass(frozen=True, eq=False)
class LoadSegment:
    """Keep an ONNX model, run in float32 and in the open, under a target id."""

    target_id: int
    model: bytes


@dataclass(frozen=True)
class Loaded:
    """A linear map or segment is in place."""

    target_id: int


@dataclass(frozen=True, eq=False)
class Apply:
    """Apply a loaded target to tensors."""

    request_id: int
    target_id: int
    tensors: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class MakePads:
    """Make the terms of a block's pads: expand `r` from a seed, apply loaded maps, mask `A r`.

    Secret   seed, and with it every pad of the block (ring/pad_block.py)

    first_id   pad id of the first row; the others follow
    targets    loaded linear maps, in increasing order; each is the domain of its pads too
    offsets    the word of a row at which the terms of each target begin
    words      of a row; those that belong to no target are zero
    """

    request_id: int
    seed: bytes = field(repr=False)
    first_id: int
    rows: int
    targets: tuple[int, ...]
    offsets: tuple[int, ...]
    words: int

    @property
    def answer(self) -> TensorSpec:
        """The only form of the answer: one tensor."""
        return TensorSpec(np.dtype(np.uint32), (self.rows, self.words))


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of a target to a request's tensors, or of a maker to `MakePads`."""

    request_id: int
    tensors: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Failure:
    """The worker could not do what it was asked; the reason in its own words, cut to length."""

    request_id: int
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message, most=MAX_FAILURE_CHARS))


Message = Hello | Welcome | LoadLinear | LoadSegment | Loaded | Apply | MakePads | Answer | Failure
