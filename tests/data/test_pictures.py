"""Pictures are read whole, as they are meant to be seen, or refused."""

import zlib

import numpy as np
import pytest
from PIL import Image

from cloister.data import pictures
from cloister.data.pictures import read_picture
from cloister.errors import InputError


def pixels(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(3).integers(0, high, shape).astype(dtype)


def png(path, depth, colour, rows):
    """A PNG file of any depth and colour type, without Pillow."""

    def chunk(kind, data):
        whole = kind + data
        return len(data).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")

    height, row_bytes = rows.shape
    width = 8 * row_bytes // (depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_a_picture_of_twelve_bits_keeps_them(tmp_path):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert read_picture(tmp_path / "ramp.png").mode == "F"
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "ramp.png")), ramp)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colours_are_refused(tmp_path, colour, channels):
    rows = pixels(4, 2 * channels * 5)
    path = png(tmp_path / "deep.png", 16, colour, rows)
    with pytest.raises(InputError, match=r"deep\.png: has 16 bits a channel"):
        read_picture(path)


@pytest.mark.parametrize("name", ["p.png", "p.tiff"])
@pytest.mark.parametrize("array", [pixels(4, 6, 3), pixels(4, 6)], ids=["colour", "gray"])
def test_a_picture_on_its_side_is_set_upright(tmp_path, name, array):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / name, exif=exif)
    upright = np.rot90(array, -1)
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / name)), upright)


def palette(path, **options):
    Image.fromarray(pixels(4, 6)).convert("P").save(path, **options)


def keyed(path):
    Image.fromarray(pixels(4, 6)).save(path, transparency=int(pixels(4, 6)[1, 2]))


TRANSPARENT = {
    "RGBA": lambda path: Image.fromarray(pixels(4, 6, 4)).save(path),
    "LA": lambda path: Image.fromarray(pixels(4, 6, 2), "LA").save(path),
    "palette": lambda path: palette(path, transparency=bytes([0] * 256)),
    "one gray": keyed,
}


@pytest.mark.parametrize("save", TRANSPARENT.values(), ids=TRANSPARENT)
@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_transparent_pictures_are_refused(tmp_path, save):
    save(tmp_path / "glass.png")
    with pytest.raises(InputError, match=r"glass\.png: has transparent pixels"):
        read_picture(tmp_path / "glass.png")


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_an_opaque_alpha_channel_is_no_loss(tmp_path):
    plain = pixels(4, 6)
    opaque = np.full((4, 6), 255, np.uint8)
    Image.fromarray(np.dstack([plain, opaque]), "LA").save(tmp_path / "a.png")
    Image.fromarray(np.dstack([plain] * 3 + [opaque])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "a.png")), plain)
    np.testing.assert_array_equal(
        np.asarray(read_picture(tmp_path / "b.png")), np.dstack([plain] * 3)
    )
    assert read_picture(tmp_path / "a.png").mode == "L"


@pytest.mark.parametrize("name", ["many.tiff", "many.png"])
def test_files_of_several_pictures_are_refused(tmp_path, name):
    frames = [Image.fromarray(pixels(4, 6)), Image.fromarray(255 - pixels(4, 6))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"holds 2 pictures"):
        read_picture(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_other_colours_are_refused(tmp_path):
    Image.fromarray(pixels(4, 6, 4), "CMYK").save(tmp_path / "print.jpg")
    with pytest.raises(InputError, match=r"print\.jpg: its colours are CMYK"):
        read_picture(tmp_path / "print.jpg")


def test_large_pictures_are_refused_by_their_header(tmp_path, monkeypatch):
    Image.fromarray(pixels(4, 6)).save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 23)
    with pytest.raises(InputError, match="6x4 pixels are more than the limit"):
        read_picture(tmp_path / "a.png")


def test_damaged_pictures_are_named(tmp_path):
    Image.fromarray(pixels(40, 60)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png: the picture cannot be decoded"):
        read_picture(tmp_path / "cut.png")
    (tmp_path / "none.png").write_bytes(b"\x89PNG\r\n\x1a\njunk")
    with pytest.raises(InputError, match=r"none\.png: not a picture"):
        read_picture(tmp_path / "none.png")
