"""Trains a preset with PyTorch and tests it; the same seed gives the same network on one machine.

The training network is the graph itself: its constants of floating-point numbers are the
parameters, so that the trained model is the graph with other constants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cloister.graph.graph import Graph, Node
from cloister.splits.net_builder import Network
from cloister.splits.preset_data import PresetData, Samples

SEED = 2020
TEST_BATCH = 500


@dataclass(frozen=True)
class Recipe:
    """How a preset is trained: Adam on the cross-entropy."""

    epochs: int
    batch: int = 128
    rate: float = 1e-3


RECIPES: Mapping[str, Recipe] = {
    "mnist": Recipe(epochs=1),
    "imdb": Recipe(epochs=4),
    "rotten": Recipe(epochs=6),
}
Progress = Callable[[str, int, int], None]


def train(network: Network, data: PresetData, recipe: Recipe, progress: Progress) -> Graph:
    """The network's graph with trained constants.

    progress   called with the stage, the batches done and all of them
    """
    generator = torch.Generator().manual_seed(SEED)
    # Copies: PyTorch writes to its parameters, and the graph is frozen.
    constants = {name: torch.tensor(array) for name, array in network.graph.constants.items()}
    learnt = [one.requires_grad_() for one in constants.values() if one.is_floating_point()]
    optimiser = torch.optim.Adam(learnt, recipe.rate)
    batches = -(-len(data.train) // recipe.batch)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.train), generator=generator).numpy()
        for i in range(batches):
            which = order[i * recipe.batch : (i + 1) * recipe.batch]
            optimiser.zero_grad()
            logits = _logits(network, constants, data.train.rows(which), generator)
            loss = _loss(logits, torch.from_numpy(data.train.y[which]))
            torch.autograd.backward(loss)
            optimiser.step()
            progress("training", epoch * batches + i + 1, recipe.epochs * batches)
    trained = {name: one.detach().numpy() for name, one in constants.items()}
    return replace(network.graph, constants=trained)


def accuracy(network: Network, graph: Graph, samples: Samples, progress: Progress) -> float:
    """Share of the samples to which the graph gives the right class."""
    constants = {name: torch.tensor(array) for name, array in graph.constants.items()}
    right = 0
    with torch.no_grad():
        for start in range(0, len(samples), TEST_BATCH):
            which = np.arange(start, min(start + TEST_BATCH, len(samples)))
            logits = _logits(network, constants, samples.rows(which), None)
            found = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
            right += int((found.numpy() == samples.y[which]).sum())
            progress("testing", int(which[-1]) + 1, len(samples))
    return right / len(samples)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] > 1:
        return functional.cross_entropy(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())


def _logits(
    network: Network,
    constants: Mapping[str, Tensor],
    x: np.ndarray,
    generator: torch.Generator | None,
) -> Tensor:
    """The value before the last activation; with a generator, dropout acts."""
    (name,) = network.graph.inputs
    values = {**constants, name: _dropped(torch.from_numpy(x), name, network, generator)}
    for node in network.graph.nodes:
        (made,) = node.outputs
        value = OPERATIONS[node.op](node, [values[one] for one in node.inputs])
        values[made] = _dropped(value, made, network, generator)
        if made == network.logits:
            break
    return values[network.logits]


def _dropped(x: Tensor, name: str, network: Network, generator: torch.Generator | None) -> Tensor:
    rate = network.dropouts.get(name, 0.0)
    if generator is None or not rate:
        return x
    # Not functional.dropout: it draws from the generator of the whole process.
    return x * (torch.rand(x.shape, generator=generator) >= rate) / (1 - rate)


def _conv(node: Node, inputs: list[Tensor]) -> Tensor:
    x, weights, *more = inputs
    bias = more[0] if more else None
    pads, groups = _integers(node, "pads")[: weights.dim() - 2], _integer(node, "group")
    if weights.dim() == 4:
        return functional.conv2d(x, weights, bias, 1, pads, 1, groups)
    return functional.conv1d(x, weights, bias, 1, pads, 1, groups)


def _gemm(_: Node, inputs: list[Tensor]) -> Tensor:
    x, weights, bias = inputs
    return functional.linear(x, weights, bias)


def _max_pool(node: Node, inputs: list[Tensor]) -> Tensor:
    window = _integers(node, "kernel_shape")
    pool = functional.max_pool2d if len(window) == 2 else functional.max_pool1d
    return pool(inputs[0], window)


def _integers(node: Node, name: str) -> tuple[int, ...]:
    value = node.attributes[name]
    return value if isinstance(value, tuple) else ()


def _integer(node: Node, name: str) -> int:
    value = node.attributes[name]
    return value if isinstance(value, int) else 0


OPERATIONS: Mapping[str, Callable[[Node, list[Tensor]], Tensor]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "Relu": lambda _, inputs: inputs[0].relu(),
    "Flatten": lambda _, inputs: inputs[0].flatten(1),
    "GlobalAveragePool": lambda _, inputs: inputs[0].mean(
        tuple(range(2, inputs[0].dim())), keepdim=True
    ),
    "Gather": lambda _, inputs: functional.embedding(inputs[1].long(), inputs[0]),
    "Transpose": lambda node, inputs: inputs[0].permute(_integers(node, "perm")),
}
"""The operators of the presets, as `net_builder` writes them, up to the logits."""
