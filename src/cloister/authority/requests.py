"""Requests about the samples of a data set, as values: forward values, gradients, labels, and sums
over labels.

A request goes to two sides: the ciphertext server computes a map of the blinded samples, and the
authority the same map of the pads, for which it charges. Every variant of either side (local,
remote, recorded, timed) therefore has one method, `ask`. A request has one encoding: `fields` and
`tensors` are those of an HTTPS message and of a record of the request log.

`Forward` and `Gradient` name the function of each of their samples that an answer gives away, and
the rows of weights that their functions are made of. Rules, price and noise receive only these, so
neither kind has rules of its own. The rules of an `Evaluation` are in `label_sums`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Int16, Int64, UInt32

from cloister.authority.functions import Cuts, Function, Rows, Slice, magnitudes
from cloister.data.info import RING_LIMIT, DatasetInfo
from cloister.errors import FunctionError, ProtocolError, ShapeError
from cloister.ring import pads
from cloister.ring.bounds import Described, check_count, check_size
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.ring_map import RingMap
from cloister.wire.https.bodies import Body

Kind = Literal["forward", "gradient", "labels", "evaluation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LABELS_AT_ONCE = 1 << 22
"""Elements of labels that are multiplied together, whatever the number of samples."""
Functions: TypeAlias = Iterator[tuple[Function, Int64[np.ndarray, " m"]]]
Pieces: TypeAlias = Iterable[tuple[slice, UInt32[np.ndarray, "m h w c"]]]
"""Words of a request's samples, with their places: all in order, some at a time."""


class _Asked:
    """The common part of all requests.

    kind           also the operation of a service
    geometry       of the linear map that is asked for; None: of none
    operand        integers that are sent: weights or deltas; none where it is empty
    answer_shape   of the array that either side gives; None: the number of classes
    """

    kind: ClassVar[Kind]
    dataset: str
    ids: Int64[np.ndarray, " n"]
    geometry: Geometry | None
    operand: Int16[np.ndarray, "..."]
    answer_shape: tuple[int | None, ...]

    @property
    def fields(self) -> dict[str, Any]:
        """The request's JSON values in a message or record."""
        named: dict[str, Any] = {"dataset": self.dataset}
        return named | ({"geometry": self.geometry.to_fields()} if self.geometry else {})

    @property
    def tensors(self) -> tuple[np.ndarray, ...]:
        """The request's arrays in a message or record."""
        return (self.ids, self.operand) if self.operand.size else (self.ids,)

    def check(self, described: Described) -> None:
        """Refuse a request for other samples, or for too much at once.

        Raises   FunctionError
        """
        check_count(described, len(self.ids))
        if self.geometry is not None:
            check_size(described, self.geometry, len(self.ids))

    def answered_by(self, array: np.ndarray) -> bool:
        """Whether an array has the shape of an answer."""
        found, wanted = array.shape, self.answer_shape
        return len(found) == len(wanted) and all(
            size is None or size == got for size, got in zip(wanted, found, strict=True)
        )

    def answer(self, message: Body) -> UInt32[np.ndarray, "..."]:
        """The array of an answer.

        Raises   ProtocolError when it is of another shape
        """
        array = message.array(0, np.uint32, len(self.answer_shape))
        if not self.answered_by(array):
            raise ProtocolError(f"answered {array.shape}, asked for {self.answer_shape}")
        return array

    def _set(self, **derived: object) -> None:
        if self.ids.dtype != np.int64 or self.ids.ndim != 1:
            raise ShapeError(
                f"sample ids must be an int64 vector, got {self.ids.dtype} {self.ids.shape}"
            )
        for name, value in derived.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Labels(_Asked):
    """The one-hot label of each sample.

    Raises   ShapeError for ids that are no int64 vector, or arrays that do not fit them
    """

    dataset: str
    ids: Int64[np.ndarray, " n"]

    kind: ClassVar[Kind] = "labels"

    def __post_init__(self) -> None:
        self._set(geometry=None, operand=np.empty(0, np.int16), answer_shape=(len(self.ids), None))

    def copied(self) -> "Labels":
        """The same with arrays of its own."""
        return Labels(self.dataset, np.array(self.ids, order="C"))


