"""The search for hidden weights finds them wherever they are, and nothing else."""

import numpy as np
import pytest

from bundle.bundles import module
from cloister.examples.hidden_search import HiddenWords
from cloister.graph.graph import Graph


@pytest.fixture
def words():
    weights = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    weights[2, 1:4] = 0
    graph = Graph("head", (), (), (), {"w": weights, "n": np.arange(9)}, {}, 17)
    return HiddenWords(graph, module(weights_bytes=400).weights), weights


@pytest.mark.parametrize("offset", [0, 1, 2, 5, 8, 19])
def test_weights_are_found_at_any_offset(words, offset):
    secret, weights = words
    noise = np.random.default_rng(2).bytes(1000)
    two = weights.tobytes()[8:16]
    for part in (two, noise[:offset] + two + noise):
        assert secret.search("here", [noise, part]).hidden_words == 1
    found = secret.search("here", [noise[:offset] + weights.tobytes()])
    assert found.hidden_words == 34 - 4  # without words that have a zero
    assert found.nbytes == offset + weights.nbytes


def test_packed_weights_are_found(words):
    secret, _ = words
    packed = module(weights_bytes=400).weights
    assert secret.search("here", [packed]).hidden_words == 99
    assert secret.search("here", [packed, packed]).hidden_words == 99


def test_other_bytes_are_not_found(words):
    secret, weights = words
    for part in (b"", b"abc", bytes(10_000), np.random.default_rng(3).bytes(10_000),
                 (2 * weights).tobytes()):  # fmt: skip
        assert secret.search("elsewhere", [part]).hidden_words == 0
    assert secret.search("nowhere", []).nbytes == 0
