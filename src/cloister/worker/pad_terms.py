"""The terms of a block of pads, which a maker computes from their seed.

The maker knows these pads. It must be another party than every worker that is sent what they blind
(docs/protocols/padmaker.md).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt32

from cloister.errors import InputError, ShapeError
from cloister.ring.pad_block import BlockKeys, mask_rows
from cloister.ring.pads import expand
from cloister.wire.messages import MakePads
from cloister.worker.linear_target import WORD_BYTES, LinearTarget
from cloister.worker.targets import Target


def linear_targets(
    message: MakePads, loaded: Mapping[int, Target]
) -> dict[int, tuple[LinearTarget, int]]:
    """The maps of a message and where in a row their terms begin, by target id.

    Raises   InputError for a target that is not loaded or is no linear map, ShapeError where the
             terms of one target would reach into those of the next, or beyond the row
    """
    found = {}
    ends = (*message.offsets[1:], message.words)
    for target_id, offset, end in zip(message.targets, message.offsets, ends, strict=True):
        target = loaded.get(target_id)
        if not isinstance(target, LinearTarget):
            raise InputError(f"target {target_id} is no linear map that was loaded")
        if offset + target.geometry.out_elements > end:
            raise ShapeError(f"target {target_id}: its terms at word {offset} end behind {end}")
        found[target_id] = target, offset
    return found


def scratch_bytes(message: MakePads, targets: Mapping[int, tuple[LinearTarget, int]]) -> int:
    """What `make_terms` takes besides its answer and the maps: the pads and terms of one node."""
    largest = max(
        target.geometry.in_elements + target.geometry.out_elements for target, _ in targets.values()
    )
    return WORD_BYTES * message.rows * largest


def make_terms(
    message: MakePads, targets: Mapping[int, tuple[LinearTarget, int]]
) -> UInt32[np.ndarray, "rows words"]:
    """`A r + k mod 2^32` of every node, each node for all rows at once.

    Source   Slalom (arXiv:1806.03287) section 3.2, "precomputation"; deviation: by another party
    """
    keys, first_id = BlockKeys.of(message.seed), message.first_id
    ids = np.arange(first_id, first_id + message.rows, dtype=np.int64)
    terms = np.zeros(message.answer.shape, np.uint32)
    for domain, (target, offset) in targets.items():
        geometry = target.geometry
        rows = terms[:, offset : offset + geometry.out_elements]
        rows = rows.reshape(-1, *geometry.out_shape)
        target.write_to(rows, expand(keys.pad_key, ids, geometry.in_shape, domain=domain))
        mask_rows(rows, keys.mask_key, first_id=first_id, domain=domain)
    return terms
