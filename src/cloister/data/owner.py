"""The options and notes of an owner who encrypts samples.

The first owner of a data set decides its privacy and its description. Later owners read both from
the first owner's notes and terms, and accept at most the privacy of their own options. An owner may
add noise, and keeps the order of the samples.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.base.rng import Csprng
from cloister.data.encoding import Encoding
from cloister.data.feature_noise import GaussianNoise, epsilon, perturb
from cloister.data.info import DatasetInfo, Mode, PartInfo
from cloister.data.writer import Chunk
from cloister.errors import EncryptionError, InputError

MAX_RANGES_BYTES = 1 << 24
LEVELS = "strict|budget=N|paper"
_LEVEL = re.compile(r"strict|paper|budget=([0-9]{1,9})")


@dataclass(frozen=True)
class Privacy:
    """The privacy of a data set: its first owner decides it for all samples.

    level            strict: the default budget, a quarter of a sample's elements, of a picture from
                     16x16 pixels one sixteenth (docs/adr/0007). budget=N: a server gets values of
                     at most N independent functions of a sample. paper: CryptoNN as published, no
                     limit.
    value_bits       bits that one value tells at most, by noise; 32: exact. None: 8
    max_bits         bits that all values of a sample tell. None: 8 for each function of the budget
    many_functions   a server gets values of several functions, and gradients, within the budget
    labels_to        who may get (permuted) labels: server or trusted
    evaluations      sums over labels, for accuracies and losses, that a server gets all the same
    allow_unbounded_leakage   the consent that level paper needs, and only it takes

    Raises   InputError
    """

    level: str = "strict"
    value_bits: int | None = None
    max_bits: int | None = None
    many_functions: bool = False
    labels_to: str = "server"
    evaluations: int = 0
    allow_unbounded_leakage: bool = False

    def __post_init__(self) -> None:
        if not _LEVEL.fullmatch(self.level):
            raise InputError(f"privacy {self.level}: give {LEVELS}")
        if self.labels_to not in ("server", "trusted"):
            raise InputError(f"labels_to {self.labels_to}: server or trusted")
        if self.evaluations and self.labels_to != "trusted":
            raise InputError(
                "evaluations are for labels_to trusted: a server that gets the labels needs none"
            )
        if (self.mode == "paper") != self.allow_unbounded_leakage:
            raise InputError(
                f"privacy {self.level}: privacy paper gives every sample away; it needs, and only "
                "it takes, allow_unbounded_leakage (--allow-unbounded-leakage)"
            )
        if self.mode == "paper" and self.limits_values:
            raise InputError(
                "privacy paper has no limits: leave out value_bits, max_bits and many_functions"
            )

    @property
    def mode(self) -> Mode:
        """Whether a request beyond the budget is refused, or only counted."""
        return "paper" if self.level == "paper" else "budgeted"

    @property
    def budget_rank(self) -> int | None:
        """The N of budget=N."""
        found = _LEVEL.fullmatch(self.level)
        return int(found[1]) if found is not None and found[1] else None

    @property
    def limits_values(self) -> bool:
        """Whether anything is said about the values that are given away within the budget."""
        return self.many_functions or (self.value_bits, self.max_bits) != (None, None)


@dataclass(frozen=True)
class NewDataset:
    """How a new data set is described; None: as the samples of its first owner suggest.

    bits          signed bits of a value
    value_range   smallest and largest value of all, public
    ranges        the same for each column of a table
    classes       names of all classes
    """

    bits: int | None = None
    value_range: tuple[float, float] | None = None
    ranges: Mapping[str, tuple[float, float]] | None = None
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class Notes:
    """The notes of a data set's first owner for later owners: public text in its terms."""

    kind: str
    classes: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text."""
        fields: dict[str, Any] = {"kind": self.kind}
        if self.ranges:
            fields["ranges"] = {column: list(ends) for column, ends in self.ranges.items()}
        return json.dumps(fields | {"classes": list(self.classes)})

    @staticmethod
    def read(text: str, info: DatasetInfo) -> "Notes":
        """The notes of a data set.

        Raises   EncryptionError
        """
        try:
            fields = json.loads(text)
            notes = Notes(
                str(fields["kind"]),
                tuple(str(name) for name in fields["classes"]),
                _ranges(fields.get("ranges") or {}),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise EncryptionError(
                f"data set {info.name}: was not made by `cloister data encrypt`"
            ) from None
        if len(set(notes.classes)) != info.classes:
            raise EncryptionError(
                f"data set {info.name}: names {len(notes.classes)} classes, but has other ones"
            )
        return notes

    def numbers(self, names: Sequence[str], *, dataset: str) -> Int64[np.ndarray, " names"]:
        """The data set's numbers of an owner's classes.

        Raises   InputError naming a class the data set does not have
        """
        for name in names:
            if name not in self.classes:
                raise InputError(
                    f"class {name!r} is not one of data set {dataset} ({', '.join(self.classes)}); "
                    "its first client names all of them with --classes"
                )
        return np.array([self.classes.index(name) for name in names], np.int64)


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """A file of public ranges.

    Raises   InputError
    """
    described = f'{path}: not a file of ranges {{"column": [low, high]}}'
    with parsing(described), open_regular(path) as file:
        return _ranges(json.loads(file.read(MAX_RANGES_BYTES)))


def _ranges(fields: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {str(name): (float(low), float(high)) for name, (low, high) in fields.items()}


class OrderFile:
    """Which sample of the file is which of the owner's, with the integers that were encoded.

    Secret   all of it: it is the data. In memory until it is written.
    """

    def __init__(self, path: Path | str, rows: Int64[np.ndarray, " n"]) -> None:
        """Prepare a new file.

        Raises   InputError when it exists
        """
        path = Path(path)
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


def add_noise(
    chunks: Iterator[Chunk], noise: GaussianNoise, *, encoding: Encoding, rng: Csprng
) -> Iterator[Chunk]:
    """Chunks with noise on every value, cut to the encoding's range."""
    for chunk in chunks:
        noisy = perturb(encoding.decode(chunk.x), noise, encoding=encoding, rng=rng)
        yield Chunk(encoding.encode(noisy), chunk.labels, chunk.flags)


def noise_statement(noise: GaussianNoise, info: DatasetInfo) -> str:
    """The accountant's statement about noise on samples.

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
