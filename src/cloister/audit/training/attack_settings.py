"""The knowledge and the limits of an attacker on encrypted training; needs no SciPy."""

from dataclasses import dataclass

from cloister.audit.training.lattice import LARGEST_LATTICE
from cloister.authority.noise import EXACT_BITS

DEFAULT_RANGE = (-127.0, 127.0)
"""The values that the default encoding of eight bits can hold."""


@dataclass(frozen=True)
class AttackSettings:
    """The attacker's knowledge of the encoding, and the limits of the attacks.

    value_range   of the encoded integers
    samples       samples to attack
    steps         releases that are joined at most
    lattice       elements of the largest sample that integer decoding is tried on
    value_bits    bits of a value as the data set's owner set them; 32: the values are exact
    """

    value_range: tuple[float, float] = DEFAULT_RANGE
    samples: int = 16
    steps: int = 256
    lattice: int = LARGEST_LATTICE
    value_bits: int = EXACT_BITS
