from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cloister.data import pictures
from cloister.data.preprocessing import Channels, Layout, Preprocessing
from cloister.errors import InputError
from cloister.graph.graph import Graph, TensorType
from cloister.graph.input_files import read_inputs
from cloister.graph.sample_form import SampleForm
from dicom_files import dicom


def graph(*shape, dtype=np.float32, names=("x",)):
    types = {name: TensorType(np.dtype(dtype), (None, *shape)) for name in names}
    return Graph("g", (), tuple(names), (), {}, types, 17)


def pixels(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "p.png"
    Image.fromarray(pixels(5, 7)).save(path)
    return path


def one(graph_, path, preprocessing=None):
    read = read_inputs(graph_, [path], preprocessing or Preprocessing())
    return read.arrays[graph_.inputs[0]]


def test_default_is_rgb_from_0_to_1_channels_first(picture):
    got = one(graph(3, 5, 7), picture)
    assert got.dtype == np.float32
    expected = pixels(5, 7).transpose(2, 0, 1)[None] / 255
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("preprocessing", "formula"),
    [
        (Preprocessing(scale=1, mean=(127.5,), std=(127.5,)), lambda p: (p - 127.5) / 127.5),
        (Preprocessing(scale=1, mean=(128.0,), std=(128.0,)), lambda p: (p - 128) / 128),
        (
            Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            lambda p: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        ),
        (
            Preprocessing(scale=1, mean=(104.0, 117.0, 123.0), channels=Channels.BGR),
            lambda p: p[..., ::-1] - np.array([104, 117, 123]),
        ),
    ],
)
def test_usual_preprocessings(picture, preprocessing, formula):
    expected = formula(pixels(5, 7).astype(np.float64)).transpose(2, 0, 1)
    got = one(graph(3, 5, 7), picture, preprocessing)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_channels_last_models(picture):
    expected = pixels(5, 7)[None] / 255
    np.testing.assert_allclose(one(graph(5, 7, 3), picture), expected, rtol=1e-6)
    forced = Preprocessing(layout=Layout.NHWC)
    np.testing.assert_allclose(one(graph(5, 7, 3), picture, forced), expected, rtol=1e-6)


def test_gray_models_read_colour_pictures_as_gray(picture):
    assert one(graph(1, 5, 7), picture).shape == (1, 1, 5, 7)


def test_resize_goes_to_the_models_size_or_cuts_the_centre(picture):
    assert one(graph(3, 2, 4), picture).shape == (1, 3, 2, 4)
    cut = one(graph(3, 3, 3), picture, Preprocessing(resize=(5, 7)))
    np.testing.assert_allclose(cut[0], pixels(5, 7)[1:4, 2:5].transpose(2, 0, 1) / 255, rtol=1e-6)
    with pytest.raises(InputError, match=r"--resize 2,2 is smaller"):
        one(graph(3, 3, 3), picture, Preprocessing(resize=(2, 2)))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(pixels(4, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(tmp_path / "p.png", exif=exif)
    expected = np.rot90(pixels(4, 8), k=-1).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(one(graph(3, 8, 4), tmp_path / "p.png")[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "samples"),
    [((6, 5), 1), ((2, 6, 5), 2), ((6, 5, 1), 1), ((2, 6, 5, 1), 2), ((2, 1, 6, 5), 2)],
)
def test_uint8_arrays_are_pixels(tmp_path, shape, samples):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    expected = array.reshape(samples, 1, 6, 5) / 255
    np.testing.assert_allclose(one(graph(1, 6, 5), tmp_path / "a.npy"), expected, rtol=1e-6)


def test_uint8_arrays_whose_channels_may_be_on_either_side(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 6, 3), np.uint8))
    with pytest.raises(InputError, match="may come first or last"):
        one(graph(3, 6, 5), tmp_path / "a.npy")


