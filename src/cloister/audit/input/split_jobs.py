"""The jobs of an audit of splits, and what is kept of each: figures of images, some pictures."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from cloister.audit.input.image_score import ImageScores
from cloister.errors import InputError

INPUT, BLINDED = "control:input", "control:blinded"
"""Names of the controls in place of a split's."""
FIGURES = ("ssim", "psnr", "mse", "identified")


@dataclass(frozen=True)
class SplitJob:
    """One run of one attack on one split, or on a control."""

    place: str
    attack: str
    seed: int

    @property
    def name(self) -> str:
        """Its name in the file of what is done."""
        return f"{self.place}|{self.attack}|{self.seed}"


@dataclass(frozen=True, eq=False)
class JobResult:
    """What one run gave; `pictures` are PNG files of the first reconstructions."""

    scores: ImageScores
    cpu_s: float
    pictures: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        figures = {name: getattr(self.scores, name).tolist() for name in FIGURES}
        pictures = [base64.b64encode(one).decode() for one in self.pictures]
        return {**figures, "cpu_s": self.cpu_s, "pictures": pictures}

    @classmethod
    def from_json(cls, found: dict[str, Any], *, images: int) -> "JobResult":
        """What `to_json` gave, of so many images.

        Raises   InputError, or whatever a damaged file makes Python raise
        """
        figures = {name: _numbers(found[name], images) for name in FIGURES}
        pictures = tuple(_decoded(one) for one in found["pictures"])
        return cls(ImageScores(**figures), float(found["cpu_s"]), pictures)


def as_pixels(image: Float32[np.ndarray, "c h w"], *, reverse: bool) -> np.ndarray:
    """An image in 0..1 as uint8 (h, w) or (h, w, 3); `reverse` exchanges blue and red."""
    pixels: np.ndarray = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    return np.ascontiguousarray(pixels[:, :, ::-1] if reverse else pixels)


def _numbers(found: list[float], images: int) -> Float64[np.ndarray, " n"]:
    numbers = np.array(found, np.float64)
    if numbers.shape != (images,) or not np.isfinite(numbers).all():
        raise InputError(f"results of {len(found)} images, and {images} are attacked")
    return numbers


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise InputError("a picture that is not one") from None
