"""The authority's SQLite file: one writer thread, many requests in one durable commit.

`PRAGMA synchronous = FULL` in WAL mode syncs the log at every commit, so a record whose commit has
been waited for survives a crash of the machine. Requests that arrive during a commit share the next
one: the rate of requests is not bounded by the rate of syncs. If a commit fails, memory has records
that the disk has not, and no key may be issued: the database refuses all requests and repeats the
write until the disk has it. A commit whose contents are at fault is not, until a restart.
"""

import concurrent.futures
import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path

from cloister.base import files, service_ledger, sqlite
from cloister.base.service_ledger import BUSY_TIMEOUT_S, faults
from cloister.errors import CloisterError, EncryptionError, InputError

FILE = "ledger.sqlite"
LOCK_FILE = "authority.lock"
FORMAT = 5
APPLICATION_ID = 0x434C4155
"""'CLAU' in the database header: this file is an authority's ledger."""
RETRY_S = 1.0

DatabaseJob = Callable[[sqlite3.Connection], None]

_log = logging.getLogger("cloister.authority")

_SCHEMA = """
CREATE TABLE authority (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1), modulus INTEGER NOT NULL
) STRICT;
CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, hash BLOB NOT NULL,
    dataset TEXT
) STRICT;
CREATE TABLE datasets (
    name TEXT PRIMARY KEY, info BLOB NOT NULL, extra BLOB NOT NULL, label_key BLOB NOT NULL,
    withdrawn BLOB NOT NULL
) STRICT;
CREATE TABLE parts (
    part TEXT PRIMARY KEY, dataset TEXT NOT NULL, first INTEGER NOT NULL, samples INTEGER NOT NULL,
    sha256 TEXT NOT NULL, mask_key BLOB NOT NULL, token_id TEXT NOT NULL
) STRICT;
CREATE TABLE retired (
    part TEXT PRIMARY KEY, dataset TEXT NOT NULL, sha256 TEXT NOT NULL, key_sha256 BLOB NOT NULL
) STRICT;
CREATE TABLE functionals (digest BLOB PRIMARY KEY, geometry BLOB NOT NULL, weights BLOB NOT NULL)
    STRICT;
CREATE TABLE states (
    dataset TEXT NOT NULL, id INTEGER NOT NULL, parent INTEGER NOT NULL, digest BLOB NOT NULL,
    exact INTEGER NOT NULL, rank INTEGER NOT NULL, opaque INTEGER NOT NULL, bits INTEGER NOT NULL,
    operand INTEGER NOT NULL, PRIMARY KEY (dataset, id)
) WITHOUT ROWID, STRICT;
CREATE TABLE words (
    dataset TEXT NOT NULL, block INTEGER NOT NULL, words BLOB NOT NULL,
    PRIMARY KEY (dataset, block)
) WITHOUT ROWID, STRICT;
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY, dataset TEXT NOT NULL, ids BLOB NOT NULL, words BLOB NOT NULL
) STRICT;
CREATE TABLE counters (
    dataset TEXT NOT NULL, what TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (dataset, what)
) WITHOUT ROWID, STRICT;
CREATE TABLE evaluations (
    dataset TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (dataset, digest)
) WITHOUT ROWID, STRICT;
"""


class PendingCommit:
    """A commit to come, with what it writes.

    durable   has its result once the commit, and all before it, are on stable storage; an
              EncryptionError when it could not be written: nothing may be released then
    """

    def __init__(self) -> None:
        self.jobs: list[DatabaseJob] = []
        self.last: dict[Hashable, DatabaseJob] = {}
        self.durable: concurrent.futures.Future[None] = concurrent.futures.Future()
        # Many may wait for it: none may cancel it.
        self.durable.set_running_or_notify_cancel()

    def wait(self) -> None:
        """Return once it is durable.

        Raises   EncryptionError
        """
        error = self.durable.exception()
        if error is not None:
            # A new one: an exception keeps all frames that it has passed.
            raise EncryptionError(str(error))

    def write(self, connection: sqlite3.Connection) -> None:
        """Run its jobs as one transaction."""
        connection.execute("BEGIN IMMEDIATE")
        for job in (*self.jobs, *self.last.values()):
            job(connection)
        connection.execute("COMMIT")

    def settle(self, error: EncryptionError | None = None) -> None:
        """It is durable, or never will be."""
        self.jobs, self.last = [], {}
        if error is None:
            self.durable.set_result(None)
        else:
            self.durable.set_exception(error)


