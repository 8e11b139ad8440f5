"""Hostile evidence, bundles and messages give one of the library's own errors, in little time.

A few seconds here; `python -m benchmarks fuzz_attested --target NAME` goes on with other seeds.
"""

import time

import pytest

from fuzz.attested import TARGETS
from fuzz.bounds import MAX_BYTES, MAX_S, FindingError, judge
from fuzz.case import attack

CASES = 400


def test_there_is_something_to_attack():
    assert len(TARGETS) > 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_hostile_cases_are_refused_by_our_errors_within_bounds(target, tmp_path):
    with TARGETS[target](tmp_path) as make:
        tally = attack(make, seed=1, numbers=range(CASES))
    assert tally.found == []
    assert tally.tried.total() == CASES
    assert len(tally.tried) > 4
    assert tally.accepted.total() < CASES / 2, "most of what was tried is no damage"


def test_what_breaks_a_bound_is_found():
    with pytest.raises(FindingError, match="ZeroDivisionError"):
        judge(lambda: 1 / 0)
    with pytest.raises(FindingError, match="large"):
        judge(lambda: b"\1" * (MAX_BYTES + (8 << 20)))
    with pytest.raises(FindingError, match="slow"):
        judge(_busy)
    assert judge(lambda: None)


def _busy() -> None:
    ends = time.process_time() + 1.2 * MAX_S
    while time.process_time() < ends:
        pass
