"""An authority and an encrypted data set in memory, without ledger or file."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.data.target_encoding import one_hot
from cloister.errors import AuthorityUnavailable, BudgetError
from cloister.ring import pads

KEY = bytes(range(32))


class MemoryDataset:
    """Encrypts arrays when made, keeps only ciphertexts; y: class numbers, or rows of integers."""

    def __init__(
        self, x, y, *, encoding, name="set", test_every=5, key=KEY, classes=None, targets="classes"
    ):
        self.name = name
        self.encoding = encoding
        self.shape = x.shape[1:]
        self.targets = targets
        self.classes = classes or (max(2, int(y.max()) + 1) if targets == "classes" else y.shape[1])
        self.samples = len(x)
        ids = np.arange(len(x), dtype=np.int64)
        self.test_ids = ids[::test_every]
        self.train_ids = np.setdiff1d(ids, self.test_ids)
        integers = one_hot(y, self.classes) if targets == "classes" else y.astype(np.int32)
        self._data = pads.blind(key, encoding.encode(x), ids, domain=pads.DATA_DOMAIN)
        self._labels = pads.blind(key, integers, ids, domain=pads.LABEL_DOMAIN)
        self.identity = hashlib.sha256(key + self._data.tobytes()).hexdigest()

    def data(self, ids):
        return self._data[ids]

    def labels(self, ids):
        return self._labels[ids]


@dataclass
class MemoryAuthority:
    """Releases every unblinding term it is asked for, and remembers for whom."""

    dataset: MemoryDataset
    key: bytes = KEY
    mode: str = "paper"
    budget_rank: int | None = None
    log: list = field(default_factory=list)
    away: int = 0
    refuse_after: int | None = None

    def describe(self, dataset):
        set_ = self.dataset
        dim = int(np.prod(set_.shape))
        rank = dim // 4 if self.budget_rank is None else self.budget_rank
        return DatasetInfo(
            set_.name, set_.shape, set_.classes, set_.encoding, set_.samples, rank, self.mode,
            set_.targets,
        )  # fmt: skip

    def _enter(self, kind, ids, receiver):
        if self.away:
            self.away -= 1
            raise AuthorityUnavailable("authority: nobody answers")
        if self.refuse_after is not None and len(self.log) >= self.refuse_after:
            raise BudgetError("sample 0: rank 200 of 196 allowed")
        self.log.append((kind, len(ids), receiver))

    def _mask(self, ids):
        return pads.expand(self.key, ids, self.dataset.shape, domain=pads.DATA_DOMAIN)

    def ask(self, request, receiver):
        self._enter(request.kind, request.ids, receiver)
        if request.kind == "labels":
            shape = (self.dataset.classes,)
            return pads.expand(self.key, request.ids, shape, domain=pads.LABEL_DOMAIN)
        if request.kind == "forward":
            return pads.forward(request.linear, self._mask(request.ids))
        return pads.gradient(request.geometry, request.delta, self._mask(request.ids))


def blobs(n=200, shape=(6, 5, 1), classes=3, seed=0, offset=0.0, spread=0.15):
    """Separable samples in [offset - 1, offset + 1], with an encoding that fits."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-0.5, 0.5, (classes, *shape))
    y = rng.integers(0, classes, n)
    x = np.clip(centres[y] + rng.normal(0, spread, (n, *shape)), -1, 1) + offset
    encoding = Encoding(scale=1 / 127, offset=offset, bits=8)
    return encoding.decode(encoding.encode(x)), y, encoding
