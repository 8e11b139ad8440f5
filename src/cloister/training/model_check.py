"""Checks of a model before the first key is asked for: one input, which one layer reads.

A sample that stays encrypted can be read by the encrypted layer only. The check runs the model once
on a placeholder that is NaN everywhere, with a layer that answers zeros: scores that are NaN come
from another module that reads the sample.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int16, Int64
from torch import Tensor, nn

from cloister.errors import InputError, UnsupportedError
from cloister.ring.linear import Geometry, LinearMap
from cloister.training.difference import Difference
from cloister.training.layers import Encrypted, Samples

TRIED = np.zeros(2, np.int64)
"""Ids that no key is asked for."""


def check_inputs(model: nn.Module) -> None:
    """Refuse a model that takes anything but one tensor.

    Raises   UnsupportedError naming its inputs
    """
    parameters = inspect.signature(model.forward).parameters.values()
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one.name for one in parameters if one.default is one.empty and one.kind in places]
    if len(needed) > 1:
        raise UnsupportedError(
            f"model: {type(model).__name__}.forward takes {len(needed)} inputs "
            f"({', '.join(needed)}), and a data set has one sample tensor; encrypt the values of "
            "all of them as one sample and separate them behind the first layer"
        )


def check_reads_once(model: nn.Module, layer: Encrypted, samples: Samples) -> Tensor:
    """Scores of a placeholder, if only the encrypted layer reads it.

    Raises   UnsupportedError naming the other module that reads it, and what the model raises
    """
    x = samples.of(TRIED)
    readers: dict[str, str] = {}
    with _answering_zeros(layer), _watching(model, x, readers):
        scores = tried(model, x)
    if not scores.isfinite().all() and all(p.isfinite().all() for p in model.parameters()):
        first = next(name for name, module in model.named_modules() if module is layer)
        others = ", ".join(f"{name} ({kind})" for name, kind in readers.items())
        others = others or f"{type(model).__name__}.forward"
        raise UnsupportedError(
            f"model: {others} reads the sample, and so does the first layer {first}; only one "
            "layer can read an encrypted sample: give both branches the output of one first "
            "layer, or train with first_layer='frozen' (--first-layer frozen)"
        )
    return scores


def tried(model: nn.Module, x: Tensor) -> Tensor:
    """The scores of a model for a placeholder; neither it nor the generator changes.

    Raises   InputError when it gives no tensor, and what the model raises
    """
    training, generator = model.training, torch.get_rng_state()
    model.eval()
    try:
        with torch.no_grad():
            scores = model(x)
    finally:
        model.train(training)
        torch.set_rng_state(generator)
    if not isinstance(scores, Tensor):
        raise InputError(f"model: gives a {type(scores).__name__}, not one tensor of scores")
    return scores


class _Zeros:
    """Products that need no key."""

    def forward(self, ids: Int64[np.ndarray, " n"], linear: LinearMap) -> Difference:
        return _zeros((len(ids), *linear.geometry.out_shape))

    def gradient(
        self,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> Difference:
        return _zeros(geometry.weight_shape)


def _zeros(shape: tuple[int, ...]) -> Difference:
    words = np.zeros(shape, np.uint32)
    return Difference(words, words)


@contextmanager
def _answering_zeros(layer: Encrypted) -> Iterator[None]:
    products, layer.products = layer.products, _Zeros()
    try:
        yield
    finally:
        layer.products = products


@contextmanager
def _watching(model: nn.Module, x: Tensor, readers: dict[str, str]) -> Iterator[None]:
    """Collect the names of other modules with parameters that are given the placeholder."""

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, given: tuple[object, ...]) -> None:
            storages = [one.data_ptr() for one in given if isinstance(one, Tensor)]
            if x.data_ptr() in storages:
                readers[name] = type(module).__name__

        return module.register_forward_pre_hook(hook)

    handles = [
        watch(name, module)
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and not isinstance(module, Encrypted)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
