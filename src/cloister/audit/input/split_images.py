"""The images of an audit of splits: those that are attacked, and those that the attacker has.

Images are read as pixels and kept in 0..1; the model's own scaling is a map from there to its
input. One seed parts them, so that every audit of a data set attacks the same ones.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from cloister.audit.input.attack_knowledge import PixelMap
from cloister.audit.input.image_score import wilson_interval
from cloister.base.reading import open_regular, parsing
from cloister.data.idx_file import read_idx
from cloister.data.picture_folder import is_picture_file
from cloister.data.preprocessing import (
    Channels,
    Layout,
    PictureForm,
    Preprocessing,
    as_picture,
    open_picture,
    prepare_picture,
    split_pixels,
)
from cloister.errors import InputError, RangeError, ShapeError, UnsupportedError
from cloister.graph.graph import Graph
from cloister.graph.input_files import picture_form
from cloister.graph.sample_form import own_pixels
from cloister.plan.split_report import CANDIDATES, RULE, binomial_tail

LEAST_SIZE = 4
"""Of the images' sides: similarity of structure needs some."""
LEAST_PUBLIC = 100
MOST_PUBLIC = 2000
CONFIDENCE = 1e-3
"""How often an attack at chance level may miss the threshold for its few images alone."""
FARTHEST = (-1.0, 2.0)
"""Of a mean, in units in which pixels are from 0 to 1."""
SEED = 0
MNIST = ("t10k-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz")
HALVES = ("test_images", "train_images")
WHOLE = ("x", "images")
"""Names of arrays in an .npz that holds one set of images."""
AS_UNIT = Preprocessing()

Images = Float32[np.ndarray, "n c h w"]
Item = Path | np.ndarray


@dataclass(frozen=True, eq=False)
class SplitImages:
    """Images in 0..1, their channels in the model's order.

    attacked     unknown to the attacks
    public       what the attacks learn from
    pixels       the map from images to inputs of the model
    channels     the order of their channels
    repeated     images that were left out, being equal to another one
    """

    name: str
    attacked: Images
    public: Float32[np.ndarray, "m c h w"]
    pixels: PixelMap
    channels: Channels
    repeated: int

    @property
    def sha256(self) -> str:
        """Digest of all images, in their order."""
        found = hashlib.sha256()
        for images in (self.attacked, self.public):
            found.update(f"{images.shape} ".encode())
            found.update(np.ascontiguousarray(images).data)
        return found.hexdigest()

    def inputs(self, images: Images) -> Float32[np.ndarray, "n ..."]:
        """Images as the model takes them."""
        with torch.no_grad():
            return np.ascontiguousarray(self.pixels(torch.from_numpy(images)).numpy())


def least_attacked(candidates: int = CANDIDATES) -> int:
    """How many images must be attacked for the rule to accept an attack that finds nothing.

    With fewer, the interval of an attack at chance level is so wide that it reaches the threshold
    in more than one of a thousand audits.
    """
    limit = RULE.identification / candidates
    images = candidates
    while True:
        hits = next(k for k in range(images) if wilson_interval(k / images, images).high >= limit)
        if binomial_tail(hits, images, 1 / candidates) < CONFIDENCE:
            return images
        images += 1


