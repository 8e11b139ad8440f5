"""Trains a preset with PyTorch and tests it; the same seed gives the same network on one machine.

The training network is the graph itself: its constants of floating-point numbers are the
parameters, so that the trained model is the graph with other constants.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cloister.audit.torch_graph import operation
from cloister.graph.graph import Graph
from cloister.splits.net_builder import Network
from cloister.splits.preset_data import PresetData, PresetSamples
from cloister.splits.presets import Recipe

TEST_BATCH = 500


Progress = Callable[[str, int, int], None]


class _Trainable:
    """A network up to its logits; a graph's constants of floating point are the parameters."""

    def __init__(self, network: Network, graph: Graph) -> None:
        made = [node.outputs[0] for node in graph.nodes]
        nodes = graph.nodes[: made.index(network.logits) + 1]
        self._steps = [(operation(node, graph.opset), node) for node in nodes]
        # Copies: PyTorch writes to its parameters, and the graph is frozen.
        self.constants = {name: torch.tensor(array) for name, array in graph.constants.items()}
        self._dropouts, (self._input,) = network.dropouts, graph.inputs

    def logits(self, x: np.ndarray, generator: torch.Generator | None) -> Tensor:
        """With a generator, dropout acts."""
        values = {**self.constants}
        self._set(values, self._input, torch.from_numpy(x), generator)
        for compute, node in self._steps:
            made = compute(*(values[name] for name in node.inputs))
            self._set(values, node.outputs[0], made, generator)
        return made

    def _set(
        self, values: dict[str, Tensor], name: str, x: Tensor, generator: torch.Generator | None
    ) -> None:
        rate = self._dropouts.get(name, 0.0)
        if generator is not None and rate:
            # Not functional.dropout: it draws from the generator of the whole process.
            x = x * (torch.rand(x.shape, generator=generator) >= rate) / (1 - rate)
        values[name] = x


def train(network: Network, data: PresetData, recipe: Recipe, progress: Progress) -> Graph:
    """The network's graph with trained constants.

    progress   called with the stage, the batches done and all of them
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    trainable = _Trainable(network, network.graph)
    constants = trainable.constants
    learnt = [one.requires_grad_() for one in constants.values() if one.is_floating_point()]
    optimiser = torch.optim.Adam(learnt, recipe.rate)
    batches = -(-len(data.train) // recipe.batch)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.train), generator=generator).numpy()
        for i in range(batches):
            which = order[i * recipe.batch : (i + 1) * recipe.batch]
            optimiser.zero_grad()
            logits = trainable.logits(data.train.rows(which), generator)
            loss = _loss(logits, torch.from_numpy(data.train.y[which]))
            torch.autograd.backward(loss)
            optimiser.step()
            progress("training", epoch * batches + i + 1, recipe.epochs * batches)
    trained = {name: one.detach().numpy() for name, one in constants.items()}
    return replace(network.graph, constants=trained)


def accuracy(network: Network, graph: Graph, samples: PresetSamples, progress: Progress) -> float:
    """Share of the samples to which the graph gives the right class."""
    trainable = _Trainable(network, graph)
    right = 0
    with torch.no_grad():
        for start in range(0, len(samples), TEST_BATCH):
            which = np.arange(start, min(start + TEST_BATCH, len(samples)))
            logits = trainable.logits(samples.rows(which), None)
            found = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
            right += int((found.numpy() == samples.y[which]).sum())
            progress("testing", int(which[-1]) + 1, len(samples))
    return right / len(samples)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] > 1:
        return functional.cross_entropy(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
