"""The client's side of an authority in the same process: for tests, benchmarks and one owner."""

import numpy as np
from jaxtyping import UInt32

from cloister.authority.agreement import Agreement, Known
from cloister.authority.authority import Authority
from cloister.authority.key_service import Receiver
from cloister.authority.records import Summary
from cloister.authority.registration import NewPart, Registration
from cloister.authority.requests import Request
from cloister.data.id_spans import IdSpans
from cloister.data.info import DatasetInfo, PartInfo


class LocalClient:
    """What `AuthorityClient` offers, without a network."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._public = authority.identity.public

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the authority."""
        return self._public.fingerprint

    def describe(self, dataset: str) -> DatasetInfo:
        """See `KeyService.describe`."""
        return self._authority.describe(dataset)

    def ask(self, request: Request, receiver: Receiver) -> UInt32[np.ndarray, "..."]:
        """See `KeyService.ask`."""
        return self._authority.ask(request, receiver)

    def summary(self, dataset: str) -> Summary:
        """See `AuthorityClient.summary`."""
        return self._authority.summary(dataset)

    def answer_key(self, dataset: str) -> bytes:
        """See `AuthorityClient.answer_key`."""
        return self._authority.answer_key(dataset)

    def withdrawn(self, dataset: str) -> IdSpans:
        """See `AuthorityClient.withdrawn`."""
        return self._authority.withdrawn(dataset)

    def withdraw(self, dataset: str, ids: IdSpans) -> int:
        """See `AuthorityClient.withdraw`."""
        return self._authority.withdraw(dataset, ids)

    def find(self, dataset: str) -> Known | None:
        """See `AuthorityClient.find`."""
        return self._authority.find(dataset)

    def register(self, agreed: Agreement, new: NewPart) -> int:
        """See `AuthorityClient.register`."""
        return self._authority.register(Registration.of(new, agreed, to=self._public))

    def parts(self, dataset: str) -> tuple[PartInfo, ...]:
        """See `AuthorityClient.parts`."""
        return self._authority.parts(dataset)
