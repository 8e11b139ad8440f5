"""What becomes an input of a model, and what is refused because something would be lost."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloister.errors import RangeError, ShapeError
from cloister.graph.array_conversion import as_array, as_input, convert
from cloister.graph.graph import Graph, TensorType


def to(wanted, given_):
    return convert(np.asarray(given_), np.dtype(wanted), "input 'x'", 0)


@pytest.mark.parametrize(
    ("wanted", "given_"),
    [
        (np.float32, np.array([0.1, -1e-50, 3e38, np.nan, np.inf, -np.inf])),
        (np.float32, np.array([0.1, np.nan], np.float16)),
        (np.float32, np.array([1.5, 2.0**100], ml_dtypes.bfloat16)),
        (np.float32, np.array([0.5], ">f4")),
        (np.float32, np.array([0.1, np.nan], ">f8")),
        (np.float32, np.array([2**24], ">i8")),
        (np.float16, np.array([0.1, 65504.0], np.float32)),
        (np.float64, np.array([2**53, -(2**53)])),
        (np.float32, np.array([2**24, -(2**24), 100_000_000, -(2**63)])),
        (np.float32, np.array([2**63], np.uint64)),
        (np.float32, np.array([True, False])),
        (np.float32, np.array([1, 0.5, True], object)),
        (np.int64, np.array([-(2**31)], np.int32)),
        (np.int32, np.array([2**31 - 1, -(2**31)])),
        (np.uint8, np.array([0, 255])),
        (np.uint64, np.array([2**63])),
        (np.int64, np.array([-3.0, 2.0**62], np.float64)),
        (np.int32, np.array([True])),
        (np.bool_, np.array([0, 1])),
        (np.bool_, np.array([0.0, 1.0])),
    ],
)
def test_numbers_that_are_kept(wanted, given_):
    made = to(wanted, given_)
    assert made.dtype == np.dtype(wanted)
    assert made.shape == given_.shape
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(made, given_.astype(wanted))
    if given_.dtype.kind in "iub":
        assert made.astype(object).tolist() == given_.astype(object).tolist()


@pytest.mark.parametrize(
    ("wanted", "given_", "text"),
    [
        (np.float32, np.array([0, 1e39]), "sample 1 has a number beyond the largest float32"),
        (np.float16, np.array([0, -7e4], np.float32), "sample 1 .* beyond the largest float16"),
        (np.float32, np.array([0, 2**24 + 1]), "sample 1 has an integer that float32 does not"),
        (np.float32, np.array([-(2**24) - 1]), "sample 0 has an integer"),
        (np.float32, np.array([2**63 + 1], np.uint64), "sample 0 has an integer"),
        (np.float32, np.array([2**63 - 1]), "sample 0 has an integer"),
        (np.float64, np.array([2**53 + 1]), "an integer that float64 does not"),
        (np.float16, np.array([2**40]), "an integer that float16 does not"),
        (np.int32, np.array([1, 2**31]), "sample 1 has a number beyond the range of int32"),
        (np.uint8, np.array([-1]), "beyond the range of uint8"),
        (np.int64, np.array([2**63], np.uint64), "beyond the range of int64"),
        (np.int64, np.array([1, 2.0**63]), "sample 1 has a number beyond the range of int64"),
        (np.int64, np.array([1, 0.5]), "sample 1 has a number that is not whole"),
        (np.int64, np.array([np.nan]), "not whole"),
        (np.int64, np.array([-np.inf]), "not whole"),
        (np.bool_, np.array([0, 2]), "sample 1 has a number other than 0 and 1"),
        (np.bool_, np.array([np.nan]), "other than 0 and 1"),
        (object, np.array(["a", 3.5], object), "sample 1 has an entry that is no text"),
    ],
)
def test_numbers_that_would_be_lost(wanted, given_, text):
    with pytest.raises(RangeError, match=rf"^input 'x': .*{text}"):
        to(wanted, given_)


@pytest.mark.parametrize(
    ("wanted", "given_", "text"),
    [
        (np.float32, np.zeros(2, np.uint8), r"got uint8, such as pixels; .*astype\('float32'\)"),
        (np.float32, np.zeros(2, np.complex64), "the model takes float32, got complex64"),
        (np.float32, np.array(["1.5"]), "the model takes float32, got <U3"),
        (np.float32, np.array([1.5, None], object), "the model takes float32, got object"),
        (np.float32, np.array([1.5, "2"], object), "the model takes float32, got <U"),
        (np.float32, np.array([1.5, [2]], object), "the entries cannot be read as numbers"),
        (np.float32, np.array(["1.5"], np.dtypes.StringDType()), "the model takes float32"),
        (np.float32, np.zeros(2, "datetime64[s]"), "the model takes float32, got datetime64"),
        (np.int64, np.zeros(2, "timedelta64[s]"), "the model takes int64, got timedelta64"),
        (object, np.zeros(2), "the model takes texts, got float64"),
        (object, np.array([b"a"]), "the model takes texts"),
        (ml_dtypes.int4, np.zeros(2, np.int8), "the model takes int4, got int8"),
    ],
)
def test_types_that_do_not_become_the_models(wanted, given_, text):
    with pytest.raises(ShapeError, match=text):
        to(wanted, given_)


def test_no_value_is_in_a_message():
    with pytest.raises(RangeError) as caught:
        to(np.float32, np.array([1, 123456789]))
    assert "123456789" not in str(caught.value)


def test_texts():
    wide = np.array(["a", "bc"], np.dtypes.StringDType())
    for given_ in (np.array(["a", "bc"]), np.array(["a", "bc"], object), wide):
        made = to(object, given_)
        assert made.dtype == object
        assert made.tolist() == ["a", "bc"]


@pytest.mark.parametrize("odd", [3, float("nan"), None, b"c"])
def test_a_list_of_texts_with_another_entry_is_refused(odd):
    with pytest.raises(RangeError, match="sample 1 has an entry that is no text"):
        to(object, as_array(["a", odd], "input 'x'"))


def test_an_empty_list_is_no_text_too():
    assert to(object, as_array([], "input 'x'")).dtype == object


def test_the_models_own_type_is_not_copied():
    x = np.zeros((3, 4), np.float32)
    assert np.shares_memory(to(np.float32, x), x)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(st.sampled_from(["i1", "i2", "u2", "i4", "u4", "i8", "u8"]), st.integers(0, 5)),
    st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i4", "u4", "i8", "u8"]),
)
def test_integers_are_exact_or_refused(array, wanted):
    exact = True
    for one in array.tolist():
        if np.dtype(wanted).kind == "f":
            with np.errstate(over="ignore"):
                made = float(np.array(one).astype(wanted))
            exact &= np.isfinite(made) and int(made) == one
        else:
            exact &= np.iinfo(wanted).min <= one <= np.iinfo(wanted).max
    if exact:
        assert to(wanted, array).astype(object).tolist() == array.tolist()
    else:
        with pytest.raises(RangeError):
            to(wanted, array)


# ---- objects of other libraries


class Tensor:
    """An array by NumPy's protocol, as TensorFlow and JAX have it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Exported:
    """An array by DLPack alone."""

    def __init__(self, array, device=1):
        self.array, self.device, self.copied = array, device, False

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, *, dl_device=None, **others):
        self.copied = dl_device == (1, 0)
        return self.array.__dlpack__(dl_device=dl_device, **others)


