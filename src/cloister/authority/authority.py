"""The key authority: keeps the mask keys of data sets, and issues what the ledger allows.

In process here; `cloister.authority.service` serves one over HTTPS. An answer leaves only after
the ledger's commit: whatever is killed when, what others hold is a subset of what is recorded.
"""

import hmac
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Int16, Int64, UInt32

from cloister.authority import blur, functions
from cloister.authority import database as databases
from cloister.authority.book import Spent
from cloister.authority.identity import Identity
from cloister.authority.ledger import Ledger
from cloister.authority.records import (
    MAX_SAMPLES,
    Dataset,
    Part,
    Summary,
    Terms,
    check_terms,
    init,
    label_info,
    part_info,
    read_datasets,
    read_parts,
    summarise,
)
from cloister.authority.requests import Forward, Gradient, Request
from cloister.crypto.csprng import KEY_BYTES, Csprng
from cloister.errors import EncryptionError, FunctionError, InputError, ShapeError
from cloister.fe import mask
from cloister.fe.keyservice import DatasetInfo, Receiver
from cloister.field.linear import Geometry, LinearMap

LOCK_FILE = "authority.lock"
MAX_ELEMENTS = 1 << 26
"""Mask elements of one request."""
_PART = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, repr=False)
class Issued:
    """A key that is charged for; it may leave once the ledger has it on stable storage.

    Secret   term, until then
    """

    term: UInt32[np.ndarray, "..."]
    ticket: databases.Ticket

    def wait(self) -> UInt32[np.ndarray, "..."]:
        """The key, as soon as it may leave.

        Raises   EncryptionError when the ledger cannot be written
        """
        self.ticket.wait()
        return self.term


