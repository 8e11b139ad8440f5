"""From a verb's options to a model, a recipe and a plan."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cloister.cli.images import Inputs, Preprocessing, read_inputs
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.plan.protection import EVERYWHERE, OUTSOURCED
from cloister.plan.quantise import Precision
from cloister.plan.recipe import Recipe, measure

DEFAULT_POLICY = "slalom"
SELF_CALIBRATION = 64
"""Inputs that set the ranges when nobody names a calibration set."""


def recipe_for(
    graph: Graph,
    *,
    policy: str | None,
    weight_bits: int | None,
    activation_bits: int | None,
    calibration: Sequence[Path] | None,
    inputs: Inputs | None,
    preprocessing: Preprocessing,
    stored: Recipe | None = None,
) -> tuple[Recipe, str]:
    """The recipe the options ask for, and one line that says where its ranges come from.

    `stored` is the recipe of a pad store, for which its key file vouches: where options are not
    given, it decides. A calibration file is anybody's. Its ranges and bits are taken; its policy
    has to be the one that is asked for, or the default.

    Raises   InputError when a calibration file names another policy
    """
    files = list(calibration or ())
    origin = "calibration of the pad store"
    if files:
        stored = None
    if len(files) == 1 and files[0].suffix == ".json":
        stored, origin = _of_policy(policy or DEFAULT_POLICY, files[0])
    base = stored or Recipe(DEFAULT_POLICY)
    precision = Precision(
        base.precision.weight_bits if weight_bits is None else weight_bits,
        base.precision.activation_bits if activation_bits is None else activation_bits,
    )
    wanted = policy or base.policy
    if stored is not None:
        return replace(stored, policy=wanted, precision=precision), origin
    samples, origin = _samples(graph, files, inputs, preprocessing)
    if wanted in EVERYWHERE:
        samples, origin = None, "no calibration needed: everything is computed in float32"
    # A worker learns channel scales as powers of two: never those of inputs that are to be hidden.
    hidden = wanted in OUTSOURCED and OUTSOURCED[wanted].hidden
    recipe = measure(
        graph,
        policy=wanted,
        samples=samples,
        precision=precision,
        by_channel=bool(files) or not hidden,
    )
    return recipe, origin


def _of_policy(wanted: str, file: Path) -> tuple[Recipe, str]:
    """The recipe in a calibration file, if it is for the policy that is wanted."""
    recipe = Recipe.load(file)
    if recipe.policy != wanted:
        raise InputError(
            f"--calibration {file}: is for policy {recipe.policy}, and {wanted} is wanted; give "
            f"--policy {recipe.policy} if that is the protection you want, or typical inputs"
        )
    bits = recipe.precision
    said = f"{bits.weight_bits} bits for weights, {bits.activation_bits} for activations"
    return recipe, f"calibration from {file} ({said})"


def _samples(
    graph: Graph, files: Sequence[Path], inputs: Inputs | None, preprocessing: Preprocessing
) -> tuple[dict[str, np.ndarray] | None, str]:
    if files:
        found = read_inputs(graph, files, preprocessing)
        return found.arrays, f"calibrated on {len(found.names)} samples of --calibration"
    if inputs is None:
        raise InputError("--calibration: name typical inputs, or a calibration.json")
    used = min(SELF_CALIBRATION, len(inputs.names))
    which = "" if used == len(inputs.names) else f" (the first {used})"
    return inputs.first(used), f"calibrated on the inputs themselves{which}"