def read_split_images(
    graph: Graph,
    path: Path,
    preprocessing: Preprocessing = AS_UNIT,
    *,
    public: Path | None = None,
    attacked: int,
    most_public: int = MOST_PUBLIC,
) -> SplitImages:
    """The images of a folder (pictures, also in folders of it, or MNIST's files) or an .npz.

    An .npz has an array `x` or `images`, or `test_images` to attack and `train_images` that are
    public.

    public   the attacker's own images; default: those of `path` that are not attacked

    Raises   InputError naming the file and what to do: images of another kind or size, values
             outside 0..1, too few images; UnsupportedError for a model that takes none
    """
    least = least_attacked()
    if attacked < least:
        raise InputError(
            f"{attacked} attacked images are too few, and {least} are needed: with fewer, the 95 % "
            f"interval of an attack that only guesses (1 in {CANDIDATES}) reaches the threshold of "
            f"{RULE.identification / CANDIDATES:.0%} in more than {CONFIDENCE:.1%} of audits"
        )
    preprocessing = own_pixels(graph, preprocessing)
    form = _form(graph, path, preprocessing)
    found, own = _items(path)
    if public is not None:
        own = [one for part in _items(public) for one in part or ()]
    taken, pool = _Taken(form), _shuffled(found)
    chosen = taken.take(pool, attacked, path)
    if len(chosen) < attacked:
        raise InputError(
            f"{path}: holds {len(chosen)} different images, and {attacked} are to be attacked; "
            f"{_missing(len(chosen), attacked, least, own)}"
        )
    learned = taken.take(pool if own is None else _shuffled(own), most_public, public or path)
    if len(learned) < LEAST_PUBLIC:
        raise InputError(
            f"{public or path}: holds {len(learned)} images that are not attacked, and the attacks "
            f"learn from {LEAST_PUBLIC} at least; give {LEAST_PUBLIC - len(learned)} more, or the "
            "attacker's own with --public"
        )
    return SplitImages(
        path.name, np.stack(chosen), np.stack(learned), _pixel_map(graph, form, preprocessing),
        form.channels, taken.repeated,
    )  # fmt: skip


def _missing(held: int, attacked: int, least: int, own: list[Item] | None) -> str:
    """How many more images are needed, those that the attacker learns from among them."""
    public = LEAST_PUBLIC if own is None else 0
    fewer = f", or {least + public - held} more and --attacked {least}" if attacked > least else ""
    counted = f", as the attacks learn from {public} others" if public else ""
    return f"give {attacked + public - held} more{fewer}{counted}"


class _Taken:
    """Different images from several sources: an image that was taken is not taken again."""

    def __init__(self, form: PictureForm) -> None:
        self._form, self._seen = form, set[bytes]()
        self.repeated = 0

    def take(self, items: Iterator[Item], most: int, path: Path) -> list[np.ndarray]:
        """So many images; those that equal an earlier one are left out and counted."""
        found: list[np.ndarray] = []
        while len(found) < most and (item := next(items, None)) is not None:
            image = _prepared(item, self._form, path)
            if (key := image.tobytes()) in self._seen:
                self.repeated += 1
                continue
            self._seen.add(key)
            found.append(image)
        return found


def _shuffled(items: Sequence[Item]) -> Iterator[Item]:
    generator = torch.Generator().manual_seed(SEED)
    return (items[i] for i in torch.randperm(len(items), generator=generator).tolist())


# ---- what a model takes


def _form(graph: Graph, path: Path, preprocessing: Preprocessing) -> PictureForm:
    """The images that a model takes, with their channels first."""
    name = graph.inputs[0] if graph.inputs else ""
    sizes = graph.sizes(name) or ()
    if len(graph.inputs) != 1:
        raise UnsupportedError(
            f"{graph.name}: an audit of splits needs a model of one input, and it has "
            f"{', '.join(graph.inputs) or 'none'}"
        )
    if graph.batch is not None:
        raise UnsupportedError(
            f"{graph.name}: takes batches of {graph.batch} only; export it with a first axis of "
            "any size"
        )
    if (
        len(sizes) != 4
        or not all(isinstance(size, int) for size in sizes[1:])
        or not ({1, 3} & {sizes[1], sizes[3]})
    ):
        raise UnsupportedError(
            f"input {name!r} takes shape ({', '.join(map(str, sizes))}): an audit of splits needs "
            "images, (n, channels, height, width) or (n, height, width, channels) with 1 or 3 "
            "channels"
        )
    form = picture_form(graph, name, path, preprocessing)
    if min(form.size) < LEAST_SIZE:
        raise UnsupportedError(
            f"input {name!r} takes images of {form.size[0]} x {form.size[1]} pixels: an audit of "
            f"splits needs {LEAST_SIZE} x {LEAST_SIZE} at least"
        )
    return replace(form, layout=Layout.NCHW)


