"""From a model's scores to probabilities, as its loss means them."""

import numpy as np
from jaxtyping import Float32, Float64

from cloister.training.settings import LossName


def probabilities(
    scores: Float32[np.ndarray, "n classes"], *, loss: LossName | None
) -> Float64[np.ndarray, "n classes"]:
    """One distribution over the classes for each sample.

    Softmax for cross-entropy, and for a loss of the author's own. Squared errors train sigmoid
    outputs, each of its class alone; here they are divided by their sum.
    """
    wide = scores.astype(np.float64)
    if loss == "mse":
        # e^x / (1 + e^x) without overflow.
        outputs = np.exp(-np.logaddexp(0.0, -wide))
    else:
        outputs = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(outputs / outputs.sum(axis=1, keepdims=True))
