"""A plan as canonical bytes: everything that decides what is computed and what is protected.

The integers of outsourced nodes are stored as they are, so no machine computes them again; their
float32 weights decide nothing any more and are left out. A digest of these bytes therefore names
one computation with one protection, on every machine.

A change that gives a protection another field, or a plan another part, raises VERSION.
"""

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

import numpy as np

from cloister.graph.canonical import Reader, Writer, entries, mapping, real, text, texts, whole
from cloister.graph.graph import Graph, Node
from cloister.graph.graph_file import graph_document, read_fields, read_graph
from cloister.graph.legality import require_supported
from cloister.graph.ops.linear_nodes import geometry, is_linear
from cloister.plan.planned_split import PlannedSplit, SplitEvidence
from cloister.plan.protection import BY_NAME, Protection
from cloister.plan.quantised import (
    MAX_ACTIVATION_BITS,
    Precision,
    QuantisedLinear,
    Ranges,
    bound_and_bits,
    factor_shape,
)
from cloister.ring.fixed_point import MAX_EXPONENT
from cloister.ring.linear import LinearMap

MAGIC, VERSION = b"CLOP", 2
MODEL_NAME = "model"
"""The name of the graph in a plan: the name of the model's file decides nothing."""
_LARGEST_QMAX = 2 ** (MAX_ACTIVATION_BITS - 1) - 1


def written(
    graph: Graph,
    *,
    not_needed: frozenset[str],
    policy: str,
    precision: Precision,
    protections: Mapping[str, Protection],
    ranges: Mapping[str, Ranges],
    quantised: Mapping[str, QuantisedLinear],
    split: PlannedSplit | None,
) -> Writer:
    """A plan's fields as they are written, without the constants that are not needed.

    Raises   InputError for an attribute that no file holds
    """
    writer = Writer(MAGIC, VERSION)
    return writer.finish(
        {
            "graph": graph_document(graph, writer, name=MODEL_NAME, left_out=not_needed),
            "policy": policy,
            "precision": [precision.weight_bits, precision.activation_bits],
            "protections": {name: _protection(one) for name, one in protections.items()},
            "ranges": {name: list(tops) for name, tops in ranges.items()},
            "quantised": {name: _quantised(quantised[name], writer) for name in sorted(quantised)},
            "split": None if split is None else _split(split),
        }
    )


def read(data: np.ndarray) -> tuple[Reader, dict[str, Any]]:
    """A reader that has read everything, and the fields of the plan.

    Raises   InputError for what contradicts itself, and what damage makes Python raise
    """
    reader = Reader(data, MAGIC, VERSION)
    document, policy, bits, protections, ranges, quantised, split = read_fields(
        reader.document,
        "graph", "policy", "precision", "protections", "ranges", "quantised", "split",
    )  # fmt: skip
    graph = read_graph(document, reader)
    require_supported(graph)
    weight_bits, activation_bits = map(whole, entries(bits))
    precision = Precision(weight_bits, activation_bits)
    nodes = {node.name: node for node in graph.nodes}
    return reader, {
        "graph": graph,
        "policy": text(policy),
        "protections": mapping(protections, _read_protection),
        "quantised": {
            name: _read_quantised(one, reader, graph, nodes.get(name), precision)
            for name, one in mapping(quantised, lambda one: one).items()
        },
        "precision": precision,
        "ranges": mapping(ranges, _read_ranges),
        "split": None if split is None else _read_split(split),
        "float_weights": not quantised,
    }


def _protection(protection: Protection) -> dict[str, object]:
    values = {one.name: getattr(protection, one.name) for one in fields(protection)}
    return {name: one.name if isinstance(one, Enum) else one for name, one in values.items()}


def _read_protection(document: object) -> Protection:
    for protection in BY_NAME.values():
        if document == _protection(protection):
            return protection
    raise ValueError("a protection is none that this version knows")


_EVIDENCE = tuple(one.name for one in fields(SplitEvidence))


def _split(split: PlannedSplit) -> dict[str, object]:
    found = split.evidence
    if found is None:
        return {"until": list(split.until), "evidence": None}
    evidence = {name: getattr(found, name) for name in _EVIDENCE}
    evidence |= {"report": found.report.hex(), "attacks": list(found.attacks)}
    return {"until": list(split.until), "evidence": evidence}


def _read_split(document: object) -> PlannedSplit:
    until, evidence = read_fields(document, "until", "evidence")
    names = texts(until)
    if evidence is None:
        return PlannedSplit(names)
    report, attacks, data, digest, images, candidates, rate, ssim, explained = read_fields(
        evidence, *_EVIDENCE
    )
    found = SplitEvidence(
        bytes.fromhex(text(report)),
        texts(attacks),
        text(data),
        text(digest),
        whole(images),
        whole(candidates),
        real(rate),
        real(ssim),
        real(explained),
    )
    return PlannedSplit(names, found)


def _read_ranges(document: object) -> Ranges:
    found = tuple(map(real, entries(document)))
    if not all(0 <= top <= np.finfo(np.float32).max for top in found):
        raise ValueError("a range is negative or not finite")
    return found


def _quantised(node: QuantisedLinear, writer: Writer) -> dict[str, object]:
    return {
        "weights": writer.tensor(node.linear.weights),
        "scale": writer.tensor(node.scale),
        "bias": writer.tensor(node.bias),
        "factors": None if node.x_factors is None else writer.tensor(node.x_factors),
        "x_scale": node.x_scale,
        "x_qmax": node.x_qmax,
    }


def _read_quantised(
    document: object, reader: Reader, graph: Graph, node: Node | None, precision: Precision
) -> QuantisedLinear:
    weights, scale, bias, factors, x_scale, x_qmax = read_fields(
        document, "weights", "scale", "bias", "factors", "x_scale", "x_qmax"
    )
    if node is None or not is_linear(graph, node):
        raise ValueError("a node has integers and is not linear")
    shape = geometry(graph, node)
    linear = LinearMap(shape, reader.tensor(weights))
    channels = (shape.out_channels,)
    qmax = whole(x_qmax, least=1, most=_LARGEST_QMAX)
    bound, weight_bits = bound_and_bits(linear.weights, qmax, precision)
    return QuantisedLinear(
        node=node.name,
        linear=linear,
        scale=_finite(reader.tensor(scale), channels, node),
        bias=_finite(reader.tensor(bias), channels, node),
        x_scale=_step(real(x_scale), node),
        x_qmax=qmax,
        bound=bound,
        weight_bits=weight_bits,
        x_factors=None
        if factors is None
        else _powers_of_two(_finite(reader.tensor(factors), factor_shape(shape), node), node),
    )


def _step(x_scale: float, node: Node) -> float:
    """A float32 of which the runtime can use the inverse."""
    with np.errstate(all="ignore"):
        step = np.float32(x_scale)
        usable = np.isfinite(step) and step > 0 and np.isfinite(np.float32(1) / step)
    if not usable or float(step) != x_scale:
        raise ValueError(f"node {node.name!r}: the scale of its input is no scale")
    return x_scale


def _finite(array: np.ndarray, shape: tuple[int, ...], node: Node) -> np.ndarray:
    if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"node {node.name!r}: its scales are not finite float32 {shape}")
    return array


def _powers_of_two(factors: np.ndarray, node: Node) -> np.ndarray:
    mantissas, exponents = np.frexp(factors)
    if not ((mantissas == 0.5) & (exponents >= 1) & (exponents - 1 <= MAX_EXPONENT)).all():
        raise ValueError(f"node {node.name!r}: a factor of its input is no power of two")
    return factors
