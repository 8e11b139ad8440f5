"""The mask over stored terms: `A r + k` (mod 2^32), with k a keystream of the same numbers and
domains as `r`, under another key. It hides the terms and does not authenticate them.

The fused pass subtracts the mask while it reads. Proof that a change of masked terms is refused as
a wrong answer is: docs/protocols/padstore.md.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32

import cloister.base._native as native
from cloister.plan.plan import Plan
from cloister.ring.pads import expand_into
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import PadSet


def add_masks(
    terms: UInt32[np.ndarray, "rows words"], layout: PadLayout, key: bytes, *, first_id: int
) -> None:
    """Mask the terms of consecutive pad ids in place; words that belong to no node stay 0.

    Secret   key, and terms until this returns
    """
    for index, rows in layout.views(terms).items():
        mask = np.empty(rows[0].shape, np.uint32)
        for pad_id, row in enumerate(rows, first_id):
            expand_into(key, pad_id, domain=index, out=mask.reshape(-1))
            row += mask


def unmask_without_aes(pads: Sequence[PadSet], plan: Plan) -> None:
    """On a CPU without AES instructions, where the fused pass makes no keystream: remove masks."""
    if native.isa() == "portable":
        layout = PadLayout.of(plan)
        for pad in pads:
            remove_mask(pad, layout)


def remove_mask(pad: PadSet, layout: PadLayout) -> None:
    """Give a pad set terms without a mask, in memory of their own.

    Secret   its terms from now on
    """
    if pad.mask_key is None:
        return
    terms = pad.terms.copy()
    for index, part in layout.views(terms).items():
        mask = np.empty(part.shape, np.uint32)
        expand_into(pad.mask_key, pad.pad_id, domain=index, out=mask.reshape(-1))
        part -= mask
    pad.terms, pad.mask_key = terms, None
