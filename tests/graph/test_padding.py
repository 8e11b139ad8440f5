"""Windows stated in numbers: the sizes and values that ONNX Runtime gives their words."""

import os

import numpy as np
import pytest
from hypothesis import Phase, given, note, reject, settings
from hypothesis import strategies as st

from cloister.graph import interpreter
from cloister.graph.onnx import read
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.passes import normalise
from trusted.random_models import RandomModel, add_convolution, add_pool, runtime

EXAMPLES = int(os.environ.get("CLOISTER_EXAMPLES", "150"))
random_windows = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CLOISTER_EXAMPLES" not in os.environ,
    database=None,
    phases=[p for p in Phase if p is not Phase.explain],
)


@pytest.mark.parametrize("grow", [add_convolution, add_pool])
@random_windows
@given(data=st.data())
def test_every_window_means_what_onnx_runtime_computes(grow, data):
    net = RandomModel(data.draw)
    rest = net.pick([(3, 6), (2, 5, 6), (1, 6, 5), (2, 3, 4), (4, 9)])
    net.input("x", ("N", *rest))
    first = grow(net)
    if first is None:
        reject()
    # The next node shows whether the size between them is known as it is.
    second = grow(net)
    net.outputs = [v for v in (first, second) if v is not None]
    note(str(net))
    model, feeds = net.model(), net.feeds(N=2)
    try:
        wanted = runtime(model).run(None, feeds)
    except ORT_ERRORS:
        reject()  # its own shape inference contradicts its own kernels
    graph = normalise.prepare(read.from_model(model, name="windows"))
    found = interpreter.interpret(graph, feeds)
    for name, value in zip(net.outputs, wanted, strict=True):
        assert graph.types[name].shape == (None, *value.shape[1:])
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)
