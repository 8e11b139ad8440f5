"""The pass that gives the batch its own axis where linear nodes take several rows for each sample.

Frameworks apply a layer to every step of a sequence, or to every head, by one axis for the samples
and their steps: the rows are k times the batch. A worker is sent rows of the batch only.

    Gemm, MatMul   (k N, C) as (N, k, C); the bias is an addition of its own
    Conv and ConvTranspose over one axis: (k N, C, L) as (N, C, k, L), with a kernel of one row
    Conv and ConvTranspose over two axes: (k N, C, H, W) as (N, C, k H', W), the k images below each
                   other; so many rows of zeros lie between them that no window meets two, and the
                   rows of the result that belong to none are left out

Elementwise nodes behind them follow into the shape with an axis for the batch, so that a chain of
such layers is reshaped once before it and once behind it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cloister.graph.graph import LINEAR_OPS, Graph, Node, Size
from cloister.graph.inference import is_known
from cloister.graph.ops.linear_nodes import (
    LAST_AXIS_OPS,
    STANDARD_DOMAINS,
    integer,
    is_linear,
    number,
    rows_per_sample,
    stated_pads,
)
from cloister.graph.passes.chain import Chain
from cloister.graph.passes.rewrite import Rewrite
from cloister.graph.passes.stack_images import stack_images
from cloister.graph.passes.transposes import BINARY, UNARY


def split_rows(graph: Graph) -> Graph:
    """The graph with the batch as first axis of every linear node that has k times the batch."""
    rewrite = Rewrite(graph)
    reshapes: set[str] = set()
    for node in graph.nodes:
        each = _rows(graph, node)
        if each is None:
            continue
        chain = Chain(rewrite, node)
        if node.op in LAST_AXIS_OPS:
            _product(chain, node, each)
        else:
            stack_images(chain, node, each)
        after = graph.sizes(node.outputs[0]) or ()
        chain.reshape([size if isinstance(size, int) else -1 for size in after])
        reshapes.update(one.name for one in chain.replace() if one.op == "Reshape")
    return _with_less_reshapes(rewrite.finish(), reshapes) if reshapes else graph


def _rows(graph: Graph, node: Node) -> int | None:
    """Rows for each row of the batch of a node that would be linear if that was one."""
    if node.op not in LINEAR_OPS or node.domain not in STANDARD_DOMAINS or is_linear(graph, node):
        return None
    read = [graph.constants[value] for value in node.inputs[1:] if value in graph.constants]
    if not read or len(read) != sum(map(bool, node.inputs[1:])):
        return None
    before, after = (graph.sizes(value) for value in (node.inputs[0], node.outputs[0]))
    if before is None or after is None or not is_known(before) or not is_known(after):
        return None
    known = graph.types.get(node.inputs[0]) or graph.opaque[node.inputs[0]]
    weights = read[0]
    if {known.dtype, *(array.dtype for array in read)} != {np.dtype(np.float32)}:
        return None
    if 0 in (*before, *after):
        return None
    if node.op == "MatMul":
        fits = weights.ndim == 2 and len(before) >= 2
    elif node.op == "Gemm":
        columns = weights.shape[0 if integer(node, "transB", 0) else 1]
        bias = read[1] if len(read) > 1 else np.zeros(1)
        fits = bias.size in (1, columns) and bias.shape[-1:] in ((), (bias.size,))
        fits = fits and weights.ndim == 2 and not integer(node, "transA", 0)
    else:
        rank = len(before)
        fits = rank in (3, 4) and weights.ndim == rank and stated_pads(node, rank - 2) is not None
        fits = fits and all(isinstance(size, int) for size in (*before[1:], *after[1:]))
    return rows_per_sample(graph, node) if fits else None


def _product(chain: Chain, node: Node, each: int) -> None:
    """A matrix product on (N, k, C), with what a Gemm does besides."""
    constants = chain.graph.constants
    weights, name = constants[node.inputs[1]], node.inputs[1]
    if node.op == "Gemm" and (integer(node, "transB", 0) or number(node, "alpha", 1.0) != 1):
        turned = weights.T if integer(node, "transB", 0) else weights
        weights = np.ascontiguousarray(turned * np.float32(number(node, "alpha", 1.0)))
        name = chain.rewrite.constant(f"{node.name}_weights", weights)
    chain.reshape([-1, each, len(weights)])
    chain.linear("MatMul", name)
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2]:
        bias = constants[node.inputs[2]].reshape(-1) * np.float32(number(node, "beta", 1.0))
        chain.then("Add", bias)


def _with_less_reshapes(graph: Graph, ours: set[str]) -> Graph:
    """Elementwise nodes before these Reshapes, and of two Reshapes in a row only the second."""
    while True:
        rewrite = Rewrite(graph)
        # Every node once in a round: what a round has changed has no types before it ends.
        changes = [_step(rewrite, node, ours) for node in graph.nodes]
        if not any(changes):
            return graph
        graph = rewrite.finish()


def _step(rewrite: Rewrite, node: Node, ours: set[str]) -> bool:
    """Change a node if it can be, and say whether it was."""
    if node.domain not in STANDARD_DOMAINS or not node.inputs or not rewrite.is_untouched(node):
        return False
    if node.op == "Reshape":
        return _skipped(rewrite, node, ours)
    for at, value in enumerate(node.inputs[:2]):
        before = rewrite.maker(value)
        if before is None or before.name not in ours or not rewrite.is_untouched(before):
            continue
        if rewrite.read_once(value) and _is_elementwise(rewrite.graph, before, node, at):
            early = rewrite.name(f"{node.outputs[0]}_early")
            inputs = (*node.inputs[:at], before.inputs[0], *node.inputs[at + 1 :])
            moved = replace(node, inputs=inputs, outputs=(early,))
            late = replace(before, inputs=(early, before.inputs[1]), outputs=node.outputs)
            rewrite.swap([before, node], [moved, late])
            return True
    return False


def _is_elementwise(graph: Graph, before: Node, node: Node, at: int) -> bool:
    """Whether a node does the same to a value before it is reshaped."""
    others = [value for i, value in enumerate(node.inputs) if i != at and value]
    if len(node.outputs) != 1 or any(value not in graph.constants for value in others):
        return False
    read, made = (graph.sizes(value) for value in (before.inputs[0], before.outputs[0]))
    if read is None or made is None or graph.sizes(node.outputs[0]) != made:
        return False
    if node.op in UNARY:
        return at == 0 and all(graph.constants[value].ndim == 0 for value in others)
    alike = 0
    while alike < min(len(read), len(made)) and read[-1 - alike] == made[-1 - alike]:
        alike += 1
    return node.op in BINARY and all(graph.constants[value].ndim <= alike for value in others)


def _skipped(rewrite: Rewrite, node: Node, ours: set[str]) -> bool:
    """Let a Reshape read what the Reshape before it reads; leave it out if it changes nothing."""
    graph, made = rewrite.graph, node.outputs[0]
    before, sizes = rewrite.maker(node.inputs[0]), graph.sizes(made)
    source = node.inputs[0]
    if (
        before is not None
        and before.op == "Reshape"
        and not ours.isdisjoint((before.name, node.name))
    ):
        source = before.inputs[0]
    elif node.name not in ours:
        return False
    if sizes is None or not is_known(sizes) or 0 in sizes or _symbols(sizes) > 1:
        return False
    if graph.sizes(source) == sizes and made not in (*graph.outputs, *rewrite.captured):
        rewrite.rename_input(made, source)
        return True
    if source == node.inputs[0]:
        return False
    target = np.array([size if isinstance(size, int) else -1 for size in sizes], np.int64)
    constant = rewrite.constant(f"{node.name}_target", target)
    rewrite.swap([node], [replace(node, inputs=(source, constant), attributes={})])
    ours.add(node.name)
    return True


def _symbols(sizes: Sequence[Size]) -> int:
    return sum(isinstance(size, str) for size in sizes)
