"""What may be registered: a part, its key and its contents once, ever, also after a deletion."""

import hmac
from collections.abc import Iterable
from dataclasses import replace

from cloister.authority.agreement import Agreement
from cloister.authority.records import Dataset, Part, check_terms, key_digest
from cloister.errors import EncryptionError, InputError, UnknownDatasetError


def new_dataset(name: str, made: Agreement | None, label_key: bytes) -> Dataset:
    """The data set that a client makes with its first part.

    Raises   EncryptionError when the client means one that there is, InputError
    """
    if made is None:
        raise UnknownDatasetError(f"data set {name}: is not known to this authority")
    if made.info.name != name:
        raise InputError(f"data set {name}: is described as {made.info.name}")
    check_terms(made.info, made.terms)
    return Dataset(made.info, made.terms, label_key)


class Registry:
    """What was ever registered: a part's name, its contents and its key are accepted once.

    Secret   the keys, which it holds with their parts
    """

    def __init__(self, retired: Iterable[tuple[str, str, bytes]]) -> None:
        """retired: what `records.read_retired` gives."""
        self._known: dict[str | bytes, tuple[str, Part, bytes]] = {}
        self._retired: set[str | bytes] = {name for names in retired for name in names}

    def add(self, dataset: str, part: Part, key: bytes) -> None:
        """A part that is on record."""
        entry = (dataset, part, key)
        for name in _once(part, key):
            self._known[name] = entry

    def find(self, dataset: str, part: Part, key: bytes) -> Part | None:
        """The part on record if this is the same again; its place is not compared.

        Raises   EncryptionError for a name, contents or a key of another part, or of a deleted one
        """
        names = _once(part, key)
        if not self._retired.isdisjoint(names):
            raise _replay(dataset, part, of="a part that was deleted")
        found = [self._known.get(name) for name in names]
        for entry in found:
            if entry is None:
                continue
            of, old, old_key = entry
            same = of == dataset and old == replace(part, first=old.first)
            if not same or not hmac.compare_digest(old_key, key):
                raise _replay(dataset, part, of=f"part {old.part}")
        return found[0][1] if found[0] is not None else None


def _once(part: Part, key: bytes) -> tuple[str | bytes, ...]:
    # Names and contents differ in length, and a digest of a key is no text.
    return part.part, part.sha256, key_digest(key)


def _replay(dataset: str, part: Part, *, of: str) -> EncryptionError:
    return EncryptionError(
        f"data set {dataset}, part {part.part}: is a replay of {of}; encrypt again under a new key"
    )
