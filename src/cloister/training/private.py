"""Differentially private steps: every sample's whole gradient is clipped, every sum is noisy.

    g_i   gradient of sample i's loss in all parameters, scaled down to norm `clip`
    step  (sum of g_i + N(0, (sigma clip)^2)) / batch

The layers behind the first give per-sample gradients by vmap. The first layer's weights do not:
their gradient is a product with ciphertexts, summed over the batch before any party sees it. Its
norm is bounded instead. With delta_p the gradient of sample i's output at position p, and patch_p
the kernel's input there,

    |sum over p of delta_p patch_p^T|  <=  S B,    S = sum over p of |delta_p|,  B >= |patch_p|

and the bias adds at most S. So |g_i|^2 <= |rest|^2 + S^2 (B^2 + 1), and this bound is clipped.

Integers of the first layer are truncated, never rounded up, at a scale that follows from the bound
and the batch size alone; sums of the other layers are rounded to a grid whose error the clip's
MARGIN covers. Neither adds to the sensitivity of 2 clip.

Where samples have an offset, x = scale (q + offset / scale), the first layer's sum has a public
factor times a secret one as its second term. It is added before the noise and rounded to the same
grid: added afterwards, its low bits would be readable.

Source   Abadi et al. 2016 (DP-SGD); deviations: whole epochs instead of Poisson sampling, and the
         bound above
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from cloister.data.feature_noise import GaussianNoise, StepNoise, gaussian
from cloister.data.info import RING_LIMIT
from cloister.errors import InputError, UnsupportedError
from cloister.training.layers import INT16_MAX, Encrypted, FixedPoint
from cloister.training.losses import TrainingObjective

MARGIN = 2.0**-10
GRID_BITS = 12


class PrivateStep:
    """Backward passes of a model whose first layer is encrypted; also that layer's `Mechanism`.

    Raises   UnsupportedError for models it cannot take apart, and for batch normalisation
    """

    def __init__(
        self,
        model: nn.Module,
        layer: Encrypted,
        *,
        noise: GaussianNoise,
        objective: TrainingObjective,
    ) -> None:
        self._front, self._rest = _split(model, layer)
        self._objective = objective
        self._layer, self._noise = layer, noise
        self._step: StepNoise | None = None
        self._outputs: Tensor | None = None  # summed over the batch, in steps of the last exponent
        self._clip = noise.clip * (1 - MARGIN)
        kernel = math.prod(layer.geometry.weight_shape[1:])
        encoding = layer.encoding
        largest = max(abs(encoding.low), abs(encoding.high)) * math.sqrt(kernel)
        self._first_factor = math.sqrt(largest**2 + 1)
        self._limit = self._clip / self._first_factor
        layer.private = self

    def backward(self, x: Tensor, targets: Tensor, *, step: StepNoise) -> tuple[Tensor, Tensor]:
        """Set the gradients of all parameters; gives the mean loss and the scores.

        Shapes   x: the batch's placeholder; targets: (n,), or (n, classes) of labels and numbers
        Secret   everything but the noisy gradients
        """
        self._step = step
        with torch.no_grad():
            hidden = self._front(x)
        gradients, deltas, losses, scores = self._per_sample(hidden, targets)
        positions = deltas.flatten(2) if deltas.ndim > 2 else deltas.unsqueeze(2)
        first = positions.double().norm(dim=1).sum(1) * self._first_factor
        squares = first.square()
        for gradient in gradients.values():
            squares = squares + gradient.flatten(1).double().square().sum(1)
        factors = (self._clip / squares.sqrt().clamp_min(self._clip)).float() * (1 - 2.0**-20)
        count = len(targets)
        named = dict(self._rest.named_parameters())
        for name, gradient in gradients.items():
            total = torch.einsum("n,n...->...", factors, gradient)
            named[name].grad = self._noisy(f"behind {name}", total) / count
        self._first_layer(deltas * factors.view(-1, *[1] * (deltas.ndim - 1)))
        return losses.mean(), scores

    def _first_layer(self, clipped: Tensor) -> None:
        """Gradients of the encrypted layer. Not autograd's: its sums would meet noise unrounded."""
        layer, count = self._layer, len(clipped)
        delta = clipped.reshape(count, *layer.map_shape)
        if layer.bias is not None and layer.bias.requires_grad:
            layer.bias.grad = self._noisy("first bias", delta.sum((0, 2, 3))) / count
        if layer.weight.requires_grad:
            layer.weight.grad = layer.weight_gradient(layer.samples.ids, delta) / count

    def truncate(self, gradient: Tensor) -> FixedPoint:
        """Integers of a clipped output gradient, towards zero.

        Domain   sum over batch and positions of |delta| <= batch limit: below 2^31 with any sample
        """
        room = (RING_LIMIT - 1) / self._layer.x_bound / (len(gradient) * self._limit)
        exponent = math.floor(math.log2(min(room, INT16_MAX / self._limit)))
        # Truncated, they would pull the offset's part towards zero. The bound holds in both cases:
        # t q + offset with t from 0 to 1 is not larger than q + offset and offset both.
        self._outputs = gradient.double().sum(0) * 2.0**exponent
        integers = (gradient * 2.0**exponent).trunc().to(torch.int16).permute(0, 2, 3, 1)
        return FixedPoint(np.ascontiguousarray(integers.numpy()), exponent)

    def add_noise(self, values: Int[np.ndarray, "oc kh kw c"], exponent: int) -> np.ndarray:
        """A weight gradient in steps of scale 2^-exponent, offset and noise included but for
        `weight_gradient` to scale.

        Error    with an offset, half a step of a grid as fine as the other sums' at least
        """
        unit = self._layer.encoding.scale * 2.0**-exponent
        if not self._layer.encoding.offset:
            return self._with_noise("first weight", values.astype(np.float64), unit=unit)
        total = values + self._offset_sum()
        coarseness = math.ceil(math.log2(math.sqrt(values.size) * unit / self._noise.clip))
        finer = 2.0 ** max(0, GRID_BITS + coarseness)
        return self._with_noise("first weight", total * finer, unit=unit / finer) / finer

    def _offset_sum(self) -> Float64[np.ndarray, "oc kh kw c"]:
        """The gradient if every sample were offset / scale everywhere."""
        layer, geometry = self._layer, self._layer.geometry
        if self._outputs is None:
            raise InputError("noise on gradients: there is no output gradient")
        o, kh, kw, c = geometry.weight_shape
        sums = self._outputs.unsqueeze(0)
        ones = torch.ones((1, c, *geometry.in_size), dtype=torch.float64)
        counts: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            ones, (o, c, kh, kw), sums, geometry.stride, geometry.pad, geometry.dilation
        )
        ratio = layer.encoding.offset / layer.encoding.scale
        return np.asarray(counts.permute(0, 2, 3, 1).numpy() * ratio)

    def _noisy(self, name: str, total: Tensor) -> Tensor:
        unit = self._noise.clip * 2.0 ** -(GRID_BITS + math.ceil(math.log2(total.numel()) / 2))
        values = self._with_noise(name, total.double().numpy() / unit, unit=unit)
        return torch.from_numpy(values * unit).float()

    def _with_noise(
        self, name: str, total: Float64[np.ndarray, "..."], *, unit: float
    ) -> Float64[np.ndarray, "..."]:
        """A sum in steps of `unit`, rounded to them, and noise of deviation sigma clip on it."""
        if self._step is None:
            raise InputError("noise on gradients: only PrivateStep.backward may ask for gradients")
        rounded = np.rint(total) + 0.0  # no negative zeros: equal sums have equal bytes
        deviation = self._noise.sigma * self._noise.clip / unit
        noise = gaussian(total.size, rng=self._step.of(name, rounded, unit=unit))
        return np.asarray(rounded + np.rint(deviation * noise).reshape(total.shape))

    def _per_sample(
        self, hidden: Tensor, targets: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Gradients of the layers behind and of the first layer's output, losses, scores."""

        def loss(parameters: dict[str, Tensor], h: Tensor, target: Tensor) -> Any:  # noqa: ANN401
            scores = functional_call(self._rest, parameters, (h.unsqueeze(0),))
            value = self._objective(scores, target.unsqueeze(0))
            return value, (value, scores.squeeze(0))

        parameters = {name: value.detach() for name, value in self._rest.named_parameters()}
        each = vmap(
            grad(loss, argnums=(0, 1), has_aux=True), in_dims=(None, 0, 0), randomness="different"
        )
        (gradients, deltas), (losses, scores) = each(parameters, hidden, targets)
        return gradients, deltas, losses.detach(), scores.detach()


def _split(model: nn.Module, layer: Encrypted) -> tuple[nn.Sequential, nn.Sequential]:
    """The model up to the encrypted layer, and behind it."""
    children = list(model.children())
    if not isinstance(model, nn.Sequential) or not any(child is layer for child in children):
        raise UnsupportedError(
            "noise on gradients: the model must be a torch.nn.Sequential that holds its first layer"
        )
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            raise UnsupportedError(
                f"noise on gradients: {type(module).__name__} mixes samples; use GroupNorm"
            )
    at = next(i for i, child in enumerate(children) if child is layer)
    return nn.Sequential(*children[: at + 1]), nn.Sequential(*children[at + 1 :])
