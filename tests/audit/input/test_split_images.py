"""The images of an audit of splits, and what is refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from PIL import Image

import nets
from audit.input.small_audits import graph, write_images
from cloister.audit.input import read_split_images
from cloister.audit.input.image_score import wilson_interval
from cloister.audit.input.split_images import LEAST_PUBLIC, SplitImages, least_attacked
from cloister.data.preprocessing import Channels, Layout, Preprocessing
from cloister.errors import InputError, RangeError, ShapeError, UnsupportedError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan.split_report import CANDIDATES, RULE

ATTACKED = 192
RNG = np.random.default_rng(3)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def coloured(*, channels_last: bool = False):
    net = nets.Net()
    if channels_last:
        x = net.op("Transpose", net.input("image", 6, 8, 3), perm=[0, 3, 1, 2])
    else:
        x = net.input("image", 3, 6, 8)
    x = net.op("Relu", net.conv(x, 3, 4))
    return prepare(from_model(net.model(net.gemm(net.op("Flatten", x), 96, 5)), name="coloured"))


def read(path: Path, model=None, *args, attacked=ATTACKED, **more) -> SplitImages:
    return read_split_images(model or graph(), path, *args, attacked=attacked, **more)


# ---- how many


def test_the_least_number_is_the_one_at_which_a_guess_stays_below_the_threshold():
    """Against direct simulation of audits by an attack that guesses."""
    least, limit = least_attacked(), RULE.identification / CANDIDATES
    assert least == ATTACKED
    uppers = np.array([wilson_interval(k / least, least).high for k in range(least + 1)])
    hits = np.random.default_rng(1).binomial(least, 1 / CANDIDATES, size=400_000)
    assert (uppers[hits] >= limit).mean() < 1.2e-3
    few = 100
    uppers = np.array([wilson_interval(k / few, few).high for k in range(few + 1)])
    hits = np.random.default_rng(1).binomial(few, 1 / CANDIDATES, size=400_000)
    assert (uppers[hits] >= limit).mean() > 1e-2


def test_too_few_images_are_refused_with_how_many_are_needed_and_why(tmp_path):
    with pytest.raises(InputError, match=f"191 .*{ATTACKED} are needed.*95 %.*1 in 50"):
        read(write_images(tmp_path / "x.npz"), attacked=ATTACKED - 1)
    few = write_images(tmp_path / "few.npz", count=100)
    with pytest.raises(InputError, match=r"few.npz: holds 100 diff.* 192 .*; give 192 more, as"):
        read(few)
    with pytest.raises(InputError, match=r"give 200 more, or 192 more and --attacked 192, as"):
        read(few, attacked=200)
    with pytest.raises(InputError, match=r"give 92 more$"):
        read(few, public=write_images(tmp_path / "own.npz", x=pixels(150, 8, 8)))
    some = write_images(tmp_path / "some.npz", count=ATTACKED + LEAST_PUBLIC - 1)
    with pytest.raises(InputError, match=r"holds 99 .*not attacked.*1 more.*--public"):
        read(some)
    assert len(read(some, public=write_images(tmp_path / "p.npz", x=pixels(150, 8, 8))).public)


# ---- what is read


def test_images_are_parted_by_one_seed_and_none_is_lost(tmp_path):
    x = pixels(320, 8, 8)
    found = read(write_images(tmp_path / "x.npz", x=x))
    assert found.attacked.shape == (ATTACKED, 1, 8, 8)
    assert found.public.shape == (320 - ATTACKED, 1, 8, 8)
    both = np.rint(255 * np.concatenate([found.attacked, found.public])[:, 0]).astype(np.uint8)
    assert {one.tobytes() for one in both} == {one.tobytes() for one in x}
    again = read(tmp_path / "x.npz")
    assert again.sha256 == found.sha256
    assert (again.attacked == found.attacked).all()
    assert read(tmp_path / "x.npz", attacked=200).sha256 != found.sha256
    assert len(read(tmp_path / "x.npz", most_public=110).public) == 110


def test_images_that_equal_another_one_are_left_out_and_counted(tmp_path):
    x = pixels(310, 8, 8)
    x[50:55] = x[10]
    found = read(write_images(tmp_path / "x.npz", x=x))
    assert found.repeated == 5
    public = write_images(tmp_path / "p.npz", x=np.concatenate([pixels(120, 8, 8), x[:20]]))
    found = read(tmp_path / "x.npz", public=public)
    attacked = {one.tobytes() for one in found.attacked}
    assert not any(one.tobytes() in attacked for one in found.public)
    assert found.repeated > 0


@pytest.mark.parametrize("named", ["x", "images"])
@pytest.mark.parametrize("shape", [(6, 8, 3), (3, 6, 8)])
def test_pixels_and_fractions_are_the_same_images(tmp_path, named, shape):
    x, model = pixels(300, *shape), coloured()
    as_bytes = read(write_images(tmp_path / "a.npz", **{named: x}), model)
    as_floats = read(write_images(tmp_path / "b.npz", **{named: x / np.float32(255)}), model)
    np.testing.assert_allclose(as_bytes.attacked, as_floats.attacked, atol=1e-6)
    first = x if shape[0] == 3 else x.transpose(0, 3, 1, 2)
    known = {one.tobytes() for one in first}
    images = np.rint(255 * as_bytes.attacked).astype(np.uint8)
    assert all(np.ascontiguousarray(one).tobytes() in known for one in images)


def test_a_set_of_two_halves_is_attacked_in_one_and_learned_from_in_the_other(tmp_path):
    test, train = pixels(200, 8, 8), pixels(400, 8, 8)
    found = read(write_images(tmp_path / "x.npz", test_images=test, train_images=train))
    known = {one.tobytes() for one in train}
    public = np.rint(255 * found.public[:, 0]).astype(np.uint8)
    assert len(public) == 400
    assert all(one.tobytes() in known for one in public)


def test_mnist_is_read_from_its_own_files(tmp_path):
    for name, count in (("t10k", 200), ("train", 150)):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        content = gzip.compress(header + pixels(count, 28, 28).tobytes())
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(content)
    found = read(tmp_path)
    assert found.attacked.shape == (ATTACKED, 1, 8, 8)
    assert len(found.public) == 150


def test_pictures_are_found_in_folders_of_the_folder(tmp_path):
    for i, one in enumerate(pixels(310, 6, 8, 3)):
        folder = tmp_path / f"class{i % 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(one).save(folder / f"{i}.png")
    found = read(tmp_path, coloured())
    assert (len(found.attacked), len(found.public)) == (ATTACKED, 310 - ATTACKED)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [Channels.RGB, Channels.BGR])
def test_inputs_are_those_of_the_models_own_preprocessing(tmp_path, channels_last, channels):
    """Against the reader of inputs of `cloister run`."""
    from cloister.graph.input_files import read_inputs

    model = coloured(channels_last=channels_last)
    preprocessing = Preprocessing(
        scale=1 / 128, mean=(1.0, 0.5, 0.25), std=(0.5, 1.0, 2.0), channels=channels,
        layout=Layout.NHWC if channels_last else Layout.NCHW,
    )  # fmt: skip
    x = pixels(300, 6, 8, 3)
    found = read(write_images(tmp_path / "x.npz", x=x), model, preprocessing)
    wanted = read_inputs(model, [tmp_path / "x.npz"], preprocessing).arrays["image"]
    got = found.inputs(np.concatenate([found.attacked, found.public]))
    order = [np.abs(wanted - one).reshape(300, -1).max(axis=1).argmin() for one in got]
    assert sorted(order) == list(range(300))
    np.testing.assert_allclose(got, wanted[order], atol=1e-5)


# ---- what is refused


def model_of(*shape):
    net = nets.Net()
    x = net.op("Flatten", net.input("image", *shape))
    size = int(np.prod(shape))
    return prepare(from_model(net.model(net.gemm(net.gemm(x, size, 6), 6, 5)), name="other"))


@pytest.mark.parametrize("shape", [(64,), (2, 8, 8), (4, 5, 6)])
def test_a_model_that_takes_no_images_is_refused(tmp_path, shape):
    with pytest.raises(UnsupportedError, match=r"'image' takes shape .*needs images"):
        read(write_images(tmp_path / "x.npz"), model_of(*shape))


def test_images_too_small_for_a_structure_are_refused(tmp_path):
    net = nets.Net()
    x = net.op("Flatten", net.op("Relu", net.conv(net.input("image", 1, 3, 8), 1, 2)))
    model = prepare(from_model(net.model(net.gemm(x, 12, 5)), name="flat"))
    with pytest.raises(UnsupportedError, match=r"images of 3 x 8 pixels: .* 4 x 4 at least"):
        read(write_images(tmp_path / "x.npz"), model)


def test_a_model_of_a_fixed_batch_or_of_two_inputs_is_refused(tmp_path):
    net = nets.Net()
    x = net.op("Add", net.input("a", 1, 8, 8), net.input("b", 1, 8, 8))
    two = prepare(from_model(net.model(net.gemm(net.op("Flatten", x), 64, 5)), name="two"))
    with pytest.raises(UnsupportedError, match="one input, and it has a, b"):
        read(write_images(tmp_path / "x.npz"), two)
    net = nets.Net()
    joined = net.op("Softmax", net.op("Flatten", net.input("image", 1, 8, 8)), axis=0)
    fixed = net.gemm(joined, 64, 5)
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(UnsupportedError, match="fixed: takes batches of 4 only"):
        read(write_images(tmp_path / "x.npz"), prepare(from_model(net.model(fixed), name="fixed")))


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (np.zeros((300, 8, 8), np.int32), InputError, "int32"),
        (np.full((300, 8, 8), 1.5, np.float32), RangeError, "from 1.5 to 1.5.*--scale"),
        (np.full((300, 8, 8), -0.1), RangeError, "-0.1"),
        (np.full((300, 8, 8), np.nan), RangeError, "holds NaN; leave out"),
        (np.zeros((300, 9, 9), np.float32), ShapeError, r"\(9, 9, 1\).*\(8, 8, 1\)"),
        (np.zeros((300, 8, 8, 3), np.uint8), InputError, "3 channels, the model takes 1"),
        (np.zeros((300,), np.uint8), InputError, "arrays of pixels are"),
        (np.array([{}], object), InputError, "not a readable"),
    ],
)
def test_images_of_another_kind_are_refused(tmp_path, x, error, said):
    with pytest.raises(error, match=f"x.npz: .*{said}"):
        read(write_images(tmp_path / "x.npz", x=x))


def test_files_that_hold_no_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent.npz")
    with pytest.raises(InputError, match="holds no picture"):
        read(tmp_path)
    with pytest.raises(InputError, match="has the arrays y"):
        read(write_images(tmp_path / "y.npz", y=np.zeros(3)))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"bad\.npz: not a readable \.npz"):
        read(tmp_path / "bad.npz")
    (tmp_path / "images.csv").write_text("a,b")
    with pytest.raises(InputError, match="give a folder of pictures"):
        read(tmp_path / "images.csv")


@pytest.mark.parametrize("option", ["mean", "std"])
def test_preprocessing_of_another_number_of_channels_is_refused(tmp_path, option):
    with pytest.raises(InputError, match=f"--{option}: give one number$"):
        read(write_images(tmp_path / "x.npz"), graph(), Preprocessing(**{option: (0.5, 0.5, 0.5)}))


@pytest.mark.parametrize(
    ("preprocessing", "refused"),
    [
        (Preprocessing(mean=(0.5,)), False),
        (Preprocessing(scale=1.0, mean=(123.7,)), False),
        (Preprocessing(mean=(123.7,)), True),
        (Preprocessing(mean=(-1e4,)), True),
    ],
)
def test_a_mean_far_from_all_pixels_is_refused(tmp_path, preprocessing, refused):
    """A plan rounds to 12 bits of the largest value: beside a mean of 10,000 no pixel is left."""
    path = write_images(tmp_path / "x.npz")
    if not refused:
        assert read(path, graph(), preprocessing)
        return
    with pytest.raises(InputError, match="--mean: pixels are from 0 to 1 with this --scale"):
        read(path, graph(), preprocessing)
