"""Samples from a folder of pictures, decoded once into a temporary file.

Every file is tried before any error is raised, so that one message lists all that cannot be used.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped
from PIL import Image

from cloister.data.array_targets import Labels
from cloister.data.encoding import Kind
from cloister.data.info import Targets
from cloister.data.picture_folder import list_pictures
from cloister.data.pictures import as_colour, listed, read_picture
from cloister.data.preprocessing import Channels
from cloister.data.spool import Spool
from cloister.errors import InputError, ShapeError

_MODES: Mapping[str, str] = {Channels.GRAY: "L", Channels.RGB: "RGB"}
_NAMES = {"L": "gray", "RGB": "colour", "F": "gray of more than 8 bits"}
_FEW = 3


@dataclass(frozen=True)
class PictureOptions:
    """How pictures that differ are brought to one kind; None: they are refused.

    background   colour behind transparent pixels
    channels     gray or rgb: every picture is converted
    resize       (height, width) of every picture, by bilinear interpolation

    Raises   InputError naming the option
    """

    background: str | None = None
    channels: Channels | str | None = None
    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.background is not None:
            as_colour(self.background)
        if self.channels is not None and self.channels not in _MODES:
            raise InputError(f"--channels {self.channels}: a data set's pictures are gray or rgb")
        if self.resize is not None and not all(size > 0 for size in self.resize):
            raise InputError(f"--resize {self.resize}: give a height and a width in pixels")

    def read(self, path: Path) -> tuple[Image.Image, Image.Image]:
        """A picture as it is in its file, upright, and as the options make it.

        Raises   InputError naming the file
        """
        found = made = read_picture(path, background=self.background)
        if self.channels is not None and found.mode != "F":
            made = made.convert(_MODES[self.channels])
        elif self.channels == Channels.RGB:
            raise InputError(f"{path}: has more than 8 bits, which only --channels gray keeps")
        if self.resize is not None and made.size != self.resize[::-1]:
            made = made.resize(self.resize[::-1], Image.Resampling.BILINEAR)
        return found, made


class FolderSource:
    """Pictures of one kind, in one folder for each class.

    Those of 8 bits are pixels; those of more are values, in the units of their author.
    """

    targets: Targets = "classes"
    names: Sequence[str]
    remarks: Sequence[str]

    def __init__(
        self, path: Path, options: PictureOptions | None = None, *, labelled: bool = True
    ) -> None:
        """Decode the pictures; unlabelled ones may lie in any folder, or in none.

        Raises   InputError, ShapeError naming the files that cannot be used
        """
        options = options or PictureOptions()
        folder = list_pictures(path, labelled=labelled)
        self.names, self._paths = folder.names, folder.paths
        self.samples = len(folder.paths)
        self.labels: Labels | None = None
        if folder.labels is not None:
            self.labels = np.array(folder.labels, np.int64)
        bad: dict[str, list[str]] = defaultdict(list)
        kinds: dict[_PictureKind, list[str]] = defaultdict(list)
        changed: dict[str, int] = defaultdict(int)
        with Spool(str(path)) as spool:
            for name in folder.paths:
                try:
                    found, made = options.read(path / name)
                except InputError as error:
                    bad[str(error).removeprefix(f"{path / name}: ")].append(str(name))
                    continue
                kinds[_PictureKind.of(made)].append(str(name))
                changed["--resize"] += found.size != made.size
                changed["--channels"] += found.mode != made.mode
                if len(kinds) == 1 and not bad:
                    spool.write(made.tobytes())
            _require_none(path, bad, kinds, len(folder.paths))
            (kind,) = kinds
            self._samples = spool.array(kind.dtype, (len(folder.paths), *kind.shape))
        self.shape = kind.shape
        self.kind: Kind = "pixels" if kind.dtype == np.uint8 else "values"
        self.remarks = (*folder.remarks, *_changes(changed))

    def read(self, positions: Int64[np.ndarray, " m"]) -> Shaped[np.ndarray, "m h w c"]:
        """See `Source`."""
        return np.asarray(self._samples[positions])

    def where(self, position: int) -> str:
        """See `Source`."""
        return str(self._paths[position])


@dataclass(frozen=True)
class _PictureKind:
    """Pictures of one kind can be samples of one data set."""

    height: int
    width: int
    mode: str

    @staticmethod
    def of(picture: Image.Image) -> "_PictureKind":
        return _PictureKind(picture.height, picture.width, picture.mode)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, 3 if self.mode == "RGB" else 1

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.mode == "F" else np.uint8)

    def __str__(self) -> str:
        return f"{self.height}x{self.width} {_NAMES[self.mode]}"


def _require_none(
    path: Path,
    bad: Mapping[str, Sequence[str]],
    kinds: Mapping[_PictureKind, Sequence[str]],
    count: int,
) -> None:
    """Refuse pictures that cannot be read, or that are of several kinds: all in one message."""
    told = []
    if bad:
        reasons = "; ".join(f"{listed(names)}: {why}" for why, names in bad.items())
        told.append(f"{sum(map(len, bad.values())):,} of {count:,} cannot be used: {reasons}")
    if len(kinds) > 1:
        most = sorted(kinds.items(), key=lambda item: -len(item[1]))
        groups = [f"{len(names):,} of {kind} ({_some(names)})" for kind, names in most]
        told.append(f"they are of {len(kinds):,} kinds: {listed(groups)}; {_remedy(kinds)}")
    if told:
        error = InputError if bad else ShapeError
        raise error(f"{path}: pictures: {'. '.join(told)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")


def _remedy(kinds: Mapping[_PictureKind, Sequence[str]]) -> str:
    modes, sizes = {kind.mode for kind in kinds}, {(kind.height, kind.width) for kind in kinds}
    remedies = []
    if len(sizes) > 1:
        remedies.append("one size by --resize HEIGHT,WIDTH")
    if {"L", "RGB"} <= modes:
        remedies.append("one number of channels by --channels gray or rgb")
    if "F" in modes and len(modes) > 1:
        remedies.append("one number of bits in each file itself")
    return "bring them to " + " and ".join(remedies)


def _changes(changed: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(
        f"pictures that {option} changed: {count:,}" for option, count in changed.items() if count
    )
