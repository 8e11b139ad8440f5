"""What a worker says about the instructions of its processor."""

import numpy as np
import pytest

from cloister.ring.linear import Geometry, LinearMap
from cloister.worker import cpu_maps


@pytest.mark.parametrize("refused", [True, False])
def test_a_refusal_of_amx_is_logged_once(refused, monkeypatch, caplog):
    monkeypatch.setattr(cpu_maps.native, "amx_refused", lambda: refused)
    monkeypatch.setattr(cpu_maps, "_log_refusal", cpu_maps.cache(cpu_maps._log_refusal.__wrapped__))
    caplog.set_level("INFO", logger="cloister")
    geometry = Geometry((1, 1), 2, (1, 1), 3)
    linear = LinearMap(geometry, np.ones(geometry.weight_shape, np.int16))
    for _ in range(2):
        cpu_maps.CpuMap(linear).apply(np.ones((1, 1, 1, 2), np.uint32))
    assert [record.name for record in caplog.records] == ["cloister.worker"] * refused
