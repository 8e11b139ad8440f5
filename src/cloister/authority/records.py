"""The records that the authority stores of data sets, and the folder that holds them."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from cloister.authority import database
from cloister.authority.account import LedgerLimits, Tally
from cloister.authority.noise import EXACT_BITS
from cloister.base.identity import Identity, new_folder
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.data.id_spans import NO_IDS, IdSpans
from cloister.data.info import DatasetInfo, PartInfo
from cloister.errors import EncryptionError, InputError
from cloister.ring.bounds import MAX_PARTS, MAX_SAMPLES
from cloister.ring.rank import random_modulus

DEFAULT_VALUE_BITS = 8
"""Noise that training hardly notices: on MNIST 0.3 points of accuracy or none (docs/adr/0007)."""
MOST_BITS = 1 << 48
"""No data set's samples have as many bits; every party can say and compare such a number."""
MAX_NOTES_BYTES = 1 << 16
MAX_EVALUATIONS = 1 << 16


@dataclass(frozen=True)
class Terms:
    """The decisions of a data set's owner besides its description.

    max_bits       bits of values that may be released of each sample to the server; None: eight
                   (or an element's, if it has fewer) for each function of the budget
    value_bits     bits of information that one value has at most, by noise; None: the same eight;
                   32: values are exact
    one_function   the server gets values of one and the same function for all samples, and no
                   gradients
    evaluations    sums over labels (`label_sums`) that the server gets, if it may not get labels
    notes          public text, as the ranges of a table's columns, for later clients
    """

    labels_to_server: bool = True
    max_bits: int | None = None
    value_bits: int | None = None
    one_function: bool = True
    evaluations: int = 0
    notes: str = ""

    def limits(self, info: DatasetInfo) -> LedgerLimits:
        """The limits of the ledger, with the defaults filled in."""
        sums = None if self.labels_to_server else self.evaluations
        if info.mode == "paper":
            return LedgerLimits(None, EXACT_BITS, one_function=False, evaluations=sums)
        bits = min(info.encoding.bits, DEFAULT_VALUE_BITS)
        return LedgerLimits(
            max_bits=info.budget_rank * bits if self.max_bits is None else self.max_bits,
            value_bits=bits if self.value_bits is None else self.value_bits,
            one_function=self.one_function,
            evaluations=sums,
        )


@dataclass(frozen=True)
class Summary:
    """A data set's budget in figures, for `cloister authority budget` and for trainers."""

    name: str
    mode: str
    samples: int
    withdrawn: int
    dim: int
    rank_allowed: int
    rank_min: int
    rank_median: float
    rank_max: int
    bits_max: int
    bits_allowed: int | None
    operand_max: int
    labels_released: int
    evaluations: int
    evaluations_allowed: int | None
    counts: dict[str, int]


def init(folder: Path | str, *, rng: Csprng) -> Identity:
    """Make an authority's folder: keys, certificate, public file and an empty ledger.

    Raises   InputError when the folder holds anything
    """
    folder = Path(folder)
    new_folder(folder)
    database.create(folder / database.FILE, modulus=random_modulus(rng=rng))
    return Identity.create(folder, rng=rng)


def summarise(found: "DatasetRecord", tally: Tally) -> Summary:
    """A data set's description and what the ledger says, together."""
    info = found.info
    return Summary(
        name=info.name,
        mode=info.mode,
        samples=info.samples,
        withdrawn=found.withdrawn.count,
        dim=info.dim,
        rank_allowed=info.dim if info.mode == "paper" else info.budget_rank,
        rank_min=tally.rank_min,
        rank_median=tally.rank_median,
        rank_max=tally.rank_max,
        bits_max=tally.bits_max,
        bits_allowed=found.terms.limits(info).max_bits,
        operand_max=tally.operand_max,
        labels_released=tally.labels,
        evaluations=tally.evaluations,
        evaluations_allowed=found.terms.limits(info).evaluations,
        counts=tally.counts,
    )


StoredDataset = tuple[str, bytes, bytes, bytes, bytes]
"""Name, description, terms, label key and withdrawn ids, as they are stored."""


def stored_datasets(connection: sqlite3.Connection) -> list[StoredDataset]:
    """The stored data sets, by name; their samples are counted by `read_parts`."""
    return connection.execute(
        "SELECT name, info, extra, label_key, withdrawn FROM datasets ORDER BY name"
    ).fetchall()


