"""Arrays as they are found: right, or refused by file and array with a remedy."""

import io
import zipfile

import numpy as np
import pytest

from cloister.data.array_samples import _LOOKED_AT_BYTES
from cloister.data.encoder import Encoder
from cloister.data.encoding import Encoding
from cloister.data.preprocessing import Layout
from cloister.data.sources import ArraySource, open_source, value_range
from cloister.errors import InputError, RangeError, ShapeError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.random((30, 8)).astype("f4")
Y = GENERATOR.integers(0, 3, 30)
NAMES = ("0", "1", "2")

GIVEN_RIGHT = {
    "ok": (X, Y, NAMES, "classes"),
    "f64": (X.astype("f8"), Y.astype("f8"), NAMES, "classes"),
    "strlabels": (X, np.array(["sick", "well", "dead"])[Y], ("dead", "sick", "well"), "classes"),
    "onehot": (X, np.eye(3)[Y], NAMES, "classes"),
    "half": (X.astype("f2"), Y.astype("u1"), NAMES, "classes"),
    "bool": (X > 0.5, Y, NAMES, "classes"),
}
GIVEN_REFUSED = {
    "wrongname": ({"data": X, "target": Y}, r"no array 'x' but data, target; give --x data --y t"),
    "obj": (
        {"x": np.array([[1, "a"], [2, "b"]], dtype=object), "y": np.array([0, 1])},
        r"array 'x': holds Python objects, which are never loaded; save it as numbers",
    ),
    "len": ({"x": X, "y": Y[:29]}, r"array 'y' must hold one class number.*30 samples.*\(29,\)"),
    "nan": (
        {"x": np.where(X > 0.99, np.nan, X), "y": Y},
        r"array 'x': \d of 30 samples hold NaN or infinity \(samples \d+, .*\); fill or drop them",
    ),
    "ylabel3d": (
        {"x": GENERATOR.random((30, 3, 4, 4, 2)), "y": Y},
        r"array 'x' must be \(samples, features\), .*got \(30, 3, 4, 4, 2\); reshape it",
    ),
    "cplx": ({"x": X + 1j, "y": Y}, "array 'x' must hold numbers, and holds complex .*imaginary"),
    "neg": ({"x": X, "y": Y - 1}, "array 'y': class numbers begin at 0, but sample .*number the"),
    "zero": ({"x": X[:0], "y": Y[:0]}, r"array 'x' holds no samples: its shape is \(0, 8\)"),
    "nchw": (
        {"x": GENERATOR.random((30, 3, 16, 16)), "y": Y},
        r"array 'x' of shape \(30, 3, 16, 16\) seems to have its channels first; give --layout n",
    ),
    "x1d": ({"x": X[:, 0], "y": Y}, r"array 'x' holds one number for each.*x.reshape\(-1, 1\)"),
    "bigy": ({"x": X, "y": Y * 1000000}, "array 'y': class number 2000000 .*without gaps"),
}


def encoded(found):
    """All samples as they are encrypted where their owner names no range."""
    low, high = value_range(found)
    encoding = Encoding.for_range(low, high if high > low else low + 1)
    return encoding, Encoder(found, encoding).encode(np.arange(found.samples))


@pytest.mark.parametrize("case", GIVEN_RIGHT)
def test_given_arrays_that_are_read(tmp_path, case):
    x, y, names, targets = GIVEN_RIGHT[case]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    found = open_source(tmp_path / "a.npz")
    assert (found.kind, found.shape, found.samples) == ("values", (1, 1, 8), 30)
    assert (found.names, found.targets) == (names, targets)
    encoding, got = encoded(found)
    np.testing.assert_allclose(
        encoding.decode(got)[:, 0, 0], x.astype(float), atol=encoding.resolution + 1e-9
    )
    if targets == "classes":
        if case == "strlabels":
            expected = [names.index(one) for one in y]
        else:
            expected = y.argmax(axis=1) if y.ndim == 2 else y.astype(int)
        np.testing.assert_array_equal(found.labels, expected)
    else:
        np.testing.assert_array_equal(found.labels, y)


@pytest.mark.parametrize("case", GIVEN_REFUSED)
def test_given_arrays_that_are_refused(tmp_path, case):
    arrays, message = GIVEN_REFUSED[case]
    np.savez(tmp_path / f"{case}.npz", **arrays)
    with pytest.raises(InputError, match=rf"{case}\.npz: .*{message}"):
        open_source(tmp_path / f"{case}.npz")


def test_given_samples_in_a_file_of_their_own(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "labels.npy", Y)
    with pytest.raises(InputError, match=r"x.npy: holds one array.*--y FILE.npy"):
        open_source(tmp_path / "x.npy")
    found = open_source(tmp_path / "x.npy", y=str(tmp_path / "labels.npy"))
    np.testing.assert_array_equal(found.read(np.arange(30))[:, 0, 0], X)
    np.testing.assert_array_equal(found.labels, Y)
    with pytest.raises(InputError, match=r"none.npy: no such file"):
        open_source(tmp_path / "x.npy", y=str(tmp_path / "none.npy"))
    np.save(tmp_path / "labels.npy", Y[:9])
    with pytest.raises(ShapeError, match=r"labels.npy must hold one class number"):
        open_source(tmp_path / "x.npy", y=str(tmp_path / "labels.npy"))


