"""Parameters and keys of the LWE back end (see `cloister.published.lwe`)."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from cloister.errors import RangeError
from cloister.published import modular
from cloister.published.modular import ResidueDigits
from cloister.published.released import Released
from cloister.published.scheme import Bounds, check_bounds
from cloister.ring.pads import expand

ESTIMATOR = (
    "primal uSVP attack, BKZ with block size b: core-SVP is 0.292 b bits (sieving only); with "
    "overhead adds 16.4 + log2(8 d) for tours in dimension d. Not considered: dual and hybrid "
    "attacks, memory, quantum sieving (0.257 b), many samples under one Z"
)

TAIL_FACTOR = 7.6
"""An answer's noise exceeds 7.6 standard deviations with probability below 2 exp(-28.8) < 2^-40:
discrete Gaussians are subgaussian with parameter sigma."""

A_DOMAIN = 0x4C57_4541
_Z_DOMAIN = 0x4C57_455A
_ELEMENT_Z_DOMAIN = 0x4C57_455B


@dataclass(frozen=True)
class Parameters:
    """n, modulus 2^q_bits, noise and scale 2^scale_bits, with what they are estimated to give."""

    name: str
    n: int
    q_bits: int
    sigma: float
    scale_bits: int
    core_svp_bits: int
    overhead_bits: int

    @property
    def security(self) -> str:
        """The estimate with its estimator: never print the number alone."""
        return (
            f"lwe {self.name}: n {self.n}, q 2^{self.q_bits}, sigma {self.sigma:g}: "
            f"{self.core_svp_bits} bits core-SVP, {self.overhead_bits} with overhead ({ESTIMATOR})"
        )


APPROXIMATE = Parameters("approximate", 1280, 32, 3.2, 6, 118, 148)
"""Answers carry noise below the rounding of 8-bit data; the cheapest."""
EXACT = Parameters("exact", 1664, 44, 3.2, 18, 105, 136)
"""Answers are exact for 8-bit data and weights of some hundreds of entries."""
WIDE = Parameters("wide", 1088, 42, 4096.0, 16, 140, 171)
"""Wide noise: a cleaner reduction; answers are approximate."""


@dataclass(frozen=True)
class LwePublic:
    """What everyone knows."""

    bounds: Bounds
    parameters: Parameters

    def noise_std(self, norm: float) -> float:
        """Standard deviation of an answer to a function of this Euclidean norm, in its units."""
        return float(norm * self.parameters.sigma / 2**self.parameters.scale_bits)

    @property
    def exact(self) -> bool:
        """Whether rounding removes the noise of every allowed function (see TAIL_FACTOR)."""
        # At least two terms: an element-wise answer carries the noise of ciphertext and key.
        norm = self.bounds.y_bound * math.sqrt(max(2, self.bounds.dim))
        return TAIL_FACTOR * self.noise_std(norm) < 0.5


@dataclass(frozen=True, repr=False, eq=False)
class LweEncryptionKey:
    """What clients and authority share.  Secret: seed, and Z which it expands to."""

    seed: bytes
    public: LwePublic

    @cached_property
    def z(self) -> ResidueDigits:
        """Z, one row for each coordinate."""
        rows = np.arange(self.public.bounds.dim, dtype=np.int64)
        return uniform(self.seed, rows, self.public.parameters, _Z_DOMAIN)

    @cached_property
    def element_z(self) -> ResidueDigits:
        """The secret rows of element-wise ciphertexts, of which no combination is given away."""
        rows = np.arange(self.public.bounds.dim, dtype=np.int64)
        return uniform(self.seed, rows, self.public.parameters, _ELEMENT_Z_DOMAIN)


@dataclass(frozen=True, repr=False, eq=False)
class LweMasterKey:
    """The authority's half: Z, and a count of the functions it has made keys for."""

    encryption: LweEncryptionKey
    released: Released


def checked(bounds: Bounds, parameters: Parameters) -> Bounds:
    """Bounds for which no answer wraps.

    Raises   RangeError
    """
    limit = 2 ** (parameters.q_bits - parameters.scale_bits - 1) - 1
    check_bounds(bounds, limit=limit, back_end="lwe")
    if bounds.x_bound + bounds.y_bound >= limit:
        raise RangeError(f"lwe: x_bound + y_bound must be below {limit}; encode with fewer bits")
    return bounds


def uniform(
    seed: bytes, rows: Int64[np.ndarray, " rows"], parameters: Parameters, domain: int
) -> ResidueDigits:
    """Rows of n uniform residues from the AES-256-CTR stream of a seed."""
    words = expand(seed, rows, (2 * parameters.n,), domain=domain)
    # Little-endian on every machine: both sides must expand the same matrix.
    values = words.astype("<u4", copy=False).view("<i8").astype(np.int64, copy=False)
    return modular.split(values, parameters.q_bits)
