"""What an observer outside an engine can tell of its module, and what padding leaves of it."""

import json

import numpy as np
import pytest

from cloister.audit.architecture import architecture_audit
from cloister.audit.architecture.architecture_audit import audit_architectures
from cloister.audit.architecture.engine_observer import (
    CHANNELS,
    EngineObservation,
    observe,
    observe_fuel,
)
from cloister.audit.architecture.tell_apart import Accuracy, tell_apart
from cloister.base.rng import InsecureSeededRandom
from cloister.bundle.sealed_bundle import hidden_bytes
from cloister.errors import InputError
from cloister.trusted.engines.padding_profile import PaddingProfile
from trusted.engines import hand_written

PADDING = PaddingProfile(memory_bytes=1 << 20, grid_ms=1.0)
BOTH = ("native-x86-64", "wasm")
# What it computes takes as many steps as it has weights.
SUM = """
RUN {
  CHECK_LENGTHS
  const float *w = weights, *x = inputs;
  float sum = 0;
  for (int i = 0; i < WEIGHTS / 4; i++) sum += w[i] * x[i % 4];
  *(float *)outputs = sum;
  return 0;
}
"""


def sums(count, **more):
    weights = np.ones(count, np.float32).tobytes()
    return hand_written.made(SUM, weights=weights, builds=BOTH, **more)


@pytest.fixture
def rng():
    return InsecureSeededRandom(4)


# ---- the classifier


def labels(*counts):
    return np.repeat(np.arange(len(counts)), counts)


def test_classes_that_differ_are_told_apart():
    features = np.array([[1.0, 5.0]] * 20 + [[1.0, 5.001]] * 20)
    found = tell_apart(features, labels(20, 20))
    assert found.value == 1.0
    assert found.better_than_chance
    assert found.chance == 0.5


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_that_are_equal_are_not(classes):
    rng = np.random.default_rng(1)
    for features in (np.ones((30 * classes, 3)), rng.standard_normal((30 * classes, 3))):
        found = tell_apart(features, labels(*[30] * classes))
        assert not found.better_than_chance
        assert abs(found.value - 1 / classes) < 0.25


def test_a_shift_of_three_deviations_is_found_among_noise():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((80, 2)) * [1, 1000]
    features[40:, 0] += 3
    assert tell_apart(features, labels(40, 40)).low > 0.7


def test_the_unit_of_a_feature_does_not_matter():
    rng = np.random.default_rng(3)
    features = rng.standard_normal((40, 2))
    features[20:] += 1
    found = tell_apart(features, labels(20, 20))
    assert tell_apart(features * [1e-6, 1e9], labels(20, 20)) == found


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (45, 50, 0.7864, 0.9565),
    ],
)
def test_intervals_are_wilsons(right, count, low, high):
    """Values of R's binom::binom.wilson."""
    found = Accuracy.of(right, count, classes=2)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-4)
    wider = Accuracy.of(right, count, classes=2, comparisons=7)
    assert wider.low <= found.low < found.high <= wider.high
    assert wider.high - wider.low > found.high - found.low


# ---- what is observed


def test_an_observation_is_what_the_engine_shows(rng):
    module = sums(1000)
    seen = observe(module, "native", padding=None, calls=3, rng=rng)
    assert seen.bundle_bytes == hidden_bytes(module)
    assert seen.peak_bytes >= seen.memory_bytes > 1 << 20
    assert min(seen.load_ms, seen.answer_ms, seen.processor_ms) > 0
    padded = observe(module, "native", padding=PADDING, calls=3, rng=rng)
    assert padded.bundle_bytes == 1 << 20
    assert padded.answer_ms >= PADDING.grid_ms


def test_fuel_follows_the_architecture_and_not_the_inputs(rng):
    pytest.importorskip("wasmtime")
    small, large = (observe_fuel(sums(count), count=4, rng=rng) for count in (100, 101))
    assert len(set(small)) == len(set(large)) == 1
    assert small[0] < large[0]


# ---- the audit


@pytest.mark.parametrize("engine", ["native", "wasm"])
def test_sizes_are_told_apart_without_padding_and_not_with_it(engine, rng):
    if engine == "wasm":
        pytest.importorskip("wasmtime")
    modules = {"small": sums(16), "large": sums(20_000)}
    progress = []
    found = audit_architectures(
        modules, engine, padding=PADDING, rng=rng, observations=10, calls=2,
        progress=lambda *done: progress.append(done),
    )  # fmt: skip
    assert progress == [(done, 40) for done in range(1, 41)]
    assert found.plain["size of the bundle"].value == 1.0
    assert not found.padded["size of the bundle"].better_than_chance
    assert found.plain["all of these"].better_than_chance
    instructions = "instructions executed"
    assert (instructions in found.plain) == (engine == "wasm")
    if engine == "wasm":
        # Padding does not change what is executed.
        assert found.plain[instructions].value == found.padded[instructions].value == 1.0
        assert instructions in found.conclusion
    rows = found.rows()
    assert [name for name, *_ in rows] == [name for name in CHANNELS if name in found.plain]
    assert [text.split()[0] for text in rows[0][1:]] == ["1.00", "0.50"]
    assert json.loads(json.dumps(found.to_dict()))["chance"] == 0.5


def observed(monkeypatch, show):
    """Observations that are made up."""
    monkeypatch.setattr(
        architecture_audit,
        "observe",
        lambda module, *_, padding, **__: show(hidden_bytes(module), padding is not None),
    )


def test_modules_of_one_architecture_are_not_told_apart(monkeypatch, rng):
    noise = np.random.default_rng(5)
    observed(monkeypatch, lambda *_: EngineObservation(1, 2, 2, *noise.standard_normal(3), 0))
    found = audit_architectures(
        {"one": sums(16), "other": sums(17)}, "native", padding=PADDING, rng=rng, observations=40
    )
    assert found.conclusion == "With padding, none of these tells the modules apart."


def test_what_padding_leaves_is_said(monkeypatch, rng):
    noise = np.random.default_rng(5)

    def show(nbytes, padded):
        memory = 7 if padded else nbytes
        return EngineObservation(
            memory, memory, memory, *(noise.standard_normal(2) + nbytes), 0.5, 0
        )

    observed(monkeypatch, show)
    found = audit_architectures(
        {"one": sums(16), "other": sums(1000)}, "native", padding=PADDING, rng=rng, observations=20
    )
    assert found.conclusion == (
        "With padding, these still tell the modules apart: time to load, time to answer, "
        "all of these."
    )


def test_what_cannot_be_compared_is_refused(rng):
    module = sums(16)
    with pytest.raises(InputError, match="takes two or more, of different names"):
        audit_architectures({"one": module}, "native", padding=PADDING, rng=rng)
    other = sums(16, inputs=(("x", "float32", (8,)),))
    with pytest.raises(InputError, match="other: has other inputs or outputs than one"):
        audit_architectures({"one": module, "other": other}, "native", padding=PADDING, rng=rng)
    two = {"one": module, "other": sums(17)}
    with pytest.raises(InputError, match="9 observations are too few for 10 folds"):
        audit_architectures(two, "native", padding=PADDING, rng=rng, observations=9)
    tight = PaddingProfile(memory_bytes=100)
    with pytest.raises(InputError, match="padding to 100 B: the module takes"):
        audit_architectures(two, "native", padding=tight, rng=rng, observations=10)
