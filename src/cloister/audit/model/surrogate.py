"""A surrogate: the exposed layers as they are, the hidden ones trained on the victim's answers.

The exposed layers keep their weights. The victim is such a network, so nothing is lost by it, and a
thief with few answers has fewer weights to determine.
"""

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor, nn

from cloister.audit.model.theft_settings import TheftSettings
from cloister.audit.model.victim import AT_ONCE
from cloister.audit.torch_graph import TorchGraph
from cloister.graph.graph import Graph, Node


class Surrogate(Protocol):
    """A network with the weights that are trained; `pace` multiplies their learning rate."""

    pace: float
    weights: list[Tensor]

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The logits."""
        ...


class HiddenLayers:
    """The hidden part of a split with weights of the thief's own: its architecture is known.

    Numbers of one element, such as the bounds of a clip, belong to the architecture.

    constants   all of its constants, among them `weights`, which training changes
    """

    pace = 1.0

    def __init__(
        self, hidden: Graph, known: AbstractSet[str], *, generator: torch.Generator
    ) -> None:
        self._graph = TorchGraph(hidden)
        self.constants = dict(self._graph.constants)
        self.weights: list[Tensor] = []
        readers = {value: node for node in reversed(hidden.nodes) for value in node.inputs}
        for name in sorted(secret(hidden, known) & self.constants.keys()):
            first, trained = _initial(readers[name], name, self.constants[name], generator)
            self.constants[name] = first
            if trained:
                self.weights.append(first.requires_grad_())

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The logits."""
        (found,) = self._graph.run(values, self.constants)
        return found


class SmallNetwork:
    """A network that a thief of nothing but answers may choose: two small layers before the last.

    Pictures of at least 8 by 8 pass two convolutions, anything else a dense layer.
    """

    pace = 1.0

    def __init__(self, shape: Sequence[int], classes: int, *, generator: torch.Generator) -> None:
        inner: list[nn.Module]
        if len(shape) == 3 and min(shape[1:]) >= 8:
            inner = [
                nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            ]  # fmt: skip
            width = 32 * (shape[1] // 4) * (shape[2] // 4)
        else:
            inner = [nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.ReLU()]
            width = 128
        self._network = nn.Sequential(*inner, nn.Linear(width, classes))
        self.weights: list[Tensor] = list(self._network.parameters())
        with torch.no_grad():
            for weight in self.weights:
                deviation = 0.0 if weight.dim() == 1 else math.sqrt(2 / weight[0].numel())
                weight.copy_(deviation * torch.randn(weight.shape, generator=generator))

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The logits."""
        found: Tensor = self._network(values[0].float())
        return found


class LinearProbe:
    """A linear classifier of the values that enter the hidden part, in place of that part.

    A thief of few answers does better with it than with layers of which each has to be learned.
    """

    pace = 10.0
    """Its problem is convex; on digits it generalises better than at the networks' own pace."""

    def __init__(self, values: Sequence[Tensor], classes: int) -> None:
        rows = _rows(values)
        self._mean = rows.mean(0)
        self._size = (rows - self._mean).square().mean().sqrt().clamp_min(1e-6)
        self._head = nn.Linear(rows.shape[1], classes)
        self.weights: list[Tensor] = list(self._head.parameters())
        with torch.no_grad():
            for weight in self.weights:
                weight.zero_()

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The logits."""
        found: Tensor = self._head((_rows(values) - self._mean) / self._size)
        return found


def _rows(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.flatten(1).float() for value in values], 1)


def secret(hidden: Graph, known: AbstractSet[str]) -> frozenset[str]:
    """The constants of a hidden part that are weights which a thief does not have."""
    return frozenset(
        name
        for name, array in hidden.constants.items()
        if array.dtype.kind == "f" and array.size > 1 and name not in known
    )


def fit(
    network: Surrogate,
    values: Sequence[Tensor],
    targets: Float32[Tensor, "n c"],
    settings: TheftSettings,
    *,
    generator: torch.Generator,
) -> None:
    """Train weights until the network answers as the victim did: cross entropy, Adam."""
    optimizer = torch.optim.Adam(network.weights, lr=network.pace * settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    order: list[Tensor] = []
    for _ in range(settings.steps):
        if not order:
            shuffled = torch.randperm(len(targets), generator=generator)
            order = list(torch.split(shuffled, settings.batch))
        chosen = order.pop()
        optimizer.zero_grad()
        found = network([value[chosen] for value in values]).log_softmax(1)
        loss = -(targets[chosen] * found).sum(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def predict(
    network: Surrogate, arrays: Sequence[Shaped[np.ndarray, "n ..."]]
) -> Float32[np.ndarray, "n c"]:
    """The logits for many samples."""
    values = tensors(arrays)
    with torch.no_grad():
        parts = [
            network([value[i : i + AT_ONCE] for value in values])
            for i in range(0, len(values[0]), AT_ONCE)
        ]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def tensors(arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Arrays as tensors of their own memory."""
    return [torch.from_numpy(np.array(array)) for array in arrays]


def _initial(
    node: Node, name: str, like: Tensor, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Initial values of a weight, and whether it is trained."""
    place = node.inputs.index(name)
    if node.op in ("BatchNormalization", "LayerNormalization") and place > 0:
        # A moving mean and variance add nothing to scale and shift.
        ones = place in (1, 4)
        return (torch.ones_like(like) if ones else torch.zeros_like(like)), place < 3
    if node.op in ("Mul", "Div"):
        return torch.ones_like(like), True
    if node.op in ("Conv", "Gemm", "MatMul") and place < 2:
        deviation = math.sqrt(2 / _terms(node, like))
    elif node.op == "Gather":
        deviation = 1 / math.sqrt(like.shape[-1])
    else:
        return torch.zeros_like(like), True
    return deviation * torch.randn(like.shape, generator=generator, dtype=like.dtype), True


def _terms(node: Node, weight: Tensor) -> int:
    """Products that are summed for one output."""
    if node.op == "Conv":
        return max(weight[0].numel(), 1)
    by_rows = node.op == "Gemm" and bool(node.attributes.get("transB", 0))
    return int(weight.shape[1] if by_rows else weight.shape[-2])
