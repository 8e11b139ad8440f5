"""The frozen first layer: one compressive projection per data set, asked for once per sample.

    f = P x        P: r orthonormal rows, r at most the samples' budget
    x' = sqrt(dim / r) P^T f

The server learns r numbers of every sample, once and for ever; x' and all that is trained on it
follow from them and cost nothing more. The features are kept on disk, so later epochs and later
runs make no product and ask for no key.
"""

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
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn

from cloister.crypto.csprng import pad_stream
from cloister.errors import EncryptionError, FunctionError, ShapeError
from cloister.fe.keyservice import DatasetInfo
from cloister.field.linear import Geometry, LinearMap
from cloister.training.checkpoint import replace
from cloister.training.layers import FirstLayerProducts, fixed_point

CHUNK = 512
FEATURES, STATE = "features.f32", "features.json"


@dataclass(frozen=True, eq=False)
class Projection:
    """Orthonormal rows, and the integers that stand for them: rows = integers * 2^-exponent.

    Public   all of it
    """

    linear: LinearMap
    rows: Float64[np.ndarray, "r dim"]
    exponent: int

    @property
    def rank(self) -> int:
        """How many numbers of a sample it gives away."""
        return len(self.rows)


def random_projection(info: DatasetInfo, *, seed: int, rank: int | None = None) -> Projection:
    """Random orthonormal rows; the same seed gives the same rows everywhere they are public."""
    rank = info.budget_rank if rank is None else rank
    # A rank of zero has no rows to draw; `projection` explains.
    key = hashlib.sha256(b"cloister projection" + seed.to_bytes(16, "big")).digest()
    words = pad_stream(key, bytes(12), 2 * max(rank, 0) * info.dim).astype(np.float64)
    u, v = (words + 0.5).reshape(2, -1) / 2.0**32
    normal = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    return projection(info, normal.reshape(max(rank, 0), info.dim))


def projection(info: DatasetInfo, rows: Float[np.ndarray, "r dim"]) -> Projection:
    """The projection onto the span of given rows, such as principal components of public data.

    Shapes   rows: (r, h * w * c), channels last
    Raises   ShapeError, FunctionError when r is zero, above the budget, or not the rows' rank
    """
    if rows.ndim != 2 or rows.shape[1] != info.dim:
        raise ShapeError(f"projection: rows must be (r, {info.dim}), got {rows.shape}")
    if not 1 <= len(rows) <= info.budget_rank:
        raise FunctionError(
            f"projection: rank {len(rows)} of data set {info.name!r}; "
            f"its budget allows 1 to {info.budget_rank}"
        )
    q, r = np.linalg.qr(rows.astype(np.float64).T)
    if np.abs(np.diag(r)).min() <= 1e-9 * np.abs(r).max():
        raise FunctionError("projection: its rows depend on each other; give independent ones")
    orthonormal = np.ascontiguousarray((q * np.sign(np.diag(r))).T)
    fixed = fixed_point(
        torch.from_numpy(orthonormal), terms=(1,), x_bound=info.encoding.bound, bits=16
    )
    height, width, channels = info.shape
    geometry = Geometry((height, width), channels, (1, 1), len(rows), (height, width))
    integers = fixed.integers.numpy().reshape(geometry.weight_shape)
    return Projection(LinearMap(geometry, integers), orthonormal, fixed.exponent)


class Lift(nn.Module):
    """Features (n, r) back to samples (n, c, h, w): the same span, the same average energy."""

    def __init__(self, chosen: Projection, shape: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, channels = shape
        rows = chosen.rows.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        gain = math.sqrt(chosen.rows.shape[1] / chosen.rank)
        matrix = torch.from_numpy(np.ascontiguousarray(rows * gain).astype(np.float32))
        self._shape = (channels, height, width)
        self._matrix: Tensor
        self.register_buffer("_matrix", matrix.flatten(1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """x' of a batch."""
        return (features @ self._matrix).view(-1, *self._shape)


class Progress(Protocol):
    """Told how many samples of how many are projected."""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total`."""
        ...


class Features:
    """Projected samples, row i for sample ids[i]; computed once, kept in a folder if there is one.

    Raises   EncryptionError when the folder holds the features of another data set or projection
    """

    def __init__(
        self,
        chosen: Projection,
        ids: Int64[np.ndarray, " n"],
        *,
        info: DatasetInfo,
        folder: Path | None,
    ) -> None:
        self._chosen = chosen
        self._ids = ids
        self._info = info
        self._folder = folder
        self._digest = _digest(chosen, ids, info)
        self._rows: Float32[np.ndarray, "n r"] = self._open((len(ids), chosen.rank))
        self.done = self._read_state()

    def complete(self, products: FirstLayerProducts, *, update: Callable[[int, int], None]) -> None:
        """Project what is missing; a chunk is either kept or asked for again, which is free."""
        scale = self._info.encoding.scale * 2.0**-self._chosen.exponent
        constant = self._chosen.rows.sum(axis=1) * self._info.encoding.offset
        while self.done < len(self._ids):
            part = slice(self.done, min(self.done + CHUNK, len(self._ids)))
            values = products.forward(self._ids[part], self._chosen.linear)
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
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / FEATURES
        with path.open("ab") as file:
            file.truncate(4 * shape[0] * shape[1])
        return np.memmap(path, np.float32, "r+", shape=shape)

    def _read_state(self) -> int:
        path = None if self._folder is None else self._folder / STATE
        if path is None or not path.exists():
            return 0
        try:
            state = json.loads(path.read_text(encoding="ascii"))
            digest, done = state["digest"], int(state["done"])
        except (ValueError, KeyError, TypeError) as error:
            raise EncryptionError(f"{path}: damaged; remove it, keys are free again") from error
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


def _digest(chosen: Projection, ids: Int64[np.ndarray, " n"], info: DatasetInfo) -> str:
    found = hashlib.sha256(info.to_json())
    found.update(chosen.linear.weights.tobytes())
    found.update(ids.tobytes())
    return found.hexdigest()
