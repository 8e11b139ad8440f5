"""What the authority stores of data sets, and the folder it stores it in."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cloister.authority import database as databases
from cloister.authority.blur import EXACT_BITS
from cloister.authority.book import Limits, Spent
from cloister.authority.identity import Identity
from cloister.crypto.csprng import Csprng
from cloister.errors import EncryptionError, InputError
from cloister.fe.keyservice import DatasetInfo
from cloister.fe.rank import random_modulus

DEFAULT_VALUE_BITS = 8
"""Blur that training hardly notices: on MNIST 0.3 points of accuracy or none (docs/adr/0007)."""
MAX_DIM = 1 << 24
MAX_SAMPLES = 1 << 26
MAX_NOTES_BYTES = 1 << 16


@dataclass(frozen=True)
class Terms:
    """What the owner of a data set decides besides its description.

    max_bits       bits of values that may be released of each sample to the server; None: eight
                   (or an element's, if it has fewer) for each function of the budget
    value_bits     bits that one value tells at most, by blur; None: the same eight; 32: values
                   are exact
    one_function   the server gets values of one and the same function for all samples, and no
                   gradients
    notes          public text, as the ranges of a table's columns, for later clients
    """

    labels_to_server: bool = True
    max_bits: int | None = None
    value_bits: int | None = None
    one_function: bool = True
    allow_unbounded_leakage: bool = False
    notes: str = ""

    def limits(self, info: DatasetInfo) -> Limits:
        """What the ledger has to keep to, with the defaults filled in."""
        if info.mode == "paper":
            return Limits(max_bits=None, value_bits=EXACT_BITS, one_function=False)
        bits = min(info.encoding.bits, DEFAULT_VALUE_BITS)
        return Limits(
            max_bits=info.budget_rank * bits if self.max_bits is None else self.max_bits,
            value_bits=bits if self.value_bits is None else self.value_bits,
            one_function=self.one_function,
        )


@dataclass(frozen=True)
class Part:
    """One client's registered part."""

    part: str
    first: int
    samples: int
    sha256: str


@dataclass(frozen=True)
class Summary:
    """A data set's budget in figures, for `cloister authority budget` and for trainers."""

    name: str
    mode: str
    samples: int
    dim: int
    rank_allowed: int
    rank_min: int
    rank_median: float
    rank_max: int
    bits_max: int
    bits_allowed: int | None
    operand_max: int
    labels_released: int
    counts: dict[str, int]


def init(folder: Path | str, *, rng: Csprng) -> Identity:
    """Make an authority's folder: keys, certificate, public file and an empty ledger.

    Raises   InputError when the folder holds anything
    """
    folder = Path(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty; choose another folder")
        folder.chmod(0o700)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror or error})") from None
    databases.create(folder / databases.FILE, modulus=random_modulus(rng=rng))
    return Identity.create(folder, rng=rng)


def part_info(dataset: str, part: str, sha256: str, agreement: str) -> bytes:
    """What the sealed keys of a part are bound to."""
    return f"cloister part\0{dataset}\0{part}\0{sha256}\0{agreement}".encode()


def summarise(info: DatasetInfo, terms: Terms, spent: Spent, counts: dict[str, int]) -> Summary:
    """Figures from the ledger's columns."""
    empty = info.samples == 0
    return Summary(
        name=info.name,
        mode=info.mode,
        samples=info.samples,
        dim=info.dim,
        rank_allowed=info.dim if info.mode == "paper" else info.budget_rank,
        rank_min=0 if empty else int(spent.rank.min()),
        rank_median=0.0 if empty else float(np.median(spent.rank)),
        rank_max=0 if empty else int(spent.rank.max()),
        bits_max=0 if empty else int(spent.bits.max()),
        bits_allowed=terms.limits(info).max_bits,
        operand_max=0 if empty else int(spent.operand.max()),
        labels_released=int(spent.labels.sum()),
        counts=counts,
    )


def read_datasets(connection: sqlite3.Connection) -> Iterator[tuple[DatasetInfo, Terms, bytes]]:
    """The stored data sets; their samples are counted by `read_parts`.

    Raises   EncryptionError, InputError
    """
    for info, stored, label_key in connection.execute(
        "SELECT info, extra, label_key FROM datasets ORDER BY name"
    ):
        try:
            terms = json.loads(stored)
        except ValueError:
            raise EncryptionError("ledger: a data set's terms are damaged; use a backup") from None
        yield DatasetInfo.from_json(info), read_terms(terms), label_key


def read_parts(connection: sqlite3.Connection) -> Iterator[tuple[Part, str, bytes]]:
    """The stored parts, by data set and first id."""
    for part, dataset, first, samples, sha256, key in connection.execute(
        "SELECT part, dataset, first, samples, sha256, mask_key FROM parts ORDER BY dataset, first"
    ):
        yield Part(part, first, samples, sha256), dataset, key


def read_retired(connection: sqlite3.Connection) -> set[str]:
    """Names of deleted parts, and digests of their contents and keys."""
    rows = connection.execute("SELECT part, sha256, key_sha256 FROM retired")
    return {name for row in rows for name in row}


def key_digest(key: bytes) -> str:
    """Name of a mask key: it has 256 random bits, so that its plain hash cannot be searched."""
    return hashlib.sha256(key).hexdigest()


def read_terms(fields: Mapping[str, Any]) -> Terms:
    """Terms from JSON values.

    Raises   InputError
    """
    try:
        return Terms(**fields)
    except TypeError:
        raise InputError("the terms of a data set are not understood") from None


class Dataset:
    """A data set's parts, their keys and their places.

    Secret   label_key, keys
    """

    def __init__(self, info: DatasetInfo, terms: Terms, label_key: bytes) -> None:
        self.info, self.terms, self.label_key = info, terms, label_key
        self.parts: list[Part] = []
        self.keys: list[bytes] = []
        self.firsts = np.empty(0, np.int64)

    def add(self, part: Part, key: bytes) -> None:
        """One part more."""
        self.parts.append(part)
        self.keys.append(key)
        self.firsts = np.array([part.first for part in self.parts], np.int64)
        self.info = replace(self.info, samples=part.first + part.samples)


def check_terms(info: DatasetInfo, terms: Terms) -> None:
    """Refuse what no data set may be.

    Raises   InputError
    """
    if info.samples or info.dim > MAX_DIM:
        raise InputError(
            f"data set {info.name}: a new one has no samples yet, of at most {MAX_DIM} elements"
        )
    for name in ("labels_to_server", "one_function", "allow_unbounded_leakage"):
        if type(getattr(terms, name)) is not bool:
            raise InputError(f"data set {info.name}: {name} must be true or false")
    if info.mode == "paper" and not terms.allow_unbounded_leakage:
        raise InputError(
            f"data set {info.name}: mode paper gives every sample away; it needs "
            "allow_unbounded_leakage"
        )
    bits = terms.max_bits
    if bits is not None and (type(bits) is not int or bits < 0):
        raise InputError(f"data set {info.name}: max_bits must be a whole number")
    bits = terms.value_bits
    if bits is not None and (type(bits) is not int or not 1 <= bits <= EXACT_BITS):
        raise InputError(f"data set {info.name}: value_bits must be 1 to {EXACT_BITS}")
    if type(terms.notes) is not str or len(terms.notes) > MAX_NOTES_BYTES:
        raise InputError(f"data set {info.name}: its notes are too long")
