"""The tensors that a message can carry.

The order of the element types is that of their codes on the wire (wire/codec.py).
"""

import numpy as np

DTYPES = tuple(
    np.dtype(name)
    for name in (
        "<u4", "<i2", "<f4", "<i8", "|u1", "|i1", "<i4", "<u8", "<f8", "<f2", "<u2", "|b1",
    )
)  # fmt: skip
MAX_RANK = 8
