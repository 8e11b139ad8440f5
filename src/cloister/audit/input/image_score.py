"""How near reconstructions come to their originals, image by image, and over several runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from scipy.special import stdtrit
from torch import Tensor

from cloister.errors import InputError, ShapeError
from cloister.plan.split_report import CANDIDATES
from cloister.plan.split_scores import Estimate

Images = Float32[np.ndarray, "n c h w"]

WINDOW, DEVIATION = 11, 1.5
"""Of SSIM's Gaussian window; a smaller image gets the largest odd window that fits."""
K1, K2 = 0.01, 0.03
MOST_DB = 100.0
"""PSNR of equal images, whose error has no logarithm."""
LEVEL = 0.95
CANDIDATES_SEED = 0
"""Of the candidates of every audit: attacks and splits are compared on the same ones."""


@dataclass(frozen=True, eq=False)
class ImageScores:
    """One run of one attack, image by image.

    identified   1 where the true image is the best match among its candidates, 0 where another is,
                 1/k where it is one of k equal ones
    """

    ssim: Float64[np.ndarray, " n"]
    psnr: Float64[np.ndarray, " n"]
    mse: Float64[np.ndarray, " n"]
    identified: Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class ScoreSummary:
    """Several runs of one attack: means over images and their 95 % intervals."""

    ssim: Estimate
    psnr: Estimate
    explained: Estimate
    identification: Estimate


def score_images(
    originals: Images,
    reconstructions: Images,
    *,
    blind_guess: Float32[np.ndarray, "c h w"],
    candidates: int = CANDIDATES,
) -> ImageScores:
    """The scores of one run.

    Raises   ShapeError for reconstructions of other images, InputError for fewer images than
             candidates and for values that are not finite
    """
    if reconstructions.shape != originals.shape or blind_guess.shape != originals.shape[1:]:
        raise ShapeError(
            f"originals {originals.shape}, reconstructions {reconstructions.shape}, blind guess "
            f"{blind_guess.shape}: not of the same images"
        )
    if not np.isfinite(reconstructions).all():
        raise InputError("reconstructions: values that are not finite")
    true, found = originals.astype(np.float64), reconstructions.astype(np.float64)
    mse = np.square(true - found).mean(axis=(1, 2, 3))
    psnr = -10 * np.log10(np.maximum(mse, 10 ** (-MOST_DB / 10)))
    with torch.no_grad():
        similar = ssim(torch.from_numpy(true), torch.from_numpy(found)).numpy()
    picked = identified(true - blind_guess, found - blind_guess, candidates=candidates)
    return ImageScores(similar, psnr, mse, picked)


def blind_scores(
    originals: Images,
    *,
    blind_guess: Float32[np.ndarray, "c h w"],
    candidates: int = CANDIDATES,
) -> ImageScores:
    """The scores of the blind guess, for every image the same."""
    guess = np.broadcast_to(blind_guess, originals.shape)
    return score_images(originals, guess, blind_guess=blind_guess, candidates=candidates)


def summarise(runs: Sequence[ImageScores], blind: ImageScores) -> ScoreSummary:
    """Means and 95 % intervals over images.

    Images are the independent units: what runs made of one image is averaged first.

    runs    of the same images with other seeds
    blind   of the same images: `blind_scores`
    """
    ssim, psnr, mse, identified = (
        np.mean([getattr(run, name) for run in runs], axis=0)
        for name in ("ssim", "psnr", "mse", "identified")
    )
    return ScoreSummary(
        mean_interval(ssim),
        mean_interval(psnr),
        explained_interval(mse, blind.mse),
        wilson_interval(float(identified.mean()), len(identified)),
    )


