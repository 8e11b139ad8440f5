"""An owner's plain samples: arrays, tables, folders of pictures. Read piece by piece.

Tables and compressed arrays are first spooled to an unnamed temporary file, so that samples can be
read in any order while memory stays flat: they are encrypted in a random order (`encoder`).
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike

from cloister.data.array_files import NPY, NPZ, array_title, read_array
from cloister.data.array_samples import read_samples
from cloister.data.array_targets import FEW_CLASSES, Labels, read_targets
from cloister.data.csv_source import TableSource
from cloister.data.encoding import Kind, require_no_outlier
from cloister.data.folder_source import FolderSource, PictureOptions
from cloister.data.info import Targets
from cloister.data.preprocessing import Layout
from cloister.data.table_options import TableOptions
from cloister.errors import InputError, RangeError

TABLES = frozenset({".csv", ".tsv"})
SPREADSHEETS = frozenset({".xlsx", ".xls", ".xlsm", ".ods", ".numbers"})
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
        x: ArrayLike,
        y: ArrayLike | None,
        *,
        targets: Targets | None = None,
        layout: Layout | str | None = None,
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

    def named(self, names: Sequence[str]) -> "ArraySource":
        """The same samples with names of the classes, labels or numbers, in their order.

        Names that hold all numbers of the classes name nothing anew.

        Raises   InputError when there are too few
        """
        if self.labels is None or set(self.names) <= set(names):
            return self
        if len(names) < len(self.names) or (
            len(names) > len(self.names) and self.targets != "classes"
        ):
            raise InputError(
                f"--classes: gives {len(names)} names, but the samples have {len(self.names)} "
                f"{self.targets}"
            )
        found = copy.copy(self)
        found.names = tuple(names)
        return found

    @classmethod
    def read_file(
        cls,
        path: Path,
        *,
        x: str = "x",
        y: str | None = "y",
        targets: Targets | None = None,
        layout: Layout | str | None = None,
    ) -> "ArraySource":
        """Spool the arrays of files.

        x   name in an .npz file; the one array of an .npy file has none
        y   the same, or the name of an .npy file; None: unlabelled samples

        Raises   InputError, RangeError, ShapeError naming file and array
        """
        alone, beside = path.suffix.lower() == NPY, (y or "").lower().endswith(NPY)
        if alone and y is not None and not beside:
            raise InputError(
                f"{path}: holds one array, that of the samples; give the file of their targets "
                "with --y FILE.npy"
            )
        samples = path, None if alone else x
        found = (Path(y or ""), None) if beside else (path, y)
        return cls(
            read_array(*samples),
            None if y is None else read_array(*found),
            targets=targets,
            layout=layout,
            titles=(array_title(*samples), array_title(*found)),
        )

    def read(self, positions: Int64[np.ndarray, " m"]) -> np.ndarray:
        """See `Source`."""
        return np.asarray(self._values[positions]).reshape(len(positions), *self.shape)

    def where(self, position: int) -> str:
        """See `Source`."""
        return f"sample {position}"


def open_source(
    path: Path | str,
    *,
    x: str = "x",
    y: str = "y",
    table: TableOptions | None = None,
    targets: Targets | None = None,
    layout: Layout | str | None = None,
    pictures: PictureOptions | None = None,
    unlabelled: bool = False,
) -> Source:
    """The source that a path stands for.

    x, y       names of arrays in an .npz file; y may be an .npy file beside another one
    table      how a .csv file is read
    targets    what the samples have to learn; None: as the file suggests
    layout     where the channels of an array of four axes are
    pictures   how the pictures of a folder are brought to one kind
    unlabelled whether the samples are to be predicted: targets are not read, a folder's pictures
               may lie anywhere in it
    Raises     InputError, RangeError, ShapeError naming the file
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    is_folder, is_array = path.is_dir(), suffix in (NPY, NPZ)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if targets not in (None, "classes") and is_folder:
        raise InputError(f"{path}: holds classes; {targets} are read from .npz and .csv")
    if table not in (None, TableOptions()) and suffix not in TABLES:
        raise InputError(
            f"{path}: the options that say how to read tables, such as --label, are about .csv; "
            "leave them out"
        )
    if layout is not None and not is_array:
        raise InputError(f"{path}: --layout is about arrays, and this is none; leave it out")
    if pictures not in (None, PictureOptions()) and not is_folder:
        raise InputError(
            f"{path}: --background, --channels and --resize are about pictures, and this is no "
            "folder of pictures; leave them out"
        )
    if is_folder:
        return FolderSource(path, pictures, labelled=not unlabelled)
    if is_array:
        y_name = None if unlabelled else y
        return ArraySource.read_file(path, x=x, y=y_name, targets=targets, layout=layout)
    if suffix in TABLES:
        return TableSource(path, table, targets=targets, labelled=not unlabelled)
    if suffix in SPREADSHEETS:
        raise InputError(f"{path}: spreadsheets are not read; save the sheet as CSV (UTF-8)")
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
