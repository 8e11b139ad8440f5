"""First layers on encrypted samples: ordinary float parameters, exact integer products.

A sample's field is x = scale * q + offset with an integer q that this side does not hold. For
weights W, written as integers V = round(W 2^e), and a gradient D of the output, written as G =
round(D 2^f):

    forward    W x  = scale 2^-e (V q) + W (offset 1)
    backward   D x^T = scale 2^-f (G q^T) + D (offset 1)^T

V q and G q^T are the two products of `cloister.training.products`, exact integers below 2^31. The
terms with the offset are public and left to PyTorch. Padding is zero in x, so `offset 1` is a
sample of the constant offset, which PyTorch pads with zeros as well.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int, Int16, Int64
from torch import Tensor, nn

from cloister.data.encoding import Encoding
from cloister.data.info import RING_LIMIT
from cloister.errors import InputError, RangeError, ShapeError, UnsupportedError
from cloister.ring.fixed_point import magnitudes, round_scaled
from cloister.ring.linear import Geometry, LinearMap
from cloister.training.difference import Difference

INT16_MAX = 2**15 - 1
MAX_EXPONENT = 100
"""Scales stay between 2^-100 and 2^100: exact in float32, and far beyond any useful value."""


Shape = tuple[int, int, int]


class FirstLayerProducts(Protocol):
    """Where the two products come from."""

    def forward(self, ids: Int64[np.ndarray, " n"], linear: LinearMap) -> Difference:
        """V q (n, oh, ow, oc) of the samples."""
        ...

    def gradient(
        self,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> Difference:
        """G q^T (oc, kh, kw, c) summed over the samples."""
        ...


class FixedPoint(NamedTuple):
    """Integers and their common power-of-two scale: value = integers * 2^-exponent."""

    integers: Int16[np.ndarray, "..."]
    exponent: int


def fixed_point(
    values: Tensor, *, sums: Shape, order: Shape, x_bound: int, bits: int
) -> FixedPoint:
    """The finest int16 integers whose products with any sample stay below 2^31.

    One power of two for the whole tensor: a fixed decimal precision would round small gradients
    to zero.

    Shapes   values: any; seen as `sums` (a, b, c), one product sums over a and c; seen as `order`
             (p, q, r), the integers are (p, r, q)
    Domain   per product, sum |round(v 2^e)| <= 2^e sum |v| + count / 2; times x_bound it must stay
             below 2^31. The float64 sum of `count` magnitudes is off by less than count 2^-52.
    Error    at most half a step, 2^-(e+1), for each value
    Raises   RangeError for NaN, infinity, huge values, and when not even one step fits
    """
    count = sums[0] * sums[2]
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    numbers = np.ascontiguousarray(values.detach().numpy())
    norm, peak = magnitudes(numbers.reshape(sums))
    norm *= 1.0 + count * 2.0**-52
    if not norm < 2.0**MAX_EXPONENT:
        raise RangeError("first layer: a value is NaN, infinite or huge; lower the learning rate")
    room = (RING_LIMIT - 1) / x_bound - count / 2
    if room <= 0:
        raise RangeError(
            f"first layer: {count} terms of up to {x_bound} exceed 31 bits; use a smaller batch"
        )
    if norm == 0.0:
        return FixedPoint(np.zeros((order[0], order[2], order[1]), np.int16), 0)
    limit = 2 ** (bits - 1) - 1
    exponent = min(math.floor(math.log2(min(room / norm, limit / peak))), MAX_EXPONENT)
    return FixedPoint(round_scaled(numbers.reshape(order), exponent), exponent)


class Mechanism(Protocol):
    """Makes the weight gradient differentially private (`cloister.training.private`)."""

    def truncate(self, gradient: Tensor) -> FixedPoint:
        """Integers (n, oh, ow, o) of an output gradient (n, o, oh, ow) that is already clipped."""
        ...

    def add_noise(self, values: Int[np.ndarray, "oc kh kw c"], exponent: int) -> np.ndarray:
        """A weight gradient's integers with noise."""
        ...


