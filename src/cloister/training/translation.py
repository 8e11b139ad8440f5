"""From the numbers of a data set file to its clients' names and units: one definition for all uses.

A server sees classes and labels in a secret order, numbers without their range, and the columns of
a table without names. The authority tells clients alone what they mean (`authority.find`). So
whoever translates answers of a model, or exports it, presents a client's token.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float64, Int64

from cloister.authority.agreement import Known
from cloister.authority.answer_keys import answer_keys, clients_fingerprint
from cloister.authority.permutation import target_permutation
from cloister.data.info import DatasetInfo
from cloister.data.owner import Notes
from cloister.errors import EncryptionError, UnknownDatasetError


class ClientAccess(Protocol):
    """The part of an authority that tells its clients what a data set means."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the authority."""
        ...

    def find(self, dataset: str) -> Known | None:
        """A data set as its clients may know it; None: the authority has none of this name."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Translation:
    """The meaning of samples and scores of a data set.

    notes    names of classes, labels or numbers, columns, ranges
    places   where a model's scores have each of these names

    Secret   places: a server must not learn them
    """

    notes: Notes
    places: Int64[np.ndarray, " names"]

    def scores(self, of_file: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n names"]:
        """A model's scores in the order of the names; the label permutation is undone."""
        return np.asarray(of_file[:, self.places])

    @property
    def halves(self) -> Float64[np.ndarray, " names"]:
        """Half the range of each number."""
        return np.array([one.scale * one.bound for one in self.notes.number_encodings])

    @property
    def middles(self) -> Float64[np.ndarray, " names"]:
        """The middle of each number's range."""
        return np.array([one.offset for one in self.notes.number_encodings])


class Origin(Protocol):
    """A model, or answers: scores of a data set."""

    @property
    def info(self) -> DatasetInfo:
        """The data set as they know it."""
        ...

    @property
    def authority(self) -> str:
        """Fingerprint of its authority."""
        ...

    @property
    def clients(self) -> str:
        """Fingerprint of its clients."""
        ...


def translation(of: Origin, *, authority: ClientAccess) -> Translation:
    """The meaning of a data set's samples and scores.

    Raises   EncryptionError when the authority is another, or knows another data set of this name;
             UnknownDatasetError; the authority refuses a token that is not a client's
    """
    info = of.info
    if authority.fingerprint != of.authority:
        raise EncryptionError(
            f"data set {info.name}: belongs to authority {of.authority[:16]}, not "
            f"{authority.fingerprint[:16]}; give that one's --authority and --pin"
        )
    known = authority.find(info.name)
    if known is None:
        raise UnknownDatasetError(
            f"data set {info.name}: this authority has no such data set any more; without it, "
            "nothing tells the classes' names"
        )
    found = known.agreement.info
    for field in ("shape", "classes", "targets", "encoding"):
        if getattr(found, field) != getattr(info, field):
            raise EncryptionError(
                f"data set {info.name}: this authority has another one of that name, whose {field} "
                f"is {getattr(found, field)}, not {getattr(info, field)}"
            )
    if clients_fingerprint(answer_keys(known.label_key).public) != of.clients:
        raise EncryptionError(
            f"data set {info.name}: was deleted and made anew since, and its classes have other "
            "numbers; nothing tells those of the old one any more"
        )
    notes = Notes.read(known.agreement.terms.notes, found)
    return Translation(notes, target_permutation(known.label_key, found))