def _pixel_map(graph: Graph, form: PictureForm, preprocessing: Preprocessing) -> PixelMap:
    """(255 pixel * scale - mean) / std, of pixels in 0..1."""
    count = 1 if form.channels is Channels.GRAY else 3
    for option, values in (("--mean", preprocessing.mean), ("--std", preprocessing.std)):
        if len(values) not in (1, count):
            wanted = "give one number" + (f" or {count}, one per channel" if count > 1 else "")
            raise InputError(f"{option}: {wanted}")
    unit = 255 * preprocessing.scale
    shape = tuple(int(size) for size in (graph.sizes(graph.inputs[0]) or ())[1:])
    mean, std = preprocessing.of_unit_pixels
    if not all(FARTHEST[0] <= value <= FARTHEST[1] for value in mean):
        raise InputError(
            f"--mean: pixels are from 0 to {unit:g} with this --scale, and the mean lies far from "
            "them; the integers of a plan would round pixels away, and no attack would find them"
        )
    return PixelMap(shape, mean, std)


# ---- what files hold


def _items(path: Path) -> tuple[list[Item], list[Item] | None]:
    """The images of a path, and those of a part that is public, if the path has one."""
    if path.is_dir():
        test, train = (path / name for name in MNIST)
        if test.is_file() and train.is_file():
            attackable, known = (_pictures(read_idx(one, axes=3), one) for one in (test, train))
            return attackable, known
        found = sorted(one for one in path.rglob("*") if is_picture_file(one))
        if not found:
            raise InputError(f"{path}: the folder holds no picture, nor do its folders")
        return list(found), None
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path}: give a folder of pictures, or an .npz of arrays")
    with parsing(f"{path}: not a readable .npz file"), open_regular(path) as file:
        arrays = np.load(file, allow_pickle=False)
        if set(HALVES) <= set(arrays.files):
            test_images, train_images = (_pictures(arrays[name], path) for name in HALVES)
            return test_images, train_images
        for name in WHOLE:
            if name in arrays.files:
                return _pictures(arrays[name], path), None
    raise InputError(
        f"{path}: has the arrays {', '.join(arrays.files) or 'none'}; an audit reads x or images, "
        "or test_images with train_images"
    )


def _pictures(array: np.ndarray, path: Path) -> list[Item]:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(
            f"{path}: holds values of type {array.dtype}; give pixels as uint8, or floating-point "
            "numbers in 0..1"
        )
    if array.dtype != np.uint8 and np.isnan(array).any():
        raise RangeError(f"{path}: holds NaN; leave out the images that have it")
    if array.dtype != np.uint8 and not (
        array.min(initial=0.0) >= 0 and array.max(initial=1.0) <= 1
    ):
        raise RangeError(
            f"{path}: holds values from {array.min():.4g} to {array.max():.4g}; give pixels as "
            "uint8, or as floating-point numbers in 0..1: --scale, --mean and --std say what the "
            "model makes of them"
        )
    return list(split_pixels(array, path))


def _prepared(item: Item, form: PictureForm, path: Path) -> Float32[np.ndarray, "c h w"]:
    """An image in 0..1."""
    if isinstance(item, Path):
        return prepare_picture(open_picture(item, form, AS_UNIT), form, AS_UNIT, item)
    if item.dtype == np.uint8:
        return prepare_picture(as_picture(item, form, path), form, AS_UNIT, path)
    wanted = (*form.size, 1 if form.channels is Channels.GRAY else 3)
    if item.shape != wanted:
        raise ShapeError(
            f"{path}: images of shape {item.shape} (height, width, channels), the model takes "
            f"{wanted}; images of another size or other channels are fitted from uint8 pixels only"
        )
    ordered = item[:, :, ::-1] if form.channels is Channels.BGR else item
    return np.ascontiguousarray(ordered.transpose(2, 0, 1), np.float32)
