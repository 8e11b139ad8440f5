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
from cloister.data.columns import Column, PublicRange, public_column
from cloister.data.encoding import Encoding
from cloister.data.feature_noise import GaussianNoise, epsilon, perturb
from cloister.data.info import DatasetInfo, Mode, PartInfo, Targets
from cloister.data.sources import Source
from cloister.data.target_encoding import (
    Ranges,
    TargetEncoder,
    check_target_ranges,
    number_encoding,
)
from cloister.data.writer import Chunk
from cloister.errors import EncryptionError, InputError

MAX_RANGES_BYTES = 1 << 24
LEVELS = "strict|budget=N|paper"
_UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, InputError,
)  # fmt: skip
"""What reading the notes of another program raises."""
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
    ranges        what is public of each column of a table: see `PublicRange`
    classes       names of all classes, labels or numbers
    target_ranges smallest and largest value of each number to be predicted, public
    """

    bits: int | None = None
    value_range: tuple[float, float] | None = None
    ranges: Mapping[str, PublicRange] | None = None
    classes: Sequence[str] | None = None
    target_ranges: Ranges | None = None


@dataclass(frozen=True)
class Notes:
    """The notes of a data set's first owner for later owners: public text in its terms.

    classes         names of the classes, labels or numbers
    target_ranges   smallest and largest value of each number
    """

    kind: str
    classes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    target_ranges: Ranges = field(default_factory=dict)

    def to_json(self) -> str:
        """The text."""
        fields: dict[str, Any] = {"kind": self.kind}
        if self.columns:
            fields["columns"] = [column.to_fields() for column in self.columns]
        if self.target_ranges:
            fields["target_ranges"] = {n: list(ends) for n, ends in self.target_ranges.items()}
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
                tuple(Column.from_fields(one) for one in fields.get("columns") or ()),
                _ends(fields.get("target_ranges") or {}),
            )
            _check_texts(notes)
        except _UNREADABLE:
            raise EncryptionError(
                f"data set {info.name}: was not made by `cloister data encrypt`"
            ) from None
        if not len(notes.classes) == len(set(notes.classes)) == info.classes:
            raise EncryptionError(
                f"data set {info.name}: names {len(notes.classes)} {info.targets}, but has other "
                "ones"
            )
        elements = sum(column.elements for column in notes.columns)
        if (notes.kind == "table") != bool(elements) or elements not in (0, info.dim):
            raise EncryptionError(
                f"data set {info.name}: describes columns of {elements} elements, but has "
                f"{info.dim}"
            )
        if info.targets == "numbers":
            try:
                check_target_ranges(notes.classes, notes.target_ranges)
            except InputError as error:
                raise EncryptionError(f"data set {info.name}: {error}") from None
        elif notes.target_ranges:
            raise EncryptionError(f"data set {info.name}: has ranges of numbers, but no numbers")
        return notes

    @property
    def number_encodings(self) -> tuple[Encoding, ...]:
        """The encodings of the numbers to be predicted, in their order."""
        return tuple(number_encoding(*self.target_ranges[name]) for name in self.classes)

    def positions(self, names: Sequence[str], info: DatasetInfo) -> Int64[np.ndarray, " names"]:
        """The data set's positions of an owner's classes, labels or numbers.

        Raises   InputError naming one the data set does not have, or a label or number of it that
                 the owner's samples lack
        """
        kind = info.targets.removesuffix("es" if info.targets == "classes" else "s")
        listed = ", ".join(self.classes)
        for name in names:
            if name not in self.classes:
                raise InputError(
                    f"{kind} {name!r} is not one of data set {info.name} ({listed}); its first "
                    "client names all of them with --classes"
                )
        missing = [name for name in self.classes if name not in names]
        if missing and info.targets != "classes":
            raise InputError(
                f"{kind} {missing[0]!r} of data set {info.name} is missing: every sample needs a "
                f"value for each of {listed}"
            )
        return np.array([self.classes.index(name) for name in names], np.int64)

    def target_encoder(self, source: Source, info: DatasetInfo) -> TargetEncoder:
        """The encoder of a source's labels.

        Raises   InputError, as `positions`
        """
        return TargetEncoder(
            info.targets,
            info.classes,
            source.labels,
            self.positions(source.names if source.labels is not None else self.classes, info),
            self.classes,
            self.number_encodings if info.targets == "numbers" else (),
            source.where,
        )


def read_ranges(path: Path) -> dict[str, PublicRange]:
    """A file of public ranges.

    Raises   InputError
    """
    described = (
        f'{path}: not a file of ranges {{"column": [low, high]}}, of dates {{"column": '
        '["2000-01-01", "2030-12-31"]}, or of categories {"column": ["a", "b", "c"]}'
    )
    with parsing(described), open_regular(path) as file:
        found = {str(k): tuple(v) for k, v in json.loads(file.read(MAX_RANGES_BYTES)).items()}
        for name, given in found.items():
            public_column(name, given)
    return found


def read_target_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """A file of public ranges of numbers.

    Raises   InputError
    """
    with (
        parsing(f'{path}: not a file of ranges {{"number": [low, high]}}'),
        open_regular(path) as file,
    ):
        return _ends(json.loads(file.read(MAX_RANGES_BYTES)))


def _check_texts(notes: Notes) -> None:
    """Refuse columns that share a name, and texts that no file can hold: half of a character.

    Raises   ValueError
    """
    names = [column.name for column in notes.columns]
    if len(set(names)) < len(names):
        raise ValueError
    for text in (notes.kind, *notes.classes, *names, *(v for c in notes.columns for v in c.values)):
        text.encode()


def _ends(fields: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {str(name): (float(low), float(high)) for name, (low, high) in fields.items()}


class OrderFile:
    """Which sample of the file is which of the owner's, with the integers that were encoded.

    Secret   all of it: it is the data. In memory until it is written.
    """

    def __init__(
        self, path: Path | str, rows: Int64[np.ndarray, " n"], *, targets: Targets
    ) -> None:
        """Prepare a new file.

        Raises   InputError when it exists
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise InputError(f"--order {path}: give a file .npz")
        if path.exists():
            raise InputError(f"--order {path}: exists; choose another file")
        self._path, self._rows, self._targets = path, rows, targets
        self._chunks: list[Chunk] = []

    def watch(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The same chunks, remembered."""
        for chunk in chunks:
            self._chunks.append(chunk)
            yield chunk

    def write(self, part: PartInfo, *, clients: str) -> None:
        """Write ids, rows (numbers in the owner's data), x and y: class numbers of the data set,
        or rows of labels or encoded numbers.

        clients  fingerprint of the data set's clients: ids are those of this data set alone
        Raises   InputError
        """
        y = np.concatenate([chunk.labels for chunk in self._chunks])
        try:
            with files.creating(self._path, private=True) as file:
                np.savez(
                    file,
                    clients=np.array(clients),
                    ids=np.arange(part.first, part.last, dtype=np.int64),
                    rows=self._rows,
                    x=np.concatenate([chunk.x for chunk in self._chunks]),
                    y=y.argmax(axis=1) if self._targets == "classes" else y,
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
