"""The pass that turns products with constants into the forms that workers compute.

A product sums over the axes that both factors have and the result has not. With the axes of the
factors and the result named as in Einsum, every matrix product with a constant is one of these:

    x (n, rows, terms)          weights (terms, columns)            MatMul
    x (n, groups terms, rows)   weights (groups columns, terms)     Conv with a window of one

where n is the batch, and `groups` are the axes that both factors and the result have (heads). The
axes of x are put in this order before the product, and those of the result behind it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloister.graph.graph import Graph, Node
from cloister.graph.ops.linear_nodes import (
    LAST_AXIS_OPS,
    STANDARD_DOMAINS,
    integer,
    is_linear,
    number,
    rows_per_sample,
)
from cloister.graph.passes.chain import Chain
from cloister.graph.passes.rewrite import Rewrite

Labels = tuple[str, ...]
ALONE = "alone"
"""The axis of the batch of a value that has none."""


@dataclass(frozen=True)
class Factors:
    """A product's factors and the names of their axes and of the result's."""

    labels: tuple[Labels, Labels]
    result: Labels


def lower_products(graph: Graph) -> Graph:
    """MatMul, Gemm and Einsum with one constant factor as matrix products on every input."""
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.op not in NAMED or node.domain not in STANDARD_DOMAINS or is_linear(graph, node):
            continue
        if len(node.inputs) < 2 or any(node.inputs[2:]):
            continue
        shapes = _shapes(graph, node.inputs)
        factors = None if shapes is None else NAMED[node.op](node, *shapes)
        at = 0 if node.inputs[0] in graph.constants else 1
        weights = graph.constants.get(node.inputs[at])
        if factors is None or weights is None or weights.dtype != np.float32:
            continue
        if node.inputs[1 - at] in graph.constants or not weights.size:
            continue
        if _multiplies_rows(graph, node):
            continue
        alpha = np.float32(number(node, "alpha", 1.0))
        _lower(rewrite, node, factors, at, weights if alpha == 1 else weights * alpha)
    return rewrite.finish()


def _multiplies_rows(graph: Graph, node: Node) -> bool:
    """Whether only the number of rows keeps a node from being linear (split_rows.py)."""
    weights = graph.constants.get(node.inputs[1])
    if node.op not in LAST_AXIS_OPS or weights is None or weights.ndim != 2:
        return False
    return not integer(node, "transA", 0) and rows_per_sample(graph, node) is not None


def _shapes(graph: Graph, values: Sequence[str]) -> list[tuple[int | None, ...]] | None:
    known = [graph.types.get(value) for value in values[:2]]
    if any(one is None or one.dtype != np.float32 for one in known):
        return None
    return [one.shape for one in known if one is not None]


def _lower(rewrite: Rewrite, node: Node, factors: Factors, at: int, weights: np.ndarray) -> None:
    """Replace a node by the product, if its axes are those of one."""
    graph = rewrite.graph
    x, given = factors.labels[1 - at], factors.labels[at]
    if any(len(set(names)) < len(names) for names in (x, given)):
        return
    sizes = dict(zip(x, graph.types[node.inputs[1 - at]].shape, strict=True))
    rows = [name for name in x if name not in given and name in factors.result]
    terms = [name for name in given if name in x and name not in factors.result]
    batch = next((name for name in rows if sizes[name] == graph.batch), None)
    if batch is None and graph.batch is not None:
        # A value without the batch has one row, for which an axis costs nothing.
        batch, x, sizes = ALONE, (ALONE, *x), {ALONE: 1, **sizes}
    if batch is None or not terms or not all(sizes[name] for name in x if name != batch):
        return
    # An axis of x alone that the product sums has one row, or summing is another operation.
    dropped = [name for name in x if name not in (batch, *given, *factors.result)]
    if any(sizes[name] != 1 for name in dropped):
        return
    summed = tuple(i for i, name in enumerate(given) if name not in (*x, *factors.result))
    if summed:
        weights = weights.sum(summed, dtype=np.float64).astype(np.float32)
        given = tuple(name for i, name in enumerate(given) if i not in summed)
    product = _Product(
        batch=batch,
        rows=[name for name in rows if name != batch],
        terms=terms,
        groups=[name for name in x if name in given and name in factors.result],
        columns=[name for name in given if name not in x],
        dropped=dropped,
        sizes={**dict(zip(given, weights.shape, strict=True)), **sizes},
    )
    order = [given.index(name) for name in (*product.groups, *product.columns, *terms)]
    chain = Chain(rewrite, node, node.inputs[1 - at], graph.types[node.inputs[1 - at]].shape)
    product.apply(chain, x, weights.transpose(order), factors.result)
    chain.replace()


@dataclass(frozen=True, kw_only=True)
class _Product:
    """The names of a product's axes by what the product does with them."""

    batch: str
    rows: list[str]
    terms: list[str]
    groups: list[str]
    columns: list[str]
    dropped: list[str]
    sizes: Mapping[str, int | None]

    def each(self, names: Sequence[str]) -> list[int]:
        """The sizes of these axes; 0, in a target of Reshape the size there was, of the batch."""
        return [0 if name == self.batch else self.sizes[name] or 0 for name in names]

    def apply(self, chain: Chain, x: Labels, weights: np.ndarray, result: Labels) -> None:
        """The nodes; `weights` has its axes in the order groups, columns, terms."""
        groups, columns, terms = (
            math.prod(self.each(names)) for names in (self.groups, self.columns, self.terms)
        )
        if self.batch == ALONE:
            chain.reshape([1, *self.each(x[1:])])
        wanted = (ALONE, *result) if self.batch == ALONE else result
        first = [self.batch, *self.groups, *self.terms, *self.rows]
        last = [self.batch, *self.groups, *self.columns, *self.rows]
        in_place = self.rows and (first, last) == (list(x), list(wanted))
        if groups > 1 or in_place:
            rows = math.prod(self.each(self.rows))
            self._arrange(chain, x, first, (groups * terms, rows))
            kernel = weights.reshape(groups * columns, terms, 1)
            chain.linear("Conv", chain.constant("weights", kernel), group=groups, kernel_shape=(1,))
            chain.shape = (chain.shape[0], groups * columns, rows)
        else:
            first = [self.batch, *self.groups, *self.rows, *self.terms]
            last = [self.batch, *self.groups, *self.rows, *self.columns]
            self._arrange(chain, x, first, (*self.each([*self.groups, *self.rows]), terms))
            matrix = weights.reshape(columns, terms).T
            chain.linear("MatMul", chain.constant("weights", matrix))
            chain.shape = (*chain.shape[:-1], columns)
        chain.reshape(self.each(last))
        chain.transpose([last.index(name) for name in wanted])
        if self.batch == ALONE:
            chain.reshape(self.each(result))

    def _arrange(
        self, chain: Chain, x: Labels, order: Sequence[str], sizes: tuple[int, ...]
    ) -> None:
        chain.transpose([x.index(name) for name in (*order, *self.dropped)])
        chain.reshape((0, *sizes))


