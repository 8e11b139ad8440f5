"""Keys for `cloister bench training`: what the server is timed with."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from cloister.cli.bench import training_data
from cloister.ring.linear import Geometry, LinearMap
from training.doubles import MemoryAuthority, MemoryDataset, blobs

IDS = np.arange(4, dtype=np.int64)
GEOMETRY = Geometry((6, 5), 1, (1, 1), 3, kernel=(6, 5))


@pytest.fixture
def authority():
    x, y, encoding = blobs(4)
    return MemoryAuthority(MemoryDataset(x, y, encoding=encoding))


def test_answers_are_those_of_a_wire(authority):
    keys = training_data.TimedKeys(authority)
    linear = LinearMap(GEOMETRY, np.ones(GEOMETRY.weight_shape, np.int16))
    delta = np.ones((4, *GEOMETRY.out_shape), np.int16)
    asked = [
        (keys.forward_key, authority.forward_key, ("set", IDS, linear)),
        (keys.gradient_key, authority.gradient_key, ("set", IDS, GEOMETRY, delta)),
        (keys.label_key, authority.label_key, ("set", IDS)),
    ]
    for through, direct, request in asked:
        answer = through(*request, receiver="server")
        np.testing.assert_array_equal(answer, direct(*request, receiver="server"))
        assert answer.flags.c_contiguous
        assert not answer.flags.writeable
    assert keys.describe("set") == authority.describe("set")


def test_time_of_requests_adds_up(authority, monkeypatch):
    cpu, wall = itertools.count(0, 2), itertools.count(0, 3)
    clocks = SimpleNamespace(thread_time=lambda: next(cpu), perf_counter=lambda: next(wall))
    monkeypatch.setattr(training_data, "time", clocks)
    keys = training_data.TimedKeys(authority)
    for requests in (1, 2):
        keys.label_key("set", IDS, receiver="server")
        assert (keys.cpu_s, keys.wall_s) == (2 * requests, 3 * requests)
