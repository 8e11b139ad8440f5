"""The first layer of a trained model: integers for encrypted samples, and what they stand for.

A sample's field is x = scale q + offset with an integer q. For a real weight W, of which each row o
is an integer row V times a step, W = step V:

    W x + bias  =  scale step (V q)  +  W (offset 1) + bias

V q is the product with a ciphertext. The rest is public. Padding is zero in x.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int32

from cloister.data.encoding import Encoding
from cloister.errors import ShapeError
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.ring_map import RingMap


@dataclass(frozen=True, eq=False)
class ScaledMap:
    """A linear map in real numbers: W x + bias, where W = steps * integers.

    linear   the integers (o, kh, kw, c), channels last
    steps    real numbers that they are multiples of, one for each output channel
    bias     one for each output channel
    shape    of its result for one sample: (o,) or (o, oh, ow), as PyTorch has it

    Raises   ShapeError
    """

    linear: LinearMap
    steps: Float64[np.ndarray, " o"]
    bias: Float64[np.ndarray, " o"]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        geometry = self.linear.geometry
        whole = (geometry.out_channels, *geometry.out_size)
        flat = whole[:1] if geometry.out_size == (1, 1) else whole
        if self.shape not in (whole, flat):
            raise ShapeError(f"first layer: gives {whole} numbers, not {self.shape}")
        for name in ("steps", "bias"):
            numbers = getattr(self, name)
            if numbers.shape != whole[:1] or numbers.dtype != np.float64:
                raise ShapeError(f"first layer: its {name} must be float64 {whole[:1]}")
            if not np.isfinite(numbers).all():
                raise ShapeError(f"first layer: its {name} hold NaN or infinity")

    @property
    def weights(self) -> Float64[np.ndarray, "o kh kw c"]:
        """W."""
        return np.asarray(self.linear.weights * self.steps[:, None, None, None], np.float64)

    def values(
        self, integers: Int32[np.ndarray, "n oh ow o"], encoding: Encoding
    ) -> Float32[np.ndarray, "n ..."]:
        """W x + bias of samples whose V q are given, in the order that a model takes.

        Raises   ShapeError
        """
        geometry = self.linear.geometry
        if integers.shape[1:] != geometry.out_shape:
            raise ShapeError(
                f"first layer: gives {geometry.out_shape} numbers, not {integers.shape[1:]}"
            )
        ones = np.ones((1, *geometry.in_shape), np.int16)
        sums = RingMap(self.linear).apply(ones).view(np.int32)
        inputs = encoding.normalised
        constant = sums * (inputs.offset * self.steps) + self.bias
        factor = (inputs.scale * self.steps).astype(np.float32)
        channels = geometry.out_channels
        found = np.empty((len(integers), channels, *geometry.out_size), np.float32)
        # One pass, into the order that the model takes: the memory's traffic is what counts.
        np.multiply(
            integers.transpose(0, 3, 1, 2), factor[:, None, None], out=found, dtype=np.float32,
            casting="unsafe",
        )  # fmt: skip
        found += constant.transpose(0, 3, 1, 2).astype(np.float32)
        return found.reshape(len(integers), *self.shape)

    def to_fields(self) -> dict[str, object]:
        """The part of it that is no array, in JSON."""
        return {"geometry": self.linear.geometry.to_fields(), "shape": list(self.shape)}

    def arrays(self) -> dict[str, np.ndarray]:
        """The rest of it."""
        return {"weights": self.linear.weights, "steps": self.steps, "bias": self.bias}

    @staticmethod
    def made(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "ScaledMap":
        """Inverse of `to_fields` and `arrays`.

        Raises   ShapeError, and KeyError or TypeError for other fields
        """
        linear = LinearMap(Geometry.from_fields(fields["geometry"]), arrays["weights"])
        return ScaledMap(linear, arrays["steps"], arrays["bias"], tuple(fields["shape"]))
