"""The rules of sums over labels: what one `Evaluation` may tell of all labels together.

A server that may not have labels may have a number of sums, as many as the owner of the data set
decided. The unblinding term is that of the sum less a noise e, uniform on 2^s integers. With R the
range of the sum over all labels that there could be, the answer tells of all labels together, given
anything else (the argument of docs/protocols/authority.md for values),

    I(y; sum + e) <= log2(R / 2^s + 1) <= ANSWER_BITS.

So no choice of weights reads more. `check` refuses besides what is no sum of many samples: it keeps
an honest server from reading single labels, and a dishonest one only from reading them directly,
because that one can compare two sums.
"""

import numpy as np
from jaxtyping import Int64

from cloister.authority.functions import magnitudes
from cloister.authority.noise import noise
from cloister.authority.requests import Evaluation
from cloister.base import hkdf
from cloister.data.info import RING_LIMIT, DatasetInfo
from cloister.errors import FunctionError

ANSWER_BITS = 12
"""Of the labels of all samples together, in one answer: enough for a count of 4,095 exactly."""
LEAST_SAMPLES = 20
"""The largest difference that a sample can make, so many times, is at most that of all of them."""


def spreads(info: DatasetInfo, request: Evaluation) -> Int64[np.ndarray, " n"]:
    """The difference that the label of each sample can make; an unlabelled one adds zero."""
    weights = request.weights
    if info.targets == "labels":  # each of them is there or not
        return np.asarray(magnitudes(weights).sum(axis=1, dtype=np.int64))
    most, least = weights.max(axis=1), weights.min(axis=1)
    return np.asarray(np.maximum(most, 0).astype(np.int64) - np.minimum(least, 0))


def shift(info: DatasetInfo, request: Evaluation) -> int:
    """The s of noise on 2^s integers that leaves ANSWER_BITS of the sum; 0: none."""
    spread, s = int(spreads(info, request).sum()), 0
    while spread > (1 << s) * ((1 << ANSWER_BITS) - 1):
        s += 1
    return s


def check(info: DatasetInfo, request: Evaluation) -> None:
    """Refuse a sum of few samples, one of numbers, or one that could wrap.

    Raises   FunctionError
    """
    if info.targets == "numbers":
        raise FunctionError(
            f"data set {info.name}: sums tell accuracies and losses of classes and labels, and its "
            "targets are numbers; evaluate at a trusted runtime"
        )
    each = spreads(info, request)
    most, total = int(each.max()), int(each.sum())
    if LEAST_SAMPLES * most > total:
        raise FunctionError(
            f"data set {request.dataset}: an evaluation is a sum in which no sample counts for "
            f"more than one in {LEAST_SAMPLES}; name more samples, with weights alike"
        )
    if total + (1 << shift(info, request)) // 2 >= RING_LIMIT:
        raise FunctionError(
            f"data set {request.dataset}: an evaluation's weights are too large for "
            f"{len(each)} samples; use a coarser scale"
        )


def sum_noise(info: DatasetInfo, request: Evaluation, keys: bytes) -> np.uint32:
    """The noise of an answer, the same whenever the same is asked.

    keys     the pad keys of all parts whose samples it names: whoever has some has no noise
    Secret   keys and result
    """
    found = shift(info, request)
    if not found:
        return np.uint32(0)
    key = hkdf.derive(keys, info=b"cloister evaluation")
    first = np.zeros(1, np.int64)
    return np.uint32(noise(key, first, (1,), digest=request.digest, shift=found)[0, 0])
