"""From what a caller has to an array that a model takes, where nothing is lost unsaid.

An object of another library becomes a NumPy array by `__array__` or DLPack, without an import of
that library. Its numbers become the model's type under these rules.

    wider to narrower floats   rounded to nearest; refused if a finite number becomes infinite
    integers to floats         refused if one is not represented exactly
    to integers                refused if one is out of range, or no whole number
    to truth values            refused if one is neither 0 nor 1
    uint8 to floats            refused: how pixels become a model's input is for the caller to say

No message contains a value: inputs are secret.
"""

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from cloister.base.reading import parsing, require_truths
from cloister.errors import RangeError, ShapeError
from cloister.graph.batch import batch_axis, element_type
from cloister.graph.graph import BATCH, Graph, Size

_FLOATS = {
    np.dtype(np.float64): 53,
    np.dtype(np.float32): 24,
    np.dtype(np.float16): 11,
    np.dtype(ml_dtypes.bfloat16): 8,
}
"""Floating-point types, with the bits of the integers that they all represent."""
_LONG = np.longdouble
"""64 bits of mantissa on x86-64: it represents every integer type exactly."""


def as_array(given: object, what: str) -> np.ndarray:
    """An array, list, number, or tensor of another library as a NumPy array.

    Gradients stay behind: results have none. A tensor on an accelerator is copied to this machine.

    Raises   ShapeError beginning with `what`
    """
    if isinstance(given, np.ndarray):
        # NumPy loads np.ma when it is first named, in the middle of a request.
        if type(given) is not np.ndarray and np.ma.is_masked(given):
            raise ShapeError(f"{what}: entries are masked; fill them, as with x.filled(0)")
        return np.asarray(given)
    kind = type(given).__name__
    with parsing(f"{what}: the {kind} cannot be read as an array", kind=ShapeError):
        array = _read(given)
    if array.dtype == object and array.ndim == 0:
        raise ShapeError(f"{what}: expected an array, a list or a number, got {kind}")
    return array


