"""The key authority as a run of training, or a prediction, sees it."""

from typing import Protocol

from cloister.authority.key_service import KeyService
from cloister.authority.records import Summary
from cloister.data.id_spans import IdSpans
from cloister.data.info import PartInfo


class TrainingAuthority(KeyService, Protocol):
    """An authority that is asked for keys, and for what there is to know about a data set."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the authority."""
        ...

    def parts(self, dataset: str) -> tuple[PartInfo, ...]:
        """The registered parts of a data set."""
        ...

    def withdrawn(self, dataset: str) -> IdSpans:
        """The samples for which it issues no key."""
        ...

    def answer_key(self, dataset: str) -> bytes:
        """The public key to which predictions are sealed for the data set's clients."""
        ...

    def summary(self, dataset: str) -> Summary:
        """The budget of a data set in figures."""
        ...
