"""Attacks on the requests of inference: values in the clear, and pads that are used twice."""

import numpy as np
import pytest

from cloister.audit.input.request_audit import audit_requests, pairs_of_one_pad, requests_page
from cloister.errors import InputError
from cloister.wire.transcript import Entry, Transcript


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)


def inputs(seed, *shape):
    return np.random.default_rng(seed).integers(-2047, 2048, shape, dtype=np.int16)


def blinded(x, pad):
    return pad + x.astype(np.int32).view(np.uint32)


def transcript(*payloads):
    return Transcript(
        Entry("to_worker", i, target, "w", x.dtype, x.shape, x.nbytes, x)
        for i, (target, x) in enumerate(payloads)
    )


def test_fresh_pads_give_nothing():
    messages = [(0, blinded(inputs(i, 1, 8, 8, 4), noise(90 + i, 1, 8, 8, 4))) for i in range(40)]
    (found,) = audit_requests(transcript(*messages))
    assert (found.verdict, found.reused, found.inputs) == ("nothing found", 0, 40)
    assert found.uniformity.p > 1e-6


def test_a_pad_used_twice_is_found_among_others():
    pads = [noise(i, 1, 8, 8, 4) for i in range(30)]
    pads[17] = pads[4]
    messages = [(3, blinded(inputs(i, 1, 8, 8, 4), pad)) for i, pad in enumerate(pads)]
    (found,) = audit_requests(transcript(*messages))
    assert (found.verdict, found.reused) == ("pads reused", 1)


@pytest.mark.parametrize("words", [4, 32, 200])
def test_pairs_of_one_pad(words):
    pad = noise(5, words)
    same = np.stack([blinded(inputs(i, words), pad) for i in range(4)])
    assert pairs_of_one_pad(same) == 6
    assert pairs_of_one_pad(noise(6, 4, words)) == 0


def test_too_few_words_tell_nothing_of_pads():
    assert pairs_of_one_pad(np.zeros((4, 3), np.uint32)) == 0


def test_what_is_not_blinded_is_said():
    skewed = noise(1, 4, 8, 8, 4)
    skewed[..., 0] = 7
    messages = [(0, inputs(0, 4, 8, 8, 4)), (1, skewed), (2, np.ones((4, 9), np.float32))]
    found = audit_requests(transcript(*messages))
    assert [one.verdict for one in found] == ["in the clear", "not uniform", "in the clear"]
    assert found[0].to_dict()["verdict"] == "in the clear"
    page = requests_page(transcript(*messages), found)
    assert page.count("data:image/png;base64,") == 2 * 4
    assert "not uniform" in page


def test_a_transcript_without_payloads_is_refused():
    empty = Transcript([Entry("to_worker", 0, 0, "w", np.dtype(np.uint32), (1,), 4)])
    with pytest.raises(InputError, match="cloister run --transcript"):
        audit_requests(empty)
