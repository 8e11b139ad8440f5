"""Values with a bounded number of bits: the authority adds noise to the values that a server
unblinds.

The answer of an inner product on dim elements has log2(dim) + 2 * 8 bits and more, and an element
perhaps eight. So a few exact answers hold more than as many elements, whatever their rank: lattice
reduction finds small integers from a quarter as many wide answers. The authority cannot round
A x, which it does not know. But it can subtract noise from the unblinding term:

    A P - (A M - e) = A x + e        e uniform on 2^s integers around zero

The information is bounded: e is independent of x, and A x + e lies among R + 2^s integers, R the
range of A x. With H the entropy in bits, for any distribution of x and any other knowledge,

    I(x; A x + e) = H(A x + e) - H(A x + e | x) <= log2(R + 2^s) - log2(2^s) = log2(R / 2^s + 1)

`shift` gives the smallest s for which that is at most the bits allowed for a value. The sum over
the values of a sample bounds the information in all of them, because their noises are independent.

The noise of a function, a sample and an output is always the same (a stream under the part's key),
so that an average over repeats gains nothing. A *different* function has other noise, even if it is
a multiple of the first: so with noise each function is charged by its number of values, not by its
addition to the span.

A gradient is a sum over a batch, and has the sum of the noises: each sample's own, of the function
that the gradient is of that sample. So it gives no information beyond the samples' noisy values one
by one, and a sample's noise is the same in every batch.
"""

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.authority import functions
from cloister.authority.functions import Function
from cloister.base import hkdf
from cloister.data.info import DatasetInfo
from cloister.ring import pads

NOISE_DOMAIN = 2
"""Beside `pads.DATA_DOMAIN` and `pads.LABEL_DOMAIN`, and under a key of its own."""
EXACT_BITS = 32
"""Bits of a value from which no noise is added: no answer has more."""


def shift(info: DatasetInfo, function: Function, value_bits: int) -> int:
    """The s of noise on 2^s integers that leaves at most `value_bits` bits of each value; 0: none.

    Domain   |A x| + 2^s / 2 < 2^31, so that noisy values can be read back; see `requests`
    """
    spread = functions.value_range(info, function)
    s = 0
    while spread > (1 << s) * ((1 << value_bits) - 1):
        s += 1
    return s


def noise(
    key: bytes, ids: Int64[np.ndarray, " n"], shape: tuple[int, ...], *, digest: bytes, shift: int
) -> UInt32[np.ndarray, "n ..."]:
    """e mod 2^32 for a function named by `digest`, uniform on [-2^(s-1), 2^(s-1)), s > 0.

    Secret   key and result
    """
    derived = hkdf.derive(key, info=b"cloister blur" + digest)
    words = pads.expand(derived, ids, shape, domain=NOISE_DOMAIN) >> np.uint32(32 - shift)
    words -= np.uint32(1 << (shift - 1))  # modulo 2^32
    return words
