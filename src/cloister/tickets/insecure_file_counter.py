"""A counter in a file, for tests and trials: it goes up only as long as nobody puts back the file.

The counter tells when a meter's ledger is put back and the counter is not. It cannot tell when both
are, which is why the file is no counter to sell by.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from cloister.base.database_kind import DatabaseKind
from cloister.errors import CounterError
from cloister.tickets.ticket import MAX_SERIAL, CounterKind

_FILE = DatabaseKind(
    what="counter",
    application_id=0x434C4943,  # "CLIC"
    version=1,
    schema="CREATE TABLE counter (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), "
    "value INTEGER NOT NULL) STRICT",
    error=CounterError,
)


@dataclass(frozen=True)
class InsecureFileCounter:
    """See MonotonicCounter; sessions and processes may share the file."""

    path: Path
    kind = CounterKind.INSECURE_FILE
    identity = bytes(32)

    @classmethod
    def open(cls, path: Path) -> "InsecureFileCounter":
        """The counter in a file; where there is none, a new one at 0.

        Raises   CounterError
        """
        _FILE.open_or_create(path)
        return cls(path.absolute())

    def read(self) -> int:
        """See MonotonicCounter."""
        with _FILE.transaction(self.path) as database:
            return self._value(database)

    def advance(self, before: int, to: int) -> None:
        """See MonotonicCounter; it moves in one transaction."""
        if not before < to <= MAX_SERIAL:
            raise CounterError(f"counter {self.path}: cannot go from {before} to {to}")
        with _FILE.transaction(self.path) as database:
            found = self._value(database)
            if found != before:
                raise CounterError(
                    f"counter {self.path}: is at {found}, and at {before} for its caller; another "
                    "process advanced it"
                )
            database.execute("INSERT OR REPLACE INTO counter VALUES (1, ?)", (to,))

    def _value(self, database: sqlite3.Connection) -> int:
        row = database.execute("SELECT value FROM counter").fetchone()
        if row is None:
            return 0
        if not isinstance(row[0], int) or not 0 <= row[0] <= MAX_SERIAL:
            raise CounterError(f"counter {self.path}: is damaged")
        return row[0]
