"""The client's side of an authority in the same process: for tests, benchmarks and one owner."""

import numpy as np
from jaxtyping import Int64

from cloister.authority.authority import Authority
from cloister.authority.permutation import label_permutation
from cloister.authority.records import Part, Terms, label_info, part_info
from cloister.fe.keyservice import DatasetInfo


class LocalClient:
    """What `AuthorityClient` offers to clients of a data set, without a network."""

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

    def create_dataset(self, info: DatasetInfo, *, label_key: bytes, terms: Terms) -> None:
        """See `AuthorityClient.create_dataset`."""
        sealed = self._public.seal(label_key, info=label_info(info.name))
        self._authority.create_dataset(info, sealed_label_key=sealed, terms=terms)

    def register_part(
        self, dataset: str, part: str, samples: int, sha256: str, *, key: bytes
    ) -> int:
        """See `AuthorityClient.register_part`."""
        sealed = self._public.seal(key, info=part_info(dataset, part, sha256))
        return self._authority.register_part(dataset, part, samples, sha256, sealed_key=sealed)

    def terms(self, dataset: str) -> Terms:
        """See `AuthorityClient.terms`."""
        return self._authority.terms(dataset)

    def parts(self, dataset: str) -> tuple[Part, ...]:
        """See `AuthorityClient.parts`."""
        return self._authority.parts(dataset)

    def label_permutation(self, dataset: str, classes: int) -> Int64[np.ndarray, " classes"]:
        """See `AuthorityClient.label_permutation`."""
        return label_permutation(self._authority.label_secret(dataset), classes)