class OnDevice(Exported):
    """As CuPy's: NumPy's protocol refuses, and DLPack copies."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`")


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_plain_arrays_are_read_without_masked_ones():
    """NumPy loads its masked arrays on first use, which no request should wait for."""
    code = (
        "import sys, numpy as np; from cloister.graph.array_conversion import as_array; "
        "as_array(np.zeros(3), 'x'), as_array([1], 'x'), sys.exit('numpy.ma' in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize(
    "given_",
    [
        X, X.tolist(), tuple(map(tuple, X)), list(X), Tensor(X), Exported(X), OnDevice(X, device=2),
        torch.from_numpy(X), torch.from_numpy(X).requires_grad_(), list(torch.from_numpy(X)),
        [Exported(row) for row in X], [torch.from_numpy(row).requires_grad_() for row in X],
        torch.nn.Parameter(torch.from_numpy(X)), memoryview(X), np.ma.array(X),
        torch.from_numpy(X).to(torch.bfloat16), [torch.from_numpy(X[0]).to(torch.bfloat16), X[1]],
    ],
    ids=lambda given_: type(given_).__name__,
)  # fmt: skip
def test_what_is_read_as_an_array(given_):
    found = as_array(given_, "input 'x'")
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, X)


def test_numbers_are_arrays_without_axes():
    for given_ in (2.5, np.float64(2.5), torch.tensor(2.5)):
        found = as_array(given_, "input 'x'")
        assert found.shape == ()
        assert found == 2.5


def test_an_accelerators_tensor_is_copied_by_its_library():
    given_ = OnDevice(X, device=2)
    as_array(given_, "input 'x'")
    assert given_.copied


def test_a_library_s_own_copy_is_preferred():
    """TensorFlow's DLPack does not copy from an accelerator, and its `__array__` does."""

    class Both(Exported):
        def __array__(self, dtype=None, copy=None):
            return self.array

    given_ = Both(X, device=2)
    np.testing.assert_array_equal(as_array(given_, "input 'x'"), X)
    assert not given_.copied


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (None, "expected an array, a list or a number, got NoneType"),
        ({1, 2}, "expected an array, a list or a number, got set"),
        ([[1.0], [1.0, 2.0]], "the list cannot be read as an array .*inhomogeneous"),
        ([X, X[:, :1]], "the list cannot be read as an array"),
        (torch.zeros(2, device="meta"), "the Tensor cannot be read as an array"),
        (np.ma.array(X, mask=X > 4), "entries are masked; fill them"),
    ],
)
def test_what_is_not_read(given_, text):
    with pytest.raises(ShapeError, match=rf"^input 'x': {text}"):
        as_array(given_, "input 'x'")


# ---- shapes


def graph(*shape, dtype=np.float32):
    return Graph("g", (), ("x",), (), {}, {"x": TensorType(np.dtype(dtype), shape)}, 17)


@pytest.mark.parametrize(
    ("takes", "given_", "made"),
    [
        ((None, 3, 4), (5, 3, 4), (5, 3, 4)),
        ((None, 3, 4), (3, 4), (1, 3, 4)),
        ((3, None, 4), (3, 4), (3, 1, 4)),
        ((None, 1), (5,), (5, 1)),
        ((None, 1), (1,), (1, 1)),
        ((None, 1), (), (1, 1)),
        ((None,), (), (1,)),
        ((1, 3), (3,), (1, 3)),
        ((), (), ()),
    ],
)
def test_shapes_that_fit(takes, given_, made):
    assert as_input(graph(*takes), "x", np.zeros(given_), "input 'x'").shape == made


@pytest.mark.parametrize(
    ("takes", "given_"),
    [((None, 3), (4,)), ((None, 3), ()), ((2, 3), (3,)), ((None, 2), (2, 1)), ((), (1,)),
     ((None, 1), (5, 2)), ((None, 3, 4), (4,))],
)  # fmt: skip
def test_shapes_that_do_not_fit(takes, given_):
    with pytest.raises(ShapeError, match="the model takes shape"):
        as_input(graph(*takes), "x", np.zeros(given_), "input 'x'")
