"""The key authority: keeps the pad keys of data sets, and issues the keys that the ledger allows.

In process here; `cloister.authority.service` serves one over HTTPS. An answer leaves only after the
ledger's commit. So every key that another party holds is on record, whichever process is killed at
which moment.
"""

import hmac
import json
import logging
import os
import sqlite3
import threading
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.authority import database
from cloister.authority.account import Spent
from cloister.authority.agreement import Agreement, Known
from cloister.authority.answer_keys import answer_keys
from cloister.authority.key_service import Receiver
from cloister.authority.ledger import Ledger
from cloister.authority.records import (
    DatasetRecord,
    StoredDataset,
    Summary,
    Terms,
    init,
    read_dataset,
    read_parts,
    read_retired,
    stored_datasets,
    summarise,
)
from cloister.authority.registration import Registration, Registry, new_dataset
from cloister.authority.requests import Evaluation, Forward, Gradient, Request
from cloister.authority.unblinding import unblinding_term
from cloister.base.identity import Identity
from cloister.base.rng import Csprng
from cloister.data.id_spans import IdSpans
from cloister.data.info import DatasetInfo, PartInfo
from cloister.errors import (
    EncryptionError,
    FunctionError,
    InputError,
    UnknownDatasetError,
    one_line,
)

_log = logging.getLogger("cloister.authority")


@dataclass(frozen=True, repr=False)
class Issued:
    """A key that is charged for; it may leave once the ledger has it on stable storage.

    Secret   term, until then
    """

    term: UInt32[np.ndarray, "..."]
    commit: database.PendingCommit

    def wait(self) -> UInt32[np.ndarray, "..."]:
        """The key, as soon as it may leave.

        Raises   EncryptionError when the ledger cannot be written
        """
        self.commit.wait()
        return self.term