class Authority:
    """One authority and its folder, opened for use; a `KeyService`."""

    def __init__(self, folder: Path | str, *, threads: int = 1) -> None:
        """Open the folder that `create` made; one process at a time.

        Raises   InputError, EncryptionError
        """
        self._folder, self._threads = Path(folder), threads
        self.identity = Identity.open(self._folder)
        self._held = databases.hold(self._folder / LOCK_FILE)
        try:
            self.database = databases.Database(self._folder / databases.FILE)
            self._datasets: dict[str, Dataset] = {}
            self._lock = threading.Lock()
            self._load()
        except BaseException:
            os.close(self._held)
            raise

    @classmethod
    def create(cls, folder: Path | str, *, rng: Csprng, threads: int = 1) -> "Authority":
        """Make an authority in a new or empty folder, and open it.

        Raises   InputError
        """
        init(folder, rng=rng)
        return cls(folder, threads=threads)

    def close(self) -> None:
        """Write what is under way and let go of the folder."""
        self.database.close()
        os.close(self._held)

    def __enter__(self) -> "Authority":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- for clients

    def create_dataset(
        self, info: DatasetInfo, *, sealed_label_key: bytes, terms: Terms | None = None
    ) -> None:
        """Open the books of a new data set; the same again is accepted.

        Raises   EncryptionError when the name is taken, InputError
        """
        terms = terms or Terms()
        label_key = self.identity.open_sealed(sealed_label_key, info=label_info(info.name))
        check_terms(info, terms, label_key)
        with self._lock:
            known = self._datasets.get(info.name)
            if known is not None:
                same = replace(known.info, samples=0) == info and known.terms == terms
                if not same or not hmac.compare_digest(known.label_key, label_key):
                    raise EncryptionError(
                        f"data set {info.name}: exists already at this authority; append to it, "
                        "or choose another name"
                    )
                return
            row = (info.name, info.to_json(), json.dumps(asdict(terms)).encode(), label_key)
            self.database.enqueue(
                lambda connection: _insert(connection, "datasets", row)
            ).wait()  # fmt: skip
            self._ledger.open_book(info, limits=terms.limits(info))
            self._datasets[info.name] = Dataset(info, terms, label_key)

    def register_part(
        self, dataset: str, part: str, samples: int, sha256: str, *, sealed_key: bytes
    ) -> int:
        """Take a part's mask key; gives the id of its first sample. The same again is accepted.

        Raises   EncryptionError for a part, a key or contents that were registered before
        """
        if not (_PART.fullmatch(part) and _SHA256.fullmatch(sha256)):
            raise InputError("a part is named by 32, and its contents by 64 hexadecimal digits")
        key = self.identity.open_sealed(sealed_key, info=part_info(dataset, part, sha256))
        with self._lock:
            found = self._dataset(dataset)
            if len(key) != KEY_BYTES or not 0 < samples <= MAX_SAMPLES - found.info.samples:
                raise InputError(
                    f"data set {dataset}: a part needs a {KEY_BYTES}-byte key and samples, and a "
                    f"data set holds at most {MAX_SAMPLES}"
                )
            for other in self._datasets.values():
                for old, old_key in zip(other.parts, other.keys, strict=True):
                    same_key = hmac.compare_digest(old_key, key)
                    same = old.part == part and old.sha256 == sha256 and old.samples == samples
                    if same and same_key and other is found:
                        return old.first
                    if old.part == part or old.sha256 == sha256 or same_key:
                        raise EncryptionError(
                            f"data set {dataset}, part {part}: is a replay of part {old.part}; "
                            "encrypt again under a new key"
                        )
            new = Part(part, found.info.samples, samples, sha256)
            row = (part, dataset, new.first, samples, sha256, key)
            self.database.enqueue(lambda connection: _insert(connection, "parts", row)).wait()
            # The books first: a request for the new ids must find their pages.
            self._ledger.grow(replace(found.info, samples=new.first + samples))
            found.add(new, key)
            return new.first

    def label_key(
        self, dataset: str, ids: Int64[np.ndarray, " n"], *, receiver: Receiver
    ) -> UInt32[np.ndarray, "n classes"]:
        """See `KeyService.label_key`."""
        return self.issue_labels(dataset, ids, receiver=receiver).wait()

    def issue_labels(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        *,
        receiver: Receiver,
        at_once: bool = False,
    ) -> Issued:
        """As `label_key`, without waiting for the disk; `at_once` as in `Ledger`."""
        found = self._dataset(dataset)
        ids = self._ids(found, ids, receiver)
        if receiver == "server" and not found.terms.labels_to_server:
            raise FunctionError(
                f"data set {dataset}: its labels go to a trusted runtime only, as its owner decided"
            )
        if receiver == "server":
            ticket = self._ledger.charge_labels(dataset, ids, at_once=at_once)
        else:
            ticket = self._ledger.count_trusted(dataset, at_once=at_once)
        term = self._masks(found, ids, (found.info.classes,), mask.LABEL_DOMAIN)
        return Issued(term, ticket)

    def label_secret(self, dataset: str) -> bytes:
        """The key of the label permutation, for clients of the data set alone.

        Secret   result
        """
        return self._dataset(dataset).label_key

    def parts(self, dataset: str) -> tuple[Part, ...]:
        """The registered parts of a data set."""
        return tuple(self._dataset(dataset).parts)

    def terms(self, dataset: str) -> Terms:
        """What its owner decided."""
        return self._dataset(dataset).terms

    # ---- for servers and trusted runtimes

    def describe(self, dataset: str) -> DatasetInfo:
        """See `KeyService.describe`."""
        return self._dataset(dataset).info

    def forward_key(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        linear: LinearMap,
        *,
        receiver: Receiver,
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """See `KeyService.forward_key`."""
        return self.issue_forward(dataset, ids, linear, receiver=receiver).wait()

    def issue_forward(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        linear: LinearMap,
        *,
        receiver: Receiver,
        at_once: bool = False,
    ) -> Issued:
        """As `forward_key`, without waiting for the disk; `at_once` as in `Ledger`."""
        found = self._dataset(dataset)
        ids = self._ids(found, ids, receiver)
        functions.check_size(found.info, linear.geometry, len(ids))
        # A private copy: what is charged is what is computed, and what the books keep.
        linear = LinearMap(linear.geometry, np.array(linear.weights))
        request = Forward(linear, len(ids))
        return self._issue(found, ids, request, receiver=receiver, at_once=at_once)

    def gradient_key(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
        *,
        receiver: Receiver,
    ) -> UInt32[np.ndarray, "o kh kw c"]:
        """See `KeyService.gradient_key`."""
        return self.issue_gradient(dataset, ids, geometry, delta, receiver=receiver).wait()

    def issue_gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
        *,
        receiver: Receiver,
    ) -> Issued:
        """As `gradient_key`, without waiting for the disk."""
        found = self._dataset(dataset)
        ids = self._ids(found, ids, receiver)
        functions.check_size(found.info, geometry, len(ids))
        delta = np.array(delta)  # what is charged is what is computed
        if delta.shape != (len(ids), *geometry.out_shape) or delta.dtype != np.int16:
            raise ShapeError(
                f"delta must be int16 ({len(ids)}, *{geometry.out_shape}), "
                f"got {delta.dtype} {delta.shape}"
            )
        if len(np.unique(ids)) != len(ids):
            raise FunctionError(f"data set {dataset}: a gradient names a sample twice")
        return self._issue(found, ids, Gradient(geometry, delta), receiver=receiver)

    def _issue(
        self,
        found: Dataset,
        ids: Int64[np.ndarray, " n"],
        request: Request,
        *,
        receiver: Receiver,
        at_once: bool = False,
    ) -> Issued:
        """The one place that keys about samples come from: charged and blurred for the server."""
        name = found.info.name
        request.check_range(found.info)
        if receiver == "server":
            ticket = self._ledger.charge(name, ids, request, at_once=at_once)
        else:
            ticket = self._ledger.count_trusted(name, at_once=at_once)
        pads = self._masks(found, ids, request.geometry.in_shape, mask.DATA_DOMAIN)
        term = request.term(pads, threads=self._threads)
        if receiver == "server":
            self._blur(found, ids, request, term)
        return Issued(term, ticket)

    # ---- for the owner of the data

    def datasets(self) -> tuple[str, ...]:
        """Names of all data sets."""
        return tuple(sorted(self._datasets))

    def spent(self, dataset: str) -> Spent:
        """What every sample has given away to the server."""
        self._dataset(dataset)
        return self._ledger.spent(dataset)

    def summary(self, dataset: str) -> Summary:
        """The budget of a data set in figures."""
        found = self._dataset(dataset)
        counts = self._ledger.counts(dataset)
        return summarise(found.info, found.terms, self._ledger.spent(dataset), counts)

    def _dataset(self, name: str) -> Dataset:
        found = self._datasets.get(name)
        if found is None:
            raise EncryptionError(f"data set {name}: is not known to this authority")
        return found

    def _ids(
        self, found: Dataset, ids: Int64[np.ndarray, " n"], receiver: Receiver
    ) -> Int64[np.ndarray, " n"]:
        """A private copy of sample ids, asked for by a receiver there is."""
        if receiver not in get_args(Receiver):
            raise InputError("a key's receiver is server or trusted")
        ids = np.array(ids, order="C")
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise ShapeError(f"sample ids must be an int64 vector, got {ids.dtype} {ids.shape}")
        info = found.info
        if not len(ids):
            raise FunctionError(f"data set {info.name}: a request names no sample")
        if len(ids) * max(info.dim, info.classes) > MAX_ELEMENTS:
            raise FunctionError(f"data set {info.name}: too many samples at once; use batches")
        if not 0 <= int(ids.min()) <= int(ids.max()) < info.samples:
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise EncryptionError(
                f"data set {info.name}: holds no sample {bad}, only 0 to {info.samples - 1}; "
                "use the ids of its file"
            )
        return ids

    def _masks(
        self, found: Dataset, ids: Int64[np.ndarray, " n"], shape: tuple[int, ...], domain: int
    ) -> UInt32[np.ndarray, "n ..."]:
        out = np.empty((len(ids), *shape), np.uint32)
        for mine, local, key in self._by_part(found, ids):
            out[mine] = mask.masks(key, local, shape, domain=domain)
        return out

    def _blur(
        self,
        found: Dataset,
        ids: Int64[np.ndarray, " n"],
        request: Request,
        term: UInt32[np.ndarray, "..."],
    ) -> None:
        """Subtract the noise, in place, that the unmasked values must keep."""
        bits = found.terms.limits(found.info).value_bits
        if bits == blur.EXACT_BITS:
            return
        shape = request.value_shape
        for function, places in request.functions():
            shift = blur.shift(found.info, function, bits)
            if shift == 0:
                continue
            for mine, local, key in self._by_part(found, ids[places]):
                noise = blur.noise(key, local, shape, digest=function.digest, shift=shift)
                request.blur(term, places[mine], noise)

    def _by_part(
        self, found: Dataset, ids: Int64[np.ndarray, " n"]
    ) -> Iterator[tuple[Bool[np.ndarray, " n"], Int64[np.ndarray, " m"], bytes]]:
        """Which ids are of a part, their numbers in it, and its key; for every part concerned."""
        owner = np.searchsorted(found.firsts, ids, side="right") - 1
        for index in np.unique(owner).tolist():
            mine = owner == index
            yield mine, ids[mine] - found.parts[index].first, found.keys[index]

    def _load(self) -> None:
        with self.database.reading() as connection:
            databases.check(connection)
            (modulus,) = connection.execute("SELECT modulus FROM authority").fetchone()
            for info, terms, label_key in read_datasets(connection):
                self._datasets[info.name] = Dataset(info, terms, label_key)
            for part, dataset, key in read_parts(connection):
                self._datasets[dataset].add(part, key)
        self._ledger = Ledger(self.database, modulus=modulus)
        for found in self._datasets.values():
            self._ledger.open_book(found.info, limits=found.terms.limits(found.info))


def _insert(connection: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608  (our own names)
