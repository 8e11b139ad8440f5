"""Differentially private steps: every sample's whole gradient is clipped, every sum is noisy.

    g_i   gradient of sample i's loss in all parameters, scaled down to norm `clip`
    step  (sum of g_i + N(0, (sigma clip)^2)) / batch

The layers behind the first give per-sample gradients by vmap. The first layer's weights do not:
their gradient is a product with ciphertexts, summed over the batch before anybody sees it. Its norm
is bounded instead. With delta_p the gradient of sample i's output at position p, and patch_p what
the kernel saw there,

    |sum over p of delta_p patch_p^T|  <=  S B,    S = sum over p of |delta_p|,  B >= |patch_p|

and the bias adds at most S. So |g_i|^2 <= |rest|^2 + S^2 (B^2 + 1), which is what gets clipped.

Integers of the first layer are truncated, never rounded up, at a scale that follows from the bound
and the batch size alone; sums of the other layers are rounded to a grid whose error the clip's
MARGIN covers. Neither adds to the sensitivity of 2 clip.

Source   Abadi et al. 2016 (DP-SGD); deviations: whole epochs instead of Poisson sampling, and the
         bound above
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from cloister.crypto.csprng import Csprng
from cloister.errors import UnsupportedError
from cloister.fe.keyservice import RING_LIMIT
from cloister.training.layers import INT16_MAX, Encrypted, FixedPoint
from cloister.training.noise import GaussianNoise, gaussian

MARGIN = 2.0**-10
GRID_BITS = 12


class PrivateStep:
    """Backward passes of a model whose first layer is encrypted; also that layer's `Mechanism`.

    rng      where the noise of the next step comes from

    Raises   UnsupportedError for models it cannot take apart, and for batch normalisation
    """

    def __init__(
        self, model: nn.Module, layer: Encrypted, *, noise: GaussianNoise, rng: Csprng
    ) -> None:
        self._front, self._rest = _split(model, layer)
        self._layer, self._noise, self.rng = layer, noise, rng
        self._clip = noise.clip * (1 - MARGIN)
        kernel = math.prod(layer.geometry.weight_shape[1:])
        encoding = layer.encoding
        largest = max(abs(encoding.low), abs(encoding.high)) * math.sqrt(kernel)
        self._first_factor = math.sqrt(largest**2 + 1)
        self._limit = self._clip / self._first_factor
        layer.private = self

    def backward(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Set the gradients of all parameters; gives the mean loss and the scores.

        Shapes   x: the batch's placeholder; targets: (n,)
        Secret   everything but the noisy gradients
        """
        hidden = self._front(x)
        gradients, deltas, losses, scores = self._per_sample(hidden.detach(), targets)
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
            named[name].grad = self._noisy(total) / count
        torch.autograd.backward(hidden, deltas * factors.view(-1, *[1] * (deltas.ndim - 1)))
        weight, bias = self._layer.weight, self._layer.bias
        if weight.grad is not None:
            weight.grad /= count
        if bias is not None and bias.grad is not None:
            bias.grad = self._noisy(bias.grad) / count
        return losses.mean(), scores

    def truncate(self, gradient: Tensor) -> FixedPoint:
        """Integers of a clipped output gradient, towards zero.

        Domain   sum over batch and positions of |delta| <= batch limit: below 2^31 with any sample
        """
        room = (RING_LIMIT - 1) / self._layer.x_bound / (len(gradient) * self._limit)
        exponent = math.floor(math.log2(min(room, INT16_MAX / self._limit)))
        return FixedPoint((gradient * 2.0**exponent).trunc().to(torch.int16), exponent)

    def blur(self, values: Int[np.ndarray, "oc kh kw c"], exponent: int) -> np.ndarray:
        """A weight gradient's integers with noise of their own grid."""
        step = self._layer.encoding.scale * 2.0**-exponent
        return np.asarray(values + self._integers(values.shape, step))

    def _noisy(self, total: Tensor) -> Tensor:
        step = self._noise.clip * 2.0 ** -(GRID_BITS + math.ceil(math.log2(total.numel()) / 2))
        rounded = np.rint(total.double().numpy() / step)
        noise = self._integers(tuple(total.shape), step)
        return torch.from_numpy((rounded + noise) * step).float()

    def _integers(self, shape: Sequence[int], step: float) -> np.ndarray:
        """Noise of deviation sigma clip in steps of a grid."""
        deviation = self._noise.sigma * self._noise.clip / step
        noise = gaussian(math.prod(shape), rng=self.rng)
        return np.asarray(np.rint(deviation * noise).astype(np.int64).reshape(shape))

    def _per_sample(
        self, hidden: Tensor, targets: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Gradients of the layers behind and of the first layer's output, losses, scores."""

        def loss(parameters: dict[str, Tensor], h: Tensor, target: Tensor) -> Any:  # noqa: ANN401
            scores = functional_call(self._rest, parameters, (h.unsqueeze(0),))
            value = nn.functional.cross_entropy(scores, target.unsqueeze(0))
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
