"""Every test of ONNX that ONNX Runtime passes, under every policy that applies."""

from functools import cache

import pytest

from conformance.exceptions import EXCEPTIONS
from conformance.onnx_cases import Case, cases
from conformance.policies_compared import compared, loaded

SHARDS = 8
FEWEST, FEWEST_LINEAR = 1_700, 85
"""Tests that ONNX Runtime runs, and those of them that have a linear node with constant weights."""
MOST_EXCEPTIONS = 20

pytestmark = pytest.mark.conformance


@cache
def judged() -> tuple[Case, ...]:
    return tuple(case for case in cases() if case.outputs is not None)


def failures(case: Case, folder) -> dict[str, str]:
    """What is wrong with a test, by policy."""
    names = ["enclave", "open", *(["slalom", "verified"] if case.linear else [])]
    found = {}
    try:
        graph = loaded(case.model, folder)
    except Exception as error:  # noqa: BLE001  (any is a failure of the policies)
        return dict.fromkeys(names, _text(error))
    for policy in names:
        try:
            sends = bool(case.linear) and policy != "enclave"
            wrong = compared(
                policy, graph, case.feeds, case.outputs, values=not case.is_random, sends=sends
            )
        except Exception as error:  # noqa: BLE001  (the same)
            wrong = _text(error)
        if wrong:
            found[policy] = wrong
    return found


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_what_onnx_runtime_runs_is_computed_under_every_policy(shard, tmp_path):
    wrong = []
    for case in judged()[shard::SHARDS]:
        found = failures(case, tmp_path)
        if case.name not in EXCEPTIONS:
            wrong += [f"{case.name} {policy}: {what}" for policy, what in found.items()]
        elif not found:
            wrong.append(f"{case.name}: passes, so it is no exception")
    assert wrong == []


def test_enough_tests_are_judged():
    found = judged()
    assert len(found) >= FEWEST
    assert sum(bool(case.linear) for case in found) >= FEWEST_LINEAR
    assert set(EXCEPTIONS) <= {case.name for case in found}
    assert len(EXCEPTIONS) <= MOST_EXCEPTIONS
