"""The weights that are charged are the weights that are used."""

import numpy as np
import pytest

from authority.test_authority import dense, mixed
from cloister.authority.requests import Forward
from cloister.errors import EncryptionError, FunctionError
from cloister.ring.linear import LinearMap


def test_weights_behind_a_mask_are_checked_and_charged(kit):
    def behind(linear):
        hidden = np.ones(linear.weights.shape, bool)
        return LinearMap(linear.geometry, np.ma.masked_array(linear.weights, mask=hidden))

    with pytest.raises(FunctionError, match="unit vector"):
        kit.authority.ask(Forward(
            "set", kit.ids, behind(dense(np.eye(2, 32)))), receiver="server"
        )  # fmt: skip
    assert kit.authority.spent("set").rank.max() == 0
    kit.authority.ask(Forward("set", kit.ids, behind(mixed(2))), receiver="server")
    assert kit.authority.spent("set").rank.max() == 2


def test_samples_behind_a_mask_are_in_range_all_the_same(kit):
    beyond = np.ma.masked_array(np.array([0, 10**6]), mask=[False, True])
    with pytest.raises(EncryptionError, match="holds no sample 1000000"):
        kit.authority.ask(Forward("set", beyond, dense(np.ones((1, 32)))), receiver="trusted")
