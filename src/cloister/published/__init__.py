"""CryptoNN as published: functional encryption from `ddh`, `lwe` and masks, behind one interface.

It reproduces the paper, for tests and benchmarks. No other package imports it.
"""

from cloister.published import ddh, lwe, mask, matrix

__all__ = ["ddh", "lwe", "mask", "matrix"]
