"""A worker's view of an input: the messages of one linear node as pictures and statistics.

A uniform histogram is necessary for hiding, not sufficient: that the messages are also independent
of the inputs is a theorem about one-time pads (docs/protocols/blinded.md), not a measurement.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from cloister.errors import InputError, RangeError, ShapeError
from cloister.wire.transcript import Transcript

BYTE_VALUES = 256
SMALLEST_SHOWN = 1e-3
FEWEST_BYTES = 5 * BYTE_VALUES
TOP_BYTE_SHIFT = 24


class ChiSquare(NamedTuple):
    """Pearson's statistic over the 256 byte values and its upper tail probability."""

    statistic: float
    p: float

    @property
    def p_text(self) -> str:
        """The probability for people; the approximation knows no digits of tiny ones."""
        return f"{self.p:.3f}" if self.p >= SMALLEST_SHOWN else f"below {SMALLEST_SHOWN:g}"


@dataclass(frozen=True, eq=False)
class Exposure:
    """Everything one linear node's requests showed a worker.

    `pictures` holds one grey image per input: of a blinded request the most significant byte of
    each word, of a plain one the values themselves, stretched to 0..255; first channel only.
    """

    target_id: int
    hidden: bool
    pictures: UInt8[np.ndarray, "n h w"]
    histogram: Int64[np.ndarray, "256"]
    uniformity: ChiSquare

    @property
    def inputs(self) -> int:
        """How many inputs the requests carried."""
        return len(self.pictures)


def exposure(transcript: Transcript, target_id: int) -> Exposure:
    """The worker's view of one linear node's inputs, over a whole transcript.

    Raises   InputError when the transcript holds no payloads for the node
    """
    entries = transcript.messages(target_id=target_id, direction="to_worker")
    payloads = [entry.payload for entry in entries if entry.payload is not None]
    if not payloads:
        raise InputError(
            f"transcript: no recorded requests for target {target_id}; "
            "run the session with record_payloads=True"
        )
    messages = np.concatenate(payloads)
    return Exposure(
        target_id=target_id,
        hidden=messages.dtype == np.uint32,
        pictures=pictures(messages),
        histogram=byte_histogram(messages),
        uniformity=chi_square_uniform(messages),
    )


def pictures(messages: np.ndarray) -> UInt8[np.ndarray, "n h w"]:
    """Requests (n, h, w, c) as grey images of their first channel.

    Raises   ShapeError for anything but uint32 (blinded) or int16 (plain) images
    """
    if messages.ndim != 4 or messages.dtype not in (np.uint32, np.int16):
        raise ShapeError(
            f"requests are uint32 or int16 (n, h, w, c), got {messages.dtype} {messages.shape}"
        )
    first = messages[..., 0]
    if messages.dtype == np.uint32:
        return (first >> TOP_BYTE_SHIFT).astype(np.uint8)
    return stretched(first)


def stretched(images: np.ndarray) -> UInt8[np.ndarray, "n h w"]:
    """Images with their own range mapped to 0..255; a constant batch becomes black."""
    values = images.astype(np.float64)
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    span = high - low
    scaled = (values - low) * (255.0 / span if span > 0 else 0.0)
    return np.asarray(np.rint(scaled), np.uint8)


def byte_histogram(payload: np.ndarray | bytes) -> Int64[np.ndarray, "256"]:
    """How often each byte value occurs in a message."""
    data = payload.tobytes() if isinstance(payload, np.ndarray) else payload
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=BYTE_VALUES)
    return counts.astype(np.int64)


def chi_square_uniform(payload: np.ndarray | bytes) -> ChiSquare:
    """Pearson's test of the bytes of a message against the uniform distribution.

    Error    p by Wilson and Hilferty's normal approximation of chi-square with 255 degrees of
             freedom: absolute error below 1e-3, far tails correct in order of magnitude only
    Source   Wilson, Hilferty, "The distribution of chi-square", PNAS 17 (1931)
    Raises   RangeError with fewer than 1,280 bytes (five expected per value)
    """
    counts = byte_histogram(payload)
    total = int(counts.sum())
    if total < FEWEST_BYTES:
        raise RangeError(
            f"chi-square over bytes needs at least {FEWEST_BYTES} of them, got {total}"
        )
    expected = total / BYTE_VALUES
    statistic = float(((counts - expected) ** 2).sum() / expected)
    spread = 2.0 / (9.0 * (BYTE_VALUES - 1))
    normal = ((statistic / (BYTE_VALUES - 1)) ** (1 / 3) - (1.0 - spread)) / math.sqrt(spread)
    return ChiSquare(statistic, 0.5 * math.erfc(normal / math.sqrt(2.0)))
