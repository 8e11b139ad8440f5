"""Folders of pictures as they are found: right, or refused by file with a remedy."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cloister.data.folder_source import FolderSource, PictureOptions
from cloister.data.preprocessing import Channels
from cloister.data.sources import open_source
from cloister.errors import InputError

SIX = [f"{name}/{i}.png" for name in ("sick", "well") for i in range(6)]
TURNED = Image.Exif()
TURNED[0x0112] = 6


def gray(*shape, seed=0, dtype=np.uint8, high=256):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def save(root, name, array, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = options.pop("mode", None)
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(path, **options)


def plain(root, shape=(28, 28)):
    for i, name in enumerate(SIX):
        save(root, name, gray(*shape, seed=i))


def each(root, array, **options):
    for i, name in enumerate(SIX):
        save(root, name, array(i), **options)


def sizes(root):
    for i, name in enumerate(SIX):
        save(root, name, gray(28 + i % 6 * 4, 30, seed=i))


def modes(root):
    plain(root)
    save(root, "sick/rgba.png", gray(28, 28, 4))
    save(root, "sick/rgb.png", gray(28, 28, 3))


def exif(root):
    plain(root)
    save(root, "sick/e.jpg", gray(28, 40, 3), exif=TURNED)


def half(i):
    array = np.zeros((28, 28, 3), np.uint8)
    array[:14] = 255
    return array


def exif2(root):
    for name in SIX:
        save(root, name.replace("png", "jpg"), half(0), exif=TURNED, quality=95)


def corrupt(root):
    plain(root)
    (root / "sick/bad.png").write_bytes(b"\x89PNG\r\n\x1a\njunk")


def trunc(root):
    plain(root)
    whole = (root / "sick/0.png").read_bytes()
    (root / "sick/0.png").write_bytes(whole[: len(whole) // 2])


def extra(root):
    plain(root)
    for name in ("Thumbs.db", ".DS_Store", "sick/notes.txt", "sick/.DS_Store"):
        (root / name).write_bytes(b"x")


def emptyclass(root):
    plain(root)
    (root / "third").mkdir()


def oneclass(root):
    plain(root)
    for path in (root / "well").iterdir():
        path.unlink()
    (root / "well").rmdir()


def dicom(root):
    plain(root)
    (root / "sick/a.dcm").write_bytes(b"\0" * 128 + b"DICM")


def nested(root):
    plain(root)
    save(root, "sick/p1/a.png", gray(28, 28))


GIVEN_RIGHT = {
    "plain": (plain, "pixels", (28, 28, 1), 12, ()),
    "sixteen": (
        lambda root: each(root, lambda i: gray(28, 28, seed=i, dtype=np.uint16, high=4096)),
        "values", (28, 28, 1), 12, (),
    ),
    "exif2": (exif2, "pixels", (28, 28, 3), 12, ()),
    "extra": (
        extra, "pixels", (28, 28, 1), 12,
        ("files: 4 skipped (.DS_Store, Thumbs.db, sick/.DS_Store, sick/notes.txt)",),
    ),
    "emptyclass": (
        emptyclass, "pixels", (28, 28, 1), 12,
        ("folder third: holds no pictures and is no class; name it with --classes if others "
         "have it",),
    ),
    "oneclass": (oneclass, "pixels", (28, 28, 1), 6, ()),
    "palette": (
        lambda root: each(root, lambda i: gray(28, 28, seed=i), mode="P"),
        "pixels", (28, 28, 3), 12, (),
    ),
    "nested": (
        nested, "pixels", (28, 28, 1), 13,
        ("folders inside class folders (sick/p1): their pictures are of the class above, as those "
         "of sick/p1 are of class sick",),
    ),
}  # fmt: skip
GIVEN_REFUSED = {
    "sizes": (sizes, r"6 kinds: 2 of 28x30 gray \(sick/0.png, well/0.png\), .*--resize HEIGHT,W"),
    "modes": (
        modes,
        r"sick/rgba.png: has transparent pixels.*--background COLOUR.*1 of 28x28 colour "
        r"\(sick/rgb.png\); bring them to one number of channels by --channels gray or rgb",
    ),
    "rgba": (
        lambda root: each(root, lambda i: gray(28, 28, 4, seed=i)),
        r"12 of 12 cannot be used: sick/0.png, .*, well/5.png: has transparent.*--background",
    ),
    "exif": (exif, r"1 of 40x28 colour \(sick/e.jpg\).*--resize .* and .*--channels"),
    "corrupt": (corrupt, r"1 of 13 cannot be used: sick/bad.png: not a picture.*save it as PNG"),
    "trunc": (trunc, r"1 of 12 cannot be used: sick/0.png: .*copy it again, or leave it out"),
    "dicom": (dicom, r"sick/a.dcm: the DICOM picture cannot be decoded; export it again"),
    "flat": (
        lambda root: save(root, "a.png", gray(28, 28)),
        r"holds pictures \(a.png\), but none in folders, one for each class; move",
    ),
}


@pytest.mark.parametrize("case", GIVEN_RIGHT)
def test_given_folders_that_are_read(tmp_path, case):
    make, kind, shape, count, remarks = GIVEN_RIGHT[case]
    make(tmp_path)
    found = open_source(tmp_path)
    assert (found.kind, found.shape, len(found.labels)) == (kind, shape, count)
    assert found.remarks == remarks
    assert found.names == (("sick",) if case == "oneclass" else ("sick", "well"))
    assert [found.where(i).split(os.sep)[0] for i in range(count)] == [
        found.names[label] for label in found.labels
    ]
    for i in range(count):
        with Image.open(tmp_path / found.where(i)) as image:
            expected = np.asarray(image.convert("RGB") if shape[2] == 3 else image)
        if case == "exif2":
            expected = np.rot90(expected, -1)
        np.testing.assert_array_equal(
            found.read(np.array([i]))[0].reshape(expected.shape), expected
        )


@pytest.mark.parametrize("case", GIVEN_REFUSED)
def test_given_folders_that_are_refused(tmp_path, case):
    make, message = GIVEN_REFUSED[case]
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("make", "options", "shape"),
    [
        (sizes, PictureOptions(resize=(20, 24)), (20, 24, 1)),
        (modes, PictureOptions("white", Channels.GRAY), (28, 28, 1)),
        (modes, PictureOptions("#102030", Channels.RGB), (28, 28, 3)),
        (exif, PictureOptions(None, Channels.RGB, (28, 28)), (28, 28, 3)),
    ],
)
def test_remedies_work(tmp_path, make, options, shape):
    make(tmp_path)
    found = open_source(tmp_path, pictures=options)
    assert (found.kind, found.shape) == ("pixels", shape)
    assert found.remarks and all("--resize" in r or "--channels" in r for r in found.remarks)


def test_a_background_lies_behind_transparent_pixels(tmp_path):
    array = np.dstack([gray(4, 6, 3), np.tile(np.uint8([0, 128, 255]), (4, 2))])
    save(tmp_path, "a/x.png", array)
    got = open_source(tmp_path, pictures=PictureOptions("rgb(200,100,0)")).read(np.array([0]))[0]
    share = array[..., 3:] / 255
    mixed = array[..., :3] * share + np.array([200, 100, 0]) * (1 - share)
    np.testing.assert_allclose(got, mixed, atol=1)
    np.testing.assert_array_equal(got[:, 2], array[:, 2, :3])
    np.testing.assert_array_equal(got[:, 0], np.tile([200, 100, 0], (4, 1)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_every_orientation_is_set_upright(tmp_path, suffix, orientation):
    scene = np.zeros((16, 32, 3), np.uint8)
    scene[:8, :16] = 255  # the upper left quarter of what was photographed
    scene[8:, 16:] = 90
    stored = {
        1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1],
        5: scene.transpose(1, 0, 2), 6: np.rot90(scene), 7: np.rot90(scene[:, ::-1], -1)[::1],
        8: np.rot90(scene, -1),
    }[orientation]  # fmt: skip
    if orientation == 7:
        stored = scene[::-1, ::-1].transpose(1, 0, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    save(
        tmp_path, f"a/x.{suffix}", np.ascontiguousarray(stored), exif=exif,
        **lossless.get(suffix, {}),
    )  # fmt: skip
    got = open_source(tmp_path).read(np.array([0]))[0]
    assert got.shape == scene.shape
    np.testing.assert_allclose(got.astype(int), scene, atol=3)


def tiff(path, array, *, photometric=1, sample_format=1):
    """A TIFF of any numbers, without Pillow."""
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    data = array.tobytes()
    fields = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, [array.itemsize * 8] * channels),
        (259, 3, [1]), (262, 3, [photometric]), (273, 4, [0]), (277, 3, [channels]),
        (278, 3, [height]), (279, 4, [len(data)]), (339, 3, [sample_format] * channels),
    ]  # fmt: skip
    codes = {3: "H", 4: "I"}
    packed = [(t, k, v, struct.pack(f"<{len(v)}{codes[k]}", *v)) for t, k, v in fields]
    behind = 8 + 2 + 12 * len(fields) + 4
    start = behind + sum(len(raw) for *_, raw in packed if len(raw) > 4)
    entries, tail = b"", b""
    for tag, kind, values, raw in packed:
        value = struct.pack("<I", start) if tag == 273 else raw
        if len(value) > 4:
            tail += value
            value = struct.pack("<I", behind + len(tail) - len(raw))
        entries += struct.pack("<HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<IH", 8, len(fields))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + entries + b"\0" * 4 + tail + data)


WIDE = gray(6, 8, dtype=np.uint16, high=1 << 16)
NUMBERS = {
    "u16": (WIDE, 1), "s16": (WIDE.view(np.int16), 2), "u32": (WIDE.astype(np.uint32) << 15, 1),
    "u32 high": (WIDE.astype(np.uint32) << 16, 1), "s32": (WIDE.astype(np.int32) - 40_000, 2),
    "f32": (WIDE.astype(np.float32) / 7, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_a_tiff_are_values(tmp_path, case):
    array, sample_format = NUMBERS[case]
    tiff(tmp_path / "a/x.tif", array, sample_format=sample_format)
    found = open_source(tmp_path)
    assert (found.kind, found.shape) == ("values", (6, 8, 1))
    np.testing.assert_array_equal(found.read(np.array([0]))[0, ..., 0], array.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (gray(6, 8).view(np.int8), {"sample_format": 2}),
        (WIDE, {"photometric": 0}),
        (WIDE.astype(np.float32), {"photometric": 0, "sample_format": 3}),
        (gray(6, 8, 3, dtype=np.uint16, high=1 << 16), {"photometric": 2}),
        (gray(6, 8, 5), {}),
        (WIDE.astype(np.float64), {"sample_format": 3}),
    ],
)
def test_a_tiff_that_pillow_would_change_is_refused(tmp_path, array, options):
    tiff(tmp_path / "a/x.tif", array, **options)
    with pytest.raises(InputError, match=r"a/x.tif: .*(convert it to|save it as)"):
        open_source(tmp_path)


def test_white_as_zero_is_understood(tmp_path):
    tiff(tmp_path / "a/x.tif", gray(6, 8), photometric=0)
    np.testing.assert_array_equal(
        open_source(tmp_path).read(np.array([0]))[0, ..., 0], 255 - gray(6, 8)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_of_floats_without_numbers_is_refused(tmp_path, value):
    array = np.ones((4, 6), np.float32)
    array[1, 2] = value
    tiff(tmp_path / "a/x.tif", array, sample_format=3)
    with pytest.raises(InputError, match=r"a/x.tif: holds NaN or infinity; write numbers"):
        open_source(tmp_path)


PORTABLE = {
    "bits": (b"P1 2 1\n0 1\n", [255, 0], "pixels"),
    "plain": (b"P2 2 1 255\n7 255\n", [7, 255], "pixels"),
    "twelve bits": (b"P5 2 1 4095\n\x01\x02\x0f\xff", [258, 4095], "values"),
    "twelve bits, plain": (b"P2 2 1 4095\n258 4095\n", [258, 4095], "values"),
    "sixteen bits": (b"P5 2 1 65535\n\x01\x02\xff\xff", [258, 65535], "values"),
    "floats": (b"Pf 2 1 -1.0\n" + np.array([1.5, -2], "<f4").tobytes(), [1.5, -2], "values"),
}


@pytest.mark.parametrize("case", PORTABLE)
def test_portable_maps(tmp_path, case):
    data, expected, kind = PORTABLE[case]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.pgm").write_bytes(data)
    found = open_source(tmp_path)
    assert found.kind == kind
    np.testing.assert_array_equal(found.read(np.array([0])).reshape(-1), expected)


def frames(path, **options):
    first = Image.fromarray(gray(6, 8, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=[Image.fromarray(255 - gray(6, 8, 3))], **options)


def transparent_gray(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(WIDE).save(path, transparency=int(WIDE[0, 0]))


def written(data):
    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return write


def saved(array, mode=None, **options):
    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).convert(mode).save(path, **options)

    return write


REFUSED = {
    "x.gif": (frames, "holds 2 pictures; save each"),
    "x.webp": (frames, "holds 2 pictures; save each"),
    "x.tiff": (frames, "holds 2 pictures; save each"),
    "x.png": (frames, "holds 2 pictures; save each"),
    "cmyk.jpg": (saved(gray(6, 8, 3), "CMYK"), "its colours are CMYK; convert it to RGB or gray"),
    "lab.tiff": (saved(gray(6, 8, 3), "LAB"), "its colours are LAB; convert it"),
    "deep.ppm": (written(b"P6 2 1 65535\n" + bytes(12)), "has 16 bits a channel"),
    "deep3.ppm": (written(b"P3 2 1 1000\n1 2 3 4 5 1000\n"), "has 16 bits a channel"),
    "t.png": (transparent_gray, "has a transparent gray"),
    "zero.png": (written(b""), "the file is empty; copy it again"),
    "zero.dcm": (written(b""), "the file is empty; copy it again"),
    "text.jpg": (written(b"hello"), "not a picture that can be read; save it as PNG"),
    "text.dcm": (written(b"hello"), "not a picture that can be read; save it as PNG"),
    "a.jp2": (saved(gray(6, 8)), "not a picture that can be read; save it as PNG"),
    "a.avif": (saved(gray(6, 8, 3)), "not a picture that can be read; save it as PNG"),
    "scan.nii": (written(b"n+1"), "not a picture that can be read; save it as PNG"),
    "eps.png": (written(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not a picture that can be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_are_refused(tmp_path, name):
    make, message = REFUSED[name]
    make(tmp_path / "a" / name)
    with pytest.raises(InputError, match=f"1 of 1 cannot be used: a/{name}: .*{message}"):
        open_source(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "pgm"])
def test_every_format_that_was_cut_is_refused(tmp_path, suffix):
    save(tmp_path, f"a/x.{suffix}", gray(60, 80))
    whole = (tmp_path / f"a/x.{suffix}").read_bytes()
    (tmp_path / f"a/x.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"a/x.{suffix}: .*copy it again, or leave it out"):
        open_source(tmp_path)


READ = {
    "x.PNG": {}, "x.Tif": {}, "x.BMP": {}, "x.GIF": {}, "x.pgm": {},
    "x.jpe": {"format": "JPEG", "quality": 100},
    "x.webp": {"lossless": True}, "progressive.jpg": {"progressive": True, "quality": 100},
    "jpeg.png": {"format": "JPEG", "quality": 100}, "png.jpg": {"format": "PNG"},
    "nosuffix": {"format": "PNG"}, "bits.png": {"bits": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_pictures_that_are_read(tmp_path, name):
    array = gray(8, 16) // 16 * 17  # of which four bits are all there is
    save(tmp_path, f"a/{name}", array, **READ[name])
    got = open_source(tmp_path).read(np.array([0]))[0]
    np.testing.assert_allclose(got.astype(int).mean(axis=-1), array, atol=20 if "j" in name else 0)


def test_one_bit_is_black_or_white(tmp_path):
    for suffix in ("png", "tiff", "bmp", "pbm"):
        save(tmp_path, f"a/x.{suffix}", gray(8, 16), mode="1")
    got = open_source(tmp_path).read(np.arange(4))
    assert set(np.unique(got)) == {0, 255}
    assert all((one == got[0]).all() for one in got)


def test_a_gamma_changes_no_pixel(tmp_path):
    save(tmp_path, "a/x.png", gray(8, 16))
    path = tmp_path / "a/x.png"
    data = path.read_bytes()
    chunk = b"gAMA" + (100_000).to_bytes(4, "big")
    whole = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(data[:33] + whole + data[33:])
    with Image.open(path) as image:
        assert image.info["gamma"] == 1.0
    np.testing.assert_array_equal(open_source(tmp_path).read(np.array([0]))[0, ..., 0], gray(8, 16))


def test_hidden_files_and_those_of_archives_are_left_out(tmp_path):
    plain(tmp_path)
    for name in ("__MACOSX/sick/._0.png", ".git/x.png", "sick/._0.png", "sick/@eaDir/0.png"):
        save(tmp_path, name, gray(3, 3))
    (tmp_path / "sick/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    found = open_source(tmp_path)
    assert len(found.labels) == 12
    assert found.remarks == (
        "files: 5 skipped (.git/, __MACOSX/, sick/._0.png, sick/@eaDir/, sick/DICOMDIR)",
    )


def test_skipped_files_are_all_counted(tmp_path):
    plain(tmp_path)
    for i in range(30):
        (tmp_path / f"sick/{i:02}.txt").write_text("note")
    (remark,) = open_source(tmp_path).remarks
    assert remark.startswith("files: 30 skipped (sick/00.txt, ")
    assert remark.endswith("sick/19.txt, and 10 more)")


def test_names_that_are_not_printable(tmp_path):
    plain(tmp_path)
    (tmp_path / "sick/a\nb.txt").write_text("x")
    (tmp_path / os.fsdecode(b"sick/\xff.txt")).write_text("x")
    (tmp_path / os.fsdecode(b"sick/\xff.png")).write_bytes(b"")
    with pytest.raises(InputError, match=r"sick/\\udcff.png: the file is empty"):
        open_source(tmp_path)
    (tmp_path / os.fsdecode(b"sick/\xff.png")).unlink()
    assert open_source(tmp_path).remarks == ("files: 2 skipped (sick/a\\nb.txt, sick/\\udcff.txt)",)


def test_links(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere, "a.png", gray(4, 6))
    root = tmp_path / "root"
    plain(root, (4, 6))
    (root / "third").symlink_to(elsewhere)
    (root / "sick/link.png").symlink_to(elsewhere / "a.png")
    with pytest.raises(InputError, match=r"sick/link.png and third/a.png are links to one file"):
        open_source(root)
    (root / "third").unlink()
    assert len(open_source(root).labels) == 13
    (root / "sick/again").symlink_to(root)
    assert "sick/again (a link to a folder)" in open_source(root).remarks[0]
    (root / "broken.png").symlink_to(root / "none")
    (root / "sick/broken.png").symlink_to(root / "none")
    with pytest.raises(InputError, match=r"sick/broken.png: .*no such file"):
        open_source(root)


def test_a_link_back_to_the_folder_is_no_class(tmp_path):
    plain(tmp_path)
    (tmp_path / "all").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"all/sick/0.png and sick/0.png are links to one file"):
        open_source(tmp_path)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    plain(tmp_path)
    os.mkfifo(tmp_path / "sick/pipe.png")
    (tmp_path / "well/folder.png").mkdir()
    with pytest.raises(InputError, match=r"1 of 13 cannot be used: sick/pipe.png: .*not a regular"):
        open_source(tmp_path)


def test_files_and_folders_without_permission(tmp_path, monkeypatch):
    plain(tmp_path)
    opened, listed = os.open, os.scandir

    def refuse(path, *more):
        if str(path).endswith("sick/3.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"sick/3.png: .*Permission denied"):
        open_source(tmp_path)
    monkeypatch.setattr(os, "open", opened)

    def unlisted(path):
        if str(path).endswith("well"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", unlisted)
    with pytest.raises(InputError, match=r"well: the folder cannot be read \(Permission denied\)"):
        open_source(tmp_path)


@pytest.mark.parametrize("folder", ["train", "Train"])
def test_folders_of_parts_are_no_classes(tmp_path, folder):
    for part in (folder, "val"):
        plain(tmp_path / part)
    with pytest.raises(InputError, match=r"[Tt]rain, val are parts .*give one of them.*--split"):
        open_source(tmp_path)
    assert open_source(tmp_path / folder).names == ("sick", "well")


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="holds no pictures in folders, one for each class; move"):
        open_source(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no pictures .*1 skipped \(a/notes.txt\)"):
        open_source(tmp_path)


def test_unlabelled_pictures_may_lie_anywhere(tmp_path):
    for name in ("b.png", "p2/a.png", "p1/deep/c.png", ".hidden.png"):
        save(tmp_path, name, gray(4, 6))
    found = open_source(tmp_path, unlabelled=True)
    assert (found.labels, found.names, found.samples) == (None, (), 3)
    assert [found.where(i) for i in range(3)] == ["b.png", "p1/deep/c.png", "p2/a.png"]
    assert found.remarks == ("files: 1 skipped (.hidden.png)",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures; give a folder that does"):
        open_source(tmp_path / "empty", unlabelled=True)


def test_all_that_cannot_be_used_is_in_one_message(tmp_path):
    plain(tmp_path)
    written(b"")(tmp_path / "sick/zero.png")
    written(b"hello")(tmp_path / "sick/text.png")
    written(b"hello")(tmp_path / "well/text.png")
    save(tmp_path, "well/large.png", gray(30, 28))
    with pytest.raises(InputError) as raised:
        open_source(tmp_path)
    message = str(raised.value)
    assert "3 of 16 cannot be used" in message
    assert "sick/text.png, well/text.png: not a picture" in message
    assert "sick/zero.png: the file is empty" in message
    assert "1 of 30x28 gray (well/large.png)" in message


def test_wide_pictures_are_resized_and_stay_gray(tmp_path):
    ramp = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (64, 1))
    save(tmp_path, "a/x.png", ramp)
    found = open_source(tmp_path, pictures=PictureOptions(None, Channels.GRAY, (32, 32)))
    got = found.read(np.array([0]))[0, ..., 0]
    assert (found.kind, got.shape) == ("values", (32, 32))
    np.testing.assert_allclose(got[:, 4:-4], (ramp[::2, ::2] + 32)[:, 4:-4], atol=1)
    with pytest.raises(InputError, match=r"a/x.png: has more than 8 bits, which only"):
        open_source(tmp_path, pictures=PictureOptions(None, Channels.RGB))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "plaid"}, "background plaid: not a colour"),
        ({"background": "#ffffff80"}, "background #ffffff80: not a colour"),
        ({"channels": Channels.BGR}, "--channels bgr: .*gray or rgb"),
        ({"resize": (0, 8)}, "--resize"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(InputError, match=message):
        PictureOptions(**options)


def test_pictures_are_encrypted_as_they_were_checked(tmp_path):
    plain(tmp_path)
    found = FolderSource(tmp_path)
    before = found.read(np.arange(12))
    for name in SIX:
        (tmp_path / name).write_bytes(b"changed")
    np.testing.assert_array_equal(found.read(np.arange(12)), before)
