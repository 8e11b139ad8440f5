"""What a new encrypted data set is like: its encoding, its classes, its owner's terms.

The first client decides; what it decided travels to the others in the notes of the terms.
"""

import json as jsons
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int64

from cloister.authority.records import Terms
from cloister.cli.console import err
from cloister.errors import EncryptionError, InputError, RangeError
from cloister.fe.encoding import Encoding
from cloister.fe.keyservice import DatasetInfo, Mode
from cloister.training.sources import (
    PIXELS,
    Encoder,
    Source,
    TableSource,
    require_fewer_classes_than_samples,
    require_no_outlier,
)

REHEARSED_AT_ONCE = 1024
REHEARSED_VALUES = 1 << 16
"""Of so many samples, to see what most values are like."""


@dataclass(frozen=True)
class Wishes:
    """What a new data set should be like; an existing one has decided."""

    bits: int
    value_range: tuple[float, ...] | None
    ranges: Mapping[str, tuple[float, float]] | None
    classes: tuple[str, ...] | None
    budget: int | None
    max_bits: int | None
    value_bits: int | None
    many_functions: bool
    labels_to_server: bool
    mode: str
    allow_unbounded_leakage: bool
    clip: bool


def agree(info: DatasetInfo, terms: Terms, wishes: Wishes) -> None:
    """Refuse to add to a data set that gives more away than this client has agreed to.

    Raises   InputError naming the option
    """
    refusal, limits = None, terms.limits(info)
    if info.mode == "paper" and not wishes.allow_unbounded_leakage:
        refusal = "gives every sample away (mode paper); agree with --allow-unbounded-leakage"
    elif wishes.budget is not None and info.mode == "paper":
        refusal = "has no budget (mode paper); drop --budget"
    elif wishes.budget is not None and info.budget_rank > wishes.budget:
        refusal = f"has a budget of {info.budget_rank}, above --budget {wishes.budget}"
    elif wishes.max_bits is not None and limits.max_bits is None:
        refusal = "has no limit of bits; drop --max-bits"
    elif wishes.max_bits is not None and (limits.max_bits or 0) > wishes.max_bits:
        refusal = f"allows {limits.max_bits} bits, above --max-bits {wishes.max_bits}"
    elif wishes.value_bits is not None and limits.value_bits > wishes.value_bits:
        refusal = f"gives {limits.value_bits} bits a value, above --value-bits {wishes.value_bits}"
    elif info.mode == "guarded" and not (limits.one_function or wishes.many_functions):
        refusal = "gives values of any function; agree with --many-functions"
    elif not wishes.labels_to_server and terms.labels_to_server:
        refusal = "gives labels to the server; drop --labels-to trusted"
    if refusal is not None:
        raise InputError(f"data set {info.name} {refusal}, or choose another --name")


def rehearse(source: Source, info: DatasetInfo, wishes: Wishes) -> None:
    """Find values that do not fit before the data set's encoding is fixed for ever."""
    if wishes.clip or (wishes.value_range is None and wishes.ranges is None):
        return
    encoder = Encoder(source, info.encoding, ranges=wishes.ranges and _ordered(source, wishes))
    for start in range(0, len(source.labels), REHEARSED_AT_ONCE):
        stop = min(start + REHEARSED_AT_ONCE, len(source.labels))
        encoder.encode(np.arange(start, stop, dtype=np.int64))


def _ordered(source: Source, wishes: Wishes) -> dict[str, tuple[float, float]]:
    ranges = wishes.ranges or {}
    return {name: ranges[name] for name in getattr(source, "columns", ())}


