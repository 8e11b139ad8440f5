"""The key authority: keeps the mask keys of data sets, and issues what the ledger allows.

In process here; `cloister.authority.service` serves one over HTTPS. An answer leaves only after
the ledger's commit: whatever is killed when, what others hold is a subset of what is recorded.
"""

import hmac
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
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
    Dataset,
    Part,
    Registry,
    StoredDataset,
    Summary,
    Terms,
    check_terms,
    init,
    label_info,
    part_info,
    read_dataset,
    read_parts,
    stored_datasets,
    summarise,
)
from cloister.crypto.csprng import Csprng
from cloister.errors import EncryptionError, FunctionError, InputError, ShapeError
from cloister.fe import mask
from cloister.fe.bounds import check_count, check_size
from cloister.fe.keyservice import DatasetInfo, Receiver
from cloister.field.linear import Geometry, LinearMap
from cloister.field.ring import RingMap
from cloister.wire.https import one_line

LOCK_FILE = "authority.lock"
MASKS_AT_ONCE = 1 << 22
"""Elements of masks that are expanded together, whatever the number of samples."""
_PART = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger("cloister.authority")
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
            self._failed: dict[str, str] = {}
            self._registry = Registry()
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
            if info.name in self._failed:
                raise self._unusable(info.name)
            known = self._datasets.get(info.name)
            if known is None:
                # All that can fail comes before the record, and what others see after it.
                made = Dataset(info, terms, label_key)
                book = self._ledger.new_book(info, limits=terms.limits(info))
                row = (info.name, info.to_json(), json.dumps(asdict(terms)).encode(), label_key)
                self.database.enqueue(partial(_insert, "datasets", row))
                self._ledger.open_book(book)
                self._datasets[info.name] = made
            elif (
                (replace(known.info, samples=0), known.terms) != (info, terms)
                or not hmac.compare_digest(known.label_key, label_key)
            ):  # fmt: skip
                raise EncryptionError(
                    f"data set {info.name}: exists already at this authority; append to it, "
                    "or choose another name"
                )
            recorded = self.database.latest()
        recorded.wait()

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
            new = Part(part, found.info.samples, samples, sha256)
            old = self._registry.find(dataset, new, key)
            if old is None:
                grown = found.with_parts((new, key))
                row = (part, dataset, new.first, samples, sha256, key)
                self.database.enqueue(partial(_insert, "parts", row))
                # The books first: a request for the new ids must find their pages.
                self._ledger.grow(grown.info)
                self._registry.add(dataset, new, key)
                self._datasets[dataset] = grown
            recorded = self.database.latest()
        recorded.wait()
        return (old or new).first

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
        check_size(found.info, linear.geometry, len(ids))
        # A private copy: what is charged is what is computed, and what the books keep.
        linear = LinearMap(linear.geometry, np.array(linear.weights))
        functions.check_forward_norm(found.info, linear)
        if receiver == "server":
            ticket = self._ledger.charge_forward(dataset, ids, linear, at_once=at_once)
        else:
            ticket = self._ledger.count_trusted(dataset, at_once=at_once)
        shift = self._shift(found, linear) if receiver == "server" else 0
        term = np.empty((len(ids), *linear.geometry.out_shape), np.uint32)
        ring = RingMap(linear)
        for some in self._pieces(found, len(ids)):
            pads = self._masks(found, ids[some], linear.geometry.in_shape, mask.DATA_DOMAIN)
            term[some] = ring.apply(pads, threads=self._threads)
        if shift:
            self._blur(found, ids, linear, term, shift)
        return Issued(term, ticket)

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
        check_size(found.info, geometry, len(ids))
        delta = np.array(delta)  # what is charged is what is computed
        if delta.shape != (len(ids), *geometry.out_shape) or delta.dtype != np.int16:
            raise ShapeError(
                f"delta must be int16 ({len(ids)}, *{geometry.out_shape}), "
                f"got {delta.dtype} {delta.shape}"
            )
        if len(np.unique(ids)) != len(ids):
            raise FunctionError(f"data set {dataset}: a gradient names a sample twice")
        functions.check_gradient_norm(found.info, delta)
        if receiver == "server":
            ticket = self._ledger.charge_gradient(dataset, ids, geometry, delta)
        else:
            ticket = self._ledger.count_trusted(dataset)
        term = np.zeros(geometry.weight_shape, np.uint32)
        for some in self._pieces(found, len(ids)):
            pads = self._masks(found, ids[some], geometry.in_shape, mask.DATA_DOMAIN)
            # Modulo 2^32, in which the whole sum is.
            term += mask.gradient(geometry, delta[some], pads, threads=self._threads)
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
        return summarise(found.info, found.terms, self._ledger.tally(dataset))

    def failed(self) -> dict[str, str]:
        """Data sets that could not be opened, and why."""
        return dict(self._failed)

    def _dataset(self, name: str) -> Dataset:
        found = self._datasets.get(name)
        if name in self._failed:
            raise self._unusable(name)
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
        check_count(info, len(ids))
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

    def _pieces(self, found: Dataset, samples: int) -> Iterator[slice]:
        """A request's samples, as many at a time as have their masks in bounded memory."""
        step = max(1, MASKS_AT_ONCE // found.info.dim)
        for start in range(0, samples, step):
            yield slice(start, start + step)

    def _shift(self, found: Dataset, linear: LinearMap) -> int:
        bits = found.terms.limits(found.info).value_bits
        return blur.shift(found.info, linear, bits)

    def _blur(
        self,
        found: Dataset,
        ids: Int64[np.ndarray, " n"],
        linear: LinearMap,
        term: UInt32[np.ndarray, "n oh ow oc"],
        shift: int,
    ) -> None:
        """Subtract the noise, in place, that the unmasked values must keep."""
        digest = functions.forward_digest(linear)
        for mine, local, key in self._by_part(found, ids):
            term[mine] -= blur.noise(key, local, term.shape[1:], digest=digest, shift=shift)

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
            stored = stored_datasets(connection)
            parts = list(read_parts(connection))
        self._ledger = Ledger(self.database, modulus=modulus)
        mine: dict[str, list[tuple[Part, bytes]]] = {row[0]: [] for row in stored}
        for part, dataset, key in parts:
            # Also those of data sets that fail: nothing of them may be registered again.
            self._registry.add(dataset, part, key)
            mine.setdefault(dataset, []).append((part, key))
        for row in stored:
            name = row[0]
            try:
                self._open(row, mine[name])
            except Exception as error:  # noqa: BLE001  (whatever it is, the others are served)
                self._failed[name] = one_line(str(error)) or type(error).__name__
                _log.error("data set %s cannot be opened: %s", name, self._failed[name])

    def _open(self, row: StoredDataset, parts: list[tuple[Part, bytes]]) -> None:
        found = Dataset(*read_dataset(row)).with_parts(*parts)
        self._ledger.read_book(found.info, limits=found.terms.limits(found.info))
        self._datasets[found.info.name] = found

    def _unusable(self, name: str) -> EncryptionError:
        return EncryptionError(
            f"data set {name}: could not be opened when this authority started "
            f"({self._failed[name]}); mend its ledger from a backup and restart, or use another"
        )


def _insert(table: str, row: tuple[Any, ...], connection: sqlite3.Connection) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608  (our own names)
