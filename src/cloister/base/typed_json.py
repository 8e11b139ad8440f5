"""From parsed JSON to dataclasses by their annotations; unknown and missing fields are refused.

A float is written with a point, so that a whole number in its place is refused, as is a truth value
in that of a number.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from cloister.errors import InputError

T = TypeVar("T")


def from_json(kind: type[T], found: object, *, where: str = "") -> T:
    """A value of a type that is made of dataclasses, tuples, mappings and plain values.

    where    of `found` in the document, for the message
    Raises   InputError naming the field
    """
    return cast(T, _value(kind, found, where or kind.__name__))


def _value(kind: Any, found: object, where: str) -> object:  # noqa: ANN401  (any annotation)
    if kind is object:
        return found
    if is_dataclass(kind):
        return _dataclass(kind, found, where)
    origin = get_origin(kind)
    if origin is tuple:
        (item, _) = get_args(kind)
        if not isinstance(found, list):
            raise _wrong(where, "a list", found)
        return tuple(_value(item, one, f"{where}[{i}]") for i, one in enumerate(found))
    if origin is not None and issubclass(origin, Mapping):
        (_, item) = get_args(kind)
        if not isinstance(found, dict):
            raise _wrong(where, "an object", found)
        return {name: _value(item, one, f"{where}.{name}") for name, one in found.items()}
    if type(found) is not kind or (isinstance(found, float) and not math.isfinite(found)):
        raise _wrong(where, kind.__name__, found)
    return found


def _dataclass(kind: Any, found: object, where: str) -> object:  # noqa: ANN401  (any dataclass)
    if not isinstance(found, dict):
        raise _wrong(where, "an object", found)
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    if odd := sorted(set(names) ^ set(found)):
        what = "is missing" if odd[0] in names else "is not known"
        raise InputError(f"{where}: field {odd[0]!r} {what}")
    return kind(**{name: _value(hints[name], found[name], f"{where}.{name}") for name in names})


def _wrong(where: str, wanted: str, found: object) -> InputError:
    return InputError(f"{where}: must be {wanted}, not {type(found).__name__}")
