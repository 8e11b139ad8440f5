"""What protects a node: two independent axes and a place, as one value."""

from collections.abc import Mapping
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

BY_NAME: Mapping[str, Protection] = {
    "enclave": ENCLAVE,
    "open": OPEN,
    "verified": VERIFIED,
    "blinded": BLINDED,
    "blinded+verified": BLINDED_VERIFIED,
}
"""Every protection there is."""
_NAMES = {protection: name for name, protection in BY_NAME.items()}

OUTSOURCED: Mapping[str, Protection] = {
    "slalom": BLINDED_VERIFIED,
    "verified": VERIFIED,
    "blinded": BLINDED,
}
"""Policies that send linear nodes to the worker, and how; all other nodes stay inside."""
EVERYWHERE: Mapping[str, Protection] = {"enclave": ENCLAVE, "open": OPEN}
"""Policies that treat all nodes alike."""


def protections_of(policy: str) -> frozenset[Protection] | None:
    """The protections that a policy gives to nodes; None for a policy that somebody else named."""
    if policy in EVERYWHERE:
        return frozenset({EVERYWHERE[policy]})
    return frozenset({ENCLAVE, OUTSOURCED[policy]}) if policy in OUTSOURCED else None
