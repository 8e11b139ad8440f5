"""How much of a classifier's last vector its caller gets: nodes at the end of the model.

The nodes are part of the model, so a hidden end that contains them releases no more than these
answers. ONNX's ArgMax and TopK take the lower class first where two are equal.
"""

from dataclasses import replace
from enum import StrEnum

import numpy as np

from cloister.errors import InputError
from cloister.graph.graph import Graph, Node, TensorType
from cloister.graph.legality import check
from cloister.graph.passes.rewrite import Rewrite

BEST = 5
K_IS_AN_INPUT = 10
"""The first operator set whose TopK reads its k as an input."""


class AnswerKind(StrEnum):
    """What is returned of a vector of scores.

    ALL             the model's outputs as they are
    PROBABILITIES   their softmax
    TOP5            the five likeliest classes, the best first
    LABEL           the likeliest class
    """

    ALL = "all"
    PROBABILITIES = "probabilities"
    TOP5 = "top5"
    LABEL = "label"


def with_answers(graph: Graph, kind: AnswerKind) -> Graph:
    """The model that returns this much.

    Raises   InputError for a model whose only output is not one vector of scores for each sample
    """
    if kind is AnswerKind.ALL:
        return graph
    known = graph.types.get(graph.outputs[0])
    if (
        len(graph.outputs) != 1
        or known is None
        or known.dtype != np.float32
        or len(known.shape) != 2
        or known.shape[1] is None
    ):
        raise InputError(
            f"answers {kind}: the model's output is not one vector of scores for each sample; ask "
            f"for {AnswerKind.ALL}"
        )
    if kind is AnswerKind.PROBABILITIES and _maker(graph).op == "Softmax":
        return graph
    made = _ended(graph, kind, known, classes=known.shape[1])
    check(made)
    return made


def _ended(graph: Graph, kind: AnswerKind, known: TensorType, *, classes: int) -> Graph:
    names = Rewrite(graph)
    scores, answer = graph.outputs[0], names.name("answer")
    types, constants, reads = {}, {}, [scores]
    attributes: dict[str, object] = {"axis": 1}
    outputs = [answer]
    if kind is AnswerKind.PROBABILITIES:
        op, types[answer] = "Softmax", known
    elif kind is AnswerKind.LABEL:
        op, types[answer] = "ArgMax", TensorType(np.dtype(np.int64), known.shape[:1])
        attributes["keepdims"] = 0
    else:
        op, count = "TopK", min(BEST, classes)
        best = names.name("best_scores")
        outputs.insert(0, best)
        shape = (known.shape[0], count)
        types |= {best: TensorType(known.dtype, shape)}
        types |= {answer: TensorType(np.dtype(np.int64), shape)}
        if graph.opset < K_IS_AN_INPUT:
            attributes["k"] = count
        else:
            reads.append(names.name("best_count"))
            constants[reads[-1]] = np.array([count], np.int64)
            types[reads[-1]] = TensorType(np.dtype(np.int64), (1,))
    node = Node(names.name("answer"), op, tuple(reads), tuple(outputs), attributes)
    return replace(
        graph,
        nodes=(*graph.nodes, node),
        outputs=(answer,),
        constants={**graph.constants, **constants},
        types={**graph.types, **types},
        joins={},
    )


def _maker(graph: Graph) -> Node:
    """The node that makes the first output; a constant or an input has none, but is no vector."""
    for node in graph.nodes:
        if graph.outputs[0] in node.outputs:
            return node
    raise InputError(f"output {graph.outputs[0]!r}: no node makes it, so it is no answer")
