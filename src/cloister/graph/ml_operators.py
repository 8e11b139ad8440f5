"""Operators of ai.onnx.ml: the types of what they make, and what they do with samples.

Their sizes are those that ONNX Runtime computes; ONNX's shape inference has no rule for most of
them. An input of two axes has a sample in each row; one of a single axis is one sample for some
operators.
"""

from collections.abc import Sized
from dataclasses import replace

import numpy as np

from cloister.graph.graph import ML, LongList, Node, OpaqueType, Size

FLOAT = np.dtype(np.float32)
BY_ROWS = frozenset(
    (
        "Binarizer", "CategoryMapper", "Imputer", "LabelEncoder", "LinearClassifier",
        "LinearRegressor", "Normalizer", "OneHotEncoder", "SVMClassifier", "SVMRegressor", "Scaler",
        "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "ZipMap",
    )
)  # fmt: skip
"""Operators that compute every row of an input of two axes by itself."""
BULKY = ("SVMClassifier", "SVMRegressor", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
LABELS = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


def computes_by_rows(node: Node, sizes: tuple[Size, ...] | None) -> bool:
    """Whether a node computes every row of its first input, of these sizes, by itself."""
    return node.domain == ML and node.op in BY_ROWS and sizes is not None and len(sizes) == 2


def without_bulk(node: Node) -> Node:
    """The node without the trees and vectors of which no type depends."""
    if node.domain != ML or node.op not in BULKY:
        return node
    kept = {
        name: value
        for name, value in node.attributes.items()
        if name in LABELS or not isinstance(value, LongList)
    }
    return replace(node, attributes=kept)


def ml_types(node: Node, first: OpaqueType) -> tuple[OpaqueType, ...]:
    """What is known of the types of a node's outputs, given that of its first input.

    An element type that is not there, ONNX knows.
    """
    rows = first.sizes[:1] if first.sizes is not None and len(first.sizes) == 2 else None

    def table(columns: int | None) -> OpaqueType:
        return OpaqueType(FLOAT, None if rows is None or columns is None else (*rows, columns))

    match node.op:
        case "Binarizer" | "Imputer":
            return (first,)
        case "LabelEncoder":
            return (OpaqueType(sizes=first.sizes),)
        case "Normalizer" | "Scaler":
            return (OpaqueType(FLOAT, first.sizes),)
        case "FeatureVectorizer":
            return (OpaqueType(FLOAT),)
        case "LinearRegressor":
            return (table(_number(node, "targets")),)
        case "SVMRegressor":
            return (table(1),)
        case "TreeEnsembleRegressor":
            return (table(_number(node, "n_targets")),)
        case "SVMClassifier":
            return (_label(node, rows), table(_scores(node)))
        case "TreeEnsembleClassifier":
            return (_label(node, rows), table(_count(node, *LABELS)))
    return ()


def _label(node: Node, rows: tuple[Size, ...] | None) -> OpaqueType:
    texts = _count(node, LABELS[0]) > 0
    return OpaqueType(np.dtype(object if texts else np.int64), rows)


def _scores(node: Node) -> int:
    """Columns of the scores of an SVMClassifier: by classes, or by pairs of classes."""
    classes = _count(node, *LABELS)
    vectors = node.attributes.get("vectors_per_class", ())
    by_pairs = isinstance(vectors, tuple) and any(vectors) and not _count(node, "prob_a")
    return max(2, classes * (classes - 1) // 2) if by_pairs else classes


def _count(node: Node, *names: str) -> int:
    """Entries of the first list that a node has of these."""
    lists = (node.attributes.get(name, ()) for name in names)
    lists = (value.values if isinstance(value, LongList) else value for value in lists)
    return next((len(value) for value in lists if isinstance(value, Sized) and len(value)), 0)


def _number(node: Node, name: str) -> int | None:
    """A number of outputs; by default one."""
    value = node.attributes.get(name, 1)
    return value if isinstance(value, int) and value > 0 else None