def plan(name: str, source: Source, wishes: Wishes) -> tuple[DatasetInfo, Terms]:
    """The description and terms of a new data set.

    Raises   InputError, RangeError
    """
    notes: dict[str, Any] = {"kind": source.kind}
    if isinstance(source, TableSource):
        ranges = wishes.ranges
        if ranges is None:
            ranges = source.ranges()
            err().print(
                "note: every column's smallest and largest value of your data becomes known to "
                "the other clients and the authority; give public --ranges to avoid it",
                style="yellow",
            )
        missing = [column for column in source.columns if column not in ranges]
        if missing:
            raise InputError(f"--ranges: column {missing[0]} is missing")
        notes["ranges"] = {column: list(ranges[column]) for column in source.columns}
        encoding = Encoding.for_range(-1.0, 1.0, bits=wishes.bits)
    elif source.kind == "pixels":
        encoding = PIXELS
    else:
        encoding = _encoding_of_values(source, wishes)
    if wishes.classes is None:
        require_fewer_classes_than_samples(source)
    names = wishes.classes or tuple(source.names)
    notes["classes"] = list(names)
    info = DatasetInfo(
        name,
        source.shape,
        len(names),
        encoding,
        0,
        0 if wishes.budget is None else wishes.budget,
        cast(Mode, wishes.mode),  # checked by the description
    )
    if wishes.budget is None:
        info = replace(info, budget_rank=info.default_budget)
    terms = Terms(
        labels_to_server=wishes.labels_to_server,
        max_bits=wishes.max_bits,
        value_bits=wishes.value_bits,
        one_function=not wishes.many_functions,
        allow_unbounded_leakage=wishes.allow_unbounded_leakage,
        notes=jsons.dumps(notes),
    )
    return info, terms


def _encoding_of_values(source: Source, wishes: Wishes) -> Encoding:
    if wishes.value_range is not None:
        if len(wishes.value_range) != 2:
            raise InputError("--range: give LOW,HIGH")
        return Encoding.for_range(*wishes.value_range, bits=wishes.bits)
    low, high = np.inf, -np.inf
    some: list[np.ndarray] = []
    for start in range(0, len(source.labels), REHEARSED_AT_ONCE):
        stop = min(start + REHEARSED_AT_ONCE, len(source.labels))
        piece = source.read(np.arange(start, stop, dtype=np.int64))
        finite = np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
        if not finite.all():
            raise RangeError(
                f"sample {start + int(np.argmin(finite))}: holds NaN or infinity; fill or drop it"
            )
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        some.append(piece.reshape(-1)[:: -(-piece.size // REHEARSED_VALUES)].astype(np.float64))
    require_no_outlier(np.concatenate(some), (low, high), what="samples", option="--range")
    err().print(
        f"note: the range of your data, {low:g} to {high:g}, becomes public; give a public --range "
        "to avoid it",
        style="yellow",
    )
    return Encoding.for_range(low, high if high > low else low + 1.0, bits=wishes.bits)


def read_notes(info: DatasetInfo, terms: Terms) -> dict[str, Any]:
    """What the first client noted: kind, classes and, for a table, ranges.

    Raises   EncryptionError
    """
    try:
        notes = jsons.loads(terms.notes)
    except ValueError:
        notes = None
    if not isinstance(notes, dict) or not {"kind", "classes"} <= set(notes):
        raise EncryptionError(f"data set {info.name}: was not made by `cloister encrypt`")
    return notes


def class_numbers(
    info: DatasetInfo, known: list[str], source: Source
) -> Int64[np.ndarray, " names"]:
    """The data set's numbers of the source's classes.

    Raises   InputError naming a class the data set does not have
    """
    numbers = []
    for name in source.names:
        if name not in known:
            raise InputError(
                f"class {name!r} is not one of data set {info.name} ({', '.join(known)}); "
                "its first client names all of them with --classes"
            )
        numbers.append(known.index(name))
    return np.array(numbers, np.int64)


def read_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """A file of public ranges.

    Raises   InputError
    """
    try:
        fields = jsons.loads(path.read_text(encoding="utf-8"))
        return {str(name): (float(low), float(high)) for name, (low, high) in fields.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path}: not a file of ranges {{"column": [low, high]}} ({error})'
        ) from None