def read_dataset(stored: StoredDataset) -> "DatasetRecord":
    """One data set, without its parts.

    Raises   EncryptionError, InputError
    """
    _, info, fields, label_key, withdrawn = stored
    try:
        terms = read_terms(json.loads(fields))
        ids = IdSpans(np.frombuffer(withdrawn, "<i8").astype(np.int64))
    except ValueError:
        raise EncryptionError("ledger: a data set's terms are damaged; use a backup") from None
    return DatasetRecord(DatasetInfo.from_json(info), terms, label_key, withdrawn=ids)


def read_parts(connection: sqlite3.Connection) -> Iterator[tuple[PartInfo, str, bytes]]:
    """The stored parts, by data set and first id."""
    for part, dataset, first, samples, sha256, key in connection.execute(
        "SELECT part, dataset, first, samples, sha256, mask_key FROM parts ORDER BY dataset, first"
    ):
        yield PartInfo(part, first, samples, sha256), dataset, key


def read_retired(connection: sqlite3.Connection) -> Iterator[tuple[str, str, bytes]]:
    """Names of deleted parts, with the digests of their contents and keys."""
    yield from connection.execute("SELECT part, sha256, key_sha256 FROM retired")


def key_digest(key: bytes) -> bytes:
    """Name of a pad key: it has 256 random bits, so that its plain hash cannot be searched."""
    return hashlib.sha256(key).digest()


def read_terms(fields: Mapping[str, Any]) -> Terms:
    """Terms from JSON values.

    Raises   InputError
    """
    try:
        return Terms(**fields)
    except TypeError:
        raise InputError("the terms of a data set are not understood") from None


@dataclass(frozen=True, repr=False, eq=False)
class DatasetRecord:
    """A data set's description, its parts and their keys, by first id.

    withdrawn   ids for which no key is issued
    Secret      label_key, keys
    """

    info: DatasetInfo
    terms: Terms
    label_key: bytes
    parts: tuple[PartInfo, ...] = ()
    keys: tuple[bytes, ...] = ()
    withdrawn: IdSpans = NO_IDS

    @cached_property
    def firsts(self) -> Int64[np.ndarray, " parts"]:
        """The id of each part's first sample."""
        return np.array([part.first for part in self.parts], np.int64)

    def with_parts(self, *more: tuple[PartInfo, bytes]) -> "DatasetRecord":
        """The data set with parts behind those it has, each with its key.

        Raises   InputError for more than a data set may hold
        """
        parts, keys = (*self.parts, *(p for p, _ in more)), (*self.keys, *(k for _, k in more))
        samples = parts[-1].first + parts[-1].samples if parts else 0
        if len(parts) > MAX_PARTS or samples > MAX_SAMPLES or any(p.samples < 1 for p in parts):
            raise InputError(
                f"data set {self.info.name}: holds up to {MAX_PARTS} parts, none of them empty, "
                f"and {MAX_SAMPLES} samples; use another data set"
            )
        if any(len(key) != KEY_BYTES for key in keys):
            raise InputError(f"data set {self.info.name}: a part's key has {KEY_BYTES} bytes")
        return replace(self, info=replace(self.info, samples=samples), parts=parts, keys=keys)


def check_terms(info: DatasetInfo, terms: Terms) -> None:
    """Refuse what no data set may be.

    Raises   InputError
    """
    if info.samples:
        raise InputError(f"data set {info.name}: a new one has no samples yet")
    for name in ("labels_to_server", "one_function"):
        if type(getattr(terms, name)) is not bool:
            raise InputError(f"data set {info.name}: {name} must be true or false")
    bits = terms.max_bits
    if bits is not None and (type(bits) is not int or not 0 <= bits <= MOST_BITS):
        raise InputError(
            f"data set {info.name}: max_bits must be a whole number of at most {MOST_BITS}"
        )
    bits = terms.value_bits
    if bits is not None and (type(bits) is not int or not 1 <= bits <= EXACT_BITS):
        raise InputError(f"data set {info.name}: value_bits must be 1 to {EXACT_BITS}")
    sums = terms.evaluations
    if type(sums) is not int or not 0 <= sums <= MAX_EVALUATIONS:
        raise InputError(f"data set {info.name}: evaluations must be 0 to {MAX_EVALUATIONS}")
    if type(terms.notes) is not str or len(terms.notes) > MAX_NOTES_BYTES:
        raise InputError(f"data set {info.name}: its notes are too long")
