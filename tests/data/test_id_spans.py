import numpy as np
import pytest

from cloister.data.id_spans import NO_IDS, IdSpans
from cloister.errors import InputError
from cloister.ring.bounds import MAX_ID_SPANS, MAX_SAMPLES


def members(spans):
    return set(np.flatnonzero(spans.holds(np.arange(100))).tolist())


def test_they_are_sets():
    rng = np.random.default_rng(1)
    for _ in range(200):
        drawn = rng.integers(0, 90, (2, int(rng.integers(0, 8))))
        pairs = [[(int(a), int(a + rng.integers(1, 9))) for a in firsts] for firsts in drawn]
        one, two = (IdSpans.of(spans) for spans in pairs)
        plain = [{i for a, b in spans for i in range(a, b)} for spans in pairs]
        assert [members(one), members(two)] == plain
        assert members(one | two) == plain[0] | plain[1]
        assert (one | two).count == len(plain[0] | plain[1])
        assert (one <= two) == (plain[0] <= plain[1])
        assert one <= one | two
        np.testing.assert_array_equal(IdSpans(one.bounds).bounds, one.bounds)
    assert (NO_IDS.count, NO_IDS.spans) == (0, [])
    assert IdSpans.of([(3, 5), (5, 6), (8, 9)]).spans == [(3, 6), (8, 9)]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (np.array([1, 2, 3]), "pairs"),
        (np.array([-1, 2]), "ascend"),
        (np.array([2, 2]), "ascend"),
        (np.array([1, 3, 3, 4]), "ascend"),
        (np.array([0, MAX_SAMPLES + 1]), "ascend"),
        (np.arange(2 * MAX_ID_SPANS + 2), "name whole parts"),
    ],
)
def test_what_is_no_set_is_refused(bounds, message):
    with pytest.raises(InputError, match=message):
        IdSpans(bounds)


def test_an_empty_span_is_refused():
    with pytest.raises(InputError, match="at least one id"):
        IdSpans.of([(1, 2), (5, 5)])
