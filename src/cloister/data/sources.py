"""An owner's plain samples: arrays, tables, folders of pictures. Read piece by piece.

Tables and compressed arrays are first spooled to an unnamed temporary file, so that samples can be
read in any order while memory stays flat: they are encrypted in a random order (`encoder`).
"""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from cloister.base.reading import parsing
from cloister.data.array_files import NPY, NPZ, read_array
from cloister.data.array_samples import read_samples
from cloister.data.array_targets import FEW_CLASSES, Labels, read_targets
from cloister.data.encoding import Kind, require_no_outlier
from cloister.data.folder_source import FolderSource, PictureOptions
from cloister.data.info import Targets
from cloister.data.preprocessing import Layout
from cloister.errors import InputError, RangeError, ShapeError

CHUNK_BYTES = 1 << 22
SAMPLED_VALUES = 1 << 20
"""Of all samples, to see what most values are like."""


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

    def where(self, position: int) -> str:
        """The name of a sample in errors, such as its file."""
        ...


class ArraySource:
    """Arrays of samples and of targets."""

    names: Sequence[str]
    remarks: Sequence[str]

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray | None,
        *,
        targets: Targets | None = None,
        layout: Layout | None = None,
        titles: tuple[str, str] = ("array x", "array y"),
    ) -> None:
        """Take the arrays as they are; mapped ones are looked at piece by piece.

        y         class numbers or names, labels of 0 and 1, or numbers; None: unlabelled samples
        targets   which of them; None: as type and shape suggest
        layout    where the channels of four axes are; None: last, if they cannot be first
        titles    names of the arrays in errors

        Raises   ShapeError, RangeError, InputError naming the array
        """
        read = read_samples(x, title=titles[0], layout=layout)
        self.samples = len(read.values)
        self.kind: Kind = read.kind
        self.shape = read.shape
        self._values = read.values
        said: tuple[str, ...] = ()
        self.targets: Targets = targets or "classes"
        self.labels: Labels | None = None
        self.names = ()
        if y is not None:
            found = read_targets(y, self.samples, targets=targets, title=titles[1])
            self.targets, self.labels = found.targets, found.labels
            self.names, said = found.names, found.remarks
        self.remarks = (*read.remarks, *said)

    @classmethod
    def read_file(
        cls,
        path: Path,
        *,
        x: str = "x",
        y: str = "y",
        targets: Targets | None = None,
        layout: Layout | None = None,
    ) -> "ArraySource":
        """Spool two arrays of an .npz file, or of two .npy files: y names the other one.

        Raises   InputError, RangeError, ShapeError naming file and array
        """
        if path.suffix.lower() == NPY:
            if not y.lower().endswith(NPY):
                raise InputError(
                    f"{path}: holds one array, that of the samples; give the file of their targets "
                    "with --y FILE.npy"
                )
            arrays, titles = (read_array(path), read_array(Path(y))), (str(path), y)
        else:
            arrays = read_array(path, x), read_array(path, y)
            titles = f"{path}: array {x!r}", f"{path}: array {y!r}"
        return cls(*arrays, targets=targets, layout=layout, titles=titles)

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """See `Source`."""
        return np.asarray(self._values[positions]).reshape(len(positions), *self.shape)

    def where(self, position: int) -> str:
        """See `Source`."""
        return f"sample {position}"


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

    def where(self, position: int) -> str:
        """See `Source`."""
        return f"sample {position}"


def open_source(
    path: Path | str,
    *,
    x: str = "x",
    y: str = "y",
    label: str = "label",
    targets: Targets | None = None,
    layout: Layout | None = None,
    pictures: PictureOptions | None = None,
) -> Source:
    """The source that a path stands for.

    x, y       names of arrays in an .npz file; y may be an .npy file beside another one
    label      the column of the classes in a .csv file
    targets    what the samples have to learn; None: as the file suggests
    layout     where the channels of an array of four axes are
    pictures   how the pictures of a folder are brought to one kind
    Raises     InputError, RangeError, ShapeError naming the file
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    is_folder, is_array = path.is_dir(), suffix in (NPY, NPZ)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if targets not in (None, "classes") and not is_array:
        raise InputError(f"{path}: holds classes; {targets} are read from .npz")
    if layout is not None and not is_array:
        raise InputError(f"{path}: --layout is about arrays, and this is none; leave it out")
    if pictures not in (None, PictureOptions()) and not is_folder:
        raise InputError(
            f"{path}: --background, --channels and --resize are about pictures, and this is no "
            "folder of pictures; leave them out"
        )
    if is_folder:
        return FolderSource(path, pictures)
    if is_array:
        return ArraySource.read_file(path, x=x, y=y, targets=targets, layout=layout)
    if suffix == ".csv":
        return TableSource(path, label=label)
    raise InputError(
        f"{path}: give an .npz, .npy or .csv file, or a folder with a folder of pictures for each "
        "class"
    )


def value_range(source: Source) -> tuple[float, float]:
    """Smallest and largest value of all samples: secret until they are made public.

    Raises   RangeError naming a sample that is not finite, or a value that would flatten the others
    """
    low, high = np.inf, -np.inf
    some: list[np.ndarray] = []
    size = int(np.prod(source.shape))
    rows = max(1, CHUNK_BYTES // (8 * size))
    stride = -(-source.samples * size // SAMPLED_VALUES)
    while np.gcd(stride, size) > 1:  # so that all elements of a sample are looked at
        stride += 1
    for start in range(0, source.samples, rows):
        stop = min(start + rows, source.samples)
        piece = source.read(np.arange(start, stop, dtype=np.int64))
        finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
        if not finite.all():
            raise RangeError(
                f"{source.where(start + int(np.argmin(finite)))}: holds NaN or infinity; fill or "
                "drop it"
            )
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        some.append(piece.reshape(-1)[-start * size % stride :: stride].astype(np.float64))
    require_no_outlier(np.concatenate(some), (low, high), what="samples", option="--range")
    return low, high


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
