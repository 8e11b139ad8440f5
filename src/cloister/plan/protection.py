"""What protects a node: two independent axes and a place, as one value."""

from dataclasses import dataclass
from enum import Enum

from cloister.errors import PlanError


class Place(Enum):
    """Where a node runs."""

    TRUSTED = "trusted"
    WORKER = "worker"


@dataclass(frozen=True)
class Protection:
    """Where a node runs, whether its input is hidden and its answer checked."""

    place: Place
    hidden: bool
    checked: bool

    def __post_init__(self) -> None:
        if self.place is Place.TRUSTED and not (self.hidden and self.checked):
            raise PlanError("a node inside the trusted runtime is hidden and needs no check")

    @property
    def name(self) -> str:
        """The constant's name, for people."""
        return _NAMES[self]


ENCLAVE = Protection(Place.TRUSTED, hidden=True, checked=True)
OPEN = Protection(Place.WORKER, hidden=False, checked=False)
VERIFIED = Protection(Place.WORKER, hidden=False, checked=True)
BLINDED = Protection(Place.WORKER, hidden=True, checked=False)
BLINDED_VERIFIED = Protection(Place.WORKER, hidden=True, checked=True)

_NAMES = {
    ENCLAVE: "enclave",
    OPEN: "open",
    VERIFIED: "verified",
    BLINDED: "blinded",
    BLINDED_VERIFIED: "blinded+verified",
}
