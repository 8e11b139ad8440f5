import numpy as np
import pytest
from PIL import Image

from cloister.base.rng import InsecureSeededRandom
from cloister.data.columns import Column, public_column
from cloister.data.encoder import Encoder, chunks, random_order
from cloister.data.encoding import PIXELS, Encoding
from cloister.data.sources import (
    ArraySource,
    open_source,
    require_fewer_classes_than_samples,
    value_range,
)
from cloister.data.target_encoding import TargetEncoder
from cloister.errors import InputError, RangeError, ShapeError

RNG = InsecureSeededRandom(3)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"

    def write(text):
        path.write_text(text)
        return path

    return write


def everything(found, encoder, *, test_fraction=0.0):
    positions = np.arange(len(found.names))
    targets = TargetEncoder(found.targets, len(positions), found.labels, positions)
    got = list(
        chunks(
            found,
            encoder,
            targets=targets,
            test_fraction=test_fraction,
            order=random_order(found.samples, rng=RNG),
        )
    )
    x, labels, test = (
        np.concatenate([getattr(chunk, name) for chunk in got]) for name in ("x", "labels", "flags")
    )
    return x, labels.argmax(axis=1), test


def test_pixels_are_exact_and_their_order_is_forgotten(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(32, 8, 1)
    np.savez_compressed(tmp_path / "a.npz", pictures=pixels, kinds=np.arange(32) // 8)
    found = open_source(tmp_path / "a.npz", x="pictures", y="kinds")
    assert (found.shape, found.kind, len(found.names)) == ((8, 1, 1), "pixels", 4)
    x, labels, test = everything(found, Encoder(found, PIXELS), test_fraction=0.25)
    assert x.min() == -128
    order = (x[:, 0, 0, 0] + 128) // 8
    np.testing.assert_array_equal(np.sort(order), np.arange(32))
    assert not np.array_equal(order, np.arange(32))
    np.testing.assert_array_equal(x[:, :, 0, 0] + 128, pixels[order, :, 0])
    np.testing.assert_array_equal(labels, order // 8)
    assert test.sum() == 8


def test_values_outside_the_range_are_named_or_clipped(tmp_path):
    values = np.linspace(-1, 1, 24).reshape(6, 4)
    values[3, 2] = 5
    np.savez(tmp_path / "a.npz", x=values, y=np.zeros(6, int))
    found = open_source(tmp_path / "a.npz")
    encoding = Encoding.for_range(-1, 1)
    with pytest.raises(RangeError, match=r"sample 3, element \(0, 0, 2\).*outside"):
        everything(found, Encoder(found, encoding))
    x, _, _ = everything(found, Encoder(found, encoding, clip=True))
    assert x.max() == 127
    in_memory = ArraySource(values, np.zeros(6, int))
    values[3, 2] = np.nan
    for clip in (False, True):
        with pytest.raises(RangeError, match="missing"):
            everything(in_memory, Encoder(in_memory, encoding, clip=clip))
    np.savez(tmp_path / "b.npz", x=values, y=np.zeros(6, int))
    with pytest.raises(RangeError, match=r"1 of 6 samples hold NaN.*fill or drop"):
        open_source(tmp_path / "b.npz")


def test_tables_are_scaled_by_column(table):
    path = table("age,label,height\n10,sick,1.5\n30,well,1.7\n20,sick,1.6\n")
    found = open_source(path)
    assert found.column_names == ("age", "height")
    assert found.names == ("sick", "well")
    ranges = {column.name: (column.low, column.high) for column in found.columns()}
    assert ranges == {"age": (10.0, 30.0), "height": (1.5, 1.7)}
    encoding = Encoding.for_range(-1, 1)

    def encoder(**given):
        columns = [public_column(name, ends) for name, ends in (ranges | given).items()]
        return Encoder(found, encoding, columns=columns)

    x, labels, _ = everything(found, encoder())
    rows = {(*row, int(label)) for row, label in zip(x[:, 0, 0].tolist(), labels, strict=True)}
    assert rows == {(-127, -127, 0), (127, 127, 1), (0, 0, 0)}
    with pytest.raises(RangeError, match="line 3, column age: 30 is outside the range 10 to 25"):
        everything(found, encoder(age=(10.0, 25.0)))
    with pytest.raises(InputError, match="column height is not in the data set"):
        Encoder(found, encoding, columns=[public_column("age", (0.0, 1.0))])
    with pytest.raises(InputError, match="column height"):
        encoder(height=(2.0, 1.0))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a,label\n1,x\nnan,y\n", RangeError, "line 3, column a"),
        ("a,label\n1,x\n,y\n", RangeError, "line 3, column a: the value is missing"),
        (
            "a,b,label\n1,2,x\n1,x2,x\n",
            RangeError,
            "line 3, column b: 'x2' is not a number such as",
        ),
        ("a label\n1 x\n", InputError, "line 1 has one cell, a label: .* --separator"),
        ("a,label\n1,x\n1e999,y\n", RangeError, "line 3, column a"),
        ("a,label\n1,\n", RangeError, "line 2, column label"),
        ("a,label\n1,x,3\n", ShapeError, "line 2: 3 cells"),
        ("a,b\n1,x\n", InputError, "--label"),
        ("", InputError, "is empty; it needs a header"),
        ("a,label\n", InputError, "no samples"),
        ("a,a,label\n1,2,x\n", InputError, "different names"),
    ],
)
def test_bad_tables_are_named(table, text, error, message):
    with pytest.raises(error, match=message):
        open_source(table(text)).read(np.arange(1))


def test_a_table_in_another_alphabet_code_says_which_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes("a,label\n1,böse\n".encode("latin-1"))
    found = open_source(tmp_path / "a.csv")
    assert found.names == ("böse",)
    assert "line 2 is not UTF-8: the file is read as Windows-1252" in found.remarks[0]


def test_pictures_in_folders(tmp_path):
    generator = np.random.default_rng(1)
    plain = {}
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            pixels = generator.integers(0, 256, (5, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
            plain[pixels.tobytes()] = kind
    found = open_source(tmp_path)
    assert (found.shape, found.names) == ((5, 4, 1), ("cat", "dog"))
    x, labels, _ = everything(found, Encoder(found, PIXELS))
    for sample, label in zip(x, labels, strict=True):
        assert plain[(sample + 128).astype(np.uint8).tobytes()] == found.names[label]
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(tmp_path / "dog" / "odd.png")
    with pytest.raises(ShapeError, match=r"1 of 5x4 colour \(dog/odd\.png\).* of channels"):
        open_source(tmp_path)
    (tmp_path / "dog" / "odd.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"odd\.png"):
        open_source(tmp_path)


def test_unusable_inputs(tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, x=np.zeros((3, 2)), y=np.zeros(3, int))
    data = good.read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    np.savez(tmp_path / "names.npz", a=np.zeros(3))
    np.savez(tmp_path / "nan_labels.npz", x=np.zeros((3, 2)), y=np.array([0, 1, np.nan]))
    np.savez(tmp_path / "few.npz", x=np.zeros((3, 2)), y=np.zeros(2, int))
    np.savez(tmp_path / "no_rows.npz", x=np.zeros((0, 2)), y=np.zeros(0, int))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}]), y=np.zeros(2, int))
    np.savez(tmp_path / "negative.npz", x=np.zeros((3, 2)), y=np.full(3, -1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    for name, error, message in (
        ("cut.npz", InputError, "readable"),
        ("names.npz", InputError, "holds no array 'x' but a"),
        ("nan_labels.npz", RangeError, "sample 2 is NaN"),
        ("few.npz", ShapeError, r"one class number, .* got int64 \(2,\)"),
        ("no_rows.npz", ShapeError, "holds no samples"),
        ("objects.npz", InputError, "Python objects"),
        ("negative.npz", RangeError, "begin at 0"),
        ("empty", InputError, "no pictures"),
        ("text.txt", InputError, "give an .npz"),
        ("none.npz", InputError, "no such"),
    ):
        with pytest.raises(error, match=message):
            open_source(tmp_path / name)


def folders(root, **kinds):
    for kind, arrays in kinds.items():
        (root / kind).mkdir()
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(root / kind / f"{i}.png")
    return root


def gray(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(5).integers(0, high, shape).astype(dtype)


def test_pictures_of_more_than_eight_bits_are_values(tmp_path):
    ramp = np.arange(4096, dtype=np.uint16).reshape(4, 32, 32)
    found = open_source(folders(tmp_path, sick=ramp[:2], well=ramp[2:]))
    assert (found.kind, found.shape) == ("values", (32, 32, 1))
    np.testing.assert_array_equal(found.read(np.arange(4))[..., 0], ramp)
    encoding = Encoding.for_range(0, 4095, bits=14)
    x, _, _ = everything(found, Encoder(found, encoding))
    assert len(np.unique(x)) == 4096
    Image.fromarray(gray(32, 32)).save(tmp_path / "well" / "eight.png")
    with pytest.raises(ShapeError, match=r"1 of 32x32 gray \(well/eight\.png\); .*of bits"):
        open_source(tmp_path)


def test_files_that_are_not_read_are_counted(tmp_path):
    folders(tmp_path, sick=[gray(4, 5)], well=[gray(4, 5)])
    for name in ("Thumbs.db", "sick/notes.txt", "well/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "unknown").mkdir()
    found = open_source(tmp_path)
    assert found.remarks == (
        "files: 3 skipped (Thumbs.db, sick/notes.txt, well/.DS_Store)",
        "folder unknown: holds no pictures and is no class; name it with --classes if others "
        "have it",
    )


def test_channels_that_come_first_are_refused(tmp_path):
    np.savez(tmp_path / "first.npz", x=np.zeros((5, 3, 16, 20)), y=np.arange(5))
    with pytest.raises(ShapeError, match=r"channels first.*--layout nchw"):
        open_source(tmp_path / "first.npz")
    np.savez(tmp_path / "last.npz", x=np.zeros((5, 16, 20, 3)), y=np.arange(5))
    assert open_source(tmp_path / "last.npz").remarks == ()
    np.savez(tmp_path / "many.npz", x=np.zeros((5, 16, 20, 12)), y=np.arange(5))
    assert open_source(tmp_path / "many.npz").remarks == (
        "the last axis of the samples is read as channels",
    )
    np.savez(tmp_path / "features.npz", x=np.zeros((5, 20)), y=np.arange(5))
    assert open_source(tmp_path / "features.npz").remarks == ()


def test_numbers_to_be_predicted_are_no_classes(table, tmp_path):
    with pytest.raises(InputError, match=r"column label holds numbers such as 2\.5"):
        open_source(table("age,label\n1,2\n2,2.5\n"))
    found = open_source(table("age,label\n1,0.0\n2,1.0\n"))
    assert found.names == ("0", "1")
    many = "".join(f"{i},{i * 7}\n" for i in range(40))
    with pytest.raises(InputError, match="40 samples have 40 different classes"):
        require_fewer_classes_than_samples(open_source(table("age,label\n" + many)))
    require_fewer_classes_than_samples(
        open_source(table("age,label\n" + many.replace("7", "1") * 3))
    )
    np.savez(tmp_path / "far.npz", x=np.zeros((3, 2)), y=np.array([0, 1, 2_000_000]))
    with pytest.raises(RangeError, match="class number 2000000"):
        open_source(tmp_path / "far.npz")


@pytest.mark.parametrize("odd", [1e300, -1e300, 1e6, -1.7e308])
def test_a_value_that_flattens_its_column_is_refused(table, odd):
    rows = [f"{90 + i},{i % 2}\n" for i in range(40)]
    (column,) = open_source(table("bp,label\n" + "".join(rows))).columns()
    assert (column.low, column.high) == (90.0, 129.0)
    rows[3] = f"{odd},1\n"
    with pytest.raises(RangeError, match=r"column bp: the value .* all others alike.*--ranges"):
        open_source(table("bp,label\n" + "".join(rows))).columns()


def test_rare_values_and_long_tails_are_no_outliers(table):
    rows = [f"{0 if i % 50 else 1000},{1.05**i},{i % 2}\n" for i in range(100)]
    found = open_source(table("rare,tail,label\n" + "".join(rows)))
    assert found.columns()[0] == Column("rare", "number", 0.0, 1000.0)


def test_clipped_values_are_counted(tmp_path):
    values = np.linspace(-1, 1, 24).reshape(6, 4)
    values[3, 1:3] = 5
    np.savez(tmp_path / "a.npz", x=values, y=np.zeros(6, int))
    found = open_source(tmp_path / "a.npz")
    encoder = Encoder(found, Encoding.for_range(-1, 1), clip=True)
    everything(found, encoder)
    assert encoder.clipped == 2


def test_arrays_in_memory_are_a_source_too():
    x = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    found = ArraySource(x, np.arange(6) % 3)
    assert (found.kind, found.shape, found.names) == ("pixels", (2, 2, 1), ("0", "1", "2"))
    np.testing.assert_array_equal(found.read(np.array([4, 0])), x[[4, 0], :, :, None])
    with pytest.raises(ShapeError, match="array y must hold one class number"):
        ArraySource(x, np.arange(5))
    with pytest.raises(ShapeError, match="array x must hold numbers"):
        ArraySource(x.astype(object), np.arange(6))


def test_the_range_of_values_is_that_of_all_finite_ones():
    values = np.linspace(-3, 5, 4000).reshape(2000, 2)
    assert value_range(ArraySource(values, np.arange(2000) % 2)) == (-3.0, 5.0)
    found = ArraySource(values, np.arange(2000) % 2)
    values[1500, 1] = np.nan
    with pytest.raises(RangeError, match="sample 1500: holds NaN"):
        value_range(found)
    values[1500, 1] = 1e6
    with pytest.raises(RangeError, match="samples: the value 1e\\+06 would make all others alike"):
        value_range(ArraySource(values, np.arange(2000) % 2))
