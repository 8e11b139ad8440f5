"""What an authority's folder holds of its data sets, read beside the process that serves it."""

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from cloister.authority import records
from cloister.authority.book import Book, Spent, read_book, tabulate, tally
from cloister.base import sqlite
from cloister.errors import UnknownDatasetError, one_line


@dataclass(frozen=True)
class Stored:
    """What a folder holds of a data set."""

    held: records.Dataset
    book: Book

    @property
    def summary(self) -> records.Summary:
        """Its budget in figures."""
        book, info = self.book, self.held.info
        figures = tally(book.words, info.samples, book.states.all, book.counts)
        return records.summarise(info, self.held.terms, figures)

    @property
    def spent(self) -> Spent:
        """What each sample has given away; takes memory for every one of them."""
        return tabulate(self.book.words, self.held.info.samples, self.book.states.all)


def read_stored(folder: Path, dataset: str | None = None) -> tuple[list[Stored], dict[str, str]]:
    """The data sets, or the one of this name, and why some cannot be read.

    Raises   UnknownDatasetError when there is none of this name
    """
    books, failed, path = [], {}, folder / sqlite.FILE
    with contextlib.closing(sqlite.connect(path)) as connection, sqlite.faults(path):
        connection.execute("BEGIN")
        sqlite.check(connection)
        parts: dict[str, list[tuple[records.Part, bytes]]] = {}
        for part, name, key in records.read_parts(connection):
            parts.setdefault(name, []).append((part, key))
        for stored in records.stored_datasets(connection):
            name = stored[0]
            if dataset not in (None, name):
                continue
            try:
                books.append(_read_one(connection, stored, parts.get(name, [])))
            except Exception as error:  # noqa: BLE001  (whatever it is, the others are shown)
                failed[name] = one_line(error)
    if dataset is not None and not books and not failed:
        raise UnknownDatasetError(f"data set {dataset}: is not known to this authority")
    return books, failed


def _read_one(
    connection: sqlite3.Connection,
    stored: records.StoredDataset,
    parts: list[tuple[records.Part, bytes]],
) -> Stored:
    held = records.Dataset(*records.read_dataset(stored)).with_parts(*parts)
    limits = held.terms.limits(held.info)
    (modulus,) = connection.execute("SELECT modulus FROM authority").fetchone()
    return Stored(held, read_book(connection, held.info, limits=limits, modulus=modulus))
