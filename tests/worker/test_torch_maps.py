"""The PyTorch maps, on CPU tensors and, where there is one, a GPU."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, RangeError
from cloister.ring.linear import Geometry, LinearMap
from cloister.worker import torch_maps
from cloister.worker.engine import Engine
from cloister.worker.torch_maps import (
    Int8Map,
    TorchMap,
    check_device,
    checked_int8,
    limb_count,
    limbs,
    make_map,
)
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


# ---- 8-bit limbs


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(geometry=geometries(), seed=st.integers(0, 2**32 - 1), small=st.booleans())
def test_limbs_equal_the_definition(device, geometry, seed, small):
    rng = np.random.default_rng(seed)
    bound = 2048 if small else 32768
    one_group = replace(
        geometry, groups=1,
        in_channels=geometry.in_channels // geometry.groups,
    )  # fmt: skip
    weights = rng.integers(-bound, bound, one_group.weight_shape).astype(np.int16)
    shape = (2, *one_group.in_shape)
    linear_map = LinearMap(one_group, weights)
    int8_map = Int8Map(linear_map, device=device)
    x = rng.integers(0, 2**32, shape, dtype=np.uint32)
    x.reshape(-1)[: len(TOP)] = TOP[: x.size]
    assert (int8_map.apply(x) == slow(linear_map, x)).all()
    plain = rng.integers(-bound, bound, shape).astype(np.int16)
    assert (int8_map.apply(plain) == slow(linear_map, plain)).all()


@pytest.mark.parametrize("weight", [-32768, 32767, 32639, 32640, -128, 127, 1])
@pytest.mark.parametrize("value", [0x80000000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFF8000, 0x7F7F7F80])
def test_limbs_at_the_bounds_with_long_sums(weight, value):
    # Longer than one exact product, by an odd number of terms.
    terms = torch_maps.EXACT_TERMS + 1001
    geometry = Geometry((1, 1), terms, (1, 1), 3)
    linear_map = LinearMap(geometry, np.full(geometry.weight_shape, weight, np.int16))
    int8_map = Int8Map(linear_map, device="cpu")
    answer = int8_map.apply(np.full((1, 1, 1, terms), value, np.uint32))
    assert (answer == weight * value * terms % 2**32).all()
    plain = np.full((1, 1, 1, terms), 32767, np.int16)
    assert (int8_map.apply(plain) == weight * 32767 * terms % 2**32).all()


def test_limbs_stand_for_their_values():
    values = [0, 1, -1, 127, 128, -128, -129, 32639, 32640, 2**31 - 1, -(2**31), 0x7F7F7F7F + 1]
    tensor = torch.tensor(values, dtype=torch.int32)
    parts = limbs(torch, tensor, 4)
    for k, value in enumerate(values):
        total = sum(int(part[k]) << (8 * j) for j, part in enumerate(parts))
        assert (total - value) % 2**32 == 0
    for bound, count in [(127, 1), (128, 2), (32639, 2), (32640, 3), (2**23, 4)]:
        assert limb_count(0, bound) == count
        fits = torch.tensor([bound], dtype=torch.int32)
        assert sum(int(p[0]) << (8 * j) for j, p in enumerate(limbs(torch, fits, count))) == bound
    assert [limb_count(low, 0) for low in (-128, -129, -32896, -32897)] == [1, 2, 2, 3]


def test_limbs_of_many_images_are_done_in_pieces(monkeypatch):
    geometry = Geometry((6, 5), 3, (6, 5), 4, kernel=(3, 3), pad=(1, 1))
    monkeypatch.setattr(torch_maps, "CHUNK_BYTES", 2 * 30 * 32)
    linear_map = linear(3, geometry)
    x = np.random.default_rng(1).integers(0, 2**32, (7, *geometry.in_shape), dtype=np.uint32)
    found = Int8Map(linear_map, device="cpu").apply(x)
    assert (found == TorchMap(linear_map, device="cpu").apply(x)).all()
    assert Int8Map(linear_map, device="cpu").apply(x[:0]).shape == (0, *geometry.out_shape)


def test_limbs_are_used_where_they_are_right(monkeypatch):
    plain = linear()
    assert isinstance(make_map(plain, device="cpu"), TorchMap)
    assert isinstance(checked_int8(plain, device="cpu"), Int8Map)
    exact = torch._int_mm
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_int_mm", lambda a, b: exact(a, b) + 1)
        assert checked_int8(plain, device="cpu") is None

    def refuses(a, b):
        raise RuntimeError("not for this device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "_int_mm", refuses)
        assert checked_int8(plain, device="cpu") is None
    grouped = Geometry((3, 3), 4, (3, 3), 4, groups=2)
    with pytest.raises(InputError, match="groups"):
        Int8Map(linear(0, grouped), device="cpu")
