"""The model of a trainer, as it is kept (`encrypted_model`)."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.graph.onnx.frontends import from_torch
from cloister.ring.linear import LinearMap
from cloister.training.encrypted_model import NAME, EncryptedModel, require_writable
from cloister.training.frozen import Projection
from cloister.training.layers import Encrypted
from cloister.training.scaled_map import ScaledMap
from cloister.training.trainer import Trainer
from cloister.training.training_claims import claims

EXAMPLES = 2
"""Samples for tracing: any number but one, which would be broadcast."""


def kept_model(trainer: Trainer, *, name: str, authority: str, clients: str) -> EncryptedModel:
    """The model of a trainer as it stands, with everything that its use needs.

    authority   fingerprint of the data set's authority
    clients     fingerprint of the data set's clients
    Raises      UnsupportedError when a layer behind the first cannot be written as ONNX
    """
    first, rest = _parts(trainer)
    buffer = io.BytesIO()
    torch.save(trainer.own_model.state_dict(), buffer)
    return EncryptedModel(
        name=name,
        run=trainer.run_digest,
        info=trainer.info,
        identity=trainer.identity,
        authority=authority,
        clients=clients,
        settings=trainer.settings,
        history=tuple(asdict(epoch) for epoch in trainer.history),
        claims=claims(trainer, epochs=len(trainer.history)),
        first=first,
        rest=rest,
        state=buffer.getvalue(),
    )


def require_room(folder: Path, trainer: Trainer) -> None:
    """Refuse, before the first key is asked for, what could not be kept when the run is over.

    Raises   UnsupportedError when a layer behind the first cannot be written as ONNX, InputError
             when the folder cannot be written or holds the model of another run
    """
    if (folder / NAME).exists():
        kept = EncryptedModel.open(folder)
        if kept.run != trainer.run_digest:
            raise InputError(
                f"{folder}: holds the model of another run, {kept.name} on {kept.info.name} (data "
                "set, model or settings differ); choose another --out"
            )
    require_writable(folder)
    _parts(trainer)


def _parts(trainer: Trainer) -> tuple[ScaledMap, Graph]:
    """The first layer, and the layers behind it in evaluation mode.

    Raises   UnsupportedError
    """
    if trainer.projection is not None:
        first = _of_projection(trainer.projection)
        return first, from_torch(trainer.model, torch.zeros((EXAMPLES, *first.shape)))
    layer = next(one for one in trainer.model.modules() if isinstance(one, Encrypted))
    first, given = _of_layer(layer), _Given()
    with _replaced(trainer.model, layer, given):
        rest = _Rest(trainer.model, given, trainer.info.shape)
        return first, from_torch(rest, torch.zeros((EXAMPLES, *first.shape)))


def _of_layer(layer: Encrypted) -> ScaledMap:
    fixed = layer.fixed_weight()
    g = layer.geometry
    bias = np.zeros(g.out_channels) if layer.bias is None else layer.bias.detach().double().numpy()
    steps = np.full(g.out_channels, 2.0**-fixed.exponent)
    return ScaledMap(LinearMap(g, fixed.integers), steps, bias, layer.out_shape)


def _of_projection(chosen: Projection) -> ScaledMap:
    return ScaledMap(chosen.linear, 1 / chosen.norms, np.zeros(chosen.rank), (chosen.rank,))


class _Given(nn.Module):
    """Stands in for a first layer: its output is given."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor | None:
        return self.values


class _Rest(nn.Module):
    """A model as a function of its first layer's output."""

    def __init__(self, model: nn.Module, given: _Given, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.model, self._given = model, given
        height, width, channels = shape
        self._shape = (channels, height, width)

    def forward(self, values: Tensor) -> Tensor:
        self._given.values = values
        scores: Tensor = self.model(values.new_zeros((values.shape[0], *self._shape)))
        return scores


@contextmanager
def _replaced(model: nn.Module, layer: nn.Module, other: nn.Module) -> Iterator[None]:
    """A context in which a model has another module in the place of one."""
    name = next(name for name, module in model.named_modules() if module is layer)
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, other)
    try:
        yield
    finally:
        setattr(model.get_submodule(owner), attribute, layer)