class Authority:
    """One authority and its folder, opened for use; a `KeyService`."""

    def __init__(self, folder: Path | str, *, threads: int = 1) -> None:
        """Open the folder that `create` made; one process at a time.

        Raises   InputError, EncryptionError
        """
        self._folder, self._threads = Path(folder), threads
        self.identity = Identity.open(self._folder)
        self._held = database.hold(self._folder / database.LOCK_FILE)
        try:
            self.database = database.Database(self._folder / database.FILE)
            self._datasets: dict[str, DatasetRecord] = {}
            self._failed: dict[str, str] = {}
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
        """Write all pending records and release the folder."""
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
        found = self._found(dataset)
        return None if found is None else Known(_agreement(found), found.label_key)

    def register(self, offered: Registration, *, token_id: str = "") -> int:
        """Take a part's pad key; gives the id of its first sample. The same again is accepted.

        token_id   of the client, which alone may withdraw the part's samples
        Raises   EncryptionError for a part, a key or contents that were registered before, and for
                 a data set that is not as the client has seen it; InputError
        """
        dataset, (key, label_key) = offered.dataset, offered.keys(self.identity)
        with self._lock:
            known = self._found(dataset)
            found = known or new_dataset(dataset, offered.made, label_key)
            seen = hmac.compare_digest(found.label_key, label_key)
            if not seen or _agreement(found).digest != offered.agreement:
                raise EncryptionError(
                    f"data set {dataset}: is not the one that this client has seen, or another "
                    "client has made it since; encrypt again"
                )
            new = PartInfo(offered.part, found.info.samples, offered.samples, offered.sha256)
            old = self._registry.find(dataset, new, key)
            if old is None:
                self._record(found.with_parts((new, key)), token_id, is_new=known is None)
            recorded = self.database.latest()
        recorded.wait()
        return (old or new).first

    def _record(self, grown: DatasetRecord, token_id: str, *, is_new: bool) -> None:
        """Take over the last part of a data set, and with its first part the data set."""
        info, part, key = grown.info, grown.parts[-1], grown.keys[-1]
        # Every step that can fail comes before the record, and every effect that other threads see
        # after it.
        row = (part.part, info.name, part.first, part.samples, part.sha256, key, token_id)
        jobs, account = [partial(_insert, "parts", row)], None
        if is_new:
            account = self._ledger.new_account(info, limits=grown.terms.limits(info))
            described = replace(info, samples=0).to_json()
            terms = json.dumps(asdict(grown.terms)).encode()
            jobs.append(
                partial(_insert, "datasets", (info.name, described, terms, grown.label_key, b""))
            )
        self.database.enqueue(*jobs)
        # The account first: a request for the new ids must find it.
        if account is None:
            self._ledger.grow(info)
        else:
            self._ledger.open_account(account)
        self._registry.add(info.name, part, key)
        self._datasets[info.name] = grown

    def withdraw(self, dataset: str, ids: IdSpans, *, token_id: str | None = "") -> int:
        """Issue no key for these samples from now on; gives how many were not withdrawn before.

        What was released of them stays on record. The same again is accepted.

        token_id   whose parts all the ids have to be of; None: the operator withdraws any
        Raises     FunctionError, EncryptionError for an id that the data set does not hold
        """
        with self._lock:
            found = self._dataset(dataset)
            _check_ids(found, ids.bounds - np.arange(len(ids.bounds)) % 2)
            if token_id is not None and not ids <= self._registered_by(dataset, token_id):
                raise FunctionError(
                    f"data set {dataset}: some of these samples were registered with another "
                    "token; ask the client that did so, or the operator of the authority"
                )
            grown = replace(found, withdrawn=found.withdrawn | ids)
            self.database.enqueue(partial(_store_withdrawn, grown))
            self._datasets[dataset] = grown
            recorded = self.database.latest()
        recorded.wait()
        return grown.withdrawn.count - found.withdrawn.count

    def withdrawn(self, dataset: str) -> IdSpans:
        """The samples for which no key is issued."""
        return self._dataset(dataset).withdrawn

    def _registered_by(self, dataset: str, token_id: str) -> IdSpans:
        """The ids of a token's parts, as committed."""
        with self.database.reading() as connection:
            rows = connection.execute(
                "SELECT first, first + samples FROM parts WHERE dataset = ? AND token_id = ?",
                (dataset, token_id),
            ).fetchall()
        return IdSpans.of(rows)

    def parts(self, dataset: str) -> tuple[PartInfo, ...]:
        """The registered parts of a data set."""
        return tuple(self._dataset(dataset).parts)

    def answer_key(self, dataset: str) -> bytes:
        """The public key to which predictions are sealed for the clients of a data set."""
        return answer_keys(self._dataset(dataset).label_key).public

    def terms(self, dataset: str) -> Terms:
        """The terms that its owner decided."""
        return self._dataset(dataset).terms

    # ---- for servers and trusted runtimes

    def describe(self, dataset: str) -> DatasetInfo:
        """See `KeyService.describe`."""
        return self._dataset(dataset).info

    def ask(self, request: Request, receiver: Receiver) -> UInt32[np.ndarray, "..."]:
        """See `KeyService.ask`."""
        return self.issue(request, receiver).wait()

    def issue(self, request: Request, receiver: Receiver, *, at_once: bool = False) -> Issued:
        """As `ask`, without waiting for the disk; `at_once` as in `Ledger`.

        The one place that unblinding terms come from: charged, and noisy, for the server.
        """
        found = self._dataset(request.dataset)
        if receiver not in get_args(Receiver):
            raise InputError("a key's receiver is server or trusted")
        # A private copy: the same integers are charged, computed with and kept by the ledger.
        request = request.copied()
        request.check(found.info)
        _check_ids(found, request.ids)
        _check_not_withdrawn(found, request.ids)
        if isinstance(request, Forward | Gradient):
            request.check_range(found.info)
        if receiver == "trusted":
            commit = self._ledger.count_trusted(request.dataset, at_once=at_once)
        elif isinstance(request, Forward | Gradient):
            commit = self._ledger.charge(request, at_once=at_once)
        elif isinstance(request, Evaluation):
            commit = self._ledger.charge_evaluation(request, at_once=at_once)
        elif found.terms.labels_to_server:
            commit = self._ledger.charge_labels(request, at_once=at_once)
        else:
            raise FunctionError(
                f"data set {request.dataset}: its labels go to a trusted runtime only, as its "
                "owner decided"
            )
        noisy = receiver == "server"
        term = unblinding_term(found, request, noisy=noisy, threads=self._threads)
        # It may have taken seconds, in which a client was told that its samples are withdrawn.
        _check_not_withdrawn(self._dataset(request.dataset), request.ids)
        return Issued(term, commit)

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
        return summarise(found, self._ledger.tally(dataset))

    def failed(self) -> dict[str, str]:
        """Data sets that could not be opened, and why."""
        return dict(self._failed)

    def _found(self, name: str) -> DatasetRecord | None:
        """A data set; None: there is none of this name."""
        if name in self._failed:
            raise EncryptionError(
                f"data set {name}: could not be opened when this authority started "
                f"({self._failed[name]}); mend its ledger from a backup and restart, or use another"
            )
        return self._datasets.get(name)

    def _dataset(self, name: str) -> DatasetRecord:
        found = self._found(name)
        if found is None:
            raise UnknownDatasetError(f"data set {name}: is not known to this authority")
        return found

    def _load(self) -> None:
        with self.database.reading() as connection:
            database.check(connection)
            (modulus,) = connection.execute("SELECT modulus FROM authority").fetchone()
            stored = stored_datasets(connection)
            parts = list(read_parts(connection))
            self._registry = Registry(read_retired(connection))
        self._ledger = Ledger(self.database, modulus=modulus)
        mine: dict[str, list[tuple[PartInfo, bytes]]] = {row[0]: [] for row in stored}
        for part, dataset, key in parts:
            # Also those of data sets that fail: nothing of them may be registered again.
            self._registry.add(dataset, part, key)
            mine.setdefault(dataset, []).append((part, key))
        for row in stored:
            name = row[0]
            try:
                self._open(row, mine[name])
            except Exception as error:  # noqa: BLE001  (whatever it is, the others are served)
                self._failed[name] = one_line(error)
                _log.error("data set %s cannot be opened: %s", name, self._failed[name])

    def _open(self, row: StoredDataset, parts: list[tuple[PartInfo, bytes]]) -> None:
        found = read_dataset(row).with_parts(*parts)
        self._ledger.read_account(found.info, limits=found.terms.limits(found.info))
        self._datasets[found.info.name] = found


