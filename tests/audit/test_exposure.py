"""Transcript to pictures and statistics."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from cloister.audit.input.exposure import chi_square_uniform, exposure, pictures, stretched
from cloister.errors import InputError, RangeError, ShapeError


@dataclass
class Entry:
    payload: np.ndarray | None


class Recorded:
    """A transcript's reading side."""

    def __init__(self, entries):
        self.entries = entries

    def messages(self, *, target_id, direction):
        assert direction == "to_worker"
        return [Entry(payload) for target, payload in self.entries if target == target_id]


def uniform(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


@pytest.mark.parametrize("statistic_target", [200, 255, 300, 350])
def test_p_agrees_with_the_exact_distribution(statistic_target):
    # Shift mass between two values until the statistic is about as large as wanted.
    counts = np.full(256, 400)
    shift = round(math.sqrt(statistic_target * 400 / 2))
    counts[0] += shift
    counts[1] -= shift
    data = np.repeat(np.arange(256), counts).astype(np.uint8)
    found = chi_square_uniform(data)
    exact = stats.chisquare(counts)
    assert found.statistic == pytest.approx(exact.statistic)
    assert found.p == pytest.approx(exact.pvalue, abs=1e-3)


def test_p_values_of_uniform_messages_are_spread_over_the_unit_interval():
    found = np.array([chi_square_uniform(uniform(4096, seed)).p for seed in range(200)])
    assert stats.kstest(found, "uniform").pvalue > 1e-4


def test_a_skewed_message_is_far_from_uniform():
    assert chi_square_uniform(np.arange(4096, dtype=np.uint32)).p < 1e-12
    assert chi_square_uniform(b"\x00" * 2000).p == 0.0


def test_one_percent_of_constant_words_is_noticed():
    message = uniform(2**18)
    message[::100] = 0
    assert chi_square_uniform(message).p < 1e-6


def test_too_few_bytes_are_refused():
    with pytest.raises(RangeError, match="at least 1280"):
        chi_square_uniform(bytes(1279))


def test_blinded_requests_show_their_top_byte():
    messages = np.array([0x01020304, 0xFF000000], np.uint32).reshape(1, 1, 2, 1)
    assert pictures(messages).tolist() == [[[1, 255]]]


def test_plain_requests_show_their_values():
    messages = np.array([-5, 0, 5], np.int16).reshape(1, 1, 3, 1)
    assert pictures(messages).tolist() == [[[0, 128, 255]]]


def test_only_the_first_channel_is_shown():
    messages = np.zeros((2, 3, 4, 5), np.int16)
    messages[..., 0] = 7
    assert pictures(messages).shape == (2, 3, 4)


@pytest.mark.parametrize("messages", [np.zeros((2, 3), np.uint32), np.zeros((1, 2, 2, 1))])
def test_other_messages_are_refused(messages):
    with pytest.raises(ShapeError, match="uint32 or int16"):
        pictures(messages)


def test_a_constant_batch_is_black():
    assert not stretched(np.zeros((2, 2, 2))).any()
    assert stretched(np.zeros((0, 2, 2))).shape == (0, 2, 2)


def test_exposure_joins_the_requests_of_one_node():
    first, second = uniform(512).reshape(2, 16, 16, 1), uniform(256).reshape(1, 16, 16, 1)
    seen = exposure(Recorded([(0, first), (1, first), (0, second), (0, None)]), 0)
    assert seen.hidden
    assert seen.inputs == 3
    assert seen.histogram.sum() == 3 * 256 * 4


def test_plain_requests_are_not_called_hidden():
    messages = np.zeros((1, 32, 32, 1), np.int16)
    assert not exposure(Recorded([(0, messages)]), 0).hidden


def test_missing_payloads_name_the_remedy():
    with pytest.raises(InputError, match="record_payloads=True"):
        exposure(Recorded([(0, None)]), 0)
