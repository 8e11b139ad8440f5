"""CryptoNN's algorithm on embedded flowers: every value that of plain integers, every name true."""

import importlib

import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError
from cloister.examples import cryptonn_demo
from cloister.published import mask

ROLES = {
    "encode": ["client"],
    "setup": ["authority"],
    "permute": ["client"],
    "encrypt": ["client", "client"],
    "feed-forward": ["authority", "server", "server"],
    "evaluation": ["authority", "server"],
    "back-propagation": ["server", "authority", "server"],
    "cross-entropy": ["authority", "client", "authority", "server"],
    "convolution": ["authority", "client", "authority", "server"],
    "prediction": ["client", "authority", "server", "server", "client"],
}
"""Each step of the paper's, and who acts in it, in order."""


def resolved(name):
    """The object of a dotted name."""
    parts = name.split(".")
    for size in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


@pytest.mark.parametrize("scheme", cryptonn_demo.SCHEMES)
def test_every_step_with_every_back_end(scheme, monkeypatch):
    if scheme != "mask":
        monkeypatch.setattr(cryptonn_demo, "EPOCHS", 25)
    done = []
    found = cryptonn_demo.run(
        scheme, rng=InsecureSeededRandom(1), update=lambda at, _: done.append(at)
    )
    epochs = cryptonn_demo.EPOCHS
    assert done == list(range(1, epochs + 1))
    assert found.accuracy > 0.85
    assert abs(found.accuracy - found.accuracy_plain) < 0.1
    assert found.losses[-1] < found.losses[0] / 2
    # Three batches of 40: X W, P - Y and X^T delta; the rest once.
    assert found.checked == epochs * 3 * (320 + 120 + 32) + 3 + 32 + 240
    assert sum(one.checked for one in found.steps) == 320 + 120 + 32 + 3 + 32 + 240
    steps = {}
    for one in found.steps:
        steps.setdefault(one.step, []).append(one.who)
    assert steps == ROLES
    for one in found.steps:
        assert callable(resolved(one.function))
    if scheme != "mask":
        assert all(mask.__name__ not in one.function for one in found.steps)
    assert any(f"cloister.published.{scheme}" in one.function for one in found.steps)


def test_the_bounded_form_of_every_step_exists():
    pytest.importorskip("torch")
    assert set(cryptonn_demo.BOUNDED) == set(ROLES)
    for name in cryptonn_demo.BOUNDED.values():
        assert callable(resolved(name))


@pytest.mark.parametrize("step", ["feed-forward", "evaluation"])
def test_a_value_that_is_wrong_ends_the_run(step, monkeypatch):
    name = {"feed-forward": "decrypt", "evaluation": "decrypt_elements"}[step]
    right = getattr(mask, name)

    def wrong(*given):
        values = right(*given)
        values[-1, -1] += 1
        return values

    monkeypatch.setattr(mask, name, wrong)
    with pytest.raises(EncryptionError, match=f"{step}: the values differ"):
        cryptonn_demo.run("mask", rng=InsecureSeededRandom(1), update=lambda at, of: None)


def test_the_flowers_are_fishers():
    flowers, encoding = cryptonn_demo.load_flowers()
    assert flowers.names == ("setosa", "versicolor", "virginica")
    assert [(flowers.y == i).sum() for i in range(3)] == [50, 50, 50]
    assert flowers.x.min() == -encoding.bound
    assert flowers.x.max() == encoding.bound
    assert flowers.test.sum() == 30
