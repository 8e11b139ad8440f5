"""How a client comes to a data set: on terms that it has accepted, or not at all.

A part can be registered through an `Enrolment` only, and `enrol` makes one only after the data
set's agreement, as the *authority* tells it, has been compared with the terms that the client
accepts. The registration names the agreement, and shows the label key as proof of the data set that
the client saw. The authority refuses if its own agreement or label key has changed by then. The
client does not trust a file's header.

A new data set is made with its first part, in one step: a client that fails before leaves nothing.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from cloister.authority import agreement as agreements
from cloister.authority.agreement import Agreement, Known
from cloister.authority.answer_keys import answer_keys, clients_fingerprint
from cloister.authority.permutation import target_permutation
from cloister.authority.records import check_terms
from cloister.authority.registration import NewPart
from cloister.base import hkdf
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.data.id_spans import IdSpans
from cloister.data.info import DatasetInfo, PartInfo, Register


class ClientService(Protocol):
    """The authority as clients of data sets see it: in process, or over HTTPS."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the authority."""
        ...

    def find(self, dataset: str) -> Known | None:
        """A data set by its name; None: there is none."""
        ...

    def parts(self, dataset: str) -> tuple[PartInfo, ...]:
        """The registered parts of a data set."""
        ...

    def withdrawn(self, dataset: str) -> IdSpans:
        """The samples for which no key is issued."""
        ...

    def register(self, agreed: Agreement, new: NewPart) -> int:
        """Hand over a part's keys; gives the id of its first sample. The same again is accepted.

        Raises   EncryptionError for a replay, and when the data set is another by now
        """
        ...


@dataclass(frozen=True, repr=False)
class Enrolment:
    """A client's place in a data set whose agreement it has accepted.

    clients      fingerprint of the data set's clients (`answer_keys`)
    digest_key   of the client's own digests of samples; all clients of the data set derive the same
    Secret       permutation, digest_key
    """

    agreement: Agreement
    fingerprint: str
    clients: str
    permutation: Int64[np.ndarray, " classes"]
    digest_key: bytes
    register: Register

    @property
    def info(self) -> DatasetInfo:
        """The description of the data set."""
        return self.agreement.info


def enrol(service: ClientService, accepted: Agreement, *, rng: Csprng) -> Enrolment:
    """Come to the data set named in `accepted`; it is made with the first part if there is none.

    Samples are encoded as the result's agreement says, which may be coarser than accepted.

    Raises   InputError when it gives away more than is accepted, or when there can be no such one
    """
    known = service.find(accepted.info.name)
    is_first = known is None
    if known is None:
        check_terms(accepted.info, accepted.terms)
        known = Known(accepted, rng.random_bytes(KEY_BYTES))
    agreements.check(known.agreement, accepted)
    agreed, label_key = known.agreement, known.label_key

    def register(part: str, samples: int, sha256: str, key: bytes) -> int:
        return service.register(agreed, NewPart(part, samples, sha256, key, label_key, is_first))

    permutation = target_permutation(label_key, agreed.info)
    digest_key = hkdf.derive(label_key, info=b"cloister sample digests")
    clients = clients_fingerprint(answer_keys(label_key).public)
    return Enrolment(agreed, service.fingerprint, clients, permutation, digest_key, register)
