"""The model of SGX: what its constants say, and that each has a source."""

import pytest

from cloister.splits.tee_model import MIB, TEES, constants, overhead

SGX1 = TEES["sgx1"]


def test_a_small_module_pays_for_its_call_and_for_encryption():
    found = overhead(SGX1, compute_ms=10.0, memory_bytes=MIB, weights_bytes=MIB // 2)
    assert found.transition_ms == pytest.approx(8200 / 3e6)
    assert found.memory_ms == pytest.approx(0.55)
    assert found.paging_ms == 0
    assert found.total_ms == pytest.approx(found.transition_ms + 0.55)


def test_a_cold_call_is_dearer():
    warm = overhead(SGX1, compute_ms=0, memory_bytes=1, weights_bytes=1)
    cold = overhead(SGX1, compute_ms=0, memory_bytes=1, weights_bytes=1, cold=True)
    assert cold.transition_ms > warm.transition_ms


def test_beyond_the_page_cache_every_page_of_weights_is_paged():
    weights = 93 * MIB
    assert overhead(SGX1, compute_ms=0, memory_bytes=weights, weights_bytes=weights).paging_ms == 0
    found = overhead(SGX1, compute_ms=0, memory_bytes=weights + 1, weights_bytes=weights)
    assert found.paging_ms == pytest.approx(weights / 4096 * 40_000 / 3e6)
    server = overhead(TEES["sgx2"], compute_ms=0, memory_bytes=weights + 1, weights_bytes=weights)
    assert server.paging_ms == 0


def test_every_constant_has_a_source():
    rows = constants()
    assert len(rows) == 1 + 5 * len(TEES)
    for _, name, value, source in rows:
        assert value > 0, name
        assert len(source) > 10, name