class Samples:
    """Stands in for the plain input: knows shape and place, holds no value.

    The tensor is NaN everywhere, so a model that reads its input other than through the encrypted
    layer fails visibly; the layer knows it by its storage.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        height, width, channels = shape
        self._storage = torch.full((1,), math.nan)
        self._shape = (channels, height, width)
        self.ids: Int64[np.ndarray, " n"] = np.empty(0, np.int64)

    def of(self, ids: Int64[np.ndarray, " n"]) -> Tensor:
        """The placeholder (n, c, h, w) of a batch."""
        self.ids = ids
        return self._storage.expand(len(ids), *self._shape)

    def check(self, x: Tensor) -> None:
        """Make sure the layer is given the batch, unchanged.

        Raises   InputError
        """
        if x.requires_grad:
            raise InputError("encrypted layer: there is no gradient for encrypted samples")
        same = x.data_ptr() == self._storage.data_ptr()
        if not same or x.shape[0] != len(self.ids):
            raise InputError(
                "encrypted layer: its input must be the sample itself; move every other "
                "operation behind the first layer (Flatten and Unflatten may stay)"
            )


class _Product(torch.autograd.Function):
    """scale 2^-e (V q) + bias, and the gradients of weight and bias.

    One node of autograd's for the whole layer: in a small model each further one costs more than
    its arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        bias: Tensor | None,
        layer: "Encrypted",
    ) -> Tensor:
        ctx.layer, ctx.ids = layer, layer.samples.ids
        integers, exponent = layer.fixed_weight()
        linear = LinearMap(layer.geometry, integers)
        values = layer.products.forward(ctx.ids, linear).scaled(layer.unit(exponent))
        # Not a view of PyTorch's: ReLU(inplace=True), say, could not write to one.
        y = torch.from_numpy(values.transpose(0, 3, 1, 2).reshape(-1, *layer.out_shape))
        y = y.to(weight.dtype)
        if bias is None:
            return y
        return y.add_(bias if y.ndim == 2 else bias.view(-1, 1, 1))

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        layer: Encrypted = ctx.layer
        delta = grad.reshape(-1, *layer.map_shape)
        # A frozen weight costs no key.
        of_weight = layer.weight_gradient(ctx.ids, delta) if ctx.needs_input_grad[0] else None
        of_bias = delta.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        return of_weight, of_bias, None


class Encrypted(nn.Module):
    """The common parts of the two encrypted layers: parameters, geometry, source of products."""

    weight: Tensor
    bias: Tensor | None
    _offset: Tensor

    def __init__(
        self,
        plain: nn.Linear | nn.Conv2d,
        geometry: Geometry,
        *,
        samples: Samples,
        products: FirstLayerProducts,
        encoding: Encoding,
        weight_bits: int = 16,
    ) -> None:
        super().__init__()
        if not 2 <= weight_bits <= 16:
            raise RangeError(f"encrypted layer: weight bits must be 2 to 16, got {weight_bits}")
        self.geometry = geometry
        self.map_shape = (geometry.out_channels, *geometry.out_size)
        self.out_shape = self.map_shape if isinstance(plain, nn.Conv2d) else self.map_shape[:1]
        self.weight_bits = weight_bits
        self.samples = samples
        self.products = products
        self.encoding = encoding
        self.x_bound = encoding.bound
        self.private: Mechanism | None = None
        # The very parameters of the plain layer: optimisers that hold them stay valid.
        self.weight = plain.weight
        self.bias = plain.bias
        offset = torch.full((1, *self._constant_shape()), encoding.offset)
        self.register_buffer("_offset", offset, persistent=False)

    def _constant_shape(self) -> tuple[int, int, int]:
        height, width = self.geometry.in_size
        return (self.geometry.in_channels, height, width)

    def fixed_weight(self) -> FixedPoint:
        """The weight as the linear map's integers (o, kh, kw, c)."""
        g = self.geometry
        taps = g.kernel[0] * g.kernel[1]
        fixed = fixed_point(
            self.weight, sums=(1, g.out_channels, g.in_channels * taps),
            order=(g.out_channels, g.in_channels, taps),
            x_bound=self.x_bound, bits=self.weight_bits,
        )  # fmt: skip
        return FixedPoint(fixed.integers.reshape(g.weight_shape), fixed.exponent)

    def unit(self, exponent: int) -> float:
        """What a step of an integer product counts, one of whose factors has this exponent."""
        return self.encoding.scale * 2.0**-exponent

    def weight_of_constant(self) -> Tensor:
        """The weight that multiplies the offset.

        An evaluation is one of the model that is kept, whose weight is what the integers stand for.
        """
        if self.training:
            return self.weight
        fixed = self.fixed_weight()
        integers = fixed.integers.transpose(0, 3, 1, 2).reshape(self.weight.shape)
        weight = integers.astype(np.float32) * np.float32(2.0**-fixed.exponent)
        return torch.from_numpy(weight).to(self.weight.dtype)

    def weight_gradient(self, ids: Int64[np.ndarray, " n"], delta: Tensor) -> Tensor:
        """scale 2^-f (G q^T) for an output gradient (n, o, oh, ow); asks for a key."""
        private, (o, oh, ow) = self.private, self.map_shape
        if private is None:
            shape = (len(delta), o, oh * ow)
            fixed = fixed_point(delta, sums=shape, order=shape, x_bound=self.x_bound, bits=16)
        else:
            fixed = private.truncate(delta)
        integers = fixed.integers.reshape(-1, oh, ow, o)
        found = self.products.gradient(ids, self.geometry, integers)
        unit = self.unit(fixed.exponent)
        if private is None:
            values = found.scaled(unit)
        else:
            noisy = private.add_noise(found.integers(), fixed.exponent)
            values = noisy.astype(np.float32) * np.float32(unit)
        values = values.transpose(0, 3, 1, 2).reshape(self.weight.shape)
        return torch.from_numpy(values)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        self.samples.check(x)
        result: Tensor = _Product.apply(self.weight, bias, self)  # type: ignore[no-untyped-call]
        return result


