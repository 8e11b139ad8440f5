"""Encrypted first layers against the same layers in the clear."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloister.data.encoding import Encoding
from cloister.errors import (
    AuthorityUnavailable,
    EncryptionError,
    InputError,
    RangeError,
    ShapeError,
    UnsupportedError,
)
from cloister.ring import pads
from cloister.ring.linear import Geometry
from cloister.training.ciphertexts import LocalCiphertextServer
from cloister.training.layers import (
    EncryptedConv2d,
    EncryptedLinear,
    Samples,
    conv_geometry,
    fixed_point,
)
from cloister.training.products import Products
from training.doubles import MemoryAuthority, MemoryDataset, blobs

RECEIVERS = ("server", "trusted")


def products_of(dataset, authority=None, **settings):
    authority = authority or MemoryAuthority(dataset)
    server = LocalCiphertextServer(dataset)
    return Products(authority.describe(dataset.name), server, keys=authority, **settings)


def both(plain, shape, *, offset=0.0, n=12, seed=1, **settings):
    """The plain layer's and the encrypted layer's output, and a batch for either."""
    x, y, encoding = blobs(n, shape, seed=seed, offset=offset)
    dataset = MemoryDataset(x, y, encoding=encoding, classes=3)
    samples = Samples(shape)
    kind = EncryptedConv2d if isinstance(plain, nn.Conv2d) else EncryptedLinear
    layer = kind(
        plain, samples=samples, products=products_of(dataset, **settings),
        encoding=encoding, shape=shape,
    )  # fmt: skip
    ids = np.arange(n, dtype=np.int64)[::-1].copy()
    clear = torch.from_numpy(x[ids]).float().permute(0, 3, 1, 2)
    return layer, samples.of(ids), clear


CONVOLUTIONS = [
    ((6, 5, 1), {"out_channels": 3, "kernel_size": 3}),
    ((6, 5, 2), {"out_channels": 4, "kernel_size": (2, 3), "padding": (1, 2)}),
    ((9, 7, 3), {"out_channels": 2, "kernel_size": (3, 2), "stride": (2, 1), "padding": 1}),
    ((9, 8, 2), {"out_channels": 5, "kernel_size": 3, "stride": 3, "dilation": (1, 2)}),
    ((7, 6, 1), {"out_channels": 1, "kernel_size": 1, "bias": False}),
]


@pytest.mark.parametrize("offset", [0.0, 3.5])
@pytest.mark.parametrize(("shape", "conv"), CONVOLUTIONS)
def test_convolution_equals_the_plain_one(shape, conv, offset):
    torch.manual_seed(0)
    plain = nn.Conv2d(shape[2], **conv)
    layer, batch, clear = both(plain, shape, offset=offset)
    _same_values_and_gradients(plain, layer, batch, clear)


@pytest.mark.parametrize("offset", [0.0, -2.25])
@pytest.mark.parametrize("shape", [(1, 1, 13), (6, 5, 1), (4, 3, 2)])
def test_dense_layer_equals_the_plain_one(shape, offset):
    torch.manual_seed(0)
    plain = nn.Linear(int(np.prod(shape)), 7)
    layer, batch, clear = both(plain, shape, offset=offset)
    _same_values_and_gradients(plain, layer, batch.flatten(1), clear.flatten(1))


def _same_values_and_gradients(plain, layer, batch, clear):
    parameters = list(plain.parameters())
    target = plain(clear)
    direction = torch.randn(target.shape, generator=torch.Generator().manual_seed(3))
    wanted = torch.autograd.grad((target * direction).sum(), parameters)
    found = layer(batch)
    assert found.shape == target.shape
    torch.testing.assert_close(found, target, rtol=0, atol=2e-3)
    gradients = torch.autograd.grad((found * direction).sum(), parameters)
    for gradient, exact in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_what_follows_may_write_to_the_output(kind, bias):
    """ReLU(inplace=True) is usual, and autograd refuses it for views made in a function."""
    plain = nn.Conv2d(1, 3, 3, bias=bias) if kind == "conv" else nn.Linear(30, 4, bias=bias)
    layer, batch, clear = both(plain, (6, 5, 1))
    if kind == "dense":
        batch, clear = batch.flatten(1), clear.flatten(1)
    wanted = torch.autograd.grad(plain(clear).relu().sum(), list(plain.parameters()))
    found = torch.autograd.grad(layer(batch).relu_().sum(), list(plain.parameters()))
    for gradient, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=2e-3, atol=2e-3)


def test_a_frozen_weight_asks_for_no_key():
    plain = nn.Conv2d(1, 3, 3)
    plain.weight.requires_grad_(False)
    x, y, encoding = blobs(6)
    dataset = MemoryDataset(x, y, encoding=encoding)
    authority = MemoryAuthority(dataset)
    samples = Samples((6, 5, 1))
    layer = EncryptedConv2d(
        plain, samples=samples, products=products_of(dataset, authority),
        encoding=encoding, shape=(6, 5, 1),
    )  # fmt: skip
    layer(samples.of(np.arange(6, dtype=np.int64))).sum().backward()
    assert [kind for kind, _, _ in authority.log] == ["forward"]
    torch.testing.assert_close(plain.bias.grad, torch.full((3,), 6.0 * 4 * 3))


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_models_in_double_precision(kind):
    plain = nn.Conv2d(1, 3, 3) if kind == "conv" else nn.Linear(30, 4)
    layer, batch, clear = both(plain.double(), (6, 5, 1))
    if kind == "dense":
        batch, clear = batch.flatten(1), clear.flatten(1)
    found = layer(batch)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, plain(clear.double()), rtol=0, atol=2e-3)
    found.sum().backward()
    assert plain.weight.grad.dtype == torch.float64


class KeysFromAWire(MemoryAuthority):
    """Gives its answers as a client gets them: in C order and read-only."""

    def ask(self, request, receiver):
        answer = np.array(super().ask(request, receiver), order="C")
        answer.flags.writeable = False
        return answer


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((9, 7), 1, (1, 1), 70, kernel=(9, 7)),
        Geometry((4, 3), 2, (1, 1), 5, kernel=(4, 3)),
        Geometry((6, 5), 3, (4, 3), 1, kernel=(3, 3)),
        Geometry((1, 1), 1, (1, 1), 1),
    ],
    ids=str,
)
def test_the_order_of_a_key_in_memory_does_not_matter(geometry):
    rng = np.random.default_rng(4)
    x, y, encoding = blobs(7, geometry.in_shape)
    dataset = MemoryDataset(x, y, encoding=encoding)
    ids = np.arange(7, dtype=np.int64)
    delta = rng.integers(-(2**15), 2**15, (7, *geometry.out_shape)).astype(np.int16)
    integers = encoding.encode(x)
    zeros = np.zeros((7, *geometry.in_shape), np.uint32)
    wanted = pads.unblind(
        pads.gradient(geometry, delta, integers.astype(np.uint32)),
        pads.gradient(geometry, delta, zeros),
    )
    for authority in (MemoryAuthority(dataset), KeysFromAWire(dataset)):
        found = products_of(dataset, authority).gradient(ids, geometry, delta)
        np.testing.assert_array_equal(found.integers(), wanted)
        real = found.scaled(2.0**-9)
        np.testing.assert_array_equal(real, wanted.astype(np.float32) * np.float32(2.0**-9))
        assert real.flags.c_contiguous


def test_tiny_gradients_keep_their_precision():
    """A fixed number of decimals would round them to zero."""
    plain = nn.Conv2d(1, 2, 3)
    layer, batch, clear = both(plain, (6, 5, 1))
    for x, model in ((clear, plain), (batch, layer)):
        (1e-9 * model(x)).sum().backward()
        if model is plain:
            wanted, plain.weight.grad = plain.weight.grad.clone(), None
    torch.testing.assert_close(plain.weight.grad, wanted, rtol=1e-3, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 2**15 - 1),
    st.floats(1e-30, 1e20),
    st.sampled_from(["random", "equal", "one"]),
    st.integers(2, 16),
)
def test_products_provably_stay_below_31_bits(count, x_bound, size, kind, bits):
    generator = torch.Generator().manual_seed(count)
    values = {
        "random": torch.randn(3, count, generator=generator),
        "equal": torch.ones(3, count),
        "one": torch.zeros(3, count).index_fill(1, torch.tensor([0]), 1.0),
    }[kind] * size
    fixed = fixed_point(values, sums=(1, 3, count), order=(1, 3, count), x_bound=x_bound, bits=bits)
    integers = torch.from_numpy(fixed.integers[0].T)
    worst = integers.to(torch.int64).abs().sum(dim=1).max() * x_bound
    assert int(worst) < 2**31
    assert int(integers.to(torch.int64).abs().max()) < 2 ** (bits - 1)
    if size > 2**-60:
        error = (integers.double() * 2.0**-fixed.exponent - values.double()).abs().max()
        assert error <= 2.0 ** -(fixed.exponent + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_integers_do_not_depend_on_the_order_in_memory(dtype):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=generator).to(dtype)
    kept = values.clone()
    shape = (3, 4, 30)
    wanted = fixed_point(values, sums=shape, order=shape, x_bound=255, bits=16)
    exact = (values.double() * 2.0**wanted.exponent).round().reshape(shape).transpose(1, 2)
    for order in ((0, 1, 2, 3), (3, 0, 1, 2), (0, 3, 1, 2), (1, 3, 2, 0)):
        stored = values.permute(order).contiguous().permute(*np.argsort(order).tolist())
        found = fixed_point(stored, sums=shape, order=shape, x_bound=255, bits=16)
        assert found.exponent == wanted.exponent
        np.testing.assert_array_equal(found.integers, exact.numpy())
    assert torch.equal(values, kept), "the caller's values were written to"
    spread = fixed_point(
        torch.ones(()).expand(2, 3), sums=(2, 3, 1), order=(2, 3, 1), x_bound=255, bits=16
    )
    assert np.unique(spread.integers).tolist() == [2**14]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_diverged_weights_are_refused(bad):
    layer, batch, _ = both(nn.Conv2d(1, 2, 3), (6, 5, 1))
    layer.weight.data[1, 0, 2, 2] = bad
    with pytest.raises(RangeError, match="NaN, infinite"):
        layer(batch)


def test_zero_weights_and_zero_gradients():
    layer, batch, _ = both(nn.Conv2d(1, 2, 3, bias=False), (6, 5, 1))
    layer.weight.data.zero_()
    found = layer(batch)
    assert not found.detach().any()
    (0.0 * found).sum().backward()
    assert not layer.weight.grad.any()


def test_too_many_terms_are_refused():
    with pytest.raises(RangeError, match="smaller batch"):
        fixed_point(
            torch.ones(2**18), sums=(2**18, 1, 1), order=(2**18, 1, 1), x_bound=2**15 - 1, bits=16
        )


def test_the_input_must_be_the_sample_itself():
    layer, batch, clear = both(nn.Conv2d(1, 2, 3), (6, 5, 1))
    for x in (batch * 1.0, clear, batch[:3]):
        with pytest.raises(InputError, match="sample itself"):
            layer(x)
    with pytest.raises(InputError, match="no gradient"):
        layer(clear.requires_grad_())


def test_the_placeholder_holds_no_number():
    _, batch, _ = both(nn.Conv2d(1, 2, 3), (6, 5, 1))
    assert batch.isnan().all()


@pytest.mark.parametrize("conv", [
    {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 2},
])  # fmt: skip
def test_unsupported_convolutions(conv):
    with pytest.raises(UnsupportedError):
        conv_geometry(nn.Conv2d(2, 4, 3, **conv), (6, 6, 2))


def test_channels_must_fit():
    with pytest.raises(ShapeError, match="3 channels"):
        conv_geometry(nn.Conv2d(3, 4, 3), (6, 6, 1))


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_who_receives_the_unblinding_term(receiver):
    x, y, encoding = blobs(6)
    dataset = MemoryDataset(x, y, encoding=encoding)
    authority = MemoryAuthority(dataset)
    seen = []
    log = type("Log", (), {"append": lambda self, release: seen.append(release)})()
    products = products_of(dataset, authority, receiver=receiver, recorder=log)
    labels = products.labels(np.arange(6, dtype=np.int64))
    assert labels.tolist() == y.tolist()
    assert [entry[2] for entry in authority.log] == [receiver]
    assert len(seen) == (receiver == "server"), "a trusted runtime releases nothing to the server"


def test_labels_under_a_wrong_key_are_refused():
    x, y, encoding = blobs(6)
    dataset = MemoryDataset(x, y, encoding=encoding)
    products = products_of(dataset, MemoryAuthority(dataset, key=bytes(32)))
    with pytest.raises(EncryptionError, match="label of sample 0"):
        products.labels(np.arange(6, dtype=np.int64))


def test_an_absent_authority_is_asked_again():
    x, y, encoding = blobs(6)
    dataset = MemoryDataset(x, y, encoding=encoding)
    products = products_of(dataset, MemoryAuthority(dataset, away=1))
    assert products.labels(np.arange(6, dtype=np.int64)).tolist() == y.tolist()
    gone = products_of(dataset, MemoryAuthority(dataset, away=1), patience_s=0.0)
    with pytest.raises(AuthorityUnavailable):
        gone.labels(np.arange(6, dtype=np.int64))


def test_every_entry_at_its_bound():
    encoding = Encoding(1.0, 0.0, 8)
    x = np.full((4, 3, 3, 1), 127.0)
    dataset = MemoryDataset(x, np.arange(4) % 2, encoding=encoding)
    plain = nn.Linear(9, 2)
    plain.weight.data.fill_(1.5)
    samples = Samples((3, 3, 1))
    layer = EncryptedLinear(
        plain, samples=samples, products=products_of(dataset), encoding=encoding, shape=(3, 3, 1)
    )
    found = layer(samples.of(np.arange(4, dtype=np.int64)).flatten(1))
    torch.testing.assert_close(found, plain(torch.full((4, 9), 127.0)), rtol=1e-5, atol=1e-5)