def test_targets_beside_an_archive(tmp_path):
    np.savez(tmp_path / "a.npz", x=X)
    np.save(tmp_path / "y.NPY", Y)
    (tmp_path / "y.NPY.npy").rename(tmp_path / "y.NPY")
    found = open_source(tmp_path / "a.npz", y=str(tmp_path / "y.NPY"))
    np.testing.assert_array_equal(found.labels, Y)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_unlabelled_samples_need_no_targets(tmp_path, name):
    (np.save if name.endswith("npy") else lambda path, x: np.savez(path, x=x))(tmp_path / name, X)
    found = open_source(tmp_path / name, unlabelled=True)
    assert (found.labels, found.samples, found.names) == (None, 30, ())
    np.testing.assert_array_equal(found.read(np.arange(30))[:, 0, 0], X)


FIRST = GENERATOR.integers(0, 256, (6, 3, 16, 20), dtype=np.uint8)


@pytest.mark.parametrize("layout", [Layout.NCHW, Layout.NHWC])
def test_layouts(tmp_path, layout):
    x = FIRST if layout is Layout.NCHW else FIRST.transpose(0, 2, 3, 1)
    for order in "CF":
        np.savez(tmp_path / "a.npz", x=np.asarray(x, order=order), y=np.arange(6) % 2)
        found = open_source(tmp_path / "a.npz", layout=layout)
        assert (found.kind, found.shape) == ("pixels", (16, 20, 3))
        np.testing.assert_array_equal(
            found.read(np.array([4, 1])), FIRST.transpose(0, 2, 3, 1)[[4, 1]]
        )
    assert open_source(tmp_path / "a.npz", layout=layout).remarks == ()


def test_layouts_that_mean_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(ShapeError, match=r"has no axis of channels; leave out --layout nchw"):
        open_source(tmp_path / "a.npz", layout=Layout.NCHW)
    (tmp_path / "a.csv").write_text("a,label\n1,x\n2,y\n")
    with pytest.raises(InputError, match=r"a.csv: --layout is about arrays.*leave it out"):
        open_source(tmp_path / "a.csv", layout=Layout.NCHW)
    one = np.zeros((4, 1, 28, 28), np.float32)
    with pytest.raises(ShapeError, match="--layout nchw"):
        ArraySource(one, np.arange(4) % 2)
    assert ArraySource(one, np.arange(4) % 2, layout=Layout.NHWC).shape == (1, 28, 28)
    assert ArraySource(one, np.arange(4) % 2, layout=Layout.NCHW).shape == (28, 28, 1)


WHOLE = GENERATOR.integers(0, 200, (30, 8))
TYPES = ["?", "i1", "<i2", ">i2", "u2", ">u4", "i8", "u8", "f2", ">f4", "<f8", ">f8", "g"]


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_numbers_and_order(tmp_path, kind, order):
    x = np.asarray(WHOLE % 100 if kind != "?" else WHOLE % 2, kind, order=order)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=Y)
    found = open_source(tmp_path / "a.npz")
    assert (found.kind, found.shape) == ("values", (1, 1, 8))
    np.testing.assert_array_equal(found.read(np.array([7, 3]))[:, 0, 0].astype(float), x[[7, 3]])
    encoding, got = encoded(found)
    np.testing.assert_allclose(
        encoding.decode(got)[:, 0, 0], x.astype(float), atol=encoding.resolution * (1 + 1e-9)
    )


