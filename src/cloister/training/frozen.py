"""The frozen first layer: one compressive projection per data set, asked for once per sample.

    f = P x        P: r rows of small integers, r at most the samples' budget
    x' = sqrt(dim / r) P^+ f

The server learns r values of every sample, once and for ever, each under the noise that the
authority adds to leave few bits of it (`cloister.authority.noise`); x' and all that is trained on
it follow from them and cost nothing more. The features are kept on disk, so later epochs and later
runs make no product and ask for no key.

A data set gives values of *one* function. So the random projection does not depend on the run.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int16, Int64
from torch import Tensor, nn

from cloister.base import files
from cloister.base.reading import parsing
from cloister.base.rng import keystream
from cloister.data.info import RING_LIMIT, DatasetInfo
from cloister.errors import EncryptionError, FunctionError, ShapeError
from cloister.ring.bounds import most_at_once
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.rank import MERSENNE_61, Basis
from cloister.training.checkpoint import replace, writing
from cloister.training.layers import FirstLayerProducts

CHUNK = 512
WEIGHT_LIMIT = 127
TIE_MARGIN = 2.0**-20
"""How far from a half a number is that rounds down. The cosines have exact halves, which errors of
2^-40, another on each processor and linear algebra library, would round either way."""
MAX_DRAWS = 64
FEATURES, STATE = "features.f32", "features.json"


@dataclass(frozen=True, eq=False)
class Projection:
    """Rows of length one, and the integers that stand for them: rows = integers / norms.

    Public   all of it
    """

    linear: LinearMap
    rows: Float64[np.ndarray, "r dim"]
    norms: Float64[np.ndarray, " r"]

    @property
    def rank(self) -> int:
        """How many numbers of a sample it gives away."""
        return len(self.rows)


def random_projection(info: DatasetInfo, *, seed: int = 0, rank: int | None = None) -> Projection:
    """Random rows of +1 and -1; the same seed gives the same rows everywhere they are public.

    Raises   FunctionError when the rank is zero or above the budget
    """
    rank = info.budget_rank if rank is None else rank
    _check_rank(info, rank)
    for attempt in range(MAX_DRAWS):
        # Signs in few dimensions may depend on each other; then all runs take the next draw.
        name = b"cloister signs" + seed.to_bytes(16, "big") + attempt.to_bytes(4, "big")
        words = keystream(hashlib.sha256(name).digest(), bytes(12), rank * info.dim)
        signs = 1 - 2 * (words & np.uint32(1)).astype(np.int16).reshape(rank, info.dim)
        if _is_independent(signs):
            return _of_integers(info, signs)
    raise FunctionError(
        f"projection: no {rank} independent rows of signs on {info.dim} values; use a lower rank"
    )


def default_projection(info: DatasetInfo, *, rank: int | None = None) -> Projection:
    """The projection of a data set by default: public, and the same for every run.

    Pictures: their lowest spatial frequencies, a thumbnail as smooth as a server needs it. Anything
    else: random signs. Measured in docs/adr/0007: on MNIST, 49 low frequencies train better than
    196 random functions and give an attacker 5 dB less.
    """
    if info.is_picture:
        return low_frequencies(info, rank=rank)
    return random_projection(info, rank=rank)


def low_frequencies(info: DatasetInfo, *, rank: int | None = None) -> Projection:
    """The two-dimensional cosine functions of lowest frequency, channel by channel.

    Raises   FunctionError when the rank is zero or above the budget
    """
    rank = info.budget_rank if rank is None else rank
    _check_rank(info, rank)
    height, width, channels = info.shape
    places = np.indices((height, width, channels)).reshape(3, -1)
    order = np.lexsort((places[2], (places[0] / height) ** 2 + (places[1] / width) ** 2))
    i, j, c = places[:, order[:rank]]
    rows = np.einsum("rh,rw,rc->rhwc", _cosines(height)[i], _cosines(width)[j], np.eye(channels)[c])
    return projection(info, rows.reshape(rank, -1))


def _cosines(size: int) -> Float64[np.ndarray, "size size"]:
    """Row k: a cosine with k half waves."""
    k = np.arange(size)
    return np.asarray(np.cos(np.pi * (k[None] + 0.5) * k[:, None] / size), np.float64)


def projection(info: DatasetInfo, rows: Float[np.ndarray, "r dim"]) -> Projection:
    """The projection onto the span of given rows, such as principal components of public data.

    Shapes   rows: (r, h * w * c), channels last
    Error    rows are made orthonormal, then rounded to integers of 8 bits, or of fewer where the
             samples are so large that their products would exceed 31 bits. The integers of
             well-conditioned rows, such as cosines or principal components, are the same on every
             machine, unless a number lies within 2^-40 of a half less TIE_MARGIN
    Raises   ShapeError, FunctionError when r is zero, above the budget, or not the rows' rank
    """
    if rows.ndim != 2 or rows.shape[1] != info.dim:
        raise ShapeError(f"projection: rows must be (r, {info.dim}), got {rows.shape}")
    _check_rank(info, len(rows))
    q, r = np.linalg.qr(rows.astype(np.float64).T)
    orthonormal = (q * np.sign(np.diag(r))).T
    magnitudes = np.abs(orthonormal)
    # Half of the ring is for A x, with what rounding may add to it; the rest is for noise.
    room = RING_LIMIT / 2 / info.encoding.bound - info.dim / 2
    scale = min(WEIGHT_LIMIT / magnitudes.max(), room / magnitudes.sum(axis=1).max())
    rounded = np.ceil(magnitudes * max(scale, 0.0) - 0.5 - TIE_MARGIN)
    integers = np.copysign(rounded, orthonormal).astype(np.int16)
    # The second test: what is almost dependent may be so once it is rounded.
    independent = np.abs(np.diag(r)).min() > 1e-9 * np.abs(r).max()
    if not independent or not _is_independent(integers):
        raise FunctionError("projection: its rows depend on each other; give independent ones")
    return _of_integers(info, integers)


def _check_rank(info: DatasetInfo, rank: int) -> None:
    if info.budget_rank == 0:
        raise FunctionError(
            f"data set {info.name!r}: its budget of 0 functions gives the server nothing; train "
            "with --unblind-to trusted, or encrypt with --privacy budget=N"
        )
    if not 1 <= rank <= info.budget_rank:
        raise FunctionError(
            f"projection: rank {rank} of data set {info.name!r}; "
            f"its budget allows 1 to {info.budget_rank}"
        )


def _is_independent(rows: Int16[np.ndarray, "r dim"]) -> bool:
    """Whether integer rows are independent: exact, so that every machine decides the same.

    Domain   entries of up to 8 bits: products are sums of up to 2^24 terms, exact in float64
    """
    wide = rows.astype(np.float64)
    products = (wide @ wide.T).astype(np.int64)  # of the rank that the rows have
    return Basis.empty(len(rows), modulus=MERSENNE_61).extend(products)[1] == len(rows)


def _of_integers(info: DatasetInfo, integers: Int16[np.ndarray, "r dim"]) -> Projection:
    norms = np.linalg.norm(integers.astype(np.float64), axis=1)
    height, width, channels = info.shape
    geometry = Geometry((height, width), channels, (1, 1), len(integers), (height, width))
    linear = LinearMap(geometry, integers.reshape(geometry.weight_shape))
    return Projection(linear, integers / norms[:, None], norms)


class Lift(nn.Module):
    """Features (n, r) back to samples (n, c, h, w): the same span, the same average energy."""

    def __init__(self, chosen: Projection, shape: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, channels = shape
        inverse = np.ascontiguousarray(np.linalg.pinv(chosen.rows).T)
        rows = inverse.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        gain = math.sqrt(chosen.rows.shape[1] / chosen.rank)
        matrix = torch.from_numpy(np.ascontiguousarray(rows * gain).astype(np.float32))
        self._shape = (channels, height, width)
        self._matrix: Tensor
        self.register_buffer("_matrix", matrix.flatten(1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """x' of a batch."""
        return (features @ self._matrix).view(-1, *self._shape)


