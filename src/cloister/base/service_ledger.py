"""The SQLite file that a service keeps its ledger in: how it is made, and what is wrong with it."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from cloister.base import files, sqlite
from cloister.errors import EncryptionError, InputError

BUSY_TIMEOUT_S = 30.0


@contextlib.contextmanager
def create(
    path: Path, schema: str, *, application_id: int, version: int, then: str = ""
) -> Iterator[sqlite3.Connection]:
    """Make a service's ledger, in WAL mode and for its owner alone; the block fills it.

    Raises   InputError when there is a file already, EncryptionError when it cannot be written
    """
    try:
        os.close(files.open_in_place(path, "new", private=True))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    with faults(path, then=then), contextlib.ExitStack() as stack:
        connection = sqlite.connect(path, timeout_s=BUSY_TIMEOUT_S, synchronous="FULL")
        stack.callback(connection.close)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(f"BEGIN; {schema} COMMIT;")
        yield connection
        # Last: a file without it is no ledger.
        sqlite.mark(connection, application_id, version)


@contextlib.contextmanager
def faults(path: Path, *, then: str = "") -> Iterator[None]:
    """What SQLite cannot do with a service's ledger, as one line about the file.

    then   what the service does until it can

    Raises   EncryptionError
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise EncryptionError(
            f"{path}: cannot be used ({error}); make its folder writable and room on its disk{then}"
        ) from None
    except (sqlite3.Error, UnicodeError) as error:
        raise EncryptionError(f"{path}: is damaged or no ledger ({error})") from None
