"""The data sets of an authority's folder, read beside the process that serves it."""

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from cloister.authority import database, records
from cloister.authority.account import Account, Spent, read_account, tabulate
from cloister.base.service_ledger import faults
from cloister.data.info import PartInfo
from cloister.errors import UnknownDatasetError, one_line


@dataclass(frozen=True)
class Stored:
    """A data set of a folder."""

    held: records.DatasetRecord
    account: Account

    @property
    def summary(self) -> records.Summary:
        """Its budget in figures."""
        account = self.account
        return records.summarise(self.held, account.tally(self.held.info.samples))

    @property
    def spent(self) -> Spent:
        """What each sample has given away; takes memory for every one of them."""
        return tabulate(self.account.words, self.held.info.samples, self.account.states.all)


def read_stored(folder: Path, dataset: str | None = None) -> tuple[list[Stored], dict[str, str]]:
    """The data sets, or the one of this name, and why some cannot be read.

    Raises   UnknownDatasetError when there is none of this name
    """
    accounts, failed, path = [], {}, folder / database.FILE
    with contextlib.closing(database.connect(path)) as connection, faults(path):
        connection.execute("BEGIN")
        database.check(connection)
        parts: dict[str, list[tuple[PartInfo, bytes]]] = {}
        for part, name, key in records.read_parts(connection):
            parts.setdefault(name, []).append((part, key))
        for stored in records.stored_datasets(connection):
            name = stored[0]
            if dataset not in (None, name):
                continue
            try:
                accounts.append(_read_one(connection, stored, parts.get(name, [])))
            except Exception as error:  # noqa: BLE001  (whatever it is, the others are shown)
                failed[name] = one_line(error)
    if dataset is not None and not accounts and not failed:
        raise UnknownDatasetError(f"data set {dataset}: is not known to this authority")
    return accounts, failed


def _read_one(
    connection: sqlite3.Connection,
    stored: records.StoredDataset,
    parts: list[tuple[PartInfo, bytes]],
) -> Stored:
    held = records.read_dataset(stored).with_parts(*parts)
    limits = held.terms.limits(held.info)
    (modulus,) = connection.execute("SELECT modulus FROM authority").fetchone()
    return Stored(held, read_account(connection, held.info, limits=limits, modulus=modulus))
