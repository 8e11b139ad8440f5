"""The data of an audit, and the intervals of its figures."""

import numpy as np
import pytest

pytest.importorskip("torch")

import nets
from cloister.audit.model.interval import Interval
from cloister.audit.model.theft_data import LabelledSamples, audit_data, read_samples
from cloister.data.preprocessing import Preprocessing
from cloister.errors import InputError, ShapeError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare


def graph(*shape):
    net = nets.Net(2)
    x = net.op("Flatten", net.input("x", *shape))
    return prepare(from_model(net.model(net.gemm(x, int(np.prod(shape)), 3)), name="net"))


def samples(count):
    x = np.arange(count, dtype=np.float32)[:, None]
    return LabelledSamples(x, np.arange(count, dtype=np.int64) % 3)


def test_the_thief_and_the_evaluation_share_no_sample():
    data = audit_data(samples(41), evaluated=1000)
    thief, others = set(data.thief.ravel()), set(data.evaluated.x.ravel())
    assert thief | others == set(range(41))
    assert not thief & others
    assert abs(len(thief) - len(others)) == 1
    assert not data.own
    again = audit_data(samples(41), evaluated=5)
    np.testing.assert_array_equal(again.thief, data.thief)
    assert len(again.evaluated.y) == 5
    np.testing.assert_array_equal(again.evaluated.y, again.evaluated.x.ravel() % 3)


def test_samples_of_the_thiefs_own_leave_all_others_for_the_evaluation():
    data = audit_data(samples(10), thief=samples(4), members=samples(3), evaluated=1000)
    assert (len(data.thief), len(data.evaluated.y), len(data.members.y)) == (4, 10, 3)
    assert data.own
    assert data.sha256 != audit_data(samples(10), thief=samples(4), evaluated=1000).sha256
    with pytest.raises(InputError, match="at least two"):
        audit_data(samples(1), evaluated=1)


def test_samples_are_arranged_as_the_model_takes_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(5) % 3)
    given = Preprocessing(mean=(0.5, 0.25, 0.0), std=(2.0,))
    first = read_samples(graph(3, 4, 6), tmp_path / "a.npz", given)
    expected = (pixels.astype(np.float32) / 255 - np.float32([0.5, 0.25, 0])) / 2
    np.testing.assert_allclose(first.x, expected.transpose(0, 3, 1, 2), atol=1e-6)
    last = read_samples(graph(4, 6, 3), tmp_path / "a.npz", given)
    np.testing.assert_allclose(last.x, expected, atol=1e-6)
    grey = np.random.default_rng(0).random((5, 4, 6)).astype(np.float64)
    np.savez(tmp_path / "b.npz", x=grey, y=np.arange(5) % 3)
    for shape in ((1, 4, 6), (4, 6), (24,)):
        found = read_samples(graph(*shape), tmp_path / "b.npz")
        assert found.x.dtype == np.float32
        np.testing.assert_allclose(found.x.reshape(5, 4, 6), grey, rtol=1e-6)
    for shape, path in (((7,), "b.npz"), ((72,), "a.npz")):
        with pytest.raises(ShapeError, match=r"the model's input 'x' takes"):
            read_samples(graph(*shape), tmp_path / path)
    with pytest.raises(ShapeError, match=r"--mean and --std need one number or 3"):
        read_samples(graph(3, 4, 6), tmp_path / "a.npz", Preprocessing(mean=(0.0, 1.0)))


def test_intervals_are_students():
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5)
    assert found.mean - found.low == pytest.approx(4.302653 / 3**0.5)
    assert str(Interval.of([0.5, 0.5])) == "50.0% ± 0.0%"
    assert Interval.of([0.25]) == Interval(0.25, None, None, 1)
    assert str(Interval.of([0.25])) == "25.0%"
