"""Policies: from a model to a plan.

slalom     linear nodes go to the worker, blinded and verified (either can be switched off)
verified   linear nodes go to the worker in the clear, every answer is checked
blinded    linear nodes go to the worker blinded, answers are believed
enclave    everything stays inside the trusted runtime
open       everything goes to the worker in the clear and is believed: the baseline, no protection

In the first three, depthwise convolutions stay inside where that is cheaper (placement.py).
"""

from collections.abc import Mapping

import numpy as np

from cloister.errors import PlanError, ShapeError, UnsupportedError
from cloister.graph.batch import bound_sizes, element_type
from cloister.graph.graph import Graph, Node
from cloister.graph.legality import require_supported
from cloister.graph.ops import is_linear
from cloister.plan.placement import keep_inside
from cloister.plan.plan import Plan
from cloister.plan.protection import (
    BLINDED,
    BLINDED_VERIFIED,
    ENCLAVE,
    OPEN,
    VERIFIED,
    Protection,
)
from cloister.plan.quantise import Precision, calibrate, quantise_node

Samples = np.ndarray | Mapping[str, np.ndarray]

OUTSOURCED: Mapping[str, Protection] = {
    "slalom": BLINDED_VERIFIED,
    "verified": VERIFIED,
    "blinded": BLINDED,
}
EVERYWHERE: Mapping[str, Protection] = {"enclave": ENCLAVE, "open": OPEN}
NAMES = (*OUTSOURCED, *EVERYWHERE)


def assign(model: Graph, policy: str) -> dict[str, Protection]:
    """The protection a policy gives to every node, by node name.

    Raises PlanError for an unknown policy.
    """
    if policy in EVERYWHERE:
        return {node.name: EVERYWHERE[policy] for node in model.nodes}
    if policy in OUTSOURCED:
        outside = OUTSOURCED[policy]
        linear = [node for node in model.nodes if is_linear(model, node)]
        kept = [node for node in linear if keep_inside(model, node, outside)]
        # Something has to go out, or there is nothing to protect.
        sent = {node.name for node in linear} - {node.name for node in kept}
        sent = sent or {node.name for node in linear}
        return {node.name: outside if node.name in sent else ENCLAVE for node in model.nodes}
    raise PlanError(f"unknown policy {policy!r}; choose one of {', '.join(NAMES)}")


def make(
    policy: str,
    model: Graph,
    *,
    calibration: Samples | None = None,
    precision: Precision | None = None,
) -> Plan:
    """A plan by the policy's name; see the functions below."""
    ranges = measure_ranges(policy, model, calibration=calibration)
    return from_ranges(policy, model, ranges=ranges, precision=precision)


def slalom(
    model: Graph,
    *,
    calibration: Samples,
    privacy: bool = True,
    integrity: bool = True,
    precision: Precision | None = None,
) -> Plan:
    """Linear nodes on the worker, blinded (`privacy`) and checked (`integrity`).

    `calibration` is a batch of typical inputs; it sets the activations' fixed-point scales.
    """
    if not (privacy or integrity):
        raise PlanError("neither privacy nor integrity: ask for policies.open by its name")
    name = "slalom" if privacy and integrity else "blinded" if privacy else "verified"
    return make(name, model, calibration=calibration, precision=precision)


def verified(model: Graph, *, calibration: Samples, precision: Precision | None = None) -> Plan:
    """Linear nodes on the worker in the clear, every answer checked."""
    return make("verified", model, calibration=calibration, precision=precision)


def blinded(model: Graph, *, calibration: Samples, precision: Precision | None = None) -> Plan:
    """Linear nodes on the worker under one-time pads, answers believed."""
    return make("blinded", model, calibration=calibration, precision=precision)


def enclave(model: Graph) -> Plan:
    """Everything inside the trusted runtime."""
    return make("enclave", model)


def open(model: Graph) -> Plan:
    """Everything on the worker, in the clear and believed: no protection at all."""
    return make("open", model)


def as_samples(model: Graph, samples: Samples) -> dict[str, np.ndarray]:
    """Samples by input name, checked against the model's inputs.

    Raises ShapeError when inputs are missing, unknown or of another shape, or hold different
    numbers of samples.
    """
    if not isinstance(samples, np.ndarray | Mapping):
        raise ShapeError(
            f"inputs must be a NumPy array or a mapping of them by name, not "
            f"{type(samples).__name__}"
        )
    if isinstance(samples, np.ndarray):
        if len(model.inputs) != 1:
            names = ", ".join(model.inputs) or "none"
            raise ShapeError(f"the model has inputs {names}; pass a mapping by name")
        samples = {model.inputs[0]: samples}
    if set(samples) != set(model.inputs):
        odd = sorted(set(samples) ^ set(model.inputs))[0]
        names = ", ".join(map(repr, model.inputs))
        raise ShapeError(f"input {odd!r}: the model's inputs are {names}, all of them needed")
    for name, array in samples.items():
        _check_sample(model, name, array)
    bound_sizes(model, samples)
    return {name: np.asarray(samples[name], order="C") for name in model.inputs}


def _check_sample(model: Graph, name: str, array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray):
        raise ShapeError(f"input {name!r}: expected a NumPy array, got {type(array).__name__}")
    wanted = element_type(model, name)
    if array.dtype != wanted:
        raise ShapeError(f"input {name!r}: the model takes {wanted}, got {array.dtype}")
    sizes = model.sizes(name) or ()
    fits = len(array.shape) == len(sizes) and all(
        isinstance(want, str) or want == got for want, got in zip(sizes, array.shape, strict=True)
    )
    if not fits:
        raise ShapeError(f"input {name!r}: the model takes shape {sizes}, got {array.shape}")


def measure_ranges(policy: str, model: Graph, *, calibration: Samples | None) -> dict[str, float]:
    """Largest magnitude, over typical inputs, of every value the policy makes fixed-point.

    Raises PlanError without inputs, UnsupportedError when there is nothing to send to a worker.
    """
    require_supported(model)
    if policy in EVERYWHERE:
        return {}
    linear = _sent_out(model, assign(model, policy))
    if calibration is None:
        raise PlanError(f"policy {policy!r} needs calibration=: a batch of typical inputs")
    samples = as_samples(model, calibration)
    return calibrate(model, sorted({node.inputs[0] for node in linear}), samples)


def from_ranges(
    policy: str,
    model: Graph,
    *,
    ranges: Mapping[str, float],
    precision: Precision | None = None,
) -> Plan:
    """A plan from ranges measured before.

    Raises PlanError when a range is missing: they were measured with another model.
    """
    require_supported(model)
    protections = assign(model, policy)
    quantised = {}
    for node in () if policy in EVERYWHERE else _sent_out(model, protections):
        if node.inputs[0] not in ranges:
            raise PlanError(
                f"value {node.inputs[0]!r} has no range: the calibration belongs to another model"
            )
        quantised[node.name] = quantise_node(
            model,
            node,
            largest_input=ranges[node.inputs[0]],
            precision=precision or Precision(),
        )
    return Plan(model, policy, protections, quantised)


def _sent_out(model: Graph, protections: Mapping[str, Protection]) -> list[Node]:
    linear = [node for node in model.nodes if protections[node.name] is not ENCLAVE]
    if not linear:
        raise UnsupportedError(
            "the model has no linear node with constant weights, so there is nothing to send to a "
            "worker; use the enclave policy"
        )
    return linear
