"""Which files of a folder are pictures, and of which class: that of the folder below the root.

Folders inside a class, such as one for each patient, belong to it. Everything else is listed as
skipped: hidden files, files that are no pictures, and links to folders inside a class.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.base.reading import open_regular, parsing
from cloister.data.dicom import is_dicom
from cloister.data.pictures import listed, skipped_text
from cloister.errors import InputError

PICTURES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".pbm", ".pgm", ".ppm", ".pnm",
    ".pfm", ".tif", ".tiff", ".gif", ".webp",
})  # fmt: skip
DICOM = frozenset({".dcm", ".dicom", ".ima"})
UNREAD = frozenset({
    ".jp2", ".j2k", ".heic", ".heif", ".avif", ".svg", ".psd", ".tga", ".ico", ".exr", ".dng",
    ".nef", ".cr2", ".nii", ".mha", ".mhd", ".nrrd", ".svs", ".ndpi", ".mp4", ".avi",
})  # fmt: skip
"""Pictures that are refused, since a folder without them would be another data set."""
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8", b"RIFF")
"""Of pictures without a suffix."""
_LEFT_OUT = frozenset(
    {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "DICOMDIR"}
)
"""Folders and files of operating systems and archives, and DICOM's table of contents."""
_PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


@dataclass(frozen=True)
class PictureFolder:
    """The pictures below a folder, in the order of their names.

    paths     relative to the folder
    labels    numbers of `names` for each; None where classes do not matter
    names     class folders that hold pictures
    remarks   a sentence each about what was left out, and what the folders inside a class mean
    """

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None
    names: tuple[str, ...]
    remarks: tuple[str, ...]


def list_pictures(root: Path, *, labelled: bool = True) -> PictureFolder:
    """Find the pictures below a folder.

    labelled   whether the folders below it are classes; otherwise all pictures are listed

    Raises   InputError naming folder and remedy
    """
    skipped: list[str] = []
    found = list(_pictures(root, Path(), skipped))
    if not labelled:
        if not found:
            raise InputError(f"{root}: holds no pictures{_but(skipped)}; give a folder that does")
        return PictureFolder(root, tuple(found), None, (), _skipped(skipped))
    outside = [path for path in found if len(path.parts) == 1]
    inside = [path for path in found if len(path.parts) > 1]
    if not inside:
        held = (
            f"pictures ({listed(list(map(str, outside)))}), but none" if outside else "no pictures"
        )
        raise InputError(
            f"{root}: holds {held} in folders, one for each class{_but(skipped)}; move the "
            "pictures of a class into a folder of its name"
        )
    names = tuple(dict.fromkeys(path.parts[0] for path in inside))
    _require_classes(root, names, inside)
    remarks = (
        *_skipped([*map(str, outside), *skipped]),
        *_nested(inside),
        *(
            f"folder {name}: holds no pictures and is no class; name it with --classes if others "
            "have it"
            for name in _empty(root, names)
        ),
    )
    numbers = {name: number for number, name in enumerate(names)}
    labels = tuple(numbers[path.parts[0]] for path in inside)
    return PictureFolder(root, tuple(inside), labels, names, remarks)


def is_picture_file(path: Path) -> bool:
    """Whether a file is a picture by its name, read or refused, or by its beginning.

    Hidden files are none.
    """
    if path.name.startswith(".") or path.name in _LEFT_OUT or path.is_dir():
        return False
    if path.suffix.lower() in PICTURES | DICOM | UNREAD:
        return True
    try:
        with open_regular(path) as file:
            return is_dicom(file) or (not path.suffix and file.read(4).startswith(_BEGINNINGS))
    except OSError:
        return False


def _pictures(root: Path, inside: Path, skipped: list[str]) -> Iterator[Path]:
    """Paths of pictures below root/inside, relative to the root; others are added to `skipped`."""
    with parsing(f"{root / inside}: the folder cannot be read"):
        entries = sorted(os.scandir(root / inside), key=lambda entry: entry.name)
    for entry in entries:
        path = inside / entry.name
        is_class = inside == Path()
        if entry.name.startswith(".") or entry.name in _LEFT_OUT:
            skipped.append(f"{path}/" if entry.is_dir() else str(path))
        elif entry.is_dir():
            # A link may lead back to a folder above: only classes are followed, and compared.
            if entry.is_symlink() and not is_class:
                skipped.append(f"{path} (a link to a folder)")
            else:
                yield from _pictures(root, path, skipped)
        elif is_picture_file(root / path):
            yield path
        else:
            skipped.append(str(path))


def _require_classes(root: Path, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Refuse folders that are parts of a data set, and a picture that has two classes by links."""
    if {name.lower() for name in names} <= _PARTS:
        raise InputError(
            f"{root}: its folders {', '.join(names)} are parts of a data set, not classes; give "
            f"one of them, such as {root / names[0]}, and mark it with --split"
        )
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            stat = os.stat(root / path)
        except OSError:
            continue  # the reader says why
        other = seen.setdefault((stat.st_dev, stat.st_ino), path)
        if other.parts[0] != path.parts[0]:
            raise InputError(
                f"{root}: {other} and {path} are links to one file, which has two classes; remove "
                "one of them"
            )


def _empty(root: Path, names: Sequence[str]) -> list[str]:
    return [
        entry.name
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name)
        if entry.is_dir()
        and entry.name not in {*names, *_LEFT_OUT}
        and not entry.name.startswith(".")
    ]


def _nested(paths: Sequence[Path]) -> tuple[str, ...]:
    folders = sorted({str(path.parent) for path in paths if len(path.parts) > 2})
    if not folders:
        return ()
    first = Path(folders[0])
    return (
        f"folders inside class folders ({listed(folders)}): their pictures are of the class above, "
        f"as those of {first} are of class {first.parts[0]}",
    )


def _skipped(names: Sequence[str]) -> tuple[str, ...]:
    return (f"files: {skipped_text(names)}",) if names else ()


def _but(skipped: Sequence[str]) -> str:
    return f" (files: {skipped_text(skipped)})" if skipped else ""
