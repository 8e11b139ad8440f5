"""Attacks on a transcript of inference: the requests of each linear node, one after the other.

Two attacks need only the requests. Bytes that are not uniform are not blinded, or blinded badly.
Two requests that differ by small numbers share a pad, and their difference is the difference of the
inputs. No finding, and no uniform histogram, proves hiding: hiding follows from pads that are
uniform and used once (docs/protocols/blinded.md).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt32

from cloister.audit.input.exposure import (
    FEWEST_BYTES,
    ChiSquare,
    Exposure,
    chi_square_uniform,
    exposure,
)
from cloister.errors import InputError
from cloister.pages.page import Section, histogram, page, paragraph, png, table
from cloister.wire.transcript import Transcript

COMPARED = 256
"""Requests of one node that are compared in pairs."""
CLOSE = 2**17
"""Inputs of at most 16 signed bits differ by less; words of unrelated pads with chance 2^-14."""
FEWEST_WORDS, MOST_WORDS = 4, 32
"""Words of a request that are compared: unrelated ones are close in all with chance 2^-56."""
TOO_SKEWED = 1e-9
SHOWN = 8


@dataclass(frozen=True)
class RequestAudit:
    """What one linear node's requests gave away.

    uniformity   None for fewer bytes than the test needs, and for requests in the clear
    reused       pairs of requests that share a pad
    """

    target_id: int
    dtype: str
    inputs: int
    nbytes: int
    uniformity: ChiSquare | None
    reused: int

    @property
    def verdict(self) -> str:
        """`in the clear`, `pads reused`, `not uniform`, or `nothing found`."""
        if self.dtype != "uint32":
            return "in the clear"
        if self.reused:
            return "pads reused"
        skewed = self.uniformity is not None and self.uniformity.p < TOO_SKEWED
        return "not uniform" if skewed else "nothing found"

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        test = None if self.uniformity is None else self.uniformity._asdict()
        return {**vars(self), "uniformity": test, "verdict": self.verdict}


def audit_requests(transcript: Transcript) -> list[RequestAudit]:
    """Every node's requests, in the order of the nodes' ids.

    Raises   InputError when the transcript holds no payloads
    """
    sent: dict[int, list[np.ndarray]] = {}
    for entry in transcript.messages(direction="to_worker"):
        if entry.payload is not None:
            sent.setdefault(entry.target_id, []).append(entry.payload)
    if not sent:
        raise InputError("transcript: holds no requests; `cloister run --transcript` records them")
    return [_audit(target_id, sent[target_id]) for target_id in sorted(sent)]


def _audit(target_id: int, payloads: list[np.ndarray]) -> RequestAudit:
    dtype = payloads[0].dtype
    nbytes = sum(payload.nbytes for payload in payloads)
    uniformity, reused = None, 0
    if dtype == np.uint32:
        rows = np.concatenate([payload.reshape(len(payload), -1) for payload in payloads])
        reused = pairs_of_one_pad(rows)
        if nbytes >= FEWEST_BYTES:
            uniformity = chi_square_uniform(rows)
    inputs = sum(len(payload) for payload in payloads)
    return RequestAudit(target_id, str(dtype), inputs, nbytes, uniformity, reused)


def pairs_of_one_pad(requests: UInt32[np.ndarray, "n words"]) -> int:
    """How many pairs of requests differ as inputs do, and not as noise does."""
    first = requests[:COMPARED, :MOST_WORDS]
    if first.shape[1] < FEWEST_WORDS:
        return 0
    apart = np.abs((first[:, None] - first[None]).view(np.int32).astype(np.int64))
    close = (apart < CLOSE).all(axis=2)
    return int((close.sum() - len(first)) // 2)


def requests_page(transcript: Transcript, found: list[RequestAudit]) -> str:
    """A document that shows what the workers saw."""
    rows = [
        (
            str(one.target_id), one.dtype, f"{one.inputs:,}", f"{one.nbytes:,}",
            "" if one.uniformity is None else one.uniformity.p_text, one.verdict,
        )
        for one in found
    ]  # fmt: skip
    header = ("node", "numbers", "inputs", "bytes", "chi-square p", "verdict")
    seen = [
        exposure(transcript, one.target_id)
        for one in found
        if one.dtype in ("uint32", "int16") and one.nbytes >= FEWEST_BYTES
    ]
    return page(
        "Messages to the workers",
        "Every linear node's requests, as its worker saw them.",
        [
            Section("Requests", table(header, rows) + paragraph(_LIMITS, kind="soft")),
            *(Section(f"Node {one.target_id}", _seen(one)) for one in seen),
        ],
    )


_LIMITS = (
    "Finding nothing proves nothing: hiding follows from pads that are uniform and used once, and "
    "not from a histogram."
)


def _seen(shown: Exposure) -> str:
    pictures = shown.pictures[:SHOWN]
    kind = "the top byte of each word" if shown.hidden else "the values"
    rows: list[tuple[str | bytes, ...]] = [("first channel", *(png(one) for one in pictures))]
    return table([""] * (len(pictures) + 1), rows) + histogram(
        shown.histogram, f"bytes sent; above, {kind}"
    )
