"""What a worker sees under blinding: uniform bytes, whatever the input."""

import math

import numpy as np
import pytest

import nets
from cloister.trusted.session import Session
from trusted.links import DirectLink
from trusted.test_session import plan_of

ALARM = 1e-14
"""Below this a p-value is no chance. Pads are fresh in every run, and the approximation is short
of the tail where bytes are few: 2,000 uniform ones come below once in 10^11 runs."""
DEVIATIONS = 7.2
"""A normal variable is this many deviations off once in 10^12 draws."""


def p_value(payload: np.ndarray) -> float:
    """Chi-square of the bytes against uniform; Wilson-Hilferty, 255 degrees of freedom."""
    counts = np.bincount(payload.view(np.uint8).ravel(), minlength=256)
    expected = counts.sum() / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    z = ((statistic / 255) ** (1 / 3) - (1 - 2 / (9 * 255))) / math.sqrt(2 / (9 * 255))
    return math.erfc(abs(z) / math.sqrt(2))


def seen(plan, feeds):
    link = DirectLink()
    with Session(plan, workers=[link], on_clip="ignore") as session:
        session.run(feeds)
    messages: dict[int, list[np.ndarray]] = {}
    for target, message in link.seen:
        messages.setdefault(target, []).append(message.ravel())
    return {target: np.concatenate(parts) for target, parts in messages.items()}


@pytest.fixture(scope="module")
def plan():
    return plan_of(nets.residual())


@pytest.fixture(scope="module")
def inputs():
    return nets.samples(nets.residual(), 120)


def test_every_node_sees_uniform_bytes(plan, inputs):
    for target, payload in seen(plan, inputs).items():
        assert payload.dtype == np.uint32
        assert payload.size >= 1000
        assert p_value(payload) > ALARM, plan.linear_nodes[target].node


def test_constant_inputs_are_as_uniform_as_any(plan, inputs):
    constant = {name: np.full_like(array, 0.5) for name, array in inputs.items()}
    for target, payload in seen(plan, constant).items():
        assert p_value(payload) > ALARM, plan.linear_nodes[target].node


def test_two_runs_on_the_same_input_share_no_message(plan, inputs):
    first, second = seen(plan, inputs), seen(plan, inputs)
    for target, payload in first.items():
        # Of at most 2^17 words three are the same by chance with probability below 10^-14.
        assert np.count_nonzero(payload == second[target]) <= 2
        correlation = np.corrcoef(payload.astype(float), second[target].astype(float))[0, 1]
        assert abs(correlation) < DEVIATIONS / math.sqrt(payload.size)


def test_the_test_sees_what_is_not_blinded(inputs):
    clear = seen(plan_of(nets.residual(), "verified"), inputs)
    for payload in clear.values():
        assert payload.dtype == np.int16
        assert p_value(payload) < ALARM


def test_pads_never_repeat_across_nodes_or_inputs(plan):
    zeros = {"image": np.zeros((3, 3, 9, 12), np.float32)}
    link = DirectLink()
    with Session(plan, workers=[link]) as session:
        session.run(zeros)
    first_words = [tuple(row.ravel()[:8]) for _, message in link.seen for row in message]
    assert len(set(first_words)) == len(first_words)
