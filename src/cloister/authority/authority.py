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
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Int16, Int64, UInt32

from cloister.authority import blur, functions
from cloister.authority import database as databases
from cloister.authority.agreement import Agreement
from cloister.authority.book import Spent
from cloister.authority.enrolment import Known
from cloister.authority.identity import Identity
from cloister.authority.ledger import Ledger
from cloister.authority.records import (
    MAX_SAMPLES,
    Dataset,
    Part,
    Summary,
    Terms,
    init,
    part_info,
    read_datasets,
    read_parts,
    read_retired,
    summarise,
)
from cloister.authority.registration import new_dataset, repeated
from cloister.authority.requests import Forward, Gradient, Request
from cloister.crypto.csprng import KEY_BYTES, Csprng
from cloister.errors import EncryptionError, FunctionError, InputError, ShapeError
from cloister.fe import mask
from cloister.fe.keyservice import DatasetInfo, Receiver
from cloister.field.linear import Geometry, LinearMap

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
        self._held = databases.hold(self._folder / databases.LOCK_FILE)
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

    def find(self, dataset: str) -> Known | None:
        """What clients of a data set agree to, and share; None: there is no such data set.

        Secret   result
        """
        found = self._datasets.get(dataset)
        return None if found is None else Known(_agreement(found), found.label_key)

    def register_part(
        self,
        dataset: str,
        part: str,
        samples: int,
        sha256: str,
        *,
        agreement: str,
        sealed_keys: bytes,
        made: Agreement | None = None,
    ) -> int:
        """Take a part's mask key; gives the id of its first sample. The same again is accepted.

        agreement    digest of what the client has agreed to
        sealed_keys  the part's mask key, then the label key of the data set that the client means
        made         the data set, if it is to be made with this part: both, or neither
        Raises   EncryptionError for a part, a key or contents that were registered before, and for
                 a data set that is not as the client has seen it; InputError
        """
        if not (_PART.fullmatch(part) and _SHA256.fullmatch(sha256)):
            raise InputError("a part is named by 32, and its contents by 64 hexadecimal digits")
        bound_to = part_info(dataset, part, sha256, agreement)
        keys = self.identity.open_sealed(sealed_keys, info=bound_to)
        key, label_key = keys[:KEY_BYTES], keys[KEY_BYTES:]
        with self._lock:
            known = self._datasets.get(dataset)
            found = known or new_dataset(dataset, made, label_key)
            seen = hmac.compare_digest(found.label_key, label_key)
            if not seen or _agreement(found).digest != agreement:
                raise EncryptionError(
                    f"data set {dataset}: is not the one that this client has seen, or was made by "
                    "another client meanwhile; encrypt again"
                )
            first = found.info.samples
            if len(keys) != 2 * KEY_BYTES or not 0 < samples <= MAX_SAMPLES - first:
                raise InputError(
                    f"data set {dataset}: a part needs two {KEY_BYTES}-byte keys and samples, and "
                    f"a data set holds at most {MAX_SAMPLES}"
                )
            new = Part(part, first, samples, sha256)
            everyone = self._datasets.values()
            known_first = repeated(found, new, key, others=everyone, retired=self._retired)
            if known_first is not None:
                return known_first
            jobs = [partial(_insert, "parts", (part, dataset, first, samples, sha256, key))]
            if known is None:
                terms = json.dumps(asdict(found.terms)).encode()
                row = (dataset, found.info.to_json(), terms, label_key)
                jobs.insert(0, partial(_insert, "datasets", row))
                self._ledger.open_book(found.info, limits=found.terms.limits(found.info))
            self.database.enqueue(*jobs).wait()
            # The books first: a request for the new ids must find their pages.
            self._ledger.grow(replace(found.info, samples=first + samples))
            found.add(new, key)
            self._datasets[dataset] = found
            return first

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
            self._retired = read_retired(connection)
        self._ledger = Ledger(self.database, modulus=modulus)
        for found in self._datasets.values():
            self._ledger.open_book(found.info, limits=found.terms.limits(found.info))


def _agreement(found: Dataset) -> Agreement:
    return Agreement(found.info, found.terms)


def _insert(table: str, row: tuple[Any, ...], connection: sqlite3.Connection) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608  (our own names)