def test_float_arrays_are_taken_as_they_are(tmp_path):
    array = np.random.default_rng(0).standard_normal((3, 2, 4))
    np.save(tmp_path / "batch.npy", array)
    np.save(tmp_path / "single.npy", array[0])
    read = read_inputs(
        graph(2, 4), [tmp_path / "batch.npy", tmp_path / "single.npy"], Preprocessing()
    )
    np.testing.assert_array_equal(read.arrays["x"], np.float32([*array, array[0]]))
    assert read.names[2].endswith("batch.npy[2]")
    assert read.names[3].endswith("single.npy")
    assert len(read.first(2)["x"]) == 2


def test_npz_by_name_or_first(tmp_path):
    a, b = np.ones((2, 4), np.float32), np.zeros((2, 4), np.float32)
    np.savez(tmp_path / "named.npz", other=a, x=b)
    np.savez(tmp_path / "first.npz", other=a)
    assert one(graph(4), tmp_path / "named.npz").sum() == 0
    assert one(graph(4), tmp_path / "first.npz").sum() == 8
    both = graph(4, names=("x", "other"))
    assert set(read_inputs(both, [tmp_path / "named.npz"], Preprocessing()).arrays) == {
        "x",
        "other",
    }
    with pytest.raises(InputError, match="no array named 'x'"):
        read_inputs(both, [tmp_path / "first.npz"], Preprocessing())


def test_folders_are_read_in_order_and_what_is_skipped_is_said(tmp_path):
    for name in ("b.png", "a.png"):
        Image.fromarray(pixels(5, 7)).save(tmp_path / name)
    (tmp_path / "readme.txt").write_text("not an input")
    (tmp_path / "more").mkdir()
    notes = []
    read = read_inputs(graph(3, 5, 7), [tmp_path], note=notes.append)
    assert [name.rsplit("/", 1)[1] for name in read.names] == ["a.png", "b.png"]
    assert notes == [f"{tmp_path}: 2 skipped (more, readme.txt)"]


def test_patterns_are_read_in_order(tmp_path):
    for name in ("b.png", "a.png", "[c].png", "d.jpg"):
        Image.fromarray(pixels(5, 7)).save(tmp_path / name)

    def names(pattern):
        read = read_inputs(graph(3, 5, 7), [tmp_path / pattern])
        return [name.rsplit("/", 1)[1] for name in read.names]

    assert names("?.png") == ["a.png", "b.png"]
    # A file of this name goes before what it would match.
    assert names("[c].png") == ["[c].png"]
    (tmp_path / "x").mkdir()
    for pattern in (r"x\*\.png", r"x\*"):
        with pytest.raises(InputError, match=rf"{pattern}: no file has such a name"):
            names(pattern.replace("\\", ""))


def test_integer_inputs_of_integer_models(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4))
    assert one(graph(4, dtype=np.int64), tmp_path / "a.npy").tolist() == [[0, 1, 2, 3]]


def _save(path, array):
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 5, 7), np.int64), "holds int64 numbers, input 'x' takes float32"),
        (np.array([object()]), "holds Python objects"),
        (np.zeros((5,), np.float32), r"takes shape \(batch, 3, 5, 7\), got \(5,\)"),
        (np.zeros((1, 4, 5, 7), np.float32), r"\(batch, 3, 5, 7\), got \(1, 4, 5, 7\)"),
        (np.full((1, 3, 5, 7), 1e40), "sample 0 has a number beyond the largest float32"),
        (np.zeros((2, 5, 7, 4), np.uint8), "pictures with 4 channels, the model takes 3"),
        (np.zeros((5, 7), np.uint8), "pictures with 1 channels, the model takes 3"),
        (np.zeros((2,), np.uint8), "arrays of pixels are"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, array, message):
    path = _save(tmp_path / "bad.npy", array)
    with pytest.raises(InputError, match=message) as caught:
        one(graph(3, 5, 7), path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_arrays_are_the_models_to_judge(tmp_path, value):
    array = np.zeros((2, 4), np.float32)
    array[1, 2] = value
    np.testing.assert_array_equal(one(graph(4), _save(tmp_path / "odd.npy", array)), array)


def test_files_that_are_no_inputs(tmp_path, picture):
    target = graph(3, 5, 7)
    with pytest.raises(InputError, match="no such file"):
        one(target, tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match="not a picture that can be read"):
        one(target, tmp_path / "text.png")
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:90])
    with pytest.raises(InputError, match="cannot be decoded"):
        one(target, tmp_path / "half.png")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(InputError, match=r"not a readable .npy"):
        one(target, tmp_path / "text.npy")
    (tmp_path / "short.npz").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(InputError, match=r"not a readable .npy or .npz"):
        one(target, tmp_path / "short.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder holds no picture"):
        one(target, tmp_path / "empty")
    with pytest.raises(InputError, match="no inputs given"):
        read_inputs(target, [], Preprocessing())


