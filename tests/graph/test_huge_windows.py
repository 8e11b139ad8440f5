"""A model file with absurd strides gives a clear error, not a crash in a kernel."""

import pytest

from cloister.errors import CloisterError, UnsupportedError
from cloister.graph.onnx.read import from_model
from cloister.graph.ops.linear_nodes import geometry
from nets import Net

HUGE = 2**31 - 1


def shape_of(**attributes):
    net = Net()
    x = net.input("x", 1, 4, 4)
    graph = from_model(net.model(net.conv(x, 1, 1, (2, 2), **attributes)), name="net")
    return geometry(graph, graph.nodes[0])


@pytest.mark.parametrize("size", [100_000, HUGE, 2**40])
def test_strides_over_as_much_padding(size):
    with pytest.raises(UnsupportedError, match=r"Conv_0.*windows span.*2\^31"):
        shape_of(strides=[size, size], pads=[size] * 4)


@pytest.mark.parametrize("size", [HUGE, 2**40])
def test_dilation_over_as_much_padding(size):
    with pytest.raises(CloisterError, match=r"absurd shape|windows span"):
        shape_of(dilations=[size, size], pads=[size] * 4)


def test_a_stride_that_is_never_taken():
    assert shape_of(strides=[HUGE, HUGE]).out_size == (1, 1)
