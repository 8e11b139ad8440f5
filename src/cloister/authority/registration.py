"""Registrations: a part, its key and its contents are accepted once, ever, also after a
deletion.
"""

import hmac
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cloister.authority.agreement import Agreement
from cloister.authority.records import DatasetRecord, check_terms, key_digest, read_terms
from cloister.base.identity import Identity, PublicIdentity
from cloister.base.rng import KEY_BYTES
from cloister.data.info import DatasetInfo, PartInfo
from cloister.errors import EncryptionError, InputError, UnknownDatasetError
from cloister.wire.https.bodies import Body

_PART = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMED = ("dataset", "part", "samples", "sha256", "agreement")


@dataclass(frozen=True, repr=False)
class NewPart:
    """A part as its client registers it.

    label_key   of the data set that the client has seen, or makes
    is_first    the data set is made with this part
    Secret      pad_key, label_key
    """

    part: str
    samples: int
    sha256: str
    pad_key: bytes
    label_key: bytes
    is_first: bool


@dataclass(frozen=True, repr=False)
class Registration:
    """A part as its client hands it to the authority.

    agreement    digest of what the client has agreed to
    sealed_keys  the part's pad key, then the label key of the data set that the client means
    made         the data set, if it is to be made with this part: both, or neither
    """

    dataset: str
    part: str
    samples: int
    sha256: str
    agreement: str
    sealed_keys: bytes
    made: Agreement | None = None

    def __post_init__(self) -> None:
        named = all(map(_SHA256.fullmatch, (self.sha256, self.agreement)))
        if not (_PART.fullmatch(self.part) and named):
            raise InputError(
                "a part is named by 32, its contents and its agreement by 64 hexadecimal digits"
            )

    @staticmethod
    def of(new: NewPart, agreed: Agreement, *, to: PublicIdentity) -> "Registration":
        """Seal a part's keys to an authority.

        Secret   the keys of `new`
        """
        name, digest = agreed.info.name, agreed.digest
        info = _bound_to(name, new.part, new.sha256, digest)
        sealed = to.seal(new.pad_key + new.label_key, info=info)
        made = agreed if new.is_first else None
        return Registration(name, new.part, new.samples, new.sha256, digest, sealed, made)

    def keys(self, identity: Identity) -> tuple[bytes, bytes]:
        """The pad key and the label key.

        Secret   result
        Raises   EncryptionError, InputError
        """
        info = _bound_to(self.dataset, self.part, self.sha256, self.agreement)
        keys = identity.open_sealed(self.sealed_keys, info=info)
        if len(keys) != 2 * KEY_BYTES:
            raise InputError(
                f"data set {self.dataset}: a part comes with two keys of {KEY_BYTES} bytes"
            )
        return keys[:KEY_BYTES], keys[KEY_BYTES:]

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON values of a message."""
        named = {name: getattr(self, name) for name in _NAMED}
        if self.made is None:
            return named
        described = self.made.info.to_json().decode()
        return named | {"info": described, "terms": asdict(self.made.terms)}

    @property
    def tensors(self) -> tuple[np.ndarray, ...]:
        """The arrays of a message."""
        return (np.frombuffer(self.sealed_keys, np.uint8),)

    @staticmethod
    def read(message: Body) -> "Registration":
        """Inverse of `fields` and `tensors`.

        Raises   ProtocolError, InputError, EncryptionError
        """
        made = None
        if "info" in message.fields:
            info = DatasetInfo.from_json(message.text("info").encode())
            made = Agreement(info, read_terms(message.mapping("terms")))
        return Registration(
            dataset=message.text("dataset"),
            part=message.text("part"),
            samples=message.number("samples"),
            sha256=message.text("sha256"),
            agreement=message.text("agreement"),
            sealed_keys=message.array(0, np.uint8, 1).tobytes(),
            made=made,
        )


def _bound_to(dataset: str, part: str, sha256: str, agreement: str) -> bytes:
    """The data that the sealed keys of a part are bound to."""
    return f"cloister part\0{dataset}\0{part}\0{sha256}\0{agreement}".encode()


def new_dataset(name: str, made: Agreement | None, label_key: bytes) -> DatasetRecord:
    """The data set that a client makes with its first part.

    Raises   EncryptionError when the client means one that there is, InputError
    """
    if made is None:
        raise UnknownDatasetError(f"data set {name}: is not known to this authority")
    if made.info.name != name:
        raise InputError(f"data set {name}: is described as {made.info.name}")
    check_terms(made.info, made.terms)
    return DatasetRecord(made.info, made.terms, label_key)


class Registry:
    """All registrations ever made: a part's name, its contents and its key are accepted once.

    Secret   the keys, which it holds with their parts
    """

    def __init__(self, retired: Iterable[tuple[str, str, bytes]]) -> None:
        """retired: what `records.read_retired` gives."""
        self._known: dict[str | bytes, tuple[str, PartInfo, bytes]] = {}
        self._retired: set[str | bytes] = {name for names in retired for name in names}

    def add(self, dataset: str, part: PartInfo, key: bytes) -> None:
        """A part that is on record."""
        entry = (dataset, part, key)
        for name in _once(part, key):
            self._known[name] = entry

    def find(self, dataset: str, part: PartInfo, key: bytes) -> PartInfo | None:
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


def _once(part: PartInfo, key: bytes) -> tuple[str | bytes, ...]:
    # Names and contents differ in length, and a digest of a key is no text.
    return part.part, part.sha256, key_digest(key)


def _replay(dataset: str, part: PartInfo, *, of: str) -> EncryptionError:
    return EncryptionError(
        f"data set {dataset}, part {part.part}: is a replay of {of}; encrypt again under a new key"
    )