def test_pictures_for_models_that_take_none(picture):
    with pytest.raises(InputError, match="which is no picture"):
        one(graph(35), picture)
    with pytest.raises(InputError, match="has 4 channels in nchw layout"):
        one(graph(4, 5, 7), picture)
    with pytest.raises(InputError, match="has 1 channels, not --channels rgb"):
        one(graph(1, 5, 7), picture, Preprocessing(channels=Channels.RGB))
    with pytest.raises(InputError, match="give one number or 3"):
        one(graph(3, 5, 7), picture, Preprocessing(mean=(1.0, 2.0)))
    with pytest.raises(InputError, match=r"one \.npz that holds them all"):
        one(graph(3, 5, 7, names=("x", "y")), picture)


def test_one_array_for_a_model_that_takes_several(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 5, 7), np.float32))
    with pytest.raises(InputError, match=r"holds one array, the model takes x, y; save one \.npz"):
        one(graph(3, 5, 7, names=("x", "y")), tmp_path / "x.npy")


def test_large_pictures_are_refused_before_decoding(picture, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 34)
    with pytest.raises(InputError, match="7x5 pixels are more than the limit"):
        one(graph(3, 5, 7), picture)


def test_pictures_of_more_than_eight_bits_need_a_scale(tmp_path):
    deep = np.random.default_rng(0).integers(0, 4096, (5, 7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: has more than 8 bits; say with --scale"):
        one(graph(1, 5, 7), tmp_path / "deep.png")
    scaled = one(graph(1, 5, 7), tmp_path / "deep.png", Preprocessing(scale=1 / 4095))
    np.testing.assert_allclose(scaled[0, 0], deep / 4095, rtol=1e-6)
    with pytest.raises(InputError, match="is gray, the model takes colours"):
        one(graph(3, 5, 7), tmp_path / "deep.png", Preprocessing(scale=1))


def stating(kind, *shape):
    """A model that says in what units its owner's samples are."""
    return replace(graph(*shape), samples=SampleForm(kind, (), "classes", ("a", "b")).to_json())


def test_a_model_of_its_owners_units_takes_pictures_as_they_are(tmp_path):
    deep = np.random.default_rng(0).integers(0, 4096, (5, 7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(pixels(5, 7, 0)).save(tmp_path / "fine.png")
    got = one(stating("values", 5, 7, 1), tmp_path / "deep.png")
    np.testing.assert_array_equal(got[0, ..., 0], deep)
    got = one(stating("pixels", 1, 5, 7), tmp_path / "fine.png")
    np.testing.assert_array_equal(got[0, 0], pixels(5, 7, 0))
    with pytest.raises(InputError, match=r"has more than 8 bits, and the model was trained"):
        one(stating("pixels", 1, 5, 7), tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"has 8 bits, and the model was .*more than 8"):
        one(stating("values", 5, 7, 1), tmp_path / "fine.png")
    for kind in ("pixels", "values"):
        with pytest.raises(InputError, match=r"as they are.*leave out --scale"):
            one(stating(kind, 5, 7, 1), tmp_path / "fine.png", Preprocessing(scale=1 / 4095))


@pytest.mark.parametrize("dtype", ["u1", "i2", ">f8", "f4"])
def test_a_model_of_its_owners_values_takes_their_arrays(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 100, (4, 5, 7, 3)).astype(dtype)
    for name, array in (("last", values), ("first", values.transpose(0, 3, 1, 2))):
        np.save(tmp_path / f"{name}.npy", array)
        got = one(stating("values", 5, 7, 3), tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(got, values)
    np.save(tmp_path / "gray.npy", values[..., 0])
    got = one(stating("values", 5, 7, 1), tmp_path / "gray.npy")
    np.testing.assert_array_equal(got, values[..., :1])
    np.save(tmp_path / "other.npy", values.transpose(0, 2, 1, 3))
    with pytest.raises(InputError, match=r"other.npy"):
        one(stating("values", 5, 7, 3), tmp_path / "other.npy")


def test_dicom_pictures_are_in_the_modalitys_unit(tmp_path):
    stored = np.random.default_rng(0).integers(-1000, 1000, (5, 7)).astype(np.int16)
    made = dicom(stored, RescaleSlope="2", RescaleIntercept="-24")
    made.save_as(tmp_path / "scan", enforce_file_format=True)
    (tmp_path / "._scan").write_bytes(b"x")
    notes = []
    read = read_inputs(
        graph(1, 5, 7), [tmp_path], Preprocessing(scale=1, mean=(40.0,)), note=notes.append
    )
    np.testing.assert_array_equal(read.arrays["x"][0, 0], stored * 2.0 - 24 - 40)
    assert notes == [f"{tmp_path}: 1 skipped (._scan)"]


@pytest.mark.parametrize("suffix", ["tiff", "bmp", "gif", "webp", "ppm", "PNG"])
def test_every_format_is_read(tmp_path, suffix):
    lossless = {"lossless": True} if suffix == "webp" else {}
    array = pixels(5, 7) // 16 * 16 if suffix != "gif" else np.dstack([pixels(5, 7, 0)] * 3)
    Image.fromarray(array).save(tmp_path / f"a.{suffix}", **lossless)
    expected = array.transpose(2, 0, 1)[None] / 255
    np.testing.assert_allclose(one(graph(3, 5, 7), tmp_path), expected, rtol=1e-6)


def test_a_background_lies_behind_transparent_pixels(tmp_path):
    four = np.dstack([pixels(5, 7), np.zeros((5, 7), np.uint8)])
    four[2, 3, 3] = 255
    Image.fromarray(four).save(tmp_path / "glass.png")
    got = one(graph(3, 5, 7), tmp_path / "glass.png", Preprocessing(scale=1, background="#0a141e"))
    expected = np.broadcast_to(np.array([10, 20, 30])[:, None, None], (3, 5, 7)).copy()
    expected[:, 2, 3] = four[2, 3, :3]
    np.testing.assert_array_equal(got[0], expected)
    with pytest.raises(InputError, match="background plaid: not a colour"):
        Preprocessing(background="plaid")


def test_transparent_pictures_are_refused_and_opaque_ones_read(tmp_path):
    four = np.dstack([pixels(5, 7), np.full((5, 7), 255, np.uint8)])
    Image.fromarray(four).save(tmp_path / "opaque.png")
    expected = pixels(5, 7).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(one(graph(3, 5, 7), tmp_path / "opaque.png")[0], expected, rtol=1e-6)
    four[2, 3, 3] = 254
    Image.fromarray(four).save(tmp_path / "glass.png")
    with pytest.raises(InputError, match=r"glass\.png: has transparent pixels"):
        one(graph(3, 5, 7), tmp_path / "glass.png")