@dataclass(frozen=True, eq=False)
class Forward(_Asked):
    """A x_i for each sample: one function for all, and a value of its own for each.

    Raises   ShapeError for ids that are no int64 vector, or arrays that do not fit them
    """

    dataset: str
    ids: Int64[np.ndarray, " n"]
    linear: LinearMap
    geometry: Geometry = field(init=False)

    kind: ClassVar[Kind] = "forward"

    def __post_init__(self) -> None:
        geometry, weights = self.linear.geometry, self.linear.weights
        shape = (len(self.ids), *geometry.out_shape)
        self._set(geometry=geometry, operand=weights, answer_shape=shape)

    def copied(self) -> "Forward":
        """The same with arrays of its own: it is charged and computed on the same integers."""
        linear = LinearMap(self.geometry, np.array(self.linear.weights))
        return Forward(self.dataset, np.array(self.ids, order="C"), linear)

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Shape of the values that are given away of one sample."""
        return self.geometry.out_shape

    @cached_property
    def function(self) -> Rows:
        """The function that is released of every sample."""
        return Rows(self.linear)

    def functions(self) -> Functions:
        """The functions, each with the places of its samples in the request; all, and each once."""
        yield self.function, np.arange(len(self.ids))

    @property
    def rows(self) -> Int16[np.ndarray, "o kh kw c"]:
        """The weights of all functions, without repeating those that differ by their place."""
        return self.linear.weights

    @property
    def cuts(self) -> Cuts:
        """What padding leaves of these rows."""
        return Cuts.of_forward(self.geometry)

    def check_range(self, info: DatasetInfo, noises: Sequence[int] = ()) -> None:
        """Refuse what could make an answer wrap: |value| < 2^31 must be certain.

        noises   largest noise that each function adds to a sample's values
        Raises   FunctionError
        """
        _check_range(info, self.function.norm, max(noises, default=0), what="an output's weights")

    def image(self, pieces: Pieces, *, threads: int) -> UInt32[np.ndarray, "n oh ow oc"]:
        """The map of words: of pads the unblinding term, of ciphertexts the blinded values."""
        out = np.empty((len(self.ids), *self.geometry.out_shape), np.uint32)
        ring = RingMap(self.linear)
        for some, words in pieces:
            ring.apply(np.ascontiguousarray(words), out=out[some], threads=threads)
        return out

    def subtract_noise(
        self,
        term: UInt32[np.ndarray, "n oh ow oc"],
        places: Int64[np.ndarray, " m"],
        noise: UInt32[np.ndarray, "m oh ow oc"],
    ) -> None:
        """Subtract the noise of some samples from the unblinding term, in place."""
        term[places] -= noise


@dataclass(frozen=True, eq=False)
class Gradient(_Asked):
    """The sum over a batch of delta_i x_i: a function for each sample, one value of all of them.

    Raises   ShapeError for ids that are no int64 vector, or arrays that do not fit them
    """

    dataset: str
    ids: Int64[np.ndarray, " n"]
    geometry: Geometry
    delta: Int16[np.ndarray, "n oh ow oc"]

    kind: ClassVar[Kind] = "gradient"

    def __post_init__(self) -> None:
        wanted = (len(self.ids), *self.geometry.out_shape)
        if self.delta.shape != wanted or self.delta.dtype != np.int16:
            raise ShapeError(
                f"delta must be int16 {wanted}, got {self.delta.dtype} {self.delta.shape}"
            )
        self._set(operand=self.delta, answer_shape=self.geometry.weight_shape)

    def check(self, described: Described) -> None:
        """See `_Asked`; a batch has no sample twice."""
        super().check(described)
        if len(np.unique(self.ids)) != len(self.ids):
            raise FunctionError(f"data set {self.dataset}: a gradient names a sample twice")

    def copied(self) -> "Gradient":
        """See `Forward`."""
        ids = np.array(self.ids, order="C")
        return Gradient(self.dataset, ids, self.geometry, np.array(self.delta))

    @property
    def value_shape(self) -> tuple[int, ...]:
        """See `Forward`."""
        return self.geometry.weight_shape

    @cached_property
    def slices(self) -> list[Slice]:
        """The functions that are released, one of each sample."""
        return [Slice(self.geometry, delta) for delta in self.delta]

    def functions(self) -> Functions:
        """See `Forward`."""
        for place, function in enumerate(self.slices):
            yield function, np.array([place])

    @property
    def rows(self) -> Int16[np.ndarray, "rows oh ow 1"]:
        """See `Forward`."""
        return self.delta.transpose(0, 3, 1, 2).reshape(-1, *self.geometry.out_size, 1)

    @property
    def cuts(self) -> Cuts:
        """See `Forward`."""
        return Cuts.of_gradient(self.geometry)

    def check_range(self, info: DatasetInfo, noises: Sequence[int] = ()) -> None:
        """See `Forward`."""
        flat = magnitudes(self.delta).reshape(-1, self.delta.shape[-1])
        norm = int(flat.sum(axis=0, dtype=np.int64).max(initial=0))
        _check_range(info, norm, sum(noises), what="a channel's deltas")

    def image(self, pieces: Pieces, *, threads: int) -> UInt32[np.ndarray, "o kh kw c"]:
        """See `Forward`."""
        out: UInt32[np.ndarray, "o kh kw c"] | None = None
        for some, words in pieces:
            part = pads.gradient(self.geometry, self.delta[some], words, threads=threads)
            # Modulo 2^32, in which the whole sum is.
            out = part if out is None else np.add(out, part, out=part)
        return np.zeros(self.geometry.weight_shape, np.uint32) if out is None else out

    def subtract_noise(
        self,
        term: UInt32[np.ndarray, "o kh kw c"],
        places: Int64[np.ndarray, " m"],
        noise: UInt32[np.ndarray, "m o kh kw c"],
    ) -> None:
        """See `Forward`."""
        term -= noise.sum(axis=0, dtype=np.uint32)


@dataclass(frozen=True, eq=False)
class Evaluation(_Asked):
    """The sum over samples of <w_i, y_i>: one value of the labels y of all of them.

    With w_i the one-hot predicted class it counts right answers, with w_i = -log p_i the loss.

    Raises   ShapeError for ids that are no int64 vector, or arrays that do not fit them
    """

    dataset: str
    ids: Int64[np.ndarray, " n"]
    weights: Int16[np.ndarray, "n classes"]

    kind: ClassVar[Kind] = "evaluation"

    def __post_init__(self) -> None:
        found = self.weights
        if found.ndim != 2 or len(found) != len(self.ids) or found.dtype != np.int16:
            raise ShapeError(
                f"weights must be int16 ({len(self.ids)}, classes), got {found.dtype} {found.shape}"
            )
        self._set(geometry=None, operand=found, answer_shape=(1,))

    def check(self, described: Described) -> None:
        """See `_Asked`; no sample counts twice."""
        super().check(described)
        if self.weights.shape[1] != described.classes:
            raise FunctionError(
                f"data set {self.dataset}: labels have {described.classes} elements, the weights "
                f"{self.weights.shape[1]}"
            )
        if len(np.unique(self.ids)) != len(self.ids):
            raise FunctionError(f"data set {self.dataset}: an evaluation names a sample twice")

    def copied(self) -> "Evaluation":
        """See `Forward`."""
        return Evaluation(self.dataset, np.array(self.ids, order="C"), np.array(self.weights))

    @cached_property
    def digest(self) -> bytes:
        """Its name: the same weights for the same samples in the same order have the same."""
        digest = hashlib.sha256(b"evaluation" + self.ids.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.weights, "<i2").tobytes())
        return digest.digest()

    def image(self, labels: UInt32[np.ndarray, "n classes"]) -> UInt32[np.ndarray, " 1"]:
        """The sum of words: of pads the unblinding term, of ciphertexts the blinded value."""
        total = np.zeros(1, np.uint32)
        step = max(1, LABELS_AT_ONCE // max(1, self.weights.shape[1]))
        for start in range(0, len(labels), step):
            weights = self.weights[start : start + step].astype(np.int32).view(np.uint32)
            # Modulo 2^32, in which the whole sum is.
            total += np.sum(weights * labels[start : start + step], dtype=np.uint32)
        return total


LinearRequest: TypeAlias = Forward | Gradient
Request: TypeAlias = Forward | Gradient | Labels | Evaluation


def read_request(kind: Kind, message: Body) -> Request:
    """The request of a message or record; its arrays may be views of what was received.

    Raises   ProtocolError, ShapeError
    """
    dataset, ids = message.text("dataset"), message.array(0, np.int64, 1)
    if kind == "labels":
        return Labels(dataset, ids)
    if kind == "evaluation":
        return Evaluation(dataset, ids, message.array(1, np.int16, 2))
    geometry = Geometry.from_fields(message.mapping("geometry"))
    operand = message.array(1, np.int16, 4)
    if kind == "forward":
        return Forward(dataset, ids, LinearMap(geometry, operand))
    return Gradient(dataset, ids, geometry, operand)


def _check_range(info: DatasetInfo, norm: int, noise: int, *, what: str) -> None:
    if norm * info.encoding.bound >= RING_LIMIT:
        raise FunctionError(
            f"data set {info.name}: {what} sum to {norm} in magnitude, at most "
            f"{info.row_norm_limit} is allowed; use a coarser scale"
        )
    if norm * info.encoding.bound + noise >= RING_LIMIT:
        raise FunctionError(
            f"data set {info.name}: {what} are too large for noise; use a coarser scale"
        )
