"""A node that stands for the hidden part of a model: a compiled module computes it.

    Node(op="Module", domain="cloister", attributes={"digest": ..., "queries": ...})

    digest    32 bytes: which module (`cloister.bundle.manifest.Manifest.digest`)
    queries   how many samples the module may answer in all; absent: any number

A module takes one sample at a time, so its inputs and outputs carry the batch on their first axis,
which has the size one where the model's batch is fixed.
"""

import numpy as np

from cloister.errors import ModelError, UnsupportedError
from cloister.graph.graph import Graph, Node, TensorType

DIGEST, QUERIES = "digest", "queries"
DIGEST_BYTES = 32
MAX_QUERIES = 2**62
INPUT_TYPES = ("float32", "int32", "int64")
OUTPUT_TYPES = ("float32", "int64")


def module_digest(node: Node) -> bytes:
    """The digest of the module that computes a node.

    Raises   ModelError
    """
    digest = node.attributes.get(DIGEST)
    if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES:
        raise ModelError(f"node {node.name!r}: names no module; give it the module's digest")
    return digest


def module_queries(node: Node) -> int | None:
    """How many samples the module of a node may answer; None: any number.

    Raises   ModelError
    """
    queries = node.attributes.get(QUERIES)
    if queries is None:
        return None
    if type(queries) is not int or not 1 <= queries <= MAX_QUERIES:
        raise ModelError(f"node {node.name!r}: its number of queries is not at least one")
    return queries


def check_module(graph: Graph, node: Node) -> None:
    """Refuse a node that no compiled module can compute.

    Raises   ModelError, UnsupportedError naming the node or value
    """
    if not set(node.attributes) <= {DIGEST, QUERIES}:
        raise ModelError(f"node {node.name!r}: a module has a digest and queries alone")
    module_digest(node)
    module_queries(node)
    check_border(graph, node.inputs, node.outputs)


def check_border(graph: Graph, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Refuse values that a module cannot take or make.

    Raises   UnsupportedError naming the value
    """
    if not (inputs and outputs):
        raise UnsupportedError("the hidden part needs at least one input and one output")
    for value, kinds, verb in (
        *((value, INPUT_TYPES, "read") for value in inputs),
        *((value, OUTPUT_TYPES, "make") for value in outputs),
    ):
        sample_type(graph, value)
        kind = graph.types[value].dtype
        if kind not in tuple(map(np.dtype, kinds)):
            raise UnsupportedError(
                f"value {value!r}: a hidden part cannot {verb} {kind}, only {', '.join(kinds)}; "
                "begin it at another node"
            )


def sample_type(graph: Graph, value: str) -> TensorType:
    """The type of one sample of a value that a module takes or makes: without its first axis.

    Raises   UnsupportedError naming the value
    """
    known = graph.types.get(value)
    batch = None if graph.batch is None else 1
    if known is None or known.shape[:1] != (batch,) or None in known.shape[1:]:
        raise UnsupportedError(
            f"value {value!r}: a hidden part takes one sample at a time, so its inputs and outputs "
            "need fixed shapes behind a batch that is free or one; begin it at another node, or "
            "export the model so"
        )
    return TensorType(known.dtype, known.shape[1:])
