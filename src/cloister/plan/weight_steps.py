"""The steps of weights that were integers before a model's file, or a pass, scaled them.

Dequantised weights are float32(step * k) with |k| <= 255. Constant folding leaves the products
alone, and what multiplies them behind (a transposition, a batch normalisation) keeps the form. So
the steps are found in the weights: of the numbers largest weight / m, the first of which every
weight of an output channel is a multiple, up to the rounding of float32.
"""

import numpy as np
from jaxtyping import Float32, Float64

LARGEST = 255
TOLERANCE = 2.0**-21
"""Relative to the largest weight: the product, its step and another factor are rounded."""
TRIED = 8
"""Weights of a channel on which steps are tried before all of them are looked at."""
ROWS = 1024


def steps_of(rows: Float32[np.ndarray, "o k"]) -> Float64[np.ndarray, " o"] | None:
    """The step of every row; 1 where its entries are integers, None if a row has no step."""
    wide = rows.astype(np.float64)
    tops = np.abs(wide).max(axis=1, initial=0.0)
    steps = np.ones(len(rows))
    whole = (wide == np.rint(wide)).all(axis=1) & (tops <= LARGEST)
    scaled = np.flatnonzero(~whole)
    for start in range(0, len(scaled), ROWS):
        for row, likely in _likely(wide, tops, scaled[start : start + ROWS]):
            step = next((one for one in likely if _is_multiple(wide[row], one, tops[row])), None)
            if step is None:
                return None
            steps[row] = step
    return steps


def _likely(wide: np.ndarray, tops: np.ndarray, chosen: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Rows, and for each the steps of which some of its weights are multiples, largest first."""
    columns = np.unique(np.linspace(0, wide.shape[1] - 1, TRIED).astype(int))
    steps = tops[chosen, None] / np.arange(1, LARGEST + 1)
    ratios = wide[np.ix_(chosen, columns)][:, :, None] / steps[:, None, :]
    far = (
        np.abs(ratios - np.rint(ratios)) * steps[:, None, :] > TOLERANCE * tops[chosen, None, None]
    )
    fits = ~far.any(axis=1)
    return [(int(row), steps[i, fits[i]]) for i, row in enumerate(chosen)]


def _is_multiple(row: np.ndarray, step: float, top: float) -> bool:
    ratios = row / step
    return bool((np.abs(ratios - np.rint(ratios)) * step <= TOLERANCE * top).all())
