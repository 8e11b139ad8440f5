"""The client's side of an authority in the same process: for tests, benchmarks and one owner."""

from cloister.authority.agreement import Agreement, Known
from cloister.authority.authority import Authority
from cloister.authority.records import Part
from cloister.authority.registration import NewPart, Registration
from cloister.data.info import DatasetInfo


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

    def find(self, dataset: str) -> Known | None:
        """See `AuthorityClient.find`."""
        return self._authority.find(dataset)

    def register(self, agreed: Agreement, new: NewPart) -> int:
        """See `AuthorityClient.register`."""
        return self._authority.register(Registration.of(new, agreed, to=self._public))

    def parts(self, dataset: str) -> tuple[Part, ...]:
        """See `AuthorityClient.parts`."""
        return self._authority.parts(dataset)