# ---- structural similarity


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """The structural similarity of each pair of images (n, c, h, w) in 0..1, mean over channels.

    Source   Wang et al., "Image quality assessment: from error visibility to structural
             similarity" (2004): Gaussian window 11x11 of deviation 1.5, wherever it fits whole
    """
    down, across = (_windows(size).to(x.dtype) for size in x.shape[2:])
    planes = torch.stack([x, y, x * x, y * y, x * y])
    mx, my, xx, yy, xy = down @ planes @ across.T
    c1, c2 = K1**2, K2**2
    structure = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    similarity: Tensor = (luminance * structure).mean((1, 2, 3))
    return similarity


def _windows(size: int) -> Tensor:
    """The Gaussian window at each place of an axis where it fits, one place a row."""
    length = min(WINDOW, size - 1 + size % 2)
    places = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    weights = torch.exp(-places.square() / (2 * DEVIATION**2))
    weights /= weights.sum()
    rows = torch.zeros((size - length + 1, size), dtype=torch.float64)
    for place, row in enumerate(rows):
        row[place : place + length] = weights
    return rows


# ---- identification


def identified(
    originals: Float[np.ndarray, "n c h w"],
    reconstructions: Float[np.ndarray, "n c h w"],
    *,
    candidates: int,
) -> Float64[np.ndarray, " n"]:
    """Whether each original is the best match of its reconstruction among candidates.

    Both are differences from the blind guess. The match is their cosine: a reconstruction that is
    pale, as means over possible images are, still points at its original.

    Raises   InputError for fewer images than candidates
    """
    rows = candidate_rows(len(originals), candidates)
    true, found = (_directions(images) for images in (originals, reconstructions))
    matches = np.take_along_axis(found @ true.T, rows, axis=1)
    best = matches >= matches.max(axis=1, keepdims=True)
    return np.where(best[:, 0], 1.0 / best.sum(axis=1), 0.0)


def candidate_rows(images: int, candidates: int) -> Int64[np.ndarray, "n candidates"]:
    """For each image its own position, then those of the others that it is sought among.

    The others are drawn anew for each image, so that hits of a guess are independent.

    Raises   InputError
    """
    if images < candidates:
        raise InputError(
            f"identification among {candidates} candidates needs as many attacked images, got "
            f"{images}"
        )
    generator = torch.Generator().manual_seed(CANDIDATES_SEED)
    order = torch.rand((images, images), generator=generator, dtype=torch.float64).numpy()
    np.fill_diagonal(order, -1.0)
    return np.argsort(order, axis=1)[:, :candidates]


def _directions(images: np.ndarray) -> Float64[np.ndarray, "n d"]:
    rows = images.reshape(len(images), -1).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float64)


# ---- intervals over images


def mean_interval(values: Float64[np.ndarray, " n"]) -> Estimate:
    """The mean and Student's interval."""
    mean = float(values.mean())
    half = _half_width(values)
    return Estimate(mean, mean - half, mean + half)


def explained_interval(
    mse: Float64[np.ndarray, " n"], blind: Float64[np.ndarray, " n"]
) -> Estimate:
    """1 - mean MSE over the blind guess's, with the interval of a ratio of means (delta method)."""
    base = max(float(blind.mean()), 1e-12)
    ratio = float(mse.mean()) / base
    half = _half_width(mse - ratio * blind) / base
    return Estimate(1 - ratio, 1 - ratio - half, 1 - ratio + half)


def wilson_interval(rate: float, images: int) -> Estimate:
    """A rate over images with Wilson's interval; for rates averaged over runs it is a wide one."""
    z = float(stdtrit(1e9, 0.5 + LEVEL / 2))
    centre = (rate + z * z / (2 * images)) / (1 + z * z / images)
    root = math.sqrt(rate * (1 - rate) / images + z * z / (4 * images**2))
    half = z * root / (1 + z * z / images)
    return Estimate(rate, max(centre - half, 0.0), min(centre + half, 1.0))


def _half_width(values: np.ndarray) -> float:
    count = len(values)
    if count < 2:
        raise InputError("scores: an interval over images needs at least two of them")
    quantile = float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(count)
