"""What is released of a model's outputs under a ticket, and the commitment to it in the receipt.

A commitment tells the outputs to nobody without its opening: of a label alone, a plain digest would
be guessed. Who has outputs and opening can show which receipt is theirs.
"""

import hmac
from collections.abc import Mapping
from typing import Any

import numpy as np

from cloister.errors import InputError
from cloister.graph.canonical import Writer
from cloister.tickets.ticket import OutputMode

OPENING_BYTES = 32
_MAGIC, _FORMAT = b"CLOO", 1
_SUM_TOLERANCE = 1e-3


def released(
    outputs: Mapping[str, Any], mode: OutputMode, *, top: int | None, count: int
) -> dict[str, np.ndarray]:
    """What may leave of the outputs for so many inputs.

    LABEL           the class with the largest score: int64 (count,); where the model answers labels
                    already, they are taken as they are
    TOP_K           the `top` classes with the largest scores, the best first: int64 (count, top)
    PROBABILITIES   the rows as they are, if each is a distribution

    Of equal scores, the lower class comes first.

    Raises   InputError for scores that are not finite or no distribution, which tells of them; and
             as `require_form`
    """
    name, found = require_form(outputs, mode, top=top, count=count)
    if found.ndim == 1:
        return {name: found.astype(np.int64)}
    if not np.isfinite(found).all():
        raise InputError(f"output {name!r}: has scores that are not finite; nothing was released")
    if mode is OutputMode.LABEL:
        return {name: found.argmax(axis=1).astype(np.int64)}
    if mode is OutputMode.TOP_K:
        best = np.argsort(-found, axis=1, kind="stable")[:, :top]
        return {name: best.astype(np.int64)}
    if not _are_distributions(found):
        raise InputError(
            f"output {name!r}: its rows are no probabilities, which the ticket releases; nothing "
            "was released; ask its vendor for a bundle that answers them"
        )
    return {name: found.copy()}


def require_form(
    outputs: Mapping[str, Any], mode: OutputMode, *, top: int | None, count: int
) -> tuple[str, np.ndarray]:
    """The name and the array of the one output, if a ticket can release it for so many inputs.

    It looks at sizes and types, which the bundle shows, and at no value.

    Raises   InputError for outputs that are not one row of scores for each input
    """
    if len(outputs) != 1:
        raise InputError(f"the ticket releases {mode}, and the model has {len(outputs)} outputs")
    ((name, found),) = outputs.items()
    if not isinstance(found, np.ndarray) or found.shape[:1] != (count,):
        raise InputError(f"output {name!r}: has no row for each input; the ticket releases {mode}")
    if mode is OutputMode.LABEL and found.ndim == 1 and found.dtype.kind in "iu":
        return name, found
    if found.ndim != 2 or found.dtype.kind != "f" or not found.shape[1]:
        raise InputError(
            f"output {name!r}: is not one row of scores for each input, of which the ticket "
            f"releases {mode}; ask its vendor for a ticket or bundle that fits"
        )
    if top is not None and top > found.shape[1]:
        raise InputError(
            f"output {name!r}: has {found.shape[1]} classes, and the ticket is for the best {top}; "
            "ask its vendor for a ticket that fits"
        )
    return name, found


def commitment(outputs: Mapping[str, np.ndarray], opening: bytes) -> bytes:
    """A commitment to released outputs: HMAC-SHA256 of their canonical bytes.

    Secret   opening, random, until the outputs are known
    """
    writer = Writer(_MAGIC, _FORMAT)
    described = {name: writer.tensor(outputs[name]) for name in sorted(outputs)}
    return hmac.digest(opening, writer.finish(described).to_bytes(), "sha256")


def _are_distributions(rows: np.ndarray) -> bool:
    sums = rows.sum(axis=1, dtype=np.float64)
    return bool((rows >= 0).all() and (abs(sums - 1) <= _SUM_TOLERANCE).all())
