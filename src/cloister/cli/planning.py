"""From a verb's options to a plan, and what a plan's file may decide.

A plan's file is anybody's who can write it. It decides what is computed; what is protected, it
decides only where somebody else vouches for it: its policy has to be the one that `--policy` names,
or the default, unless its digest is pinned by `--digest` or by the key file of a pad store.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloister.cli.images import Inputs, Preprocessing, read_inputs
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.plan import policies
from cloister.plan.plan import SUFFIX, Plan
from cloister.plan.protection import EVERYWHERE, OUTSOURCED
from cloister.plan.quantised import Precision

DEFAULT_POLICY = "slalom"
SELF_CALIBRATION = 64
"""Inputs that set the ranges when nobody names a calibration set."""


def is_plan_file(model: str) -> bool:
    """Whether an argument names a plan instead of a model."""
    return model.endswith(SUFFIX)


def plan_in_file(
    path: Path, *, policy: str | None, digest: str | None, vouched: bool = False
) -> tuple[Plan, str]:
    """The plan in a file, and one line that says which.

    vouched   whether the caller compares its digest with one that it trusts

    Raises   InputError when it is not of the policy or not the one that is wanted
    """
    plan = Plan.load(path)
    require_digest(plan, digest)
    wanted = policy or (plan.policy if vouched or digest is not None else DEFAULT_POLICY)
    if plan.policy != wanted:
        raise InputError(
            f"{path}: is a plan of policy {plan.policy}, and {wanted} is wanted; give --policy "
            f"{plan.policy} if that is the protection you want"
        )
    return plan, f"plan {plan.digest.hex()} from {path}"


def plan_for(
    graph: Graph,
    *,
    policy: str | None,
    weight_bits: int | None,
    activation_bits: int | None,
    calibration: Sequence[Path] | None,
    inputs: Inputs | None,
    preprocessing: Preprocessing,
    stored: Plan | None = None,
) -> tuple[Plan, str]:
    """The plan the options ask for, and one line that says where its ranges come from.

    `stored` is the plan of a pad store, for which its key file vouches: where options are not
    given, it decides.

    Warns (PrecisionWarning) when a layer's error on the samples exceeds a bound; there are no
    samples when the ranges are those of a stored plan.
    """
    files = list(calibration or ())
    if files:
        stored = None
    given = stored.precision if stored else Precision()
    precision = Precision(
        given.weight_bits if weight_bits is None else weight_bits,
        given.activation_bits if activation_bits is None else activation_bits,
    )
    wanted = policy or (stored.policy if stored else DEFAULT_POLICY)
    if stored is not None:
        plan = policies.from_ranges(wanted, graph, ranges=stored.ranges, precision=precision)
        return plan, "calibration of the pad store"
    samples, origin = None, "no calibration needed: everything is computed in float32"
    if wanted not in EVERYWHERE:
        samples, origin = _samples(graph, files, inputs, preprocessing)
    # A worker learns channel scales as powers of two: never those of inputs that are to be hidden.
    hidden = wanted in OUTSOURCED and OUTSOURCED[wanted].hidden
    plan = policies.make(
        wanted,
        graph,
        calibration=samples,
        precision=precision,
        by_channel=bool(files) or not hidden,
    )
    return plan, origin


def require_digest(plan: Plan, digest: str | None) -> None:
    """Make sure that a plan is the one that is pinned, if one is.

    Raises   InputError
    """
    if digest is not None and plan.digest.hex() != digest.lower():
        raise InputError(f"--digest {digest}: the plan is {plan.digest.hex()}")


def _samples(
    graph: Graph, files: Sequence[Path], inputs: Inputs | None, preprocessing: Preprocessing
) -> tuple[dict[str, np.ndarray], str]:
    if files:
        found = read_inputs(graph, files, preprocessing)
        return found.arrays, f"calibrated on {len(found.names)} samples of --calibration"
    if inputs is None:
        raise InputError("--calibration: name typical inputs")
    used = min(SELF_CALIBRATION, len(inputs.names))
    which = "" if used == len(inputs.names) else f" (the first {used})"
    return inputs.first(used), f"calibrated on the inputs themselves{which}"
