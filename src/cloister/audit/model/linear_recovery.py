"""A hidden part that is linear up to its softmax follows from its answers, by solving equations.

    p = softmax(f A + b)      so      log p_i - mean_j log p_j = (f A' + b')_i

with A' and b' centred over the classes: softmax forgets what all logits of a sample have in common,
so centred weights are all that an answer depends on, and all that can be recovered. The features f
come from the exposed layers. d + 1 queries with independent (f, 1) determine d features' weights;
twice as many make the equations well conditioned. Features of samples may depend on each other, or
be zero for all of them; a thief who chooses the features has no such trouble. A label alone gives
no equation but inequalities: its thief has to search for boundaries between classes, with many
queries for each.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Below, a float32 loses digits; the answer is not used."""
RANK_TOLERANCE = 1e-6
MAX_FEATURES = 4096
"""Features of the largest head that is solved: the equations are one dense matrix."""
ALWAYS = frozenset(("Flatten", "Identity", "Dropout", "Transpose", "GlobalAveragePool"))
WITH_CONSTANTS = frozenset(
    ("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization", "Reshape", "Squeeze",
     "Unsqueeze", "AveragePool")
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Centred weights and biases: (f, 1) @ weights are centred logits.

    rank   of the equations; d + 1 where they determine everything
    """

    weights: Float64[np.ndarray, "rows c"]
    rank: int

    @property
    def is_determined(self) -> bool:
        """Whether no other head gives these answers."""
        return self.rank == len(self.weights)

    def logits(self, features: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, "n c"]:
        """Centred logits."""
        return np.asarray(_with_one(features) @ self.weights)


def is_linear(hidden: Graph) -> bool:
    """Whether a hidden part is an affine map of its one input."""
    if len(hidden.inputs) != 1 or len(hidden.outputs) != 1:
        return False
    return all(_is_affine(node, hidden) for node in hidden.nodes)


def _is_affine(node: Node, hidden: Graph) -> bool:
    if node.domain not in STANDARD_DOMAINS:
        return False
    computed = [value for value in node.inputs if value and value not in hidden.constants]
    return node.op in ALWAYS or (node.op in WITH_CONSTANTS and len(computed) == 1)


def recover(
    features: Float32[np.ndarray, "q d"], answers: Float32[np.ndarray, "q c"]
) -> LinearHead | None:
    """The head that gave these probabilities; None when no answer can be used.

    Error    about 2^-24 times the condition of the equations; see `RANK_TOLERANCE`
    """
    used = (answers >= LEAST_PROBABILITY).all(axis=1)
    if not used.any():
        return None
    logs = np.log(answers[used].astype(np.float64))
    rows = _with_one(features[used])
    # Features of very different size would hide each other behind the tolerance.
    sizes = np.linalg.norm(rows, axis=0)
    sizes[sizes == 0.0] = 1.0
    solved, _, rank, _ = np.linalg.lstsq(
        rows / sizes, logs - logs.mean(axis=1, keepdims=True), rcond=RANK_TOLERANCE
    )
    return LinearHead(solved / sizes[:, None], int(rank))


def _with_one(features: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, "n rows"]:
    return np.hstack([features.astype(np.float64), np.ones((len(features), 1))])
