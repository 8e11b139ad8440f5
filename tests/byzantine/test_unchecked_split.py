"""Behind an unchecked blinded layer, a worker reads in the clear what its own error did.

The layer is a convolution with ReLU and max pooling, which lose most of what it computes. A worker
adds an error to its blinded answer that lifts all values above the ReLU's threshold, and one value
of each window above the others. It then reads exactly these values after the split, and solves for
the layer's input. The honest view does not have them.
"""

import numpy as np
import pytest

import nets
from byzantine.probe import TRANSPORTS, probing_link, seen
from cloister.errors import VerificationError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.claims import THE_INPUT, Extent, Role, Verb
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import SPLITTING
from cloister.plan.quantised import Precision
from cloister.ring import reference
from cloister.ring.rounding import quantise
from cloister.trusted.session import Session

SIDE, CHANNELS = 6, 8
LIFT = 2**20
"""Above every value of the layer, and small enough for float32 to keep every unit."""


def lossy():
    """Convolution with a bias far below zero, ReLU and max pooling; then a dense layer."""
    net = nets.Net(21)
    x = net.conv(net.input("image", 1, SIDE, SIDE), 1, CHANNELS, pads=[1, 1, 1, 1])
    x = net.op("MaxPool", net.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    model = net.model(net.gemm(net.op("Flatten", x), CHANNELS * (SIDE // 2) ** 2, 4))
    (bias,) = [one for one in model.graph.initializer if list(one.dims) == [CHANNELS]]
    bias.CopyFrom(nets.numpy_helper.from_array(np.full(CHANNELS, -1, np.float32), bias.name))
    return model


@pytest.fixture(scope="module")
def images():
    """Pictures in 0..1."""
    return np.random.default_rng(7).random((3, 1, SIDE, SIDE), np.float32)


def planned(policy, images):
    graph = normalise.prepare(read.from_model(lossy(), name="lossy"))
    (until,) = [node.name for node in graph.nodes if node.op == "MaxPool"]
    return policies.make(
        policy,
        graph,
        calibration=images,
        precision=Precision(8, 8),
        split=PlannedSplit((until,)),
    )


def lifted():
    """The error: one position of each window, which differs between channels, is lifted higher."""
    error = np.full((SIDE, SIDE, CHANNELS), LIFT, np.uint32)
    for channel in range(CHANNELS):
        row, column = divmod(channel % 4, 2)
        error[row::2, column::2, channel] *= 2
    return error


def solved(plan, pooled):
    """The input of the layer, from what crosses after the lift: exact integers."""
    node = plan.linear_nodes[0]
    size = SIDE * SIDE
    columns = reference.linear_map(
        node.linear, np.eye(size, dtype=np.uint32).reshape(size, SIDE, SIDE, 1)
    ).astype(np.int32)
    rows, values = [], []
    for channel in range(CHANNELS):
        row, column = divmod(channel % 4, 2)
        rows.append(columns[:, row::2, column::2, channel].reshape(size, -1).T)
        real = pooled[channel].astype(np.float64).ravel()
        values.append((real - node.bias[channel]) / node.scale[channel] - 2 * LIFT)
    matrix, vector = np.concatenate(rows), np.concatenate(values)
    found, _, rank, _ = np.linalg.lstsq(matrix.astype(np.float64), vector, rcond=None)
    assert rank == size
    return np.rint(found).astype(int).reshape(SIDE, SIDE)


def integers(plan, image):
    """The layer's input in fixed point, which the trusted side hides."""
    node = plan.linear_nodes[0]
    return quantise(image, node.inv_x_scale, node.x_qmax).reshape(SIDE, SIDE)


def honest_view(plan, images, folder):
    """What crosses for each image when the worker follows the protocol."""
    with (
        probing_link("in-process", folder, {}) as link,
        Session(plan, workers=[link], batch=len(images)) as session,
    ):
        outputs = session.run(images).outputs
    ((blinded, clear),) = seen(folder)
    assert blinded.blinded
    assert not clear.blinded
    return clear.tensors[0], outputs


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_attack_succeeds_without_checks(transport, images, tmp_path):
    """Two inputs of one honest view are told apart, and both are found exactly."""
    plan = planned("origami-none", images)
    first = images[:1]
    view, _ = honest_view(plan, first, tmp_path / "first")
    other = twin(plan, first, view, tmp_path / "others")
    assert (integers(plan, first) != integers(plan, other)).any()
    pair = np.concatenate([first, other])
    with (
        probing_link(transport, tmp_path / "attack", {0: lifted()}) as link,
        Session(plan, workers=[link], batch=2) as session,
    ):
        session.run(pair)  # and no error says that anything was wrong
    ((_, clear),) = seen(tmp_path / "attack")
    for image, pooled in zip(pair, clear.tensors[0], strict=True):
        np.testing.assert_array_equal(solved(plan, pooled), integers(plan, image))
    can = [s for s in plan.claims().of(Role.WORKER, Verb.CAN) if s.about == THE_INPUT]
    assert [s.extent for s in can] == [Extent.EVERYTHING]


def twin(plan, image, view, folder):
    """Another input of the same honest view: a pixel that only clipped and smaller values read."""
    others = np.repeat(image, SIDE * SIDE, axis=0)
    others.reshape(SIDE * SIDE, -1)[np.diag_indices(SIDE * SIDE)] *= 0.5
    views, _ = honest_view(plan, others, folder)
    for other, found in zip(others, views, strict=True):
        if np.array_equal(found, view[0]):
            return other[None]
    raise AssertionError("the honest view shows every pixel")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("policy", sorted(set(SPLITTING) - {"origami-none"}))
def test_the_attack_fails_where_the_blinded_layer_is_checked(policy, transport, images, tmp_path):
    """The error is found before the message in the clear is sent."""
    plan, outputs = planned(policy, images), None
    with (
        probing_link(transport, tmp_path / "attack", {0: lifted()}) as link,
        Session(plan, workers=[link]) as session,
        pytest.raises(VerificationError, match=plan.linear_nodes[0].node),
    ):
        outputs = session.run(images[:1])
    assert outputs is None
    ((only,),) = seen(tmp_path / "attack")
    assert (only.target, only.blinded) == (0, True)


@pytest.mark.parametrize("policy", sorted(set(SPLITTING) - {"origami-none"}))
def test_without_an_error_the_message_in_the_clear_is_sent(policy, images, tmp_path):
    """So that its absence above means something."""
    view, outputs = honest_view(planned(policy, images), images, tmp_path / "honest")
    plain, _ = honest_view(planned("origami-none", images), images, tmp_path / "none")
    assert len(view) == len(images)
    if policy == "origami-prefix":
        np.testing.assert_array_equal(view, plain)
    (value,) = outputs.values()
    assert np.isfinite(value).all()