class Progress(Protocol):
    """Receives how many samples of how many are projected."""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total`."""
        ...


class Features:
    """Projected samples, row i for sample ids[i]; computed once, kept in a folder if there is one.

    identity   the data set's: the samples of another of the same size have other features

    Raises   EncryptionError when the folder holds the features of another data set or projection
    """

    def __init__(
        self,
        chosen: Projection,
        ids: Int64[np.ndarray, " n"],
        *,
        info: DatasetInfo,
        identity: str,
        folder: Path | None,
    ) -> None:
        self._chosen = chosen
        self._ids = ids
        self._info = info
        self._folder = folder
        self._digest = _digest(chosen, ids, info, identity)
        self.done = self._read_state()
        self._rows: Float32[np.ndarray, "n r"] = self._open((len(ids), chosen.rank))

    def complete(self, products: FirstLayerProducts, *, update: Callable[[int, int], None]) -> None:
        """Project what is missing; a chunk is either kept or asked for again, which is free."""
        encoding = self._info.encoding.normalised
        scale = encoding.scale / self._chosen.norms
        constant = self._chosen.rows.sum(axis=1) * encoding.offset
        step = min(CHUNK, most_at_once(self._info, self._chosen.linear.geometry))
        while self.done < len(self._ids):
            part = slice(self.done, min(self.done + step, len(self._ids)))
            values = products.forward(self._ids[part], self._chosen.linear).integers()
            self._rows[part] = values.reshape(len(values), -1) * scale + constant
            self.done = part.stop
            self._write_state()
            update(self.done, len(self._ids))

    def tensor(self) -> Tensor:
        """All features, float32 (n, r)."""
        return torch.from_numpy(np.array(self._rows))

    def _open(self, shape: tuple[int, int]) -> Float32[np.ndarray, "n r"]:
        if self._folder is None:
            return np.zeros(shape, np.float32)
        path, size = self._folder / FEATURES, 4 * shape[0] * shape[1]
        if self.done and (not path.exists() or path.stat().st_size != size):
            raise EncryptionError(
                f"{path}: missing or of another length than {STATE} says; remove {STATE}, keys are "
                "free again"
            )
        with writing(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            # What the server may not see is in it where a trusted runtime unblinds.
            if not self.done:
                path.unlink(missing_ok=True)
            descriptor = files.open_in_place(path, "old" if self.done else "new", private=True)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(size)
                # Through a mapping, a full disk would be a signal that ends the process.
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, np.float32, "r+", shape=shape)

    def _read_state(self) -> int:
        path = None if self._folder is None else self._folder / STATE
        if path is None or not path.exists():
            return 0
        with parsing(f"{path}: damaged; remove it, keys are free again", kind=EncryptionError):
            state = json.loads(path.read_text(encoding="ascii"))
            digest, done = state["digest"], int(state["done"])
        if digest != self._digest:
            raise EncryptionError(
                f"{path}: features of another data set or projection; use another --checkpoint"
            )
        return min(done, len(self._ids))

    def _write_state(self) -> None:
        if self._folder is None:
            return
        if isinstance(self._rows, np.memmap):
            self._rows.flush()
        with (self._folder / FEATURES).open("rb") as file:
            os.fsync(file.fileno())
        state = json.dumps({"digest": self._digest, "done": self.done})
        replace(self._folder / STATE, state.encode("ascii"))


def _digest(
    chosen: Projection, ids: Int64[np.ndarray, " n"], info: DatasetInfo, identity: str
) -> str:
    # Samples that are registered and not in the file, as a killed client's, are none of these.
    found = hashlib.sha256(dataclasses.replace(info, samples=0).to_json())
    found.update(identity.encode())
    found.update(chosen.linear.weights.tobytes())
    found.update(ids.tobytes())
    return found.hexdigest()