def as_other(given: object, what: str) -> object:
    """A sequence, map or optional value, for an input that is no tensor.

    Raises   ShapeError beginning with `what`
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, list | tuple):
        return [as_array(entry, f"{what}, entry {i}") for i, entry in enumerate(given)]
    return as_array(given, what)


def _read(given: object) -> np.ndarray:
    if isinstance(given, list | tuple) and any(hasattr(one, "__dlpack__") for one in given):
        return np.stack([_read(one) for one in given])
    detach = getattr(given, "detach", None)
    if callable(detach):  # a PyTorch tensor; DLPack exports those of the current device alone
        tensor = detach().cpu()
        # NumPy has no bfloat16; float32 represents all of its numbers.
        given = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    if not hasattr(given, "__dlpack__"):
        array = np.asarray(given)
        # Among texts, NumPy would turn a number, or a NaN for a missing entry, into a text.
        mixed = array.dtype.kind == "U" and isinstance(given, list | tuple)
        return np.asarray(given, object) if mixed else array
    try:
        if hasattr(given, "__array__"):
            return np.asarray(given)
    except TypeError:
        pass  # as CuPy, which refuses to leave its device unless it is asked to
    return np.from_dlpack(given, device="cpu")


def as_input(
    graph: Graph, name: str, array: np.ndarray, what: str, *, whole: bool = True
) -> np.ndarray:
    """An array as an input of a model: its element type, and with an axis for the batch.

    A sample without that axis becomes a batch of one. A vector becomes the column of an input of
    one number per sample.

    whole   the array is all of a request's; otherwise it may be a part of a fixed batch

    Raises   ShapeError, RangeError beginning with `what`
    """
    if whole and is_input(graph, name, array):
        return array
    shaped = _shaped(graph, name, array, what, whole=whole)
    made = convert(shaped, element_type(graph, name), what, batch_axis(graph, name))
    return np.asarray(made, order="C")


def is_input(graph: Graph, name: str, array: np.ndarray) -> bool:
    """Whether an array is float32 numbers as the model takes them: most inputs are."""
    known, sizes = graph.types.get(name), graph.sizes(name)
    return (
        known is not None
        and sizes is not None
        and known.dtype == array.dtype == np.float32
        and array.flags.c_contiguous
        and len(sizes) == array.ndim
        and all(s == n or isinstance(s, str) for s, n in zip(sizes, array.shape, strict=True))
    )


def _shaped(graph: Graph, name: str, array: np.ndarray, what: str, *, whole: bool) -> np.ndarray:
    sizes, axis = graph.sizes(name), batch_axis(graph, name)
    if sizes is None:
        return array  # of any rank

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(sizes) and all(
            isinstance(want, str) or want == got or (i == axis and not whole)
            for i, (want, got) in enumerate(zip(sizes, shape, strict=True))
        )

    if fits(array.shape):
        return array
    if axis is not None and array.ndim == len(sizes) - 1:
        sample = np.expand_dims(array, axis)
        if fits(sample.shape):
            return sample
    if axis == 0 and len(sizes) == 2 and sizes[1] == 1 and array.ndim < 2:
        column = array.reshape(-1, 1)
        if fits(column.shape):
            return column
    raise ShapeError(
        f"{what}: the model takes shape {_text(sizes)}, got {array.shape}"
        + _fixed_batch_remedy(graph, sizes, array.shape)
    )


def _text(sizes: Sequence[Size]) -> str:
    return f"({', '.join(str(size or '?') for size in sizes)}{',' * (len(sizes) == 1)})"


def _fixed_batch_remedy(graph: Graph, sizes: tuple[Size, ...], shape: tuple[int, ...]) -> str:
    """What to do about samples that are more or fewer than a model of fixed batch takes."""
    if graph.batch is None or not sizes or sizes[0] == BATCH or sizes[1:] != shape[1:]:
        return ""
    return f"; give {graph.batch} at a time, or export the model with a first axis of any size"


def convert(array: np.ndarray, wanted: np.dtype, what: str, axis: int | None) -> np.ndarray:
    """An array of the model's element type; see the rules above.

    axis   of the samples, which messages name by their number

    Raises   ShapeError for a type that does not become the model's, RangeError for a number
    """
    given = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    if wanted.kind == "O":
        return _texts(array, what, axis)
    if given.kind == "O":
        # Rows of a table with columns of several types: its numbers are Python's own.
        with parsing(f"{what}: the entries cannot be read as numbers", kind=ShapeError):
            array = np.asarray(array.tolist())
        given = array.dtype
    array = array.astype(given, copy=False)
    if given == wanted:
        require_truths(array, what, kind=RangeError)
        return array
    if wanted in _FLOATS and given == np.uint8:
        raise ShapeError(
            f"{what}: the model takes {wanted}, got uint8, such as pixels; convert it as the model "
            f"was trained, as by x.astype('{wanted}') / 255"
        )
    if given in _FLOATS or given.kind in "iub":
        if wanted in _FLOATS:
            return _to_float(array, wanted, what, axis)
        if wanted.kind in "iu":
            return _to_integer(array, wanted, what, axis)
        if wanted.kind == "b":
            _refuse((array != 0) & (array != 1), what, axis, "a number other than 0 and 1")
            return array.astype(wanted)
    raise ShapeError(f"{what}: the model takes {wanted}, got {given}; convert it")


def _to_float(array: np.ndarray, wanted: np.dtype, what: str, axis: int | None) -> np.ndarray:
    with np.errstate(over="ignore"):
        made = array.astype(wanted)
    if array.dtype in _FLOATS:
        lost = np.isfinite(array) & ~np.isfinite(made)
        _refuse(lost, what, axis, f"a number beyond the largest {wanted}; scale the inputs")
        return made
    exact = 2 ** _FLOATS[wanted]
    if array.size and (int(array.min()) < -exact or int(array.max()) > exact):
        lost = made.astype(np.float64).astype(_LONG) != array.astype(_LONG)
        why = f"an integer that {wanted} does not represent exactly; give floats to have it rounded"
        _refuse(lost, what, axis, why)
    return made


def _to_integer(array: np.ndarray, wanted: np.dtype, what: str, axis: int | None) -> np.ndarray:
    if array.dtype in _FLOATS:
        array = array.astype(np.float64)
        broken = ~np.isfinite(array) | (array != np.rint(array))
        why = f"a number that is not whole, and the model takes {wanted}; round the inputs"
        _refuse(broken, what, axis, why)
    if array.dtype.kind == "b":
        return array.astype(wanted)
    limits = np.iinfo(wanted)
    # As a float, the largest integer rounds up to the first number that is out of range.
    beyond = (array < limits.min) | (array >= limits.max + 1)
    _refuse(beyond, what, axis, f"a number beyond the range of {wanted}")
    return array.astype(wanted)


def _texts(array: np.ndarray, what: str, axis: int | None) -> np.ndarray:
    if array.dtype.kind not in "OUT" and array.size:
        raise ShapeError(f"{what}: the model takes texts, got {array.dtype}; convert it")
    texts = array.astype(object)
    if array.dtype.kind == "O":
        odd = np.array([not isinstance(one, str) for one in texts.flat], bool)
        _refuse(odd.reshape(texts.shape), what, axis, "an entry that is no text")
    return texts


def _refuse(lost: np.ndarray, what: str, axis: int | None, why: str) -> None:
    if not lost.any():
        return
    which = "it" if axis is None else f"sample {np.argwhere(lost)[:, axis].min()}"
    raise RangeError(f"{what}: {which} has {why}")
