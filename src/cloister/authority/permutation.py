"""The label permutation that the clients of a data set share and the server never learns."""

import numpy as np
from jaxtyping import Int64

from cloister.base.hkdf import derive
from cloister.base.rng import keystream
from cloister.data.info import DatasetInfo

WORDS_PER_DRAW = 4


def target_permutation(label_key: bytes, info: DatasetInfo) -> Int64[np.ndarray, " classes"]:
    """Where each class or label of a data set goes. Numbers stay in their order.

    Secret   label_key, result
    """
    if info.targets == "numbers":
        return np.arange(info.classes, dtype=np.int64)
    return label_permutation(label_key, info.classes)


def label_permutation(label_key: bytes, classes: int) -> Int64[np.ndarray, " classes"]:
    """Where each true class goes: a Fisher-Yates shuffle under the data set's label key.

    Secret   label_key, result
    Error    each draw takes 128 bits modulo at most `classes`: biased by less than 2^-100
    """
    key = derive(label_key, info=b"cloister label permutation")
    words = keystream(key, bytes(12), WORDS_PER_DRAW * classes).reshape(classes, -1)
    order = np.arange(classes, dtype=np.int64)
    for i in range(classes - 1, 0, -1):
        drawn = int.from_bytes(words[i].astype("<u4").tobytes(), "little") % (i + 1)
        order[[i, drawn]] = order[[drawn, i]]
    return order
