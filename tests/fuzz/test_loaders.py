"""A damaged or hostile file gives one of the library's own errors, and no other.

A few seconds here; `python -m benchmarks fuzz_loaders --minutes 10` goes on with other seeds.
"""

import pytest

from fuzz.loaders import LOADERS
from fuzz.run import attack

ROUNDS = 120


def test_there_is_something_to_attack():
    assert len(LOADERS) > 20


@pytest.mark.parametrize("name", LOADERS)
def test_a_good_file_is_read(name, tmp_path):
    loader = LOADERS[name]
    loader.load(loader.make(tmp_path))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_refused_by_one_of_our_errors(name, tmp_path):
    read = attack(LOADERS[name], tmp_path, seed=1, rounds=ROUNDS)
    assert read < ROUNDS, "nothing that was tried is damage"
