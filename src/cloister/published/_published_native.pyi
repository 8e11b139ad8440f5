"""The compiled group of the published scheme: see bindings/published.cpp."""

import numpy as np
from jaxtyping import Int64, UInt8

# ---- instruction set

FORTIFY_LEVEL: int

def isa() -> str: ...
def force_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...
def amx_refused() -> bool: ...

# ---- the group ristretto255; elements and scalars are 32 bytes

def curve_first_invalid(encodings: UInt8[np.ndarray, "*n 32"], threads: int = 1) -> int: ...
def scalar_reduce(wide: UInt8[np.ndarray, "*n 64"], out: UInt8[np.ndarray, "*n 32"]) -> None: ...
def scalar_combine(
    secrets: UInt8[np.ndarray, "n 32"], y: Int64[np.ndarray, "k n"], out: UInt8[np.ndarray, "k 32"]
) -> None: ...
def curve_powers(
    points: UInt8[np.ndarray, "m 32"],
    scalars: UInt8[np.ndarray, "n 32"],
    plus: Int64[np.ndarray, "n m"] | None,
    plus_bound: int,
    out: UInt8[np.ndarray, "n m 32"],
    threads: int = 1,
) -> None: ...
def curve_sums(
    points: UInt8[np.ndarray, "n c 32"],
    scalars: UInt8[np.ndarray, "n c 32"],
    columns: int,
    plus: Int64[np.ndarray, " n"] | None,
    plus_bound: int,
    out: UInt8[np.ndarray, "n 32"],
    threads: int = 1,
) -> None: ...

class CurveLogarithm:
    def __init__(self, entries: int, threads: int = 1) -> None: ...
    def solve(
        self,
        encodings: UInt8[np.ndarray, "n 32"],
        lo: int,
        hi: int,
        out: Int64[np.ndarray, " n"],
        threads: int = 1,
    ) -> None: ...
    def solve_differences(
        self,
        points: UInt8[np.ndarray, "n 32"],
        wide: UInt8[np.ndarray, "n 32"] | None,
        small: Int64[np.ndarray, " n"] | None,
        subtrahends: UInt8[np.ndarray, "n 32"],
        lo: int,
        hi: int,
        out: Int64[np.ndarray, " n"],
        threads: int = 1,
    ) -> None: ...
    def solve_products(
        self,
        points: UInt8[np.ndarray, "n c 32"],
        wide: UInt8[np.ndarray, "k w 32"],
        small: Int64[np.ndarray, "k s"],
        scalars: int,
        lo: int,
        hi: int,
        out: Int64[np.ndarray, "n k"],
        threads: int = 1,
    ) -> None: ...
