"""CryptoNN as published: functional encryption from `ddh`, `lwe` and masks, behind one interface.

It reproduces the paper, for tests, benchmarks and `cloister demo cryptonn`. No package below the
demonstrations imports it.
"""

from cloister.published import ddh, lwe, mask, matrix

__all__ = ["ddh", "lwe", "mask", "matrix"]
