"""What may be registered: a part, its key and its contents once, ever, also after a deletion."""

import hmac
from collections.abc import Iterable
from dataclasses import replace

from cloister.authority.agreement import Agreement
from cloister.authority.records import Dataset, Part, check_terms, key_digest
from cloister.errors import EncryptionError, InputError


def new_dataset(name: str, made: Agreement | None, label_key: bytes) -> Dataset:
    """The data set that a client makes with its first part.

    Raises   EncryptionError when the client means one that there is, InputError
    """
    if made is None:
        raise EncryptionError(f"data set {name}: is not known to this authority")
    if made.info.name != name:
        raise InputError(f"data set {name}: is described as {made.info.name}")
    check_terms(made.info, made.terms)
    return Dataset(made.info, made.terms, label_key)


def repeated(
    found: Dataset, new: Part, key: bytes, *, others: Iterable[Dataset], retired: set[str]
) -> int | None:
    """The first id of a part that is registered already as it stands; None: it is new.

    others   all data sets, also `found` if it is on record
    retired  what `read_retired` gives
    Raises   EncryptionError when any of it was registered otherwise
    """
    for other in others:
        for old, old_key in zip(other.parts, other.keys, strict=True):
            same_key = hmac.compare_digest(old_key, key)
            same = replace(new, first=old.first) == old
            if same and same_key and other is found:
                return old.first
            if old.part == new.part or old.sha256 == new.sha256 or same_key:
                raise _replay(found, new, of=f"part {old.part}")
    if not retired.isdisjoint((new.part, new.sha256, key_digest(key))):
        raise _replay(found, new, of="a part that was deleted")
    return None


def _replay(found: Dataset, new: Part, *, of: str) -> EncryptionError:
    return EncryptionError(
        f"data set {found.info.name}, part {new.part}: is a replay of {of}; encrypt again under a "
        "new key"
    )
