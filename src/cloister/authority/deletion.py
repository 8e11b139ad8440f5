"""Deleting a data set: its keys are overwritten, and its parts stay refused for ever.

Without its pad keys a data set's files cannot be unblinded any more. Its ledger goes with the keys,
and not before them: a data set made anew under the name has keys of its own. Digests of all
registrations stay, so that old ciphertexts cannot come back with a fresh budget.
"""

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from cloister.authority import database
from cloister.authority.records import key_digest
from cloister.base.service_ledger import faults
from cloister.errors import EncryptionError, UnknownDatasetError

_OWN_TABLES = ("parts", "states", "words", "journal", "counters", "evaluations", "tokens")
"""Tables whose rows belong to one data set, beside `datasets` itself."""


@dataclass(frozen=True)
class Deleted:
    """The result of a deletion: its counts are zero for a data set that was deleted before."""

    samples: int
    parts: int
    tokens: int


def delete(folder: Path, name: str) -> Deleted:
    """Delete a data set with its keys, its ledger and its tokens; again, to finish what was killed.

    Raises   InputError while the authority serves, UnknownDatasetError for a name it never had,
             EncryptionError when the ledger cannot be written
    """
    path = folder / database.FILE
    with contextlib.closing(database.connect(path)) as connection:
        held = database.hold(folder / database.LOCK_FILE)
        try:
            with faults(path):
                # Zeros over what is deleted; copies that SQLite moved about go with `_rewrite`.
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("PRAGMA temp_store = MEMORY")
                found = _delete(connection, name)
                _rewrite(connection, path)
        finally:
            os.close(held)
    return found


def _delete(connection: sqlite3.Connection, name: str) -> Deleted:
    connection.execute("BEGIN IMMEDIATE")
    known = connection.execute("SELECT 1 FROM datasets WHERE name = ?", (name,)).fetchone()
    retired = connection.execute("SELECT 1 FROM retired WHERE dataset = ?", (name,)).fetchone()
    if known is None and retired is None:
        raise UnknownDatasetError(f"data set {name}: is not known to this authority")
    parts = connection.execute(
        "SELECT part, dataset, sha256, mask_key, samples FROM parts WHERE dataset = ?", (name,)
    ).fetchall()
    connection.executemany(
        "INSERT INTO retired VALUES (?, ?, ?, ?)",
        [(part, dataset, sha256, key_digest(key)) for part, dataset, sha256, key, _ in parts],
    )
    counts = {
        table: connection.execute(f"DELETE FROM {table} WHERE dataset = ?", (name,)).rowcount  # noqa: S608  (our own names)
        for table in _OWN_TABLES
    }
    connection.execute("DELETE FROM datasets WHERE name = ?", (name,))
    connection.execute("DELETE FROM functionals WHERE digest NOT IN (SELECT digest FROM states)")
    connection.execute("COMMIT")
    return Deleted(sum(row[-1] for row in parts), counts["parts"], counts["tokens"])


def _rewrite(connection: sqlite3.Connection, path: Path) -> None:
    # The zeros first: VACUUM makes the file shorter, and what is cut off is not written any more.
    _checkpoint(connection, path)
    connection.execute("VACUUM")
    _checkpoint(connection, path)


def _checkpoint(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the log into the file, and empty it: the log has old pages too."""
    busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise EncryptionError(
            f"{path}: is being read; the data set is deleted, but its keys are not overwritten "
            "yet: delete it once more"
        )