def _check_ids(found: DatasetRecord, ids: Int64[np.ndarray, " n"]) -> None:
    info = found.info
    if not len(ids):
        raise EncryptionError(f"data set {info.name}: no sample is named")
    lowest, highest = int(ids.min()), int(ids.max())
    if not 0 <= lowest <= highest < info.samples:
        raise EncryptionError(
            f"data set {info.name}: holds no sample {lowest if lowest < 0 else highest}, only 0 to "
            f"{info.samples - 1}; use the ids of its file"
        )


def _check_not_withdrawn(found: DatasetRecord, ids: Int64[np.ndarray, " n"]) -> None:
    withdrawn = found.withdrawn.holds(ids)
    if withdrawn.any():
        raise EncryptionError(
            f"data set {found.info.name}: sample {int(ids[withdrawn][0])} was withdrawn, no key is "
            "issued for it; begin again: a new run or command leaves it out"
        )


def _agreement(found: DatasetRecord) -> Agreement:
    return Agreement(found.info, found.terms)


def _store_withdrawn(found: DatasetRecord, connection: sqlite3.Connection) -> None:
    connection.execute(
        "UPDATE datasets SET withdrawn = ? WHERE name = ?",
        (found.withdrawn.bounds.astype("<i8").tobytes(), found.info.name),
    )


def _insert(table: str, row: tuple[Any, ...], connection: sqlite3.Connection) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608  (our own names)
