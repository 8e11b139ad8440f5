"""The PyTorch maps, on CPU tensors and, where there is one, a GPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, RangeError
from cloister.field.linear import Geometry, LinearMap
from cloister.worker import torch_maps
from cloister.worker.engine import Engine
from cloister.worker.torch_maps import TorchMap, check_device
from wire.loopback import linear, slow

torch = pytest.importorskip("torch")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOP = [0x80000000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFF8000, 0x8000, 0xFFFF, 0x10000, 0]


@st.composite
def geometries(draw):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return Geometry(
        in_size=pair(1, 6), in_channels=groups * draw(st.integers(1, 2)),
        out_size=pair(1, 6), out_channels=groups * draw(st.integers(1, 2)),
        kernel=pair(1, 3), stride=pair(1, 3), dilation=pair(1, 2), upsample=pair(1, 3),
        pad=pair(-3, 4), groups=groups,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1))
def test_equals_the_definition(device, geometry, seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-32768, 32768, geometry.weight_shape).astype(np.int16)
    shape = (2, *geometry.in_shape)
    linear_map = LinearMap(geometry, weights)
    torch_map = TorchMap(linear_map, device=device)
    x = rng.integers(0, 2**32, shape, dtype=np.uint32)
    x.reshape(-1)[: len(TOP)] = TOP[: x.size]
    assert (torch_map.apply(x) == slow(linear_map, x)).all()
    plain = rng.integers(-32768, 32768, shape).astype(np.int16)
    assert (torch_map.apply(plain) == slow(linear_map, plain)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weight", [-32768, 32767, 1])
@pytest.mark.parametrize("value", [0x80000000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFF8000])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_extremes_with_long_sums(device, weight, value, kernel):
    geometry = Geometry((5, 5), 4096, (5, 5), 2, kernel=kernel, pad=(kernel[0] // 2,) * 2)
    linear_map = LinearMap(geometry, np.full(geometry.weight_shape, weight, np.int16))
    answer = TorchMap(linear_map, device=device).apply(
        np.full((1, *geometry.in_shape), value, np.uint32)
    )
    terms = 4096 * kernel[0] * kernel[1]
    assert (answer[0, 2, 2] == weight * value * terms % 2**32).all()


@pytest.mark.parametrize(("norm", "products"), [(1 << 22, 1), ((1 << 22) + 1, 2)])
def test_digits_are_used_exactly_where_one_product_is_not_exact(norm, products, monkeypatch):
    terms = 256
    weights = np.full(terms, norm // terms, np.int64)
    weights[0] += norm - weights.sum()
    geometry = Geometry((1, 1), terms, (1, 1), 1)
    linear_map = LinearMap(geometry, weights.astype(np.int16).reshape(1, 1, 1, terms))
    torch_map = TorchMap(linear_map, device="cpu")
    calls = []
    convolve = torch_map._convolve
    monkeypatch.setattr(torch_map, "_convolve", lambda x: calls.append(1) or convolve(x))
    for value in (0x80000000, 0x7FFFFFFF, 0x80000001):
        x = np.full((1, 1, 1, terms), value, np.uint32)
        x[..., 1] = 0x12345679
        assert (torch_map.apply(x) == slow(linear_map, x)).all()
    assert len(calls) == 3 * products


def test_rows_that_cannot_be_exact_are_refused():
    geometry = Geometry((1, 1), 1 << 22, (1, 1), 1)
    weights = np.full(geometry.weight_shape, -32768, np.int16)
    TorchMap(LinearMap(geometry, weights), device="cpu")
    longer = Geometry((1, 1), (1 << 22) + 1, (1, 1), 1)
    weights = np.full(longer.weight_shape, -32768, np.int16)
    with pytest.raises(RangeError, match="L1 norm"):
        TorchMap(LinearMap(longer, weights), device="cpu")


def test_empty_batches_and_wrong_settings_of_pytorch(monkeypatch):
    torch_map = TorchMap(linear(), device="cpu")
    assert torch_map.apply(np.zeros((0, 5, 7, 3), np.uint32)).shape == (0, 5, 7, 4)
    # Whatever the process has set for itself, this path stays in float64.
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    torch.set_float32_matmul_precision("medium")
    x = np.full((1, 5, 7, 3), 0xDEADBEEF, np.uint32)
    assert (torch_map.apply(x) == slow(linear(), x)).all()
    torch.set_float32_matmul_precision("highest")


def test_missing_pytorch_and_devices_are_explained(monkeypatch):
    with pytest.raises(InputError, match="use --device cpu"):
        check_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="use --device cpu"):
            Engine(device="cuda")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(torch_maps.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"pip install torch"):
        check_device("cuda")
