"""What the owner of samples keeps, and adds, when they are encrypted: their order, and noise."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from cloister.base import files
from cloister.base.rng import Csprng
from cloister.data.dataset import PartInfo
from cloister.data.encoding import Encoding
from cloister.data.feature_noise import GaussianNoise, epsilon, perturb
from cloister.data.info import DatasetInfo
from cloister.data.writer import Chunk
from cloister.errors import InputError


class Order:
    """Which sample of the file is which of the owner's, with the integers that were encoded.

    Secret   all of it: it is the data. In memory until it is written.
    """

    def __init__(self, path: Path, rows: Int64[np.ndarray, " n"]) -> None:
        """Prepare a new file.

        Raises   InputError when it exists
        """
        if path.suffix.lower() != ".npz":
            raise InputError(f"--order {path}: give a file .npz")
        if path.exists():
            raise InputError(f"--order {path}: exists; choose another file")
        self._path, self._rows = path, rows
        self._chunks: list[Chunk] = []

    def watch(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The same chunks, remembered."""
        for chunk in chunks:
            self._chunks.append(chunk)
            yield chunk

    def write(self, part: PartInfo) -> None:
        """Write ids, rows (numbers in the owner's data), x and y.

        Raises   InputError
        """
        try:
            with files.creating(self._path, private=True) as file:
                np.savez(
                    file,
                    ids=np.arange(part.first, part.last, dtype=np.int64),
                    rows=self._rows,
                    x=np.concatenate([chunk.x for chunk in self._chunks]),
                    y=np.concatenate([chunk.labels for chunk in self._chunks]),
                )
        except OSError as error:
            raise InputError(
                f"--order {self._path}: cannot be written ({error.strerror or error})"
            ) from None


def blurred(
    chunks: Iterator[Chunk], noise: GaussianNoise, *, encoding: Encoding, rng: Csprng
) -> Iterator[Chunk]:
    """Chunks with noise on every value, cut to the encoding's range."""
    for chunk in chunks:
        noisy = perturb(encoding.decode(chunk.x), noise, encoding=encoding, rng=rng)
        yield Chunk(encoding.encode(noisy), chunk.labels, chunk.test)


def statement(noise: GaussianNoise, info: DatasetInfo) -> str:
    """What the accountant says about noise on samples.

    Raises   InputError without an accountant
    """
    one, all_of_them = (epsilon(noise, fields=fields) for fields in (1, info.dim))
    return (
        f"noise of {noise.sigma:g} times the range on every value: local differential privacy, "
        f"epsilon {_shown(one)} for one value of a sample, {_shown(all_of_them)} for all "
        f"{info.dim}, at delta {noise.delta:g}; labels are not covered"
    )


def _shown(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "unbounded"
