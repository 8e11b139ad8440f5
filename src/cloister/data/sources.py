"""An owner's plain samples: arrays, tables, folders of pictures. Read piece by piece.

Tables and compressed arrays are first spooled to an unnamed temporary file, so that samples can be
read in any order while memory stays flat: they are encrypted in a random order (`encoder`).
"""

import csv
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from cloister.base.reading import parsing
from cloister.data.array_targets import FEW_CLASSES, read_targets
from cloister.data.encoding import Kind, require_no_outlier
from cloister.data.folder_source import FolderSource, PictureOptions
from cloister.data.info import Targets
from cloister.errors import InputError, RangeError, ShapeError

CHUNK_BYTES = 1 << 22
READ_AT_ONCE = 1024
SAMPLED_VALUES = 1 << 16
"""Of so many samples, to see what most values are like."""
FEW_CHANNELS = 4
"""A last axis of more, behind a first one of at most as many, is a width: channels come first."""

Labels: TypeAlias = Int64[np.ndarray, "n ..."] | Float64[np.ndarray, "n k"]


@runtime_checkable
class Source(Protocol):
    """Samples by position; the labels are small enough to be kept."""

    kind: Kind
    shape: tuple[int, int, int]
    samples: int
    targets: Targets
    labels: Labels | None
    """classes: class numbers (n,). labels: 0 and 1 (n, k). numbers: in their own units (n, k).
    None: unlabelled samples, to be predicted."""
    names: Sequence[str]
    """Names of the classes, labels or numbers, in the order of the labels."""
    remarks: Sequence[str]
    """Assumptions and omissions, a sentence each, for the samples' owner."""

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """Samples (m, h, w, c): pixels as 0..255, values and columns as they are."""
        ...


class ArraySource:
    """Arrays of samples and of targets; pictures have their channels last."""

    names: Sequence[str]
    remarks: Sequence[str]

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray | None,
        *,
        targets: Targets | None = None,
        titles: tuple[str, str] = ("array x", "array y"),
    ) -> None:
        """Take the arrays as they are, mapped ones unread.

        y         class numbers, labels of 0 and 1, or numbers; None: unlabelled samples
        targets   which of them; None: as type and shape suggest
        titles    names of the arrays in errors

        Raises   ShapeError, RangeError, InputError naming the array
        """
        samples, title = titles
        if x.ndim and len(x) == 0:
            raise ShapeError(f"{samples} holds no samples")
        if x.ndim < 2 or x.ndim > 4:
            raise ShapeError(
                f"{samples} must be (samples, features), (samples, h, w) or "
                f"(samples, h, w, channels), got {x.shape}"
            )
        read = None if y is None else read_targets(y, len(x), targets=targets, title=title)
        self.samples = len(x)
        self.targets: Targets = (targets or "classes") if read is None else read.targets
        self.labels: Labels | None = None if read is None else read.labels
        self.names = () if read is None else read.names
        self.kind: Kind = "pixels" if x.dtype == np.uint8 else "values"
        if x.dtype.kind not in "fiu":
            raise ShapeError(f"{samples} must hold numbers, got {x.dtype}")
        if x.ndim == 4 and x.shape[1] <= FEW_CHANNELS < x.shape[3]:
            raise ShapeError(
                f"{samples} of shape {x.shape} has its channels first; samples are "
                "(height, width, channels): save x.transpose(0, 2, 3, 1)"
            )
        self.shape = _image_shape(x.shape[1:])
        many = x.ndim == 4 and self.shape[2] > FEW_CHANNELS
        self.remarks = (
            *(("the last axis of the samples is read as channels",) if many else ()),
            *(() if read is None else read.remarks),
        )
        self._samples = x

    @classmethod
    def read_file(
        cls, path: Path, *, x: str = "x", y: str | None = "y", targets: Targets | None = None
    ) -> "ArraySource":
        """Spool two arrays of an .npz file.

        Raises   InputError, ShapeError naming file and array
        """
        titles = (f"{path}: array {x!r}", f"{path}: array {y!r}")
        found = None if y is None else _spool(path, y)
        return cls(_spool(path, x), found, targets=targets, titles=titles)

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """See `Source`."""
        return np.asarray(self._samples[positions]).reshape(len(positions), *self.shape)


