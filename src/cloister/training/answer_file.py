"""Files of answers: predictions for encrypted samples, readable or sealed to a data set's clients.

    magic    "cloister answers 1", newline
    header   length u32, SHA-256, JSON: the data set, its authority, the model, samples, records
    records  length u64 each, then a message (`wire.https.bodies`) with ids and answers, behind a
             SHA-256, or in a sealed file encrypted (`base.sealing`); either way bound to the
             header and to its number

Sealing keeps answers from whoever holds or copies the file. It hides nothing from the party that
computed them: the model and the first layer's values give every answer. It does not tell who wrote
the file either: everyone who can ask the authority for the public key can seal.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Int64

from cloister.authority.answer_keys import answer_keys
from cloister.base import files, sealing
from cloister.base.csv_text import csv_text
from cloister.base.reading import open_regular, parsing
from cloister.base.sealing import KeyPair
from cloister.data.info import DatasetInfo
from cloister.errors import EncryptionError, InputError, UnknownDatasetError
from cloister.ring.bounds import MAX_SAMPLES
from cloister.training.predictions import Predictions
from cloister.training.translation import ClientAccess, translation
from cloister.wire.https.bodies import Body, decode, encode

MAGIC = b"cloister answers 1\n"
RECORD_NUMBERS = 1 << 22
"""Answers of one record, about."""
MAX_HEADER_BYTES = 1 << 16
MAX_RECORD_BYTES = 1 << 28
_HEAD = struct.Struct("<I32s")
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, eq=False)
class SecretAnswers:
    """Predictions as a file holds them: classes and labels have the secret numbers of the file.

    authority   fingerprint of the data set's authority
    clients     fingerprint of the data set's clients
    run         of the model
    ids         the samples
    values      by sample: probabilities, or numbers as parts of their ranges, from -1 to 1
    """

    info: DatasetInfo
    authority: str
    clients: str
    run: str
    ids: Int64[np.ndarray, " n"]
    values: Float[np.ndarray, "n classes"]


@dataclass(frozen=True, eq=False)
class NamedAnswers:
    """Answers in their clients' names and units.

    clients  fingerprint of the data set's clients
    names    of classes, labels or numbers, in the clients' order
    values   by sample: their probabilities, or numbers in their own units
    rows     of the samples in their owner's data, where that is known
    absent   samples of that owner for which there is no answer
    """

    info: DatasetInfo
    clients: str
    names: tuple[str, ...]
    ids: Int64[np.ndarray, " n"]
    values: Float[np.ndarray, "n names"]
    rows: Int64[np.ndarray, " n"] | None = None
    absent: int = 0

    @property
    def classes(self) -> list[str]:
        """The likeliest class of each sample."""
        return [self.names[place] for place in self.values.argmax(axis=1).tolist()]

    def write_csv(self, path: Path) -> None:
        """Write a table for the owner alone: row, sample, class, and a column for each name.

        Raises   InputError when it cannot be written
        """
        known, classes = self.rows is not None, self.info.targets == "classes"
        header = [*(["row"] * known), "sample", *(["class"] * classes), *self.names]
        said = self.classes if classes else []
        rows = []
        for place, sample in enumerate(self.ids.tolist()):
            own = [] if self.rows is None else [int(self.rows[place])]
            values = [f"{value:.6g}" for value in self.values[place].tolist()]
            rows.append([*own, sample, *said[place : place + 1], *values])
        _replace(path, csv_text(header, rows).encode())

    def of_owner(self, order: Path) -> "NamedAnswers":
        """The answers for the samples of one owner, in the order of its own data.

        order    the file that `encrypt` kept: which sample is which
        Raises   InputError when it is none, or is of other samples
        """
        with parsing(f"{order}: no file of --order that can be read"):
            with np.load(order, allow_pickle=False) as kept:
                ids, rows = kept["ids"].astype(np.int64), kept["rows"].astype(np.int64)
                clients = str(kept["clients"])
            place = dict(zip(ids.tolist(), rows.tolist(), strict=True))
        if clients != self.clients:
            raise InputError(
                f"{order}: is of another data set than {self.info.name}, or of one that was made "
                "anew; give the --order of the samples that were answered for"
            )
        mine = np.flatnonzero(np.isin(self.ids, ids))
        if not len(mine):
            raise InputError(f"{order}: none of its samples has an answer in the file")
        found = np.array([place[sample] for sample in self.ids[mine].tolist()], np.int64)
        sorted_ = np.argsort(found, kind="stable")
        mine = mine[sorted_]
        return NamedAnswers(
            self.info,
            self.clients,
            self.names,
            self.ids[mine],
            self.values[mine],
            found[sorted_],
            len(place) - len(mine),
        )


def write_answers(made: Predictions, path: Path, *, key: bytes | None) -> None:
    """Write predictions to a file for its owner alone.

    key      the clients' public key, to which they are sealed; None: they are readable
    Raises   InputError when the file cannot be written
    """
    step = max(1, RECORD_NUMBERS // made.info.classes)
    starts = range(0, len(made.ids), step)
    header = json.dumps(
        {
            "info": json.loads(made.info.to_json()), "authority": made.authority,
            "clients": made.clients, "run": made.run, "samples": len(made.ids),
            "records": len(starts), "sealed": key is not None,
        },
        sort_keys=True, separators=(",", ":"),
    ).encode()  # fmt: skip
    try:
        with files.replacing(path, private=True) as file:
            digest = hashlib.sha256(header).digest()
            file.write(MAGIC + _HEAD.pack(len(header), digest) + header)
            for number, start in enumerate(starts):
                some = slice(start, start + step)
                plain = encode(Body({}, (made.ids[some], made.answers[some])))
                place = _place(digest, number)
                if key is None:
                    record = hashlib.sha256(place + plain).digest() + plain
                else:
                    record = sealing.seal(key, plain, info=place)
                file.write(_LENGTH.pack(len(record)) + record)
    except OSError as error:
        raise _unwritable(path, error) from None


def read_answers(path: Path, *, keys: KeyPair | None = None) -> SecretAnswers:
    """The answers of a file.

    keys     of the data set's clients, for a sealed file
    Raises   InputError for a sealed file without keys; EncryptionError when the file is damaged, or
             was sealed to others
    """
    with _opened(path) as file:
        fields, digest = _header(path, file)
        if fields["sealed"] and keys is None:
            raise InputError(
                f"{path}: is sealed to the clients of data set {fields['info']['name']}; give "
                "--authority, --pin and --token of one of them"
            )
        with parsing(f"{path}: its header is not understood", kind=EncryptionError):
            info = DatasetInfo.from_json(_canonical(fields["info"]))
            samples, count = int(fields["samples"]), int(fields["records"])
        sealed_to = keys if fields["sealed"] else None
        pieces = list(_records(path, file, sealed_to, count, digest))
        if any(values.shape != (len(ids), info.classes) for ids, values in pieces):
            raise EncryptionError(f"{path}: its answers are not of {info.classes} numbers each")
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in pieces)])
    values = np.concatenate(
        [np.empty((0, info.classes), np.float32), *(values for _, values in pieces)]
    )
    if len(ids) != samples or not 0 < samples <= MAX_SAMPLES:
        raise EncryptionError(f"{path}: holds {len(ids)} answers of {samples}; get it again")
    # Its writer may be hostile: of two answers for a sample, and of what is no number, none counts.
    if len(np.unique(ids)) < samples or not np.isfinite(values).all():
        raise EncryptionError(
            f"{path}: answers for a sample twice, or with what is no number; predict again"
        )
    authority, clients, run = (str(fields[name]) for name in ("authority", "clients", "run"))
    return SecretAnswers(info, authority, clients, run, ids, values)


def open_answers(path: Path | str, *, authority: ClientAccess | None = None) -> NamedAnswers:
    """The answers of a file in the names and units of its data set's clients.

    authority   asked with a client's token; None: a readable file as it is, under secret numbers
    Raises      as `read_answers`; EncryptionError, UnknownDatasetError when the authority is
                another, or has no such data set
    """
    path = Path(path)
    if authority is None:
        found = read_answers(path)
        names = tuple(f"secret {number}" for number in range(found.info.classes))
        return NamedAnswers(found.info, found.clients, names, found.ids, found.values)
    with _opened(path) as file:
        name = str(_header(path, file)[0]["info"]["name"])
    known = authority.find(name)
    if known is None:
        raise UnknownDatasetError(f"{path}: data set {name} is not known to this authority")
    found = read_answers(path, keys=answer_keys(known.label_key))
    told = translation(found, authority=authority)
    values = told.scores(found.values)
    if found.info.targets == "numbers":
        values = values * told.halves + told.middles
    return NamedAnswers(found.info, found.clients, told.notes.classes, found.ids, values)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    head = file.read(len(MAGIC) + _HEAD.size)
    if head[: len(MAGIC)] != MAGIC or len(head) != len(MAGIC) + _HEAD.size:
        raise EncryptionError(f"{path}: is no file of answers; give the --out of cloister predict")
    length, digest = _HEAD.unpack_from(head, len(MAGIC))
    if length > MAX_HEADER_BYTES:
        raise EncryptionError(f"{path}: its header is damaged; get it again")
    content = file.read(length)
    if hashlib.sha256(content).digest() != digest:
        raise EncryptionError(f"{path}: its header was altered; get it again")
    with parsing(f"{path}: its header is not understood", kind=EncryptionError):
        fields = json.loads(content)
        wanted = {"authority", "clients", "info", "records", "run", "samples", "sealed"}
        if set(fields) != wanted or type(fields["sealed"]) is not bool:
            raise ValueError("its fields are others")
        if not isinstance(fields["info"]["name"], str):
            raise ValueError("names no data set")
    return fields, digest


def _records(
    path: Path, file: BinaryIO, keys: KeyPair | None, count: int, digest: bytes
) -> Iterator[tuple[Int64[np.ndarray, " n"], Float[np.ndarray, "n classes"]]]:
    for number in range(count):
        where = f"{path}: record {number + 1} of {count}"
        size = file.read(_LENGTH.size)
        if len(size) != _LENGTH.size:
            raise EncryptionError(f"{where} is missing; get the file again")
        (length,) = _LENGTH.unpack(size)
        if length > MAX_RECORD_BYTES:
            raise EncryptionError(f"{where} is damaged; get the file again")
        record = file.read(length)
        if keys is not None:
            try:
                plain = keys.open_sealed(record, info=_place(digest, number))
            except EncryptionError as error:
                raise EncryptionError(f"{where}: {error}") from None
        else:
            plain = record[_DIGEST_BYTES:]
            if hashlib.sha256(_place(digest, number) + plain).digest() != record[:_DIGEST_BYTES]:
                raise EncryptionError(f"{where} was altered; get the file again")
        with parsing(f"{where} is not understood", kind=EncryptionError):
            body = decode(plain)
            yield body.array(0, np.int64, 1), body.array(1, np.float32, 2)
    if file.read(1):
        raise EncryptionError(f"{path}: goes on behind its last record; get it again")


def _place(header: bytes, number: int) -> bytes:
    """What a record is bound to: it opens in its place of its file alone."""
    return b"cloister answers\0" + header + number.to_bytes(8, "big")


def _canonical(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def _replace(path: Path, content: bytes) -> None:
    try:
        files.replace(path, content, private=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written ({error.strerror or error}); make room or choose another file"
    )