class EncryptedConv2d(Encrypted):
    """A convolution whose input is encrypted."""

    def __init__(
        self,
        plain: nn.Conv2d,
        *,
        samples: Samples,
        products: FirstLayerProducts,
        encoding: Encoding,
        shape: tuple[int, int, int],
        weight_bits: int = 16,
    ) -> None:
        self._settings = _conv_settings(plain)
        super().__init__(
            plain, conv_geometry(plain, shape), samples=samples, products=products,
            encoding=encoding, weight_bits=weight_bits,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output (n, o, oh, ow)."""
        if not self.encoding.offset:
            return self._product(x, self.bias)
        weight = self.weight_of_constant()
        constant = nn.functional.conv2d(self._offset, weight, self.bias, *self._settings)
        return self._product(x, None) + constant


class EncryptedLinear(Encrypted):
    """A dense layer whose input is an encrypted sample, flattened as PyTorch flattens it (c, h, w).

    As a linear map it is a convolution whose kernel is the whole sample.
    """

    def __init__(
        self,
        plain: nn.Linear,
        *,
        samples: Samples,
        products: FirstLayerProducts,
        encoding: Encoding,
        shape: tuple[int, int, int],
        weight_bits: int = 16,
    ) -> None:
        super().__init__(
            plain, linear_geometry(plain, shape), samples=samples, products=products,
            encoding=encoding, weight_bits=weight_bits,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output (n, o)."""
        if not self.encoding.offset:
            return self._product(x, self.bias)
        weight = self.weight_of_constant()
        constant = nn.functional.linear(self._offset.flatten(1), weight, self.bias)
        return self._product(x, None) + constant


def _conv_settings(conv: nn.Conv2d) -> tuple[Any, Any, Any]:
    """Stride, padding and dilation.

    Raises   UnsupportedError
    """
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or conv.groups != 1:
        raise UnsupportedError(
            "encrypted layer: the first convolution needs numeric zero padding and one group"
        )
    return conv.stride, conv.padding, conv.dilation


def conv_geometry(conv: nn.Conv2d, shape: tuple[int, int, int]) -> Geometry:
    """The linear map of a convolution on samples of a shape.

    Raises   ShapeError, UnsupportedError
    """
    stride, padding, dilation = _conv_settings(conv)
    height, width, channels = shape
    if conv.in_channels != channels:
        raise ShapeError(
            f"encrypted layer: the first convolution takes {conv.in_channels} channels, "
            f"the samples have {channels}"
        )
    kernel = (conv.kernel_size[0], conv.kernel_size[1])
    out = [
        (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, size in enumerate((height, width))
    ]
    return Geometry(
        (height, width), channels, (out[0], out[1]), conv.out_channels, kernel, stride, dilation,
        pad=padding,
    )  # fmt: skip


def linear_geometry(linear: nn.Linear, shape: tuple[int, int, int]) -> Geometry:
    """The linear map of a dense layer on samples of a shape.

    Raises   ShapeError
    """
    height, width, channels = shape
    if linear.in_features != height * width * channels:
        raise ShapeError(
            f"encrypted layer: the first dense layer takes {linear.in_features} values, "
            f"a sample has {height * width * channels}"
        )
    return Geometry((height, width), channels, (1, 1), linear.out_features, (height, width))
