"""The compiled kernels: see bindings/module.cpp."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16, UInt32

# ---- instruction set

def isa() -> str: ...
def force_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...

# ---- ring: exact linear maps modulo 2^32

class RingMap:
    def __init__(
        self, geometry: Sequence[int], weights: Int16[np.ndarray, "o kh kw c"]
    ) -> None: ...
    def apply(
        self,
        x: UInt32[np.ndarray, "n h w c"] | Int16[np.ndarray, "n h w c"],
        out: UInt32[np.ndarray, "n oh ow oc"],
        threads: int,
    ) -> None: ...
