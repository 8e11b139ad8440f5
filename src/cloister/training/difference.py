"""A product of the first layer before the subtraction that unblinds it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt32

from cloister.errors import ShapeError
from cloister.ring.fixed_point import scaled_difference


@dataclass(frozen=True, eq=False)
class Difference:
    """A P and A M: their difference modulo 2^32, centred, is A x.

    It is taken in the form that the reader needs, in one pass: one for words, one for integers and
    one for real numbers would cost a fifth of a product together.

    Raises   ShapeError
    """

    product: UInt32[np.ndarray, "..."]
    term: UInt32[np.ndarray, "..."]

    def __post_init__(self) -> None:
        if self.product.shape != self.term.shape or not (
            self.product.dtype == self.term.dtype == np.uint32
        ):
            raise ShapeError(
                f"first layer: product {self.product.shape} and key {self.term.shape} differ"
            )

    def integers(self) -> Int32[np.ndarray, "..."]:
        """A x, exact."""
        difference: UInt32[np.ndarray, "..."] = np.subtract(self.product, self.term)
        return difference.view(np.int32)

    def scaled(self, unit: float) -> Float32[np.ndarray, "..."]:
        """unit A x, of which A x, the unit and their product are each rounded to float32."""
        return scaled_difference(self.product, self.term, unit)