REFUSED = {
    "texts": (
        np.array([["a", "b"]] * 3),
        "holds texts; encode them as numbers, or give a .csv",
    ),
    "bytes": (np.array([[b"a", b"b"]] * 3), "and holds texts; encode them"),
    "dates": (np.full((3, 2), "2024-01-01", "M8[s]"), "and holds dates; save a number"),
    "durations": (np.full((3, 2), 3, "m8[s]"), "and holds durations; save a number"),
    "fields": (np.zeros((3, 2), [("a", "f4"), ("b", "i4")]), "fields with names; .*structured_to_"),
    "scalar": (np.array(3.5), r"array x must be \(samples, features\).*got \(\); reshape it"),
    "no features": (np.zeros((3, 0)), r"array x holds no samples: its shape is \(3, 0\)"),
    "no width": (np.zeros((3, 4, 0, 1)), "array x holds no samples"),
    "six axes": (np.zeros((3, 1, 1, 1, 1, 1)), "reshape it"),
    "infinity": (np.array([[1.0], [np.inf], [2.0]]), r"1 of 3 samples hold NaN .*\(sample 1\)"),
    "minus": (np.array([[-np.inf], [0.0], [2.0]]), r"1 of 3 samples hold NaN .*\(sample 0\)"),
    "half": (np.array([[1], [2], [np.nan]], "f2"), r"1 of 3 samples hold NaN .*\(sample 2\)"),
    "masked": (np.ma.masked_greater(np.arange(6.0).reshape(3, 2), 4), "has masked entries; fill"),
    "complex": (np.ones((3, 2), "c8"), "holds complex numbers"),
    "objects": (np.array([[1, None]] * 3), "holds Python objects"),
    "odd truths": (np.full((3, 2), 255, np.uint8).view(bool), "truth values that are neither"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_are_refused(case):
    x, message = REFUSED[case]
    with pytest.raises((ShapeError, RangeError), match=message):
        ArraySource(x, np.arange(3) % 2)


def test_a_mask_without_masked_entries_is_no_loss():
    found = ArraySource(np.ma.masked_greater(np.arange(6.0).reshape(3, 2), 9), np.arange(3) % 2)
    np.testing.assert_array_equal(found.read(np.arange(3))[:, 0, 0], np.arange(6.0).reshape(3, 2))


def test_all_samples_that_are_no_numbers_are_counted():
    x = np.zeros((3000, 4000), np.float32)  # more than is looked at in one piece
    assert x.nbytes > 2 * _LOOKED_AT_BYTES
    x[::100, 7] = np.nan
    with pytest.raises(RangeError, match=r"30 of 3,000 .*samples 0, 100, .*1900, and 10 more"):
        ArraySource(x, np.arange(3000) % 2)


def test_pixels_that_may_be_none():
    assert ArraySource(np.eye(4, dtype=np.uint8), np.arange(4) % 2).remarks == (
        "the samples are uint8 and at most 1: they are read as pixels of 0 to 255, nearly black; "
        "save them as bool or as floats if they are no pixels",
    )
    assert ArraySource(2 * np.eye(4, dtype=np.uint8), np.arange(4) % 2).remarks == ()


def test_other_containers_than_arrays():
    found = ArraySource([[1, 2], [3, 4], [5, 6]], [0, 1, 0])
    assert (found.shape, found.names) == ((1, 1, 2), ("0", "1"))


NAMED = {
    "unicode": np.array([" well", "sick", "well"]),
    "bytes": np.array(["well", "sick", "well"]).astype("S"),
    "column": np.array([["well"], ["sick"], ["well"]]),
    "objects": np.array(["well", "sick", "well"], object),
}


@pytest.mark.parametrize("case", NAMED)
def test_classes_by_name(case):
    found = ArraySource(np.eye(3), NAMED[case])
    assert found.names == ("sick", "well")
    np.testing.assert_array_equal(found.labels, [1, 0, 1])


def test_a_class_without_a_name_is_refused():
    with pytest.raises(RangeError, match="array y: sample 1 has no class name; write one"):
        ArraySource(np.eye(3), np.array(["a", " ", "b"]))


def npz(path, name, header, data):
    """An archive whose array is not as its header says."""
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", raw.getvalue() + data)


@pytest.mark.parametrize("size", [0, 7, 9, 1 << 20])
def test_arrays_of_another_size_than_they_say(tmp_path, size):
    header = {"descr": "|u1", "fortran_order": False, "shape": (4, 2)}
    npz(tmp_path / "a.npz", "x", header, b"\1" * size)
    with pytest.raises(InputError, match="array 'x' is not as long as its header says"):
        open_source(tmp_path / "a.npz")


def test_sizes_beyond_memory_are_refused(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 40)}
    npz(tmp_path / "a.npz", "x", header, bytes(64))
    with pytest.raises(InputError, match="array 'x' is not as long as its header says"):
        open_source(tmp_path / "a.npz")


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"hello")
    (tmp_path / "a.npy").write_bytes(b"hello")
    (tmp_path / "b.npz").write_bytes(b"")
    np.save(tmp_path / "c.npy", X)
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(InputError, match=f"{name}: not a readable .npz file"):
            open_source(tmp_path / name)
    with pytest.raises(InputError, match=r"a\.npy: not a readable .npy file"):
        open_source(tmp_path / "a.npy", y="y.npy")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("y.npy", b"no array")
    with pytest.raises(InputError, match=r"d\.npz: not a readable .npz file"):
        open_source(tmp_path / "d.npz")


def test_a_large_array_is_mapped_and_not_held(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4000, 1000), np.float32), y=np.arange(4000) % 2)
    found = open_source(tmp_path / "a.npz")
    assert isinstance(found._values.base, np.memmap) or isinstance(found._values, np.memmap)
    (tmp_path / "a.npz").unlink()
    assert found.read(np.array([3999])).shape == (1, 1, 1, 1000)
    assert value_range(found) == (0, 0)


def test_values_outside_the_range_name_their_sample():
    found = ArraySource(np.arange(6.0).reshape(3, 2), np.arange(3) % 2)
    with pytest.raises(RangeError, match=r"sample 2, element \(0, 0, 0\): .*outside"):
        Encoder(found, Encoding.for_range(0, 3)).encode(np.arange(3))
