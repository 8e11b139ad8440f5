"""The public parameters of the schemes over a group."""

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias, get_args

from cloister.errors import InputError
from cloister.published.ddh.curve import Curve25519
from cloister.published.ddh.ffdhe import Ffdhe2048
from cloister.published.ddh.groups import Group, GroupName
from cloister.published.scheme import Bounds, check_bounds

Variant: TypeAlias = Literal["selective", "adaptive"]


@cache
def group_named(name: GroupName) -> Group:
    """The group.

    Raises   InputError for any other name; UnsupportedError where its package is missing
    """
    if name == "curve25519":
        return Curve25519()
    if name == "ffdhe2048":
        return Ffdhe2048()
    raise InputError(
        f"ddh: there is no group {name!r}; choose from {', '.join(get_args(GroupName))} (groups "
        "where the decisional Diffie-Hellman problem is easy are not offered)"
    )


@dataclass(frozen=True)
class DdhPublic:
    """What everyone knows.

    Raises   InputError for an unknown group or variant, RangeError for bounds whose products a
             decryption could not find
    """

    group_name: GroupName
    variant: Variant
    bounds: Bounds

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise InputError(f"ddh: the variant is selective or adaptive, not {self.variant!r}")
        check_bounds(self.bounds, limit=self.group.max_logarithm, back_end="ddh")

    @property
    def group(self) -> Group:
        """The group."""
        return group_named(self.group_name)

    @property
    def secrets(self) -> int:
        """Secret scalars for each coordinate: s, and t in the adaptive variant."""
        return 1 if self.variant == "selective" else 2
