"""A client's plain samples: arrays, tables, folders of pictures. Read piece by piece.

Tables and compressed arrays are first spooled to an unnamed temporary file, so that samples can be
read in any order while memory stays flat: the order in which they are encrypted is random, because
a file sorted by class would give the labels away.
"""

import csv
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float64, Int64
from PIL import Image

from cloister.crypto.csprng import Csprng
from cloister.errors import InputError, RangeError, ShapeError
from cloister.fe.encoding import Encoding
from cloister.training.writer import Chunk

CHUNK_BYTES = 1 << 22
PIXEL_BITS = 9
"""0..255 needs 256 steps, one more than the symmetric range of 8 bits has."""
PIXELS = Encoding(scale=1 / 255, offset=128 / 255, bits=PIXEL_BITS)
"""Pixels p become p - 128 exactly, and stand for p / 255."""
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff"})

Kind = Literal["pixels", "values", "table"]


class Source(Protocol):
    """Samples by position; the labels are small enough to be kept."""

    kind: Kind
    shape: tuple[int, int, int]
    labels: Int64[np.ndarray, " n"]
    names: Sequence[str]
    """Class names in the order of the labels' numbers."""

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Samples (m, h, w, c): pixels as 0..255, values and columns as they are."""
        ...


class ArraySource:
    """Arrays `x` and `y` of an .npz file."""

    names: Sequence[str]

    def __init__(self, path: Path, *, x: str = "x", y: str = "y") -> None:
        """Spool the arrays.

        Raises   InputError, ShapeError naming file and array
        """
        samples = self._spool(path, x)
        labels = self._spool(path, y)
        if samples.ndim < 2 or samples.ndim > 4 or len(samples) == 0:
            raise ShapeError(
                f"{path}: array {x!r} must be (samples, features), (samples, h, w) or "
                f"(samples, h, w, channels), got {samples.shape}"
            )
        labels = labels.reshape(len(labels), -1)
        if labels.shape != (len(samples), 1) or labels.dtype.kind not in "iu":
            raise ShapeError(
                f"{path}: array {y!r} must hold one class number for each of the {len(samples)} "
                f"samples, got {labels.dtype} {labels.shape}"
            )
        self.labels = labels[:, 0].astype(np.int64)
        if int(self.labels.min()) < 0:
            raise RangeError(f"{path}: array {y!r}: class numbers begin at 0")
        self.names = tuple(str(i) for i in range(int(self.labels.max()) + 1))
        self.kind: Kind = "pixels" if samples.dtype == np.uint8 else "values"
        if samples.dtype.kind not in "fiu":
            raise ShapeError(f"{path}: array {x!r} must hold numbers, got {samples.dtype}")
        self.shape = _image_shape(samples.shape[1:])
        self._samples = samples

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """See `Source`."""
        return np.asarray(self._samples[positions]).reshape(len(positions), *self.shape)

    def _spool(self, path: Path, name: str) -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive:
                known = [member.removesuffix(".npy") for member in archive.namelist()]
                if name not in known:
                    raise InputError(
                        f"{path}: holds no array {name!r} but {', '.join(known) or 'nothing'}; "
                        "name them with --x and --y"
                    )
                with archive.open(f"{name}.npy") as member, tempfile.TemporaryFile() as file:
                    shape, fortran, dtype = _array_header(member)
                    if dtype.hasobject or fortran:
                        raise InputError(f"{path}: array {name!r} must be plain, in C order")
                    while piece := member.read(CHUNK_BYTES):
                        file.write(piece)
                    file.flush()
                    if file.tell() != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
                        raise InputError(f"{path}: array {name!r} is truncated")
                    if 0 in shape:
                        return np.empty(shape, dtype)
                    # The mapping outlives the file, which has no name.
                    return np.memmap(file, dtype, "r", shape=shape)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: not a readable .npz file ({error})") from None


class TableSource:
    """A CSV file with a header; one column holds the class."""

    kind: Kind = "table"
    names: Sequence[str]

    def __init__(self, path: Path, *, label: str) -> None:
        """Spool the numbers.

        Raises   InputError, RangeError naming file, line and column
        """
        labels: list[int] = []
        names: dict[str, int] = {}
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.reader(file)
                header = [cell.strip() for cell in next(rows, [])]
                if label not in header or len(header) < 2 or len(set(header)) != len(header):
                    raise InputError(
                        f"{path}: needs a header with different names and a column {label!r}; "
                        "name the column of the classes with --label"
                    )
                self.columns = tuple(name for name in header if name != label)
                with tempfile.TemporaryFile() as spooled:
                    for row in rows:
                        if not row:
                            continue
                        where = f"{path}: line {rows.line_num}"
                        values, name = _table_row(row, header.index(label), header, where)
                        labels.append(names.setdefault(name, len(names)))
                        spooled.write(values.tobytes())
                    if not labels:
                        raise InputError(f"{path}: holds no samples")
                    spooled.flush()
                    shape = (len(labels), len(self.columns))
                    # The mapping outlives the file, which has no name.
                    self._samples = np.memmap(spooled, np.float64, "r", shape=shape)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: not a readable CSV file ({error})") from None
        # Numbered by name, so that the order of the lines is forgotten.
        self.names = tuple(sorted(names))
        renumbered = np.array([self.names.index(name) for name in names], np.int64)
        self.labels = renumbered[np.array(labels, np.int64)]
        self.shape = (1, 1, len(self.columns))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each column: secret until they are made public."""
        lows = np.full(len(self.columns), np.inf)
        highs = -lows
        rows = max(1, CHUNK_BYTES // (8 * len(self.columns)))
        for start in range(0, len(self._samples), rows):
            piece = self._samples[start : start + rows]
            lows, highs = np.minimum(lows, piece.min(axis=0)), np.maximum(highs, piece.max(axis=0))
        both = zip(lows.tolist(), highs.tolist(), strict=True)
        return dict(zip(self.columns, both, strict=True))

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """See `Source`."""
        return np.asarray(self._samples[positions]).reshape(len(positions), *self.shape)


class FolderSource:
    """Pictures of one size, in one folder for each class."""

    kind: Kind = "pixels"
    names: Sequence[str]

    def __init__(self, path: Path) -> None:
        """List the pictures.

        Raises   InputError naming the folder
        """
        folders = sorted(child for child in path.iterdir() if child.is_dir())
        self.names = tuple(folder.name for folder in folders)
        self._paths: list[Path] = []
        labels = []
        for number, folder in enumerate(folders):
            for child in sorted(folder.iterdir()):
                if child.suffix.lower() in PICTURES:
                    self._paths.append(child)
                    labels.append(number)
        if not labels:
            raise InputError(f"{path}: holds no pictures in folders, one for each class")
        self.labels = np.array(labels, np.int64)
        first = _picture(self._paths[0])
        self.shape = (first.shape[0], first.shape[1], first.shape[2])

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """See `Source`."""
        pictures = []
        for position in positions.tolist():
            path = self._paths[position]
            picture = _picture(path)
            if picture.shape != self.shape:
                raise ShapeError(
                    f"{path}: is a picture {picture.shape}, the others are {self.shape}; "
                    "bring them to one size first"
                )
            pictures.append(picture)
        return np.stack(pictures)


class Encoder:
    """From a source's values to the integers of a data set."""

    def __init__(
        self,
        source: Source,
        encoding: Encoding,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        clip: bool = False,
    ) -> None:
        """Columns of a table are mapped from their `ranges` to [-1, 1] first.

        Raises   InputError naming a column without a usable range
        """
        self._source, self._encoding, self._clip = source, encoding, clip
        self._middle: Float64[np.ndarray, " c"] | None = None
        self._half: Float64[np.ndarray, " c"] = np.ones(source.shape[-1])
        if isinstance(source, TableSource):
            given = ranges or {}
            wrong = set(source.columns) ^ set(given)
            if wrong or tuple(source.columns) != tuple(given):
                raise InputError(
                    f"the columns are {', '.join(source.columns)}, but the data set has "
                    f"{', '.join(given)}; bring them to the same names and order"
                )
            low, high = np.array(list(given.values()), np.float64).T
            bad = ~((low <= high) & np.isfinite(low) & np.isfinite(high))
            if bad.any():
                column = source.columns[int(np.flatnonzero(bad)[0])]
                raise InputError(f"column {column}: its range needs low <= high")
            self._middle = (low + high) / 2
            # A constant column says nothing and becomes zero.
            self._half = np.where(high > low, (high - low) / 2, 1.0)

    def encode(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Encoded samples.

        Raises   RangeError naming sample and field
        """
        raw = self._source.read(positions)
        values = np.asarray(raw, np.float64)
        if self._source.kind == "pixels":
            values = values / 255
        if self._middle is not None:
            values = (values - self._middle) / self._half
        low, high = self._encoding.low, self._encoding.high
        slack = self._encoding.resolution
        bad = ~((values >= low - slack) & (values <= high + slack))
        if self._clip:
            bad = np.isnan(values)
            values = np.clip(values, low, high)
        if bad.any():
            self._complain(positions, values, bad)
        return self._encoding.encode(np.clip(values, low, high))

    def _complain(
        self, positions: np.ndarray, values: np.ndarray, bad: Bool[np.ndarray, "..."]
    ) -> None:
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        sample = int(positions[place[0]])
        source = self._source
        if isinstance(source, TableSource):
            field, option = f"column {source.columns[place[-1]]}", "--ranges"
        else:
            field, option = f"element {place[1:]}", "--range"
        remedy = f"allow --clip, or make the data set with a wider {option}"
        if np.isnan(values[place]):
            what, remedy = "the value is missing (NaN)", "fill or drop it"
        else:
            what = "the value is outside the data set's range"
        raise RangeError(f"sample {sample}, {field}: {what}; {remedy}")


def random_order(count: int, *, rng: Csprng) -> Int64[np.ndarray, " count"]:
    """A random order of samples.

    Secret   result: a file sorted by class would give the labels away
    """
    # Sorting random words: a collision, at most n^2 / 2^65, would only repeat the given order.
    words = np.frombuffer(rng.random_bytes(8 * count), np.uint64)
    return np.argsort(words, kind="stable").astype(np.int64)


def chunks(
    source: Source,
    encoder: Encoder,
    *,
    classes: Int64[np.ndarray, " names"],
    test_fraction: float,
    order: Int64[np.ndarray, " n"],
) -> Iterator[Chunk]:
    """All samples in a given order, of which the last ones are the test split.

    `classes` are the data set's numbers of the source's classes.
    """
    n = len(source.labels)
    tested = round(test_fraction * n)
    size = max(1, CHUNK_BYTES // (8 * int(np.prod(source.shape))))
    for start in range(0, n, size):
        positions = order[start : start + size]
        places = np.arange(start, start + len(positions))
        yield Chunk(
            encoder.encode(positions), classes[source.labels[positions]], places >= n - tested
        )


def open_source(path: Path, *, x: str, y: str, label: str) -> Source:
    """The source that a path stands for.

    Raises   InputError
    """
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npz":
        return ArraySource(path, x=x, y=y)
    if path.suffix.lower() == ".csv":
        return TableSource(path, label=label)
    raise InputError(f"{path}: give an .npz or .csv file, or a folder with one folder a class")


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) == 1:
        return (1, 1, shape[0])
    return (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)


def _table_row(
    row: Sequence[str], place: int, header: Sequence[str], where: str
) -> tuple[Float64[np.ndarray, " c"], str]:
    if len(row) != len(header):
        raise ShapeError(f"{where}: {len(row)} cells, but the header has {len(header)}")
    values = np.empty(len(header) - 1)
    position = 0
    for column, cell in zip(header, row, strict=True):
        if column == header[place]:
            continue
        try:
            values[position] = float(cell)
        except ValueError:
            raise RangeError(f"{where}, column {column}: not a number; fill or drop it") from None
        if not np.isfinite(values[position]):
            raise RangeError(f"{where}, column {column}: not a finite number; fill or drop it")
        position += 1
    name = row[place].strip()
    if not name:
        raise RangeError(f"{where}, column {header[place]}: the class is missing")
    return values, name


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            plain = image.convert("L" if image.mode in ("1", "L", "I", "I;16", "F") else "RGB")
            pixels = np.asarray(plain, np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from None
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
