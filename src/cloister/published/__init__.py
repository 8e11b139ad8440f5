"""CryptoNN as published: functional encryption from `ddh`, `lwe` and masks, behind one interface.

Nothing that Cloister runs by default needs it: it reproduces the paper, and measures against it.
"""

from cloister.published import ddh, lwe, mask, matrix

__all__ = ["ddh", "lwe", "mask", "matrix"]