def _of_matmul(_: Node, a: Sequence[int | None], b: Sequence[int | None]) -> Factors | None:
    """Axes before the last two are matched from behind; one of one row is repeated."""
    if not a or not b:
        return None
    left, right = list(a[:-2]), list(b[:-2])
    names: tuple[list[str], list[str]] = ([], [])
    result: list[str] = []
    for i in range(max(len(left), len(right)), 0, -1):
        pair = [side[-i] if i <= len(side) else 0 for side in (left, right)]
        # The axis of one row meets no other: it is dropped where the other has more.
        owners = [k for k in (0, 1) if pair[k] != 0]
        longer = [k for k in owners if pair[k] != 1] or owners[:1]
        result.append(f"axis {i}")
        for k in owners:
            names[k].append(f"axis {i}" if k in longer else f"one {i} of {k}")
    names[0].extend((["row"] if len(a) > 1 else []) + ["term"])
    names[1].extend(["term"] + (["column"] if len(b) > 1 else []))
    result += (["row"] if len(a) > 1 else []) + (["column"] if len(b) > 1 else [])
    return Factors((tuple(names[0]), tuple(names[1])), tuple(result))


def _of_gemm(node: Node, a: Sequence[int | None], b: Sequence[int | None]) -> Factors | None:
    left, right = ("row", "term"), ("term", "column")
    left = left[::-1] if integer(node, "transA", 0) else left
    right = right[::-1] if integer(node, "transB", 0) else right
    return Factors((left, right), ("row", "column")) if len(a) == len(b) == 2 else None


def _of_einsum(node: Node, a: Sequence[int | None], b: Sequence[int | None]) -> Factors | None:
    """The names in the equation; the axes of an ellipsis are named from behind."""
    equation = node.attributes.get("equation")
    if not isinstance(equation, str):
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    given = left.split(",")
    if len(given) != 2:
        return None
    names = [_names(text, len(shape)) for text, shape in zip(given, (a, b), strict=True)]
    if names[0] is None or names[1] is None:
        return None
    every = [*names[0], *names[1]]
    hidden = sorted({name for name in every if len(name) > 1}, reverse=True)
    if arrow:
        before, dots, behind = right.partition("...")
        result = (*before, *(hidden if dots else ()), *behind)
    else:
        # As NumPy has it: names that appear once, in the order of the alphabet.
        result = (*hidden, *sorted(n for n in every if len(n) == 1 and every.count(n) == 1))
    if any(_differ(name, names[0], a, names[1], b) for name in {*every}):
        return None
    return Factors((names[0], names[1]), result)


def _names(text: str, rank: int) -> Labels | None:
    before, dots, behind = text.partition("...")
    count = rank - len(before) - len(behind)
    if count < 0 or (count and not dots):
        return None
    return (*before, *(f"axis {i}" for i in range(count, 0, -1)), *behind)


def _differ(
    name: str, left: Labels, a: Sequence[int | None], right: Labels, b: Sequence[int | None]
) -> bool:
    """Whether an axis has one size in one factor and another in the other."""
    return name in left and name in right and a[left.index(name)] != b[right.index(name)]


NAMED = {"MatMul": _of_matmul, "Gemm": _of_gemm, "Einsum": _of_einsum}