class TableSource:
    """A CSV file with a header; one column holds the class."""

    kind: Kind = "table"
    targets: Targets = "classes"
    labels: Labels | None
    names: Sequence[str]
    remarks: Sequence[str] = ()

    def __init__(self, path: Path, *, label: str) -> None:
        """Spool the numbers.

        Raises   InputError, RangeError naming file, line and column
        """
        labels: list[int] = []
        names: dict[str, int] = {}
        with (
            parsing(f"{path}: not a readable CSV file; save it as UTF-8"),
            path.open(newline="", encoding="utf-8-sig") as file,
        ):
            rows = csv.reader(file)
            header = [cell.strip() for cell in next(rows, [])]
            if label not in header or len(header) < 2 or len(set(header)) != len(header):
                raise InputError(
                    f"{path}: needs a header with different names and a column {label!r}, cells "
                    "separated by commas; name the column of the classes with --label"
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
        _require_classes(path, label, names)
        # Numbered by name, so that the order of the lines is forgotten.
        self.names = tuple(sorted(names))
        renumbered = np.array([self.names.index(name) for name in names], np.int64)
        self.labels = renumbered[np.array(labels, np.int64)]
        self.samples = len(labels)
        self.shape = (1, 1, len(self.columns))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each column: secret until they are made public.

        Raises   RangeError naming a column that a single value would flatten
        """
        lows = np.full(len(self.columns), np.inf)
        highs = -lows
        rows = max(1, CHUNK_BYTES // (8 * len(self.columns)))
        for start in range(0, len(self._samples), rows):
            piece = self._samples[start : start + rows]
            lows, highs = np.minimum(lows, piece.min(axis=0)), np.maximum(highs, piece.max(axis=0))
        both = list(zip(lows.tolist(), highs.tolist(), strict=True))
        for place, column in enumerate(self.columns):
            values = np.array(self._samples[:, place])
            require_no_outlier(values, both[place], what=f"column {column}", option="--ranges")
        return dict(zip(self.columns, both, strict=True))

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """See `Source`."""
        return np.asarray(self._samples[positions]).reshape(len(positions), *self.shape)


def open_source(
    path: Path | str,
    *,
    x: str = "x",
    y: str = "y",
    label: str = "label",
    targets: Targets | None = None,
    pictures: PictureOptions | None = None,
    unlabelled: bool = False,
) -> Source:
    """The source that a path stands for; the options name arrays and the column of the classes.

    targets   what the samples have to learn; None: as the file suggests
    unlabelled   the samples are to be predicted: targets are not read
    Raises    InputError
    """
    path = Path(path)
    if targets not in (None, "classes") and path.suffix.lower() != ".npz":
        raise InputError(f"{path}: holds classes; {targets} are read from .npz")
    if path.is_dir():
        return FolderSource(path, pictures)
    if pictures not in (None, PictureOptions()):
        raise InputError(
            f"{path}: --background, --channels and --resize are about pictures, and this is no "
            "folder of pictures; leave them out"
        )
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npz":
        return ArraySource.read_file(path, x=x, y=None if unlabelled else y, targets=targets)
    if path.suffix.lower() == ".csv":
        return TableSource(path, label=label)
    raise InputError(f"{path}: give an .npz or .csv file, or a folder with one folder a class")


def value_range(source: Source) -> tuple[float, float]:
    """Smallest and largest value of all samples: secret until they are made public.

    Raises   RangeError naming a sample that is not finite, or a value that would flatten the others
    """
    low, high = np.inf, -np.inf
    some: list[np.ndarray] = []
    for start in range(0, source.samples, READ_AT_ONCE):
        stop = min(start + READ_AT_ONCE, source.samples)
        piece = source.read(np.arange(start, stop, dtype=np.int64))
        finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
        if not finite.all():
            raise RangeError(
                f"sample {start + int(np.argmin(finite))}: holds NaN or infinity; fill or drop it"
            )
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        some.append(piece.reshape(-1)[:: -(-piece.size // SAMPLED_VALUES)].astype(np.float64))
    require_no_outlier(np.concatenate(some), (low, high), what="samples", option="--range")
    return low, high


def _spool(path: Path, name: str) -> np.ndarray:
    with parsing(f"{path}: not a readable .npz file"), zipfile.ZipFile(path) as archive:
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
            if not cell.strip():
                raise RangeError(
                    f"{where}, column {column}: the value is missing; fill or drop it"
                ) from None
            raise RangeError(
                f"{where}, column {column}: not a number such as 1234.5; write one, or drop it"
            ) from None
        if not np.isfinite(values[position]):
            raise RangeError(f"{where}, column {column}: not a finite number; fill or drop it")
        position += 1
    name = row[place].strip()
    if not name:
        raise RangeError(f"{where}, column {header[place]}: the class is missing")
    return values, name


def _require_classes(path: Path, label: str, names: Sequence[str] | Mapping[str, int]) -> None:
    """Refuse a column of measured numbers: each would become a class."""
    for name in names:
        try:
            number = float(name)
        except ValueError:
            return
        if not number.is_integer():
            raise InputError(
                f"{path}: column {label} holds numbers such as {name}, which are no classes; "
                "group them, or name the column of the classes with --label"
            )


def require_fewer_classes_than_samples(source: Source) -> None:
    """Refuse classes that the caller did not name if nearly every sample has one of its own, or if
    most of them have no sample.

    Raises   InputError
    """
    if source.targets != "classes" or source.labels is None:
        return
    occurring = np.unique(source.labels)
    found = len(occurring)
    if found > FEW_CLASSES and 2 * found > source.samples:
        raise InputError(
            f"the {source.samples} samples have {found} different classes: these may be numbers to "
            "be predicted (--targets numbers), or names of samples; if they are classes, name all "
            "of them with --classes"
        )
    if 2 * found < len(source.names):
        absent = np.setdiff1d(np.arange(len(source.names)), occurring)
        raise InputError(
            f"{len(absent)} of {len(source.names)} classes, such as {source.names[absent[0]]}, "
            "have no sample; number the classes from 0 without gaps, or name all of them with "
            "--classes"
        )
