from dataclasses import dataclass

import numpy as np
import pytest

from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority
from cloister.authority.enrolment import enrol
from cloister.authority.local import LocalClient
from cloister.authority.records import Terms
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.ring import pads

ANY = {"one_function": False, "value_bits": 32, "max_bits": 2**40}
"""Terms under which rank alone counts: any functions, exact values."""


@dataclass
class Kit:
    """An authority with one registered data set whose plain samples are known."""

    authority: Authority
    x: np.ndarray
    labels: np.ndarray
    p: np.ndarray
    y: np.ndarray
    folder: object

    @property
    def ids(self):
        return np.arange(len(self.x), dtype=np.int64)


def join(authority, dataset):
    """A client's place in a data set, whatever its terms are."""
    known = authority.find(dataset)
    return enrol(LocalClient(authority), known.agreement, rng=SystemRandom())


def start(authority, info, terms=None):
    """A client's place in a data set that is made with its first part."""
    return enrol(LocalClient(authority), Agreement(info, terms or Terms()), rng=SystemRandom())


def add_part(authority, dataset, x, labels, *, seed=1, classes=3, part=None, enrolment=None):
    """Register a part as a client would; gives its ciphertexts and the first id."""
    rng = InsecureSeededRandom(seed)
    key, part = rng.random_bytes(32), part or rng.random_bytes(16).hex()
    digest = rng.random_bytes(32).hex()
    local = np.arange(len(x), dtype=np.int64)
    p = pads.blind(key, x, local, domain=pads.DATA_DOMAIN)
    one_hot = np.eye(classes, dtype=np.int16)[labels]
    y = pads.blind(key, one_hot, local, domain=pads.LABEL_DOMAIN)
    enrolment = enrolment or join(authority, dataset)
    return p, y, enrolment.register(part, len(x), digest, key)


def make_kit(
    folder, *, shape=(4, 4, 2), samples=10, budget=None, mode="budgeted", terms=None, name="set",
    bits=8,
):  # fmt: skip
    generator = np.random.default_rng(5)
    dim = int(np.prod(shape))
    bound = 2 ** (bits - 1) - 1
    x = generator.integers(-bound, bound + 1, (samples, *shape)).astype(np.int16)
    labels = generator.integers(0, 3, samples)
    authority = Authority.create(folder, rng=SystemRandom())
    budget = dim // 4 if budget is None else budget
    info = DatasetInfo(name, shape, 3, Encoding(1.0, 0.0, bits), 0, budget, mode)
    terms = terms or Terms(**ANY)
    p, y, _ = add_part(authority, name, x, labels, enrolment=start(authority, info, terms))
    return Kit(authority, x, labels, p, y, folder)


@pytest.fixture
def kit(tmp_path):
    made = make_kit(tmp_path / "authority")
    yield made
    made.authority.close()


@pytest.fixture
def kits(tmp_path):
    """Makes authorities that are closed at the end."""
    made = []

    def make(**options):
        made.append(make_kit(tmp_path / f"authority{len(made)}", **options))
        return made[-1]

    yield make
    for one in made:
        one.authority.close()