class Database:
    """The open file, and the thread that writes it."""

    def __init__(self, path: Path) -> None:
        """Open the file of an existing authority.

        Raises   InputError, EncryptionError
        """
        self._path = path
        self._asking = connect(path)
        self._ask_lock = threading.Lock()
        self._lock = threading.Lock()
        self._work = threading.Semaphore(0)
        self._open, self._latest = PendingCommit(), PendingCommit()
        self._latest.settle()
        self._fault: str | None = None
        self._closing, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    def enqueue(
        self, *jobs: DatabaseJob, last: Mapping[Hashable, DatabaseJob] | None = None
    ) -> PendingCommit:
        """Have `jobs` run in the next commit, after all jobs enqueued before.

        last     jobs for the end of that commit, named by what they write, such as counters; of
                 several under one name only the one enqueued last is run
        Raises   EncryptionError when the ledger cannot be written any more
        """
        with self._lock:
            self._refuse_if_broken()
            if self._latest is not self._open:
                self._latest = self._open
                self._work.release()
            self._open.jobs += jobs
            self._open.last.update(last or {})
            return self._open

    def latest(self) -> PendingCommit:
        """A commit for everything enqueued so far."""
        with self._lock:
            self._refuse_if_broken()
            return self._latest

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for reading what is committed, however much it is."""
        with contextlib.closing(connect(self._path)) as connection, faults(self._path):
            yield connection

    @contextlib.contextmanager
    def asking(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading one committed row, shared with other readers of one row."""
        with self._ask_lock, faults(self._path):
            yield self._asking

    def close(self) -> None:
        """Write what is enqueued, then close."""
        with self._lock:
            self._closing = True
        self._stop.set()
        self._work.release()
        self._thread.join()
        with self._ask_lock:
            self._asking.close()

    def _refuse_if_broken(self) -> None:
        if self._fault is not None or self._closing:
            raise self._broken(self._fault or "is closed")

    def _broken(self, reason: str) -> EncryptionError:
        return EncryptionError(f"{self._path}: {reason}; no key is issued until then")

    def _write(self) -> None:
        connection: sqlite3.Connection | None = None
        while (commit := self._take()) is not None:
            while True:
                try:
                    connection = connection or connect(self._path)
                    commit.write(connection)
                    break
                except Exception as error:  # noqa: BLE001  (no key may be issued after any)
                    if connection is not None:
                        # What it began is undone with it.
                        connection.close()
                        connection = None
                    commit = self._fail(commit, error)
                    if not _passes(error) or self._stop.wait(RETRY_S):
                        return
            commit.settle()
            self._recovered()
        if connection is not None:
            connection.close()

    def _fail(self, commit: PendingCommit, error: Exception) -> PendingCommit:
        """Refuse all requests from now on; returns a commit for records not yet on the disk."""
        mend = "make room on its disk" if _passes(error) else "restart the authority"
        with self._lock:
            first, self._fault = self._fault is None, f"cannot be written ({error}); {mend}"
            fault = self._fault
            again, waiting = PendingCommit(), [commit]
            if self._latest is self._open:
                # Nothing is added to it any more, and the turn that was asked for it is taken here.
                self._work.acquire()
                waiting.append(self._open)
                self._open = PendingCommit()
            for failed in waiting:
                again.jobs += failed.jobs
                again.last.update(failed.last)
            self._latest = again
        for failed in waiting:
            failed.settle(self._broken(fault))
        if first:
            # Callers get the error; the log tells the operator of the authority.
            _log.error("%s: %s", self._path, fault)
        return again

    def _recovered(self) -> None:
        """Memory and disk agree again: all that was charged while the disk failed is written."""
        with self._lock:
            was, self._fault = self._fault, None
        if was is not None:
            _log.warning("%s: can be written again", self._path)

    def _take(self) -> PendingCommit | None:
        """Wait for jobs, and begin a commit for those to come; None: there are none, close."""
        self._work.acquire()
        with self._lock:
            if self._latest is not self._open:
                return None
            self._open, taken = PendingCommit(), self._open
            return taken


def _passes(error: Exception) -> bool:
    """Whether a fault may be over later: a full or failing disk, no descriptor or memory left.

    Everything else is a mistake in what is written, and stays one.
    """
    return isinstance(error, sqlite3.OperationalError | OSError | MemoryError | CloisterError)


def create(path: Path, *, modulus: int) -> None:
    """See `service_ledger.create`."""
    with service_ledger.create(
        path, _SCHEMA, application_id=APPLICATION_ID, version=FORMAT
    ) as connection:
        connection.execute("INSERT INTO authority VALUES (1, ?)", (modulus,))


def check(connection: sqlite3.Connection) -> None:
    """Read the file once: a ledger with holes in it would have forgotten something.

    The tables are strict, so that a value whose kind has changed is found here as well.

    Raises   sqlite3.DatabaseError, for `faults`
    """
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[sqlite3.Connection]:
    """One change by a process that is not the authority's: made whole, or not at all.

    Raises   InputError, EncryptionError
    """
    with contextlib.closing(connect(path)) as connection, faults(path):
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings every user of the file needs.

    Raises   InputError when there is no such file, EncryptionError when it is something else
    """
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; run `cloister authority init`"
        ) from None
    files.check_private(path, found)
    with faults(path), contextlib.ExitStack() as stack:
        connection = sqlite.connect(path, timeout_s=BUSY_TIMEOUT_S, synchronous="FULL")
        stack.callback(connection.close)
        if sqlite.marks(connection) != (APPLICATION_ID, FORMAT):
            raise EncryptionError(f"{path}: is not the ledger of an authority of this version")
        connection.execute("PRAGMA journal_mode = WAL")
        stack.pop_all()
    return connection


def hold(path: Path) -> int:
    """Be the only process that uses this folder.

    Raises   InputError
    """
    try:
        descriptor = files.open_in_place(path, "any", private=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); the authority's folder must "
            "be writable"
        ) from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{path.parent}: is in use by another process; stop that authority first"
            ) from None
        stack.pop_all()
    return descriptor
